"""How SeMani-Diff is judged: table I, and on scenes what became of every entity."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.manipulations import Manipulation
from vljax.data.pictures.entities import read_entities, scene_entities
from vljax.data.pictures.images import contact_sheet, resize_and_crop
from vljax.data.scenes import SHAPES
from vljax.diffusion.process import make_process
from vljax.diffusion.progress import progress_bar
from vljax.errors import UserError
from vljax.metrics.manipulation import (
    PAPER,
    TABLE_1,
    Jury,
    alignment_columns,
    l2_error,
    means,
    outside_kept,
    raster_place,
    scene_columns,
    scene_score,
)
from vljax.metrics.psnr import psnr
from vljax.metrics.report import Report, Row
from vljax.ops.parts import filled_batches
from vljax.request import File, option
from vljax.systems.semani_diff.method import (
    Alignment,
    blend,
    draw,
    finish,
    make_batch,
    reconstruct,
    widen,
)
from vljax.systems.semani_diff.model import SemaniDiff, make_tokenizer

SCENES = "scenes: what became of the entities"
ALIGNED = "scenes: which entity a word chooses"
PLACES = "scenes: where the edited region lies in raster order"


@dataclass(frozen=True)
class Judging:
    """How to judge."""

    num_images: int = option(64, low=2, help="manipulations to judge")
    batch_size: int = option(32, low=1, help="how many at a time")
    seed: int = option(0, seed=True, help="of the first manipulation's noise")
    entities: File | None = option(
        None, help="of photographs: their entities, COCO's run lengths by file"
    )
    clip: File | None = option(
        None, help="the CLIP that judges, the paper's a file of RN50 (default: the run's own)"
    )
    inception: File | None = option(None, help="published FID weights, for the Inception Score")


class Trial(NamedTuple):
    """How the pictures of a row are made.

    Attributes:
        name: What the table calls it.
        method: "draw", "blend", or "keep" for what is there, "reconstruct" for what comes back of
            it through the autoencoder.
        paste: Whether what is outside of the mask is pasted back.
        masks: "found" by alignment, or "true".
        texts: "own" what is there already, "other" another wish's, else the wish's.
        fast: Whether DPM-Solver++ draws, in 20 steps.
    """

    name: str
    method: str = "draw"
    paste: bool = True
    masks: str = "found"
    texts: str = "wished"
    fast: bool = False


OURS = Trial("SeMani-Diff")
BARE = Trial("SeMani-Diff, nothing pasted back (published)", paste=False)
BLENDED = Trial("Blended LDM", method="blend", paste=False)
UNEDITED = Trial("nothing edited", method="keep", paste=False)
FLOOR = Trial("nothing edited, through the autoencoder", method="reconstruct", paste=False)
OWN = OURS._replace(name="own text", texts="own")
OWN_BARE = BARE._replace(name="own text, nothing pasted back", texts="own")
TRIALS = (
    UNEDITED,
    FLOOR,
    OURS,
    BARE,
    BLENDED,
    OURS._replace(name="SeMani-Diff, DPM-Solver++ in 20 steps", fast=True),
    OURS._replace(name="SeMani-Diff, true masks", masks="true"),
    OURS._replace(name="SeMani-Diff, another's text (chance)", texts="other"),
)
"""The rows on scenes."""


def judge(model: SemaniDiff, config: ConfigDict, judging: Judging) -> Report:
    """Table I with the paper's rows beside ours; on scenes also what became of every entity.

    Raises:
        UserError: an option cannot be, or the data is not there.
    """
    model.sd.check_side(config.data.image_size)
    return _Trials(model, config, judging).report()


class _Trials:
    """Makes the pictures of all rows, and judges them."""

    def __init__(self, model: SemaniDiff, config: ConfigDict, judging: Judging) -> None:
        self.model, self.config, self.judging = model, config, judging
        benchmark = open_benchmark(config.data)
        self.oracle, self.label = benchmark.oracle is not None, benchmark.label
        self.wishes = list(benchmark.manipulations(judging.num_images))
        if len(self.wishes) < 2:
            raise UserError(f"{self.label} has {len(self.wishes)} manipulations: give 2 or more")
        self.tokenizer = make_tokenizer(config)
        size = config.data.image_size
        self.jury = Jury(
            [one.text for one in self.wishes],
            model.clip,
            self.tokenizer,
            clip=judging.clip,
            inception=judging.inception,
            batch_size=judging.batch_size,
            seed=judging.seed,
        )
        self.images = np.stack([resize_and_crop(one.image, size) for one in self.wishes])
        self.found = [self._found(one) for one in self.wishes]
        self._drawn: dict[Trial, UInt8[np.ndarray, "n H W 3"]] = {}

    def report(self) -> Report:
        """All tables, with a sheet of the first pictures."""
        rows: list[Row] = []
        if self.oracle:
            rows += [self._scene_row(trial) for trial in TRIALS]
            rows += [*self._places(), *self._alignments()]
        rows += [self._table_row(trial) for trial in (OURS, BARE, BLENDED, UNEDITED)]
        white = np.repeat(np.uint8(255) * self._masks("found")[:12, ..., None], 3, axis=-1)
        shown = TRIALS[1:] if self.oracle else (OURS, BARE, BLENDED)
        sheet = [("before", self.images[:12]), ("mask", white)]
        sheet += [(trial.name, self.pictures(trial)[:12]) for trial in shown]
        texts = [f"{one.entity}: {one.text}" for one in self.wishes[:12]]
        notes = {
            "manipulations": len(self.wishes),
            "first wishes": "; ".join(texts),
            "alignment": self.config.alignment.by,
            "CLIP": self.judging.clip or ("the model's own" if self.model.clip else "none"),
            "L2": "mean squared difference, pixels in [-1, 1]",
        }
        return Report((*rows, *PAPER), notes, {"manipulations": contact_sheet(sheet)})

    # Pictures ------------------------------------------------------------------------------------

    def pictures(self, trial: Trial) -> UInt8[np.ndarray, "n H W 3"]:
        """What a trial makes of all pictures; with and without pasting it is drawn once."""
        if trial.method == "keep":
            return self.images
        masks = self._masks(trial.masks)
        drawing = trial._replace(name="", paste=False)
        if drawing not in self._drawn:
            self._drawn[drawing] = self._draw(drawing, masks)
        made = self._drawn[drawing]
        if not trial.paste:
            return made
        each = zip(self.images, made, masks, strict=True)
        return np.stack([finish(*one, self.config.samples.feather) for one in each])

    def _draw(self, trial: Trial, masks: Bool[np.ndarray, "n H W"]) -> UInt8[np.ndarray, "n H W 3"]:
        config, sd, batch_size = self.config, self.model.sd, self.judging.batch_size
        fields = config.samples
        steps, sampler = fields.steps, fields.sampler
        if trial.fast:
            steps, sampler = "trailing20", "dpm_solver"
        process = make_process(config, steps, clean_end=config.diffusion.clean_end)
        parts = []
        for chosen in filled_batches(len(self.images), batch_size):
            if trial.method == "reconstruct":
                parts.append(np.asarray(reconstruct(sd, self.images[chosen])))
                continue
            batch = make_batch(
                self.tokenizer,
                sd.tokens,
                self.images[chosen],
                masks[chosen],
                [self._text(int(i), trial.texts) for i in chosen],
                guidance_scale=fields.guidance_scale,
                seeds=[self.judging.seed + int(i) for i in chosen],
            )
            with progress_bar(trial.name or trial.method) as bar:
                if trial.method == "blend":
                    drawn = blend(sd, self.model.base, process, batch, bar, sampler=sampler)
                else:
                    drawn = draw(sd, process, batch, bar, sampler=sampler)
            parts.append(np.asarray(drawn))
        return np.concatenate(parts)[: len(self.images)]

    def _text(self, index: int, which: str) -> str:
        if which == "own":
            return self.wishes[index].own_text
        if which == "other":
            # Of the same kind, where the kinds take turns.
            kinds = len({one.kind for one in self.wishes})
            return self.wishes[(index + kinds) % len(self.wishes)].text
        return self.wishes[index].text

    # Masks ---------------------------------------------------------------------------------------

    def _found(self, one: Manipulation) -> Bool[np.ndarray, "h w"]:
        """Where alignment sees the entity; of photographs without entities the mask they come with.

        Two objects named at once are no entity: their true mask stands.
        """
        size, entities = (one.image.shape[0], one.image.shape[1]), None
        if self.oracle and len(one.truth.changed if one.truth else ()) < 2:
            entities = scene_entities(one.image)
        elif self.judging.entities:
            entities = read_entities(self.judging.entities, size, one.name)
        elif one.mask is None and self.config.alignment.by == "patches":
            entities = np.zeros((0, *size), bool)  # which asks for none
        if entities is not None:
            return self._align()(one.image, entities, one.entity, anyway=True).mask
        if one.mask is None:
            raise UserError(
                f"{self.label} does not tell the entities of its photographs: give --entities=FILE"
            )
        return one.mask

    @functools.cache  # noqa: B019 (it lives as long as the judgement)
    def _align(self, by: str = "", resize: str = "") -> Alignment:
        return Alignment(self.model, self.config, self.tokenizer, by=by, resize=resize)

    def _masks(self, kind: str) -> Bool[np.ndarray, "n H W"]:
        masks = self.found if kind == "found" else [one.mask for one in self.wishes]
        size = self.config.data.image_size
        squares = [
            resize_and_crop(np.repeat(np.uint8(255) * mask[..., None], 3, -1), size)[..., 0] > 127
            for mask in masks
            if mask is not None
        ]
        return np.stack([widen(mask, self.config.samples.grow) for mask in squares])

    # Rows ----------------------------------------------------------------------------------------

    def _scene_row(self, trial: Trial) -> Row:
        columns = self._scene_columns(trial)
        made, masks = self.pictures(trial), self._masks(trial.masks)
        values = means(columns)
        for kind in dict.fromkeys(one.kind for one in self.wishes):
            of_kind = np.array([one.kind == kind for one in self.wishes])
            values[f"as asked: {kind}"] = float(columns["as asked"][of_kind].mean())
        values["kept bit for bit outside"] = 100 * float(
            outside_kept(made, self.images, masks).mean()
        )
        return Row(SCENES, trial.name, values)

    @functools.cache  # noqa: B019
    def _scene_columns(self, trial: Trial) -> Mapping[str, np.ndarray]:
        each = zip(self.pictures(trial), self.images, self.wishes, strict=True)
        return scene_columns(
            scene_score(made, before, one.truth) for made, before, one in each if one.truth
        )

    def _places(self) -> list[Row]:
        """Objects that lie early and late in raster order: a model that sees all need not care."""
        objects = np.array([one.kind in ("colour", "shape") for one in self.wishes])
        late = np.array([raster_place(mask) > 0.5 for mask in self._masks("true")])
        rows = []
        for name, where in (("early half", objects & ~late), ("late half", objects & late)):
            columns = {name: column[where] for name, column in self._scene_columns(OURS).items()}
            told = {"region": name, "n": int(where.sum()), **means(columns)}
            rows.append(Row(PLACES, OURS.name, told))
        return rows

    def _alignments(self) -> list[Row]:
        """Every way to align, on the entities that the oracle sees, and on words of nothing."""
        single = [one for one in self.wishes if one.truth and len(one.truth.changed) < 2]
        ways = {
            "masked crops (3.3.3)": ("crops", ""),
            "averaged tokens (3.2.3)": ("tokens", "bilinear"),
            "averaged tokens, masks by max-pooling": ("tokens", "max"),
            "word to patches (figure 9)": ("patches", ""),
        }
        rows = []
        for name, how in ways.items():
            align = self._align(*how)
            found, fits, refused = [], [], []
            for one in single:
                entities = scene_entities(one.image)
                seen = align(one.image, entities, one.entity, anyway=True)
                found.append(seen.mask)
                fits.append(100.0 * seen.choice.fits)
                there = {thing.shape for thing in one.truth.before.objects} if one.truth else set()
                absent = next(shape for shape in SHAPES if shape not in there)
                refused.append(100.0 * (not align(one.image, entities, absent).choice.fits))
            columns = alignment_columns(found, [one.mask for one in single if one.mask is not None])
            columns |= {"fits": np.array(fits), "refuses an absent word": np.array(refused)}
            rows.append(Row(ALIGNED, name, {"n": len(single), **means(columns)}))
        return rows

    def _table_row(self, trial: Trial) -> Row:
        made = self.pictures(trial)
        values: dict[str, float | str] = {"data": self.label, **self.jury.columns(made)}
        if trial in (OURS, BARE):
            own = OWN if trial is OURS else OWN_BARE
            values["L2"] = float(l2_error(self.pictures(own), self.images).mean())
            values["L2 floor"] = float(l2_error(self.pictures(FLOOR), self.images).mean())
        decibels = psnr(made, self.images, ~self._masks("found"))
        if (known := decibels[np.isfinite(decibels)]).size:
            values["PSNR outside"] = float(known.mean())
        return Row(TABLE_1, trial.name, values)
