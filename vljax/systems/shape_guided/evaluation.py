"""`python -m vljax.evaluate` for Shape-Guided Diffusion: table 5.2, with its pictures."""

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from ml_collections import ConfigDict

from vljax.data.pictures.images import contact_sheet, write_png
from vljax.data.pictures.shape_prompts import ShapePrompts
from vljax.data.scenes import SHAPES, Scenes, words
from vljax.errors import UserError
from vljax.metrics.frechet import frechet_distance, inception_features, moments
from vljax.metrics.psnr import psnr
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
from vljax.models.clip import CLIP
from vljax.ops.pixels import to_unit
from vljax.systems.shape_guided.model import (
    INVERTING,
    METHODS,
    Settings,
    ShapeGuided,
    Wish,
    default_scale,
    edit,
    invert,
    make_request,
    make_tokenizer,
)
from vljax.systems.shape_guided.use import (
    add_clip_flag,
    find_clip,
    find_segmenter,
    to_working_size,
)


class Row(NamedTuple):
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
        name = _NAMES[self.method]
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


_ROWS = (
    Row("given", "blended", copies=True),
    Row("given", "inpaint", copies=True),
    Row("given", "inpaint", copies=False),
    Row("given", "sdedit", copies=True),
    Row("given", "sdedit", copies=False),
    Row("given", "prompt_to_prompt", copies=True),
    Row("given", "without_ioa", copies=True),
    Row("given", "without_ioa", copies=False),
    Row("given", "shape_guided", copies=True),
    Row("given", "shape_guided", copies=False),
    Row("given", "without_ioa", copies=True, half=True),
    Row("given", "shape_guided", copies=True, half=True),
    Row("inferred", "prompt_to_prompt", copies=False),
    Row("inferred", "prompt_to_prompt", copies=True),
    Row("inferred", "without_ioa", copies=True),
    Row("inferred", "shape_guided", copies=True),
)
"""The rows of the table that are made here."""

_IDLE_ROWS = tuple(
    Row("given", method, copies=False, idle=True) for method in ("shape_guided", "without_ioa")
)

_NAMES = {
    "blended": "Blended Diffusion",
    "inpaint": "SD-Inpaint",
    "sdedit": "SDEdit",
    "prompt_to_prompt": "P2P",
    "without_ioa": "Ours (w/o IOA)",
    "shape_guided": "Ours",
}


def _paper(shape: str, method: str, *values: float | None) -> dict[str, Any]:
    names = ("KW-mIoU", "mIoU", "FID", "CLIP")
    row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    return {"source": "paper, table 5.2", "shape": shape, "method": method, **row}


#: The rows of table 5.2, on the test set of MS-COCO ShapePrompts.
PAPER = (
    _paper("", "Real images", 83.3, 76.3, None, 0.15),
    _paper("given", "Blended Diffusion", 23.3, 41.8, 46.2, 0.20),
    _paper("given", "SD-Inpaint", 38.5, 51.7, 43.7, 0.19),
    _paper("given", "SDEdit + Shape", 31.0, 49.9, 45.1, 0.21),
    _paper("given", "P2P + Shape", 46.9, 63.3, 39.6, 0.20),
    _paper("given", "Ours (w/o IOA)", 43.8, 55.3, 41.5, 0.21),
    _paper("given", "Ours", 53.3, 63.6, 40.2, 0.21),
    _paper("inferred", "P2P", 24.2, 64.6, 97.5, 0.26),
    _paper("inferred", "P2P + Shape", 37.7, 54.0, 51.1, 0.21),
    _paper("inferred", "Ours (w/o IOA)", 33.0, 46.0, 56.8, 0.22),
    _paper("inferred", "Ours", 43.0, 54.9, 49.5, 0.22),
)


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m vljax.evaluate` for this system."""
    parser.add_argument("--num_images", type=int, default=32, help="edits to judge")
    parser.add_argument("--batch_size", type=int, default=32, help="how many at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the first edit's noise")
    parser.add_argument("--steps", help="of inversion and generation (default: config.samples)")
    parser.add_argument(
        "--token_scale",
        type=float,
        default=1.0,
        help="factor on new tokens: 1 as in the paper, 2.5 in the published code",
    )
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="rows to make (default: all that can be)"
    )
    parser.add_argument(
        "--segmenter",
        metavar="FOLDER",
        help="a CLIPSeg that infers shapes and, on photographs, judges them",
    )
    add_clip_flag(parser)
    parser.add_argument("--inception", metavar="FILE", help="published FID weights, for FID")


def evaluate(
    model: ShapeGuided, config: ConfigDict, args: argparse.Namespace, out: Path
) -> dict[str, Any]:
    """Table 5.2 with the paper's rows beside ours, and `edits.png`, a sheet of the first edits.

    Beside it, how well pictures are found again when nothing is to change: inverted, and generated
    with their own prompt, without guidance and without copying anything.

    Returns:
        The results by name, as they stand in `results.json`.

    Raises:
        UserError: a flag cannot be, or the data is not there.
    """
    for name in ("num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: give 1 or more")
    if config.data.image_size % model.sd.multiple:
        raise UserError(
            f"--config.data.image_size={config.data.image_size} does not divide by "
            f"{model.sd.multiple}: choose a multiple"
        )
    clip = find_clip(model, args.clip)
    lacking: dict[str, str] = {}
    if model.inpaint is None:
        lacking["inpaint"] = "--config.pretrained.inpaint=FOLDER"
    if clip is None:
        lacking["blended"] = "--clip=FOLDER"
    if model.segmenter is None and not args.segmenter:
        lacking["inferred"] = "--segmenter=FOLDER"
    for method in args.methods or ():
        if method in lacking:
            raise UserError(f"--methods {method} needs {lacking[method]}: give it, or leave it out")
    edits = open_edits(config, args.num_images)
    judge = Judge(model, config, args, edits, clip)
    asked = [
        row
        for row in (*_ROWS, *_IDLE_ROWS)
        if row.method in (args.methods or METHODS) and not {row.kind, row.method} & {*lacking}
    ]
    shapes = {"given": edits.shape}
    if any(row.kind == "inferred" for row in asked):
        found = find_segmenter(model, config, args.segmenter)
        pairs = zip(edits.image, edits.wishes, strict=True)
        shapes["inferred"] = np.stack([found(picture, wish.source) for picture, wish in pairs])
    made = _make_rows(model, config, args, edits, shapes, asked, clip)
    columns = {row: judge.columns(made[row]) for row in made if not row.idle}
    sheet = [
        ("before", edits.image[:8]),
        ("shape", _as_pictures(edits.shape[:8])),
        *((f"{row.name}, {row.kind} shape", pictures[:8]) for row, pictures in made.items()),
    ]
    write_png(out / "edits.png", contact_sheet(sheet), {})
    return {
        "edits": len(edits.image),
        "segmenter": judge.segmenter_name,
        "FID": judge.fid_name,
        "not made": {name: f"needs {flag}" for name, flag in lacking.items()},
        "reconstruction PSNR": {
            _NAMES[row.method]: float(psnr(pictures, edits.image).mean())
            for row, pictures in made.items()
            if row.idle
        },
        "table 5.2": [
            judge.row("", "Real images", edits.image, judge.columns(edits.image)),
            *(judge.row(row.kind, row.name, made[row], seen) for row, seen in columns.items()),
            *PAPER,
        ],
        "what Inside-Outside Attention adds": [
            gain for row in columns if row.method == "shape_guided" for gain in _gains(row, columns)
        ],
    }


@dataclass(frozen=True)
class Edits:
    """What is to be edited, at the working size.

    Attributes:
        image: The pictures.
        shape: Their objects' shapes.
        wishes: What to change.
        categories: What a segmenter finds before and after: an edit changes how an object looks,
            not what it is ("dog wearing a colorful shirt"; of scenes, the name of the shape).
    """

    image: UInt8[np.ndarray, "n H W 3"]
    shape: Bool[np.ndarray, "n H W"]
    wishes: Sequence[Wish]
    categories: Sequence[str]


def open_edits(config: ConfigDict, count: int) -> Edits:
    """The first edits of the benchmark: ShapePrompts, or objects of scenes in another colour.

    Raises:
        UserError: the data is not there.
    """
    side = config.data.image_size
    if config.data.name == "scenes":
        fields = ("image", "edit_mask", "source_prompt", "edit_prompt")
        source: Any = Scenes(
            image_size=side,
            split="val",
            fields=fields,
            edit_kinds=("colour",),
            **{**config.data.scenes, "size": count},
        )
    else:
        folder = Path(config.data.path)
        source = ShapePrompts(folder / config.data.annotations, folder)
    examples = [source[i] for i in range(min(count, len(source)))]
    pairs = [to_working_size(e["image"], e["edit_mask"], (side, side)) for e in examples]
    on_scenes = config.data.name == "scenes"
    return Edits(
        np.stack([image for image, _ in pairs]),
        np.stack([shape for _, shape in pairs]),
        [Wish(e["source_prompt"], e["edit_prompt"]) for e in examples],
        [
            next(shape for shape in SHAPES if shape in words(name)) if on_scenes else name
            for name in (e["source_prompt"] for e in examples)
        ],
    )


def _make_rows(
    model: ShapeGuided,
    config: ConfigDict,
    args: argparse.Namespace,
    edits: Edits,
    shapes: Mapping[str, Bool[np.ndarray, "n H W"]],
    rows: Sequence[Row],
    clip: CLIP | None,
) -> dict[Row, UInt8[np.ndarray, "n H W 3"]]:
    """The pictures of all rows, in batches of one size, so that one program serves.

    What a batch is inverted to serves every row; without attention to the shape, whatever that is.
    """
    settings = Settings(args.steps or config.samples.steps)
    tokenizer = make_tokenizer(config)
    made: dict[Row, list[np.ndarray]] = {row: [] for row in rows}
    for first in range(0, len(edits.image), args.batch_size):
        chosen = np.arange(first, first + args.batch_size).clip(max=len(edits.image) - 1)
        inverted: dict[str, Array] = {}
        for row in rows:
            attention = row.method == "shape_guided"
            wishes = [edits.wishes[i] for i in chosen]
            scale = default_scale(config, row.method)
            if row.idle:
                wishes = [w._replace(edit=w.source, edit_outside=w.source_outside) for w in wishes]
                scale = 0.0
            request = make_request(
                tokenizer,
                model.sd.tokens,
                edits.image[chosen],
                shapes[row.kind][chosen],
                wishes,
                keep="outside" if row.copies else "nothing",
                token_scale=args.token_scale,
                guidance_scale=scale,
                shape_until=0.5 if row.half else 1.0,
                seeds=[args.seed + int(i) for i in chosen],
            )
            known = None
            if row.method in INVERTING:
                seen = row.kind if attention else "no shape"
                if seen not in inverted:
                    inverted[seen] = invert(model, config, request, settings, attention=attention)
                known = inverted[seen]
            made[row].append(edit(model, config, row.method, request, settings, known, clip))
    return {row: np.concatenate(parts)[: len(edits.image)] for row, parts in made.items()}


#: What the table averages, edit by edit.
Columns = dict[str, Float[np.ndarray, " n"]]


def _gains(row: Row, columns: Mapping[Row, Columns]) -> Iterator[dict[str, Any]]:
    """Mean differences from the row without attention, over the edits, with standard errors."""
    plain = columns.get(row._replace(method="without_ioa"))
    if plain is None:
        return
    for name, ours in columns[row].items():
        difference = ours - plain[name]
        known = difference[np.isfinite(difference)]
        if known.size > 1:
            yield {
                "shape": row.kind,
                "setting": row.setting or "as in the table",
                "column": name,
                "difference": float(known.mean()),
                "standard error": float(known.std(ddof=1) / np.sqrt(known.size)),
            }


class Judge:
    """Makes the columns of a row from its pictures.

    Args:
        model: What is judged.
        config: `data`.
        args: `segmenter`, `inception` and `batch_size`.
        edits: What was edited.
        clip: Gives the CLIP score, and features for FID where no Inception does.

    Raises:
        UserError: nothing can judge the shapes of photographs.
    """

    def __init__(
        self,
        model: ShapeGuided,
        config: ConfigDict,
        args: argparse.Namespace,
        edits: Edits,
        clip: CLIP | None,
    ) -> None:
        self.edits, self.batch_size, self.clip = edits, args.batch_size, clip
        self.segmenter: Segmenter
        self.detector: KeypointDetector | None
        if config.data.name == "scenes":
            self.segmenter, self.detector = oracle_segmenter, oracle_keypoints
            self.segmenter_name = f"the oracle, also for keypoints (α = {ALPHA})"
        else:
            if not args.segmenter:
                raise UserError(
                    "--segmenter is missing: shapes in photographs are judged by a CLIPSeg, give "
                    "its folder"
                )
            self.segmenter = find_segmenter(model, config, args.segmenter)
            self.detector, self.segmenter_name = None, "CLIPSeg; no keypoints"
        if clip is not None:
            tokens = make_tokenizer(config)([wish.edit for wish in edits.wishes], model.sd.tokens)
            self.texts = jax.jit(lambda clip, tokens: clip.encode_text(tokens))(clip, tokens)
            view = jax.jit(lambda clip, images: clip.encode_image(to_unit(images)))
            self.embed = functools.partial(view, clip)
        self.features: Callable[[Any], Array] | None = self.embed if clip is not None else None
        self.fid_name = "not made" if clip is None else "stand-in: features of the CLIP at hand"
        if args.inception:
            self.features, self.fid_name = inception_features(args.inception), "Inception-v3"
        if len(edits.image) < 2:
            self.features, self.fid_name = None, "not made: it needs two pictures"
        if self.features:
            self.real = moments(self.features, self._parts(edits.image)).finish()

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
            seen = jnp.concatenate([self.embed(part) for part in self._parts(pictures)])
            columns["CLIP"] = np.asarray(clip_score(seen, self.texts, weight=1.0))
        columns["background PSNR"] = psnr(pictures, edits.image, ~edits.shape)
        return columns

    def row(
        self, kind: str, method: str, pictures: UInt8[np.ndarray, "n H W 3"], columns: Columns
    ) -> dict[str, Any]:
        """The row of a method; what cannot be told is left out.

        Args:
            kind: Whose shapes.
            method: Its name.
            pictures: What it made.
            columns: What `columns` says of them.
        """
        row: dict[str, Any] = {"source": "here", "shape": kind, "method": method}
        for name, column in columns.items():
            # No number where nothing has keypoints, all is object or nothing was changed.
            known = column[np.isfinite(column)]
            if known.size:
                row[name] = float(known.mean())
        if self.features and kind:
            made = moments(self.features, self._parts(pictures)).finish()
            row["FID"] = frechet_distance(made, self.real)
        return row

    def _parts(self, images: UInt8[np.ndarray, "n H W 3"]) -> list[np.ndarray]:
        return np.split(images, range(self.batch_size, len(images), self.batch_size))


def _as_pictures(shapes: Bool[np.ndarray, "n H W"]) -> UInt8[np.ndarray, "n H W 3"]:
    return np.repeat(np.uint8(255) * shapes[..., None], 3, axis=-1)
