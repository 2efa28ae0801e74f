"""How Shape-Guided Diffusion is judged: table 5.2, with its pictures."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import contact_sheet
from vljax.data.pictures.photographs import to_working_size
from vljax.errors import UserError
from vljax.metrics.batches import features_of, parts
from vljax.metrics.frechet import Gaussian, frechet_distance, inception_features, moments
from vljax.metrics.psnr import psnr
from vljax.metrics.report import Report, Row, paper_rows
from vljax.metrics.retrieval import clip_score
from vljax.metrics.shape import (
    ALPHA,
    KeypointDetector,
    Segmenter,
    oracle_keypoints,
    oracle_segmenter,
    shape_columns,
    shape_score,
)
from vljax.metrics.statistics import standard_error
from vljax.models.clip import CLIP
from vljax.ops.parts import filled_batches
from vljax.ops.pixels import to_unit
from vljax.request import File, option
from vljax.systems.shape_guided.batch import Wish, make_batch
from vljax.systems.shape_guided.methods import METHODS, Settings
from vljax.systems.shape_guided.model import ShapeGuided, make_tokenizer
from vljax.systems.shape_guided.use import (
    CLIP_HELP,
    STEPS_HELP,
    TOKEN_SCALE_HELP,
    find_clip,
    find_segmenter,
)

TABLE = "table 5.2"
GAINS = "what Inside-Outside Attention adds"


@dataclass(frozen=True)
class Judging:
    """How to judge."""

    num_images: int = option(32, low=1, help="edits to judge")
    batch_size: int = option(32, low=1, help="how many at a time")
    seed: int = option(0, seed=True, help="of the first edit's noise")
    steps: str | None = option(None, help=STEPS_HELP)
    token_scale: float = option(1.0, help=TOKEN_SCALE_HELP)
    methods: tuple[str, ...] | None = option(
        None, choices=tuple(METHODS), help="rows to make (default: all that can be)"
    )
    segmenter: File | None = option(
        None,
        metavar="FOLDER",
        help="a CLIPSeg that infers shapes and, on photographs, judges them",
    )
    clip: File | None = option(None, metavar="FOLDER", help=CLIP_HELP)
    inception: File | None = option(None, help="published FID weights, for FID")


class Trial(NamedTuple):
    """How the pictures of a row are made.

    Attributes:
        kind: Whose shapes, "given" or "inferred".
        method: Of `METHODS`.
        copies: Whether the background is copied.
        half: Whether the shape guides in the first half of the steps only (figure 5.7).
        idle: Whether nothing is to change; then without guidance, too.
    """

    kind: str
    method: str
    copies: bool
    half: bool = False
    idle: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        name = METHODS[self.method].label
        if self.method in ("sdedit", "prompt_to_prompt") and self.copies:
            name += " + Shape"
        return f"{name}, {self.setting}" if self.setting else name

    @property
    def setting(self) -> str:
        """What is not as in the paper's table."""
        if self.idle:
            return "nothing to change"
        if self.half:
            return "in the first half"
        return "" if self.copies else "nothing copied"


TRIALS = (
    Trial("given", "blended", copies=True),
    Trial("given", "inpaint", copies=True),
    Trial("given", "inpaint", copies=False),
    Trial("given", "sdedit", copies=True),
    Trial("given", "sdedit", copies=False),
    Trial("given", "prompt_to_prompt", copies=True),
    Trial("given", "without_ioa", copies=True),
    Trial("given", "without_ioa", copies=False),
    Trial("given", "shape_guided", copies=True),
    Trial("given", "shape_guided", copies=False),
    Trial("given", "without_ioa", copies=True, half=True),
    Trial("given", "shape_guided", copies=True, half=True),
    Trial("inferred", "prompt_to_prompt", copies=False),
    Trial("inferred", "prompt_to_prompt", copies=True),
    Trial("inferred", "without_ioa", copies=True),
    Trial("inferred", "shape_guided", copies=True),
    # How well pictures are found again: inverted, and generated with their own prompt.
    Trial("given", "shape_guided", copies=False, idle=True),
    Trial("given", "without_ioa", copies=False, idle=True),
)
"""The rows that are made here."""


PAPER = paper_rows(
    TABLE,
    "paper, table 5.2",
    ("shape", "KW-mIoU", "mIoU", "FID", "CLIP"),
    ("Real images", "", 83.3, 76.3, None, 0.15),
    ("Blended Diffusion", "given", 23.3, 41.8, 46.2, 0.20),
    ("SD-Inpaint", "given", 38.5, 51.7, 43.7, 0.19),
    ("SDEdit + Shape", "given", 31.0, 49.9, 45.1, 0.21),
    ("P2P + Shape", "given", 46.9, 63.3, 39.6, 0.20),
    ("Ours (w/o IOA)", "given", 43.8, 55.3, 41.5, 0.21),
    ("Ours", "given", 53.3, 63.6, 40.2, 0.21),
    ("P2P", "inferred", 24.2, 64.6, 97.5, 0.26),
    ("P2P + Shape", "inferred", 37.7, 54.0, 51.1, 0.21),
    ("Ours (w/o IOA)", "inferred", 33.0, 46.0, 56.8, 0.22),
    ("Ours", "inferred", 43.0, 54.9, 49.5, 0.22),
)
"""The rows of table 5.2, on the test set of MS-COCO ShapePrompts."""


def judge(model: ShapeGuided, config: ConfigDict, judging: Judging) -> Report:
    """Table 5.2 with the paper's rows beside ours, and `edits`, a sheet of the first edits.

    Beside it, what Inside-Outside Attention adds, and how well pictures are found again when
    nothing is to change: inverted, and generated with their own prompt, without guidance and
    without copying anything.

    Raises:
        UserError: an option cannot be, or the data is not there.
    """
    model.sd.check_side(config.data.image_size)
    clip = find_clip(model, judging.clip)
    lacking = {n: one.needs[1] for n, one in METHODS.items() if one.lacks(model, clip)}
    for name in judging.methods or ():
        if name in lacking:
            raise UserError(f"--methods {name} needs {lacking[name]}: give it, or leave it out")
    if model.segmenter is None and not judging.segmenter:
        lacking["inferred"] = "--segmenter=FOLDER"
    edits = open_edits(config, judging.num_images)
    jury = Judge(model, config, judging, edits, clip)
    asked = [
        trial
        for trial in TRIALS
        if trial.method in (judging.methods or METHODS)
        and not {trial.kind, trial.method} & lacking.keys()
    ]
    shapes = {"given": edits.shape}
    if any(trial.kind == "inferred" for trial in asked):
        found = find_segmenter(model, config, judging.segmenter)
        pairs = zip(edits.image, edits.wishes, strict=True)
        shapes["inferred"] = np.stack([found(picture, wish.source) for picture, wish in pairs])
    made = _make_pictures(model, config, judging, edits, shapes, asked, clip)
    columns = {trial: jury.columns(made[trial]) for trial in made if not trial.idle}
    sheet = [
        ("before", edits.image[:8]),
        ("shape", np.repeat(np.uint8(255) * edits.shape[:8, ..., None], 3, axis=-1)),
        *((f"{trial.name}, {trial.kind} shape", made[trial][:8]) for trial in made),
    ]
    rows = [jury.row("", "Real images", edits.image, jury.columns(edits.image))]
    rows += [jury.row(t.kind, t.name, made[t], seen) for t, seen in columns.items()]
    notes = {
        "edits": len(edits.image),
        "segmenter": jury.segmenter_name,
        "FID": jury.fid_name,
        "not made": {name: f"needs {flag}" for name, flag in lacking.items()},
        "reconstruction PSNR": {
            METHODS[trial.method].label: float(psnr(pictures, edits.image).mean())
            for trial, pictures in made.items()
            if trial.idle
        },
    }
    figures = {"edits": contact_sheet(sheet)}
    return Report((*rows, *PAPER, *_gains(columns)), notes, figures)


@dataclass(frozen=True)
class Edits:
    """What is to be edited, at the working size.

    Attributes:
        image: The pictures.
        shape: Their objects' shapes.
        wishes: What to change.
        categories: What a segmenter finds before and after.
    """

    image: UInt8[np.ndarray, "n H W 3"]
    shape: Bool[np.ndarray, "n H W"]
    wishes: Sequence[Wish]
    categories: Sequence[str]


def open_edits(config: ConfigDict, count: int) -> Edits:
    """The first edits of the benchmark, see `vljax.data.benchmarks.Benchmark.edits`.

    Raises:
        UserError: the data is not there.
    """
    size = (config.data.image_size,) * 2
    examples = list(open_benchmark(config.data).edits(count))
    pairs = [to_working_size(e["image"], e["edit_mask"], size) for e in examples]
    return Edits(
        np.stack([image for image, _ in pairs]),
        np.stack([shape for _, shape in pairs]),
        [Wish(e["source_prompt"], e["edit_prompt"]) for e in examples],
        [e["category"] for e in examples],
    )


def _make_pictures(
    model: ShapeGuided,
    config: ConfigDict,
    judging: Judging,
    edits: Edits,
    shapes: Mapping[str, Bool[np.ndarray, "n H W"]],
    trials: Sequence[Trial],
    clip: CLIP | None,
) -> dict[Trial, UInt8[np.ndarray, "n H W 3"]]:
    """The pictures of all rows, in batches of one size, so that one program serves.

    What a batch is inverted to serves every row; by plain attention, whatever the shape is.
    """
    settings = Settings(judging.steps or config.samples.steps)
    tokenizer = make_tokenizer(config)
    made: dict[Trial, list[np.ndarray]] = {trial: [] for trial in trials}
    for chosen in filled_batches(len(edits.image), judging.batch_size):
        inverted: dict[str, Array | None] = {}
        for trial in trials:
            method = METHODS[trial.method]
            wishes = [edits.wishes[i] for i in chosen]
            scale = method.default_scale(config)
            if trial.idle:
                wishes = [w._replace(edit=w.source, edit_outside=w.source_outside) for w in wishes]
                scale = 0.0
            batch = make_batch(
                tokenizer,
                model.sd.tokens,
                edits.image[chosen],
                shapes[trial.kind][chosen],
                wishes,
                sides=method.sides,
                keep="outside" if trial.copies else "nothing",
                token_scale=judging.token_scale,
                guidance_scale=scale,
                shape_until=0.5 if trial.half else 1.0,
                seeds=[judging.seed + int(i) for i in chosen],
            )
            known = None
            if method.attention is not None:
                seen = trial.kind if method.sides == 2 else "no shape"
                if seen not in inverted:
                    inverted[seen] = method.invert(model, config, batch, settings)
                known = inverted[seen]
            edited = method.edit(model, config, batch, settings, known, clip)
            made[trial].append(edited.pictures)
    return {trial: np.concatenate(parts)[: len(edits.image)] for trial, parts in made.items()}


#: What the table averages, edit by edit.
Columns = dict[str, Float[np.ndarray, " n"]]


def _gains(columns: Mapping[Trial, Columns]) -> Iterator[Row]:
    """Mean differences from the rows without attention, over the edits, with standard errors."""
    for trial, seen in columns.items():
        plain = columns.get(trial._replace(method="without_ioa"))
        if trial.method != "shape_guided" or plain is None:
            continue
        for name, ours in seen.items():
            difference = ours - plain[name]
            known = difference[np.isfinite(difference)]
            if known.size > 1:
                values = {
                    "shape": trial.kind,
                    "setting": trial.setting or "as in the table",
                    "column": name,
                    "difference": float(known.mean()),
                    "standard error": standard_error(known),
                    "edits": known.size,
                }
                yield Row(GAINS, "Ours − Ours (w/o IOA)", values)


class Judge:
    """Makes the columns of a row from its pictures.

    Args:
        model: What is judged.
        config: `data`.
        judging: `segmenter`, `inception` and `batch_size`.
        edits: What was edited.
        clip: Gives the CLIP score, and features for FID where no Inception does.

    Raises:
        UserError: nothing can judge the shapes of photographs.
    """

    def __init__(
        self,
        model: ShapeGuided,
        config: ConfigDict,
        judging: Judging,
        edits: Edits,
        clip: CLIP | None,
    ) -> None:
        self.edits, self.batch_size, self.clip = edits, judging.batch_size, clip
        self.segmenter: Segmenter
        self.detector: KeypointDetector | None
        if open_benchmark(config.data).oracle:
            self.segmenter, self.detector = oracle_segmenter, oracle_keypoints
            self.segmenter_name = f"the oracle, also for keypoints (α = {ALPHA})"
        else:
            if not judging.segmenter:
                raise UserError(
                    "--segmenter is missing: shapes in photographs are judged by a CLIPSeg, give "
                    "its folder"
                )
            self.segmenter = find_segmenter(model, config, judging.segmenter)
            self.detector, self.segmenter_name = None, "CLIPSeg; no keypoints"
        if clip is not None:
            tokens = make_tokenizer(config)([wish.edit for wish in edits.wishes], model.sd.tokens)
            self.texts = jax.jit(lambda clip, tokens: clip.encode_text(tokens))(clip, tokens)
            view = jax.jit(lambda clip, images: clip.encode_image(to_unit(images)))
            self.embed = functools.partial(view, clip)
        self.features: Callable[[Any], Array] | None = self.embed if clip is not None else None
        self.fid_name = "not made" if clip is None else "stand-in: features of the CLIP at hand"
        if judging.inception:
            self.features, self.fid_name = inception_features(judging.inception), "Inception-v3"
        if len(edits.image) < 2:
            self.features, self.fid_name = None, "not made: it needs two pictures"
        if self.features:
            self.real = self._gaussian(edits.image)

    def columns(self, pictures: UInt8[np.ndarray, "n H W 3"]) -> Columns:
        """What the table averages, edit by edit; shares in percent, nan where none."""
        edits = self.edits
        each = zip(edits.image, pictures, edits.shape, edits.categories, strict=True)
        scores = shape_columns(
            shape_score(source, edited, shape, name, name, self.segmenter, self.detector)
            for source, edited, shape, name in each
        )
        columns = {"KW-mIoU": 100 * scores["kw_miou"], "mIoU": 100 * scores["miou"]}
        if self.clip is not None:
            seen = features_of(self.embed, pictures, self.batch_size)
            columns["CLIP"] = np.asarray(clip_score(seen, self.texts, weight=1.0))
        columns["background PSNR"] = psnr(pictures, edits.image, ~edits.shape)
        return columns

    def row(
        self, kind: str, method: str, pictures: UInt8[np.ndarray, "n H W 3"], columns: Columns
    ) -> Row:
        """The row of a method; what cannot be told is left out.

        Args:
            kind: Whose shapes.
            method: Its name.
            pictures: What it made.
            columns: What `columns` says of them.
        """
        values: dict[str, Any] = {"shape": kind}
        for name, column in columns.items():
            # No number where nothing has keypoints, all is object or nothing was changed.
            known = column[np.isfinite(column)]
            if known.size:
                values[name] = float(known.mean())
        if self.features and kind:
            values["FID"] = frechet_distance(self._gaussian(pictures), self.real)
        return Row(TABLE, method, values)

    def _gaussian(self, images: UInt8[np.ndarray, "n H W 3"]) -> Gaussian:
        assert self.features is not None
        return moments(self.features, parts(images, self.batch_size)).finish()
