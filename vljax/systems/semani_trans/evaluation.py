"""How SeMani-Trans is judged: table I, and what the paper claims without numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.manipulations import Manipulation
from vljax.data.pictures.entities import read_entities
from vljax.data.pictures.images import contact_sheet, resize_and_crop
from vljax.data.scenes.manipulations import TWO_COLOURS
from vljax.errors import UserError
from vljax.metrics.manipulation import (
    PAPER,
    TABLE_1,
    Jury,
    alignment_columns,
    l2_error,
    means,
    raster_place,
    scene_columns,
    scene_score,
)
from vljax.metrics.report import Report, Row
from vljax.models.alignment import choose, grid_to_mask, similarity_map, word_patches
from vljax.ops.parts import filled_batches
from vljax.request import File, option
from vljax.systems.semani_trans.method import (
    Network,
    Read,
    aligning_clip,
    edited_codes,
    find_entities,
    make_drawing,
    read,
    show,
    similarities,
    squared,
)
from vljax.systems.semani_trans.model import SeManiTrans, make_tokenizer

SCENES = "scenes: what became of the entities"
ALIGNED = "scenes: semantic alignment"
PLACES = "scenes: where the edited region lies (section 3.3)"
SHAPES = "scenes: shapes with and without the gray picture (figure 5)"
COLOURS = "scenes: two colours (figure 8)"

# A picture whose edited region lies, by the mean place of its pixels, in the first or last part.
_EARLY, _LATE = 0.45, 0.55


@dataclass(frozen=True)
class Judging:
    """How to judge."""

    num_images: int = option(160, low=1, help="manipulations to judge")
    batch_size: int = option(32, low=1, help="how many at a time")
    seed: int = option(0, seed=True, help="of the first picture")
    entities: File | None = option(
        None, help="what photographs are divided into, as --entities of a request"
    )
    clip: File | None = option(
        None, help="the CLIP that judges, the paper's a file of RN50 (default: the run's own)"
    )
    inception: File | None = option(None, help="published weights, for the Inception Score")


class Trial(NamedTuple):
    """How the pictures of a row are made.

    Attributes:
        name: What the tables call it.
        network: Who draws.
        region: Where: the entity "found" by alignment, the "given" one, or "patches" of the word.
        keeps_shape: Whether the gray picture is known.
        resize: How the mask comes to the codes, instead of `alignment.resize`.
        grown: Pixels by which it is grown, instead of `samples.grow`.
        own: Whether the text is what is there already.
    """

    name: str
    network: Network = "transformer"
    region: str = "found"
    keeps_shape: bool = False
    resize: str = ""
    grown: float | None = None
    own: bool = False


MAIN = Trial("SeMani-Trans")
PARALLEL = Trial("masked-parallel", "parallel")
PLAIN = Trial("without semantic loss", "plain")
GRAY = Trial("SeMani-Trans, gray", keeps_shape=True)
PARALLEL_GRAY = Trial("masked-parallel, gray", "parallel", keeps_shape=True)
TRIALS = (
    MAIN,
    PARALLEL,
    GRAY,
    PARALLEL_GRAY,
    PLAIN,
    Trial("SeMani-Trans, entity given", region="given"),
    Trial("SeMani-Trans, word patches", region="patches"),
    Trial("SeMani-Trans, mask not grown, bilinear", resize="bilinear", grown=0.0),
    Trial("SeMani-Trans, mask not grown, max-pool", resize="max", grown=0.0),
)
"""The rows that are made here, where the model and the data have what they need."""


@dataclass(frozen=True)
class Asked:
    """What is judged, at the size at which codes are made.

    Attributes:
        image: The pictures.
        wishes: What to change.
        regions: By kind, where to; see `Trial.region`.
    """

    image: UInt8[np.ndarray, "n s s 3"]
    wishes: Sequence[Manipulation]
    regions: Mapping[str, Bool[np.ndarray, "n s s"]]


def judge(model: SeManiTrans, config: ConfigDict, judging: Judging) -> Report:
    """Table I with the paper's rows, on scenes what became of every entity; and `edits`, a sheet.

    On scenes: who draws what was asked and keeps the rest (beside the floor, where nothing is
    edited), whether alignment finds what words name, early against late regions, shapes with and
    without gray, and two colours with and without the semantic loss.

    Raises:
        UserError: an option cannot be, or the data is not there.
    """
    asked = open_asked(model, config, judging)
    jury = Jury(
        [one.text for one in asked.wishes],
        model.clip,
        make_tokenizer(config),
        clip=judging.clip,
        inception=judging.inception,
        batch_size=judging.batch_size,
        seed=judging.seed,
    )

    def table_1(
        name: str, pictures: UInt8[np.ndarray, "n s s 3"], own: UInt8[np.ndarray, "n s s 3"] | None
    ) -> Row:
        values: dict[str, Any] = {"data": config.data.name, **jury.columns(pictures)}
        if own is not None:
            values["L2"] = float(l2_error(own, asked.image).mean())
        return Row(TABLE_1, name, values)

    trials = [
        trial
        for trial in TRIALS
        if getattr(model, trial.network) is not None and trial.region in asked.regions
    ]
    made = {trial: draw_trial(model, config, judging, asked, trial) for trial in trials}
    floor = np.concatenate(
        [np.asarray(show(model, read(model, part).codes)) for part in _batches(asked, judging)]
    )[: len(asked.wishes)]
    own = {
        trial: draw_trial(model, config, judging, asked, trial._replace(own=True))
        for trial in (MAIN, PARALLEL, PLAIN)
        if trial in made
    }
    rows = [table_1("nothing edited", floor, floor)]
    rows += [table_1(trial.name, made[trial], own.get(trial)) for trial in made]
    rows += PAPER
    if all(one.truth for one in asked.wishes):
        rows += scene_rows(asked, made, floor)
    shown = slice(0, 8)
    masks = np.repeat(np.uint8(255) * asked.regions["found"][shown, ..., None], 3, axis=-1)
    sheet = [("before", asked.image[shown]), ("found", masks), ("nothing edited", floor[shown])]
    sheet += [(trial.name, pictures[shown]) for trial, pictures in made.items()]
    notes = {
        "manipulations": len(asked.wishes),
        "first texts": "; ".join(f"{one.entity}: {one.text}" for one in asked.wishes[shown]),
        "CLIP that judges": judging.clip or "the run's own, which also guided the training",
    }
    return Report(tuple(rows), notes, {"edits": contact_sheet(sheet)})


# What is judged ----------------------------------------------------------------------------------


def open_asked(model: SeManiTrans, config: ConfigDict, judging: Judging) -> Asked:
    """The benchmark's manipulations, with the regions that alignment finds.

    Raises:
        UserError: the data is not there, or there is nothing to find entities among.
    """
    side = config.data.image_size
    wishes: list[Manipulation] = []
    images: list[np.ndarray] = []
    regions: dict[str, list[np.ndarray]] = {"found": [], "given": [], "patches": []}
    tokenizer, divide = make_tokenizer(config), find_entities(config)
    for wish in open_benchmark(config.data).manipulations(judging.num_images):
        image = resize_and_crop(wish.image, side)
        entities, given = None, None
        if judging.entities:
            size = (wish.image.shape[0], wish.image.shape[1])
            entities = squared(read_entities(judging.entities, size, wish.name), side)
        elif divide is not None:
            entities = divide(image)
        if wish.mask is not None:
            given = squared(wish.mask[None], side)[0]
        similarity = similarity_map(
            aligning_clip(model), tokenizer, image, _word(wish), config.alignment.prompt
        )
        patches = word_patches(similarity, config.alignment.threshold)
        patches = grid_to_mask(patches, (side, side))
        found = given if wish.kind == TWO_COLOURS else None
        if found is None and entities is not None and len(entities):
            scores = similarities(model, config, tokenizer, image, entities, wish.entity)
            best = choose(scores, -np.inf, anyway=True).entities
            found = entities[best[0]] if best else None
        wishes.append(wish)
        images.append(image)
        nothing = np.zeros((side, side), bool)
        regions["found"].append(patches if found is None else found)
        regions["given"].append(nothing if given is None else given)
        regions["patches"].append(patches)
    if not wishes:
        raise UserError(f"data.name={config.data.name!r} has no manipulations to judge by")
    stacked = {name: np.stack(masks) for name, masks in regions.items()}
    if not all(wish.mask is not None for wish in wishes):
        del stacked["given"]
    return Asked(np.stack(images), wishes, stacked)


def _word(wish: Manipulation) -> str:
    """One word where several entities are named."""
    return wish.entity.partition(" and ")[0]


def _batches(asked: Asked, judging: Judging) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
    """The pictures, the last repeated until every batch is full: one program serves all."""
    for chosen in filled_batches(len(asked.wishes), judging.batch_size):
        yield asked.image[chosen]


def draw_trial(
    model: SeManiTrans, config: ConfigDict, judging: Judging, asked: Asked, trial: Trial
) -> UInt8[np.ndarray, "n s s 3"]:
    """The pictures of a row."""
    drawing = make_drawing(config, trial.network)
    length, grid = config.model.transformer.text_length, model.transformer.grid
    texts = [one.own_text if trial.own else one.text for one in asked.wishes]
    words = make_tokenizer(config).plain(texts, length, warn=False)
    masks = asked.regions[trial.region]
    edited = edited_codes(config, masks, grid, trial.grown, trial.resize)
    made = []
    for chosen in filled_batches(len(asked.wishes), judging.batch_size):
        known: Read = read(model, asked.image[chosen])
        seeds = [judging.seed + int(i) for i in chosen]
        keeps = np.full(len(chosen), trial.keeps_shape)
        codes = drawing(model, known, words[chosen], edited[chosen], seeds, keeps)
        made.append(np.asarray(show(model, codes)))
    return np.concatenate(made)[: len(asked.wishes)]


# Rows --------------------------------------------------------------------------------------------


def scene_rows(
    asked: Asked,
    made: Mapping[Trial, UInt8[np.ndarray, "n s s 3"]],
    floor: UInt8[np.ndarray, "n s s 3"],
) -> list[Row]:
    """What the oracle sees of every row, by kind of wish, and the claims that have no table."""
    kinds = np.array([one.kind for one in asked.wishes])
    named = {"nothing edited": floor, **{trial.name: pictures for trial, pictures in made.items()}}
    columns = {name: _columns(asked, pictures) for name, pictures in named.items()}

    def row(table: str, name: str, chosen: np.ndarray, **more: Any) -> Row:
        picked = {column: values[chosen] for column, values in columns[name].items()}
        return Row(table, name, {**more, "n": int(chosen.sum()), **means(picked)})

    every = np.ones(len(kinds), bool)
    rows = [row(SCENES, name, every, kind="all") for name in columns]
    rows += [
        row(SCENES, name, kinds == kind, kind=kind)
        for kind in dict.fromkeys(kinds)
        for name in columns
    ]
    single = kinds != TWO_COLOURS
    for name in ("found", "patches"):
        pairs = zip(asked.regions[name][single], asked.regions["given"][single], strict=True)
        found = alignment_columns(*(list(masks) for masks in zip(*pairs, strict=True)))
        label = {"found": "entities", "patches": "word patches"}[name]
        rows.append(Row(ALIGNED, label, {"n": int(single.sum()), **means(found)}))
    place = np.array([raster_place(mask) for mask in asked.regions["given"]])
    objects = (kinds == "colour") | (kinds == "shape")
    for when, there in (("early", place < _EARLY), ("late", place > _LATE)):
        for trial in (MAIN, PARALLEL, GRAY, PARALLEL_GRAY):
            if trial in made and (objects & there).any():
                rows.append(row(PLACES, trial.name, objects & there, region=when))
    for trial in (MAIN, GRAY, PARALLEL, PARALLEL_GRAY):
        if trial in made and (kinds == "colour").any():
            rows.append(row(SHAPES, trial.name, kinds == "colour"))
    for trial in (MAIN, PLAIN):
        if trial in made and (kinds == TWO_COLOURS).any():
            rows.append(row(COLOURS, trial.name, kinds == TWO_COLOURS))
    return rows


def _columns(
    asked: Asked, pictures: UInt8[np.ndarray, "n s s 3"]
) -> dict[str, Float[np.ndarray, " n"]]:
    scores = []
    for made, before, one in zip(pictures, asked.image, asked.wishes, strict=True):
        assert one.truth is not None
        scores.append(scene_score(made, before, one.truth))
    return scene_columns(scores)
