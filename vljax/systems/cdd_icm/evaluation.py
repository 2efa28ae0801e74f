"""CDD-ICM judged: tables 1 and 2, curves over turns, stated relations, drift, retrieval.

Pictures are judged by what a detector sees in them against what it sees in the true ones, never
against labels: the oracle on scenes, GeNeVA's localiser where its weights are given. All turns
count for precision, recall and F1, the last ones for RSIM, as in CDD-ICM and LatteGAN; a table of
last turns alone is GeNeVA's protocol. Dialogues are drawn on the model's own pictures unless a row
says "true references".

Beside the model stand who copies the reference, and on scenes who draws the scene anew from the
instructions alone (the ceiling, for a text does not fix a place), heeding them or not (chance).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from scipy import ndimage

from vljax.data.benchmarks import Benchmark, open_benchmark
from vljax.data.dialogues import SceneDialogues, place_shares
from vljax.data.pictures.images import contact_sheet
from vljax.data.scenes import RELATIONS, Scene, SceneObject, follow, relations, render
from vljax.diffusion.samplers import SAMPLERS
from vljax.errors import UserError
from vljax.metrics.layout import GenevaScore, Layout, geneva_score, mean_geneva_score
from vljax.metrics.psnr import psnr
from vljax.metrics.report import Report, Row
from vljax.metrics.retrieval import draw_distractors, retrieval_accuracy
from vljax.metrics.statistics import standard_error
from vljax.models.localizer import GridLocalizer
from vljax.ops.parts import filled_batches, joined
from vljax.ops.pixels import to_unit
from vljax.request import File, check, option
from vljax.systems.cdd_icm.detection import Detector, Pictures, open_detector, seer
from vljax.systems.cdd_icm.method import Dialogues, Drawing, read_dialogues
from vljax.systems.cdd_icm.model import CDDICM, encode_image, has_matcher, has_noisy, matching, read
from vljax.systems.cdd_icm.paper import PAPER, TABLE_1, TABLE_2

LAST = "last turns alone (GeNeVA)"
BY_TURN = "by turn"
SAID = "stated relations"
RETRIEVAL = "composed retrieval"
SETTINGS = "settings"
LOCALIZER = "the run's own localiser"

# Decibels at which a region that stayed the same is counted: equal pixels have infinitely many.
_MOST_DB = 60.0
# What table 2 calls settings that --also may ask for.
_UNGUIDED = {
    "icm_scale=0": "w/o ICM guidance",
    "text_scale=1": "w/o classifier-free guidance",
}
# Levels of 255 by which two true pictures differ where a turn changed something.
_CHANGED = 8


@dataclass(frozen=True)
class Judging:
    """How CDD-ICM is judged."""

    num_dialogues: int = option(48, low=2, help="held-out dialogues to draw")
    batch_size: int = option(24, low=1, help="how many at a time")
    candidates: int = option(
        1, low=1, high=64, help="pictures drawn a turn, of which the best by ICM stays"
    )
    text_scale: float | None = option(None, help="classifier-free, 1 for none (config.guidance)")
    icm_scale: float | None = option(
        None, low=0.0, help="ICM guidance, 0 for none (config.guidance)"
    )
    keep: float = option(
        0.0, low=0.0, high=255.0, help="copy from the reference what moved by at most so much"
    )
    seed: int = option(1, seed=True, help="of the noise")
    sampler: str | None = option(None, choices=SAMPLERS, help="default: config.samples.sampler")
    steps: str | None = option(
        None, help="denoising steps: 250, ddim50, trailing25 … (default: config.samples.steps)"
    )
    localizer: File | None = option(
        None, help="GeNeVA's published detector and localiser, which judges i-CLEVR and CoDraw"
    )
    also: tuple[str, ...] = option(
        (),
        help="further settings to draw the same dialogues with, such as icm_scale=0 text_scale=1 "
        "keep=16 steps=250 sampler=dpm_solver,steps=10",
    )


def judge(model: CDDICM, config: ConfigDict, judging: Judging) -> Report:
    """The paper's tables beside ours.

    Raises:
        UserError: a flag cannot be, or the data is not there.
    """
    given = read_dialogues(config, judging.num_dialogues)
    benchmark = open_benchmark(config.data)
    study = Study(model, config, judging, given)
    # What cannot be is told before anything is drawn.
    detector = open_detector(benchmark, judging.localizer, judging.batch_size, model.localizer)
    usual = study.drawing(judging)
    also = {_UNGUIDED.get(asked, asked): varied(judging, asked) for asked in judging.also}
    for asked in also.values():
        study.drawing(asked)
    drawn, seconds = study.draw("free-running")
    supplied, _ = study.draw("true references", true_references=True)
    made, took = {_name(config, usual): drawn}, {_name(config, usual): seconds}
    for name, asked in also.items():
        made[name], took[name] = study.draw(name, asked)
    made["w/o iterative setting"] = supplied
    floors = {
        "copies the reference": np.broadcast_to(given.canvas[:, None], drawn.shape),
        "copies the reference, true references": np.concatenate(
            [given.canvas[:, None], given.pictures[:, :-1]], axis=1
        ),
        **_anew(benchmark, given, judging.seed),
    }
    notes = {
        "dialogues": len(given.lengths),
        "turns": int(given.lengths.sum()),
        "data": benchmark.label,
        "sampler": usual.sampler,
        "steps": usual.steps,
        "φ, ψ": f"{usual.phi:g}, {usual.psi:g}",
        "candidates, keep": f"{usual.candidates}, {usual.keep:g}",
        "ICM in stage 2": _joint(config),
    }
    rows: list[Row] = []
    notes["objects found by"] = "none: give --localizer" if detector is None else detector.name
    if detector is not None:
        meant = detector.layouts(given.pictures, given.lengths)
        judged = {
            name: detector.score(pictures, meant, given) for name, pictures in made.items()
        } | {name: detector.score(pictures, meant, given) for name, pictures in floors.items()}
        rows += _tables(benchmark.label, judged, list(made), given)
        for name, spent in took.items():
            rows.append(Row(SETTINGS, name, {**_means(judged[name]), "seconds a picture": spent}))
        if detector.detect is not None and "turn_relation" in given.examples[0]:
            rows += _said(detector.detect, made | floors, given)
    for name, pictures in made.items():
        rows += _drift(detector, name, pictures, given, name == "w/o iterative setting")
    rows.append(_retrieval(model, given, judging.batch_size))
    if model.localizer is not None:
        rows.append(_localization(model.localizer, given, judging.batch_size))
    return Report((*PAPER, *rows), notes, {"dialogues": _figure(given, drawn)})


def _joint(config: ConfigDict) -> str:
    """How ICM goes on while pictures are learnt."""
    if has_matcher(config):
        return "with a composer of its own"
    delta = config.icm_weight if config.with_icm else 0.0
    return f"joint, δ = {delta:g}" if delta else "not at all"


def _name(config: ConfigDict, drawing: Drawing) -> str:
    """What table 2 calls a model trained so, with what else is unusual."""
    names = {0.0: "CLIP frozen", 1.0: "CLIP fully trained"}
    other = [
        f"{field} {config.model[field]}"
        for field, usual in (("composition", "gated"), ("condition", "linear"))
        if config.model[field] != usual
    ]
    if tuple(config.model.context) != ("patches", "tokens"):
        other.append(f"context {'+'.join(config.model.context) or 'off'}")
    if not config.model.reference_channels:
        other.append("reference channels off")
    scales = config.guidance
    for field, value, usual in (
        ("text_scale", drawing.phi, scales.classifier_free),
        ("icm_scale", drawing.psi, scales.icm if has_noisy(config) else 0.0),
        ("candidates", drawing.candidates, 1),
        ("keep", drawing.keep, 0.0),
    ):
        if value != usual:
            other.append(f"{field}={value:g}")
    named = names.get(float(config.backbone_rate), "CDD-ICM")
    if not has_noisy(config):
        named = "w/o ICM guidance" if config.with_icm else "w/o ICM"
    return ", ".join([named, *other])


def varied(judging: Judging, asked: str) -> Judging:
    """Other settings of drawing.

    Args:
        judging: The usual ones.
        asked: As of `--also`, `field=value` with commas between.

    Raises:
        UserError: no such field, or no such value.
    """
    kinds: dict[str, Callable[[str], Any]] = {"steps": str, "sampler": str, "candidates": int}
    kinds |= dict.fromkeys(("text_scale", "icm_scale", "keep"), float)
    changed = {}
    for part in asked.split(","):
        name, _, value = part.partition("=")
        if name not in kinds:
            raise UserError(f"--also={asked}: {name!r} is none of {', '.join(sorted(kinds))}")
        try:
            changed[name] = kinds[name](value)
        except ValueError as error:
            raise UserError(f"--also={asked}: {name} takes a number, not {value!r}") from error
    found = replace(judging, **changed)
    try:
        check(found)
    except UserError as error:
        raise UserError(f"--also={asked}: {error}") from error
    return found


@dataclass(frozen=True)
class Study:
    """Draws the held-out dialogues, always from the same noise."""

    model: CDDICM
    config: ConfigDict
    judging: Judging
    given: Dialogues

    def drawing(self, asked: Judging) -> Drawing:
        """How they are drawn."""
        return Drawing(
            self.config,
            asked.sampler,
            asked.steps,
            phi=asked.text_scale,
            icm=asked.icm_scale,
            candidates=asked.candidates,
            keep=asked.keep,
        )

    def draw(
        self, label: str, asked: Judging | None = None, *, true_references: bool = False
    ) -> tuple[Pictures, float]:
        """All turns of all dialogues, and the seconds a picture took."""
        given, drawing = self.given, self.drawing(asked or self.judging)
        size = min(self.judging.batch_size, len(given.lengths))
        # A first turn for the compiler, whose time does not count.
        first = given._replace(
            canvas=given.canvas[:size],
            tokens=given.tokens[:size, :1],
            pictures=given.pictures[:size, :1],
        )
        drawing.dialogues(self.model, 0, first, size)
        began = time.perf_counter()
        pictures = drawing.dialogues(
            self.model,
            self.judging.seed,
            given,
            size,
            true_references=true_references,
            label=label,
        )
        return pictures, (time.perf_counter() - began) / given.tokens[..., 0].size


def _anew(benchmark: Benchmark, given: Dialogues, seed: int) -> dict[str, Pictures]:
    """On scenes: who draws by the instructions alone, and who heeds no place."""
    source = benchmark.dialogues("test")
    if not isinstance(source, SceneDialogues):
        return {}
    made = {}
    for name, heed in (("draws anew by the texts", True), ("draws at chance places", False)):
        pictures = np.empty_like(given.pictures)
        for i in range(len(pictures)):
            scenes = follow(source.turns(i), seed + i, heed=heed)
            for j in range(pictures.shape[1]):
                pictures[i, j] = render(scenes[min(j, len(scenes) - 1)], pictures.shape[2])
        made[name] = pictures
    return made


# Objects (tables 1 and 2) ------------------------------------------------------------------------


def _means(scores: list[list[GenevaScore]]) -> dict[str, float]:
    """The columns of table 1 in percent, and how sure two of them are."""
    flat = [one for dialogue in scores for one in dialogue]
    last = [j == len(dialogue) - 1 for dialogue in scores for j in range(len(dialogue))]
    values = {name: 100 * value for name, value in mean_geneva_score(flat, last).items()}
    # Turns of a dialogue are alike: errors are over dialogues.
    f1 = [np.mean([one.f1 for one in dialogue]) for dialogue in scores]
    rsim = [dialogue[-1].rsim for dialogue in scores]
    for name, of_dialogues in (("F1 (mean)", f1), ("RSIM", rsim)):
        values[f"± of {name}"] = 100 * standard_error(of_dialogues)
    return values


def _tables(
    data: str,
    judged: dict[str, list[list[GenevaScore]]],
    ours: Sequence[str],
    given: Dialogues,
) -> Iterator[Row]:
    for name, scores in judged.items():
        values = _means(scores)
        yield Row(TABLE_1, name, {"data": data, **values})
        if name in ours:
            two = {"F1 (of means)": values["F1 (of means)"], "RSIM": values["RSIM"]}
            yield Row(TABLE_2, name, {"data": data, **two})
    for name, scores in judged.items():
        yield Row(LAST, name, {"data": data, **_means([dialogue[-1:] for dialogue in scores])})
    for name, scores in judged.items():
        for turn in range(int(given.lengths.max())):
            those = [dialogue[turn : turn + 1] for dialogue in scores if len(dialogue) > turn]
            values = {"turn": turn + 1, **_means(those), "n": len(those)}
            yield Row(BY_TURN, name, values)


# What an instruction says ------------------------------------------------------------------------


def seen_scene(detections: Sequence[Any], side: int, ground: Any) -> Scene:
    """Detections as a scene, back to front: of several of a class the surest."""
    best = {one.label: one for one in sorted(detections, key=lambda one: one.score)}
    kept = [one for one in detections if best[one.label] is one]
    return Scene(
        ground,
        tuple(
            SceneObject(
                one.shape,
                one.colour,
                "large",
                one.centre[0] / side,
                one.centre[1] / side,
                one.radius / side,
            )
            for one in kept
        ),
    )


def _said(
    detect: Callable[[np.ndarray], Sequence[Any]], made: dict[str, Pictures], given: Dialogues
) -> Iterator[Row]:
    """How often an object stands to another as its turn says, of all that were to be added."""
    for name, pictures in made.items():
        holds, shown = [], []
        for i, example in enumerate(given.examples):
            for j in range(1, int(given.lengths[i])):
                picture = pictures[i, j]
                scene = seen_scene(detect(picture), picture.shape[0], None)
                labels = [thing.label for thing in scene.objects]
                pair = (int(example["turn_added"][j]), int(example["turn_anchor"][j]))
                shown.append(all(label in labels for label in pair))
                relation = RELATIONS[example["turn_relation"][j]]
                holds.append(
                    shown[-1]
                    and relation in relations(scene)[labels.index(pair[0]), labels.index(pair[1])]
                )
        right, both = 100 * float(np.mean(holds)), float(np.mean(shown))
        values = {
            "holds": right,
            "±": 100 * standard_error(holds),
            "both shown": 100 * both,
            "holds where both are shown": right / both if both else float("nan"),
            "n": len(holds),
        }
        yield Row(SAID, name, values)


# Drift -------------------------------------------------------------------------------------------


def _drift(
    detector: Detector | None,
    name: str,
    pictures: Pictures,
    given: Dialogues,
    true_references: bool,
) -> Iterator[Row]:
    """How much of what a turn did not ask for stays: against its reference, outside of the change.

    Left out is what the true turn changed and, on scenes, what the picture shows of the new object.
    """
    detect = None if detector is None else detector.detect
    for turn in range(pictures.shape[1]):
        found = []
        for i in np.flatnonzero(given.lengths > turn):
            truth = given.pictures[i]
            true_before = truth[turn - 1] if turn else given.canvas[i]
            drawn_before = pictures[i, turn - 1] if turn else given.canvas[i]
            before = true_before if true_references else drawn_before
            difference = np.abs(truth[turn].astype(int) - true_before).max(-1)
            changed = difference > _CHANGED
            if detect is not None and "turn_added" in given.examples[i]:
                added = int(given.examples[i]["turn_added"][turn])
                for one in detect(pictures[i, turn]):
                    changed |= one.mask & (one.label == added)
            where = ~ndimage.binary_dilation(changed, iterations=2)
            found.append(psnr(pictures[i, turn][None], before[None], where[None])[0])
        kept = np.minimum(found, _MOST_DB)
        told = f"PSNR outside (at most {_MOST_DB:g} dB)"
        values = {"turn": turn + 1, told: float(np.nanmean(kept)), "n": len(kept)}
        yield Row("drift", name, values)


# Retrieval ---------------------------------------------------------------------------------------


@jax.jit
def _embedded(
    model: CDDICM, reference: Array, tokens: Array, target: Array
) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
    matcher = matching(model)
    composed = read(model.clip, matcher, to_unit(reference), tokens).vector
    return composed, encode_image(model.clip, matcher, to_unit(target)).summary


def _retrieval(model: CDDICM, given: Dialogues, batch_size: int) -> Row:
    """Whether what is composed finds its target among those of all turns: the health of ICM."""
    before = np.concatenate([given.canvas[:, None], given.pictures[:, :-1]], axis=1)
    valid = np.arange(before.shape[1]) < given.lengths[:, None]
    arrays = (before[valid], given.tokens[valid], given.pictures[valid])
    count = len(arrays[0])
    batches = filled_batches(count, batch_size)
    parts = (_embedded(model, *(array[places] for array in arrays)) for places in batches)
    queries, targets = joined(parts, count)
    own = np.arange(count)
    others = draw_distractors(np.random.default_rng(0), count, count, count - 1, own)
    shares = retrieval_accuracy(queries, targets, targets, others, ks=(1, 5, 10))
    values = {name.replace("top", "recall@"): 100 * share for name, share in shares.items()}
    return Row(RETRIEVAL, "c finds the target", {**values, "n": count})


def _localization(localizer: GridLocalizer, given: Dialogues, batch_size: int) -> Row:
    """How well the run's own localiser sees what the data say of true pictures, of all turns."""
    valid = np.arange(given.pictures.shape[1]) < given.lengths[:, None]
    seen = seer(localizer, batch_size)(given.pictures[valid])
    scores, far = [], []
    for one, (example, turn) in zip(seen, np.argwhere(valid), strict=True):
        told = given.examples[example]
        present, image = told["turn_class_vectors"][turn], told["turn_images"][turn]
        places = place_shares(told["turn_coordinates"][turn], image, localizer.coordinates)
        meant = Layout(present, places[:, [0, -1]])
        scores.append(geneva_score(one, meant))
        far += list(np.abs(one.centres - meant.centres).max(-1)[present & one.present])
    means = {name: 100 * value for name, value in mean_geneva_score(scores).items()}
    distance = {"distance": float(np.mean(far))} if far else {}
    return Row(LOCALIZER, "on true pictures", {**means, **distance, "n": len(seen)})


def _figure(given: Dialogues, drawn: Pictures) -> UInt8[np.ndarray, "H W 3"]:
    rows = []
    for i in range(min(4, len(drawn))):
        rows.append(("; ".join(given.instructions[i]), given.pictures[i]))
        rows.append(("drawn", drawn[i]))
    return contact_sheet(rows)
