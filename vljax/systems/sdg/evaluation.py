"""`python -m vljax.evaluate` for SDG: tables 4.1 to 4.3 and figures 4.3 to 4.8."""

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from vljax.data.datasets import Span, open_source
from vljax.data.pictures.images import (
    contact_sheet,
    image_grid,
    image_transform,
    resize_and_crop,
    write_png,
)
from vljax.data.pipeline import epoch
from vljax.data.scenes import oracle, prompt
from vljax.data.scenes.world import COLOURS, SHAPES
from vljax.data.text.tokenizers import Tokenizer
from vljax.diffusion.likelihood import bits_per_dimension
from vljax.diffusion.noise import example_keys
from vljax.diffusion.progress import Progress, progress_bar
from vljax.errors import UserError
from vljax.metrics.diversity import lpips_distance
from vljax.metrics.frechet import inception_features
from vljax.models.clip import CLIP
from vljax.models.perceptual import LPIPS
from vljax.ops.pixels import to_unit
from vljax.pretrained import load
from vljax.systems.sdg.face_instructions import face_instructions
from vljax.systems.sdg.judge import PAPER, Judge
from vljax.systems.sdg.model import (
    SDG,
    Drawing,
    Request,
    is_guided,
    make_process,
    make_tokenizer,
)
from vljax.systems.sdg.use import add_sampler_flags, check_flags


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m vljax.evaluate` for this system."""
    parser.add_argument("--num_images", type=int, default=48, help="unguided pictures to judge")
    parser.add_argument("--batch_size", type=int, default=24, help="how many at a time")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    add_sampler_flags(parser)
    parser.add_argument("--bits_steps", default="50", help="denoising steps of the bits/dim bound")
    parser.add_argument("--inception", metavar="FILE", help="published FID weights, for FID")
    parser.add_argument("--lpips", metavar="FILE", help="published LPIPS (VGG), for diversity")


def evaluate(model: SDG, config: ConfigDict, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Bits per dimension, unguided samples, and tables 4.1 to 4.3 with figures 4.3 to 4.8.

    Returns:
        The results by name, as they stand in `results.json`. `text` and `image` are tables.

    Raises:
        UserError: a flag cannot be, or nothing is held out for evaluation.
    """
    check_flags(args, config)
    bits = np.concatenate(list(_bits(model, config, args)))
    results: dict[str, Any] = {
        "bits_per_dimension": float(bits.mean()),
        "bits_per_dimension_standard_error": float(bits.std() / len(bits) ** 0.5),
        "images": len(bits),
        "bits_steps": args.bits_steps,
    }
    drawing = Drawing(config, args.sampler, args.steps)
    samples = np.concatenate(
        list(drawing.batches(model, args.seed, args.num_images, args.batch_size))
    )
    write_png(out / "samples.png", image_grid(samples), {})
    if config.data.name == "scenes":
        noise = np.random.default_rng(args.seed).integers(0, 256, samples.shape, np.uint8)
        results["oracle"] = oracle.summary(samples)
        results["oracle_on_noise"] = oracle.summary(noise)
    return results | (_guided(model, config, args, out) if is_guided(config) else {})


def _bits(model: SDG, config: ConfigDict, args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Bits per dimension of each held-out picture, batch by batch."""
    held_out = open_source(config.data, fields=("image",), held_out=True)
    source = Span(held_out, 0, min(args.num_images, len(held_out)))
    transform = image_transform(config.data.image_size, flip=False)
    process = make_process(config, args.bits_steps)

    @jax.jit
    def bound(model: SDG, pixels: Array, keys: Array, progress: Progress) -> Float[Array, " b"]:
        x0 = to_unit(pixels)
        return bits_per_dimension(
            process, model.diffusion, x0, keys, clip=True, progress=progress
        ).total

    done = 0
    for batch in epoch(source, batch_size=args.batch_size, transform=transform):
        keys = example_keys(jax.random.key(args.seed), args.batch_size, done)
        done += int(batch["valid"].sum())
        with progress_bar(f"bits/dim {done} of {len(source)}") as bar:
            total = np.asarray(bound(model, batch["image"], keys, bar))
        yield total[batch["valid"]]


# Shape and colour of each of the scenes' classes.
_KINDS = [(shape, colour) for shape in SHAPES for colour in COLOURS]


class Guides(NamedTuple):
    """What `evaluate` asks for.

    Attributes:
        texts: The prompts.
        pictures: The reference pictures.
        classes: On scenes the (shape, colour) of each, the same for texts and pictures.
    """

    texts: list[str]
    pictures: UInt8[np.ndarray, "g s s 3"]
    classes: list[tuple[str, str]] | None


def read_guides(config: ConfigDict) -> Guides:
    """The texts and reference pictures of `config.evaluation`; pictures are held-out ones.

    On scenes a text describes the picture of its place in full.

    Raises:
        UserError: there are too few, or a file of texts cannot be read.
    """
    count, kind = config.evaluation.guidances, config.evaluation.instructions
    on_scenes = config.data.name == "scenes"
    fields = ("image", "captions", "class_ids") if on_scenes else ("image",)
    held_out = open_source(config.data, fields=fields, held_out=True)
    examples = [held_out[i] for i in range(min(count, len(held_out)))]
    size = config.data.image_size
    pictures = np.stack([resize_and_crop(example["image"], size) for example in examples])
    if kind == "scenes" and on_scenes:
        classes = [_KINDS[example["class_ids"][0]] for example in examples]
        return Guides([example["captions"][-1] for example in examples], pictures, classes)
    if kind == "faces":
        texts = face_instructions()
    else:
        try:
            texts = [t for t in Path(kind).read_text("utf-8").splitlines() if t.strip()]
        except OSError as error:
            raise UserError(
                f"evaluation.instructions={kind!r} cannot be read ({error.strerror}): give 'faces' "
                "or a file with a text a line"
            ) from error
    if len(texts) < 2:
        raise UserError(
            f"evaluation.instructions={kind!r} holds {len(texts)} texts: give 2 or more"
        )
    return Guides(texts[:count], pictures, None)


def _guided(model: SDG, config: ConfigDict, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Tables 4.1 to 4.3 (`text` and `image`) and the figures."""
    asked, guides = config.evaluation, read_guides(config)
    each, length = asked.images_each, config.model.clip.context_length
    tokenizer = make_tokenizer(config)
    tokens, pictures = tokenizer(guides.texts, length), guides.pictures
    judge = _judge(model, config, args)
    text_guides = jax.jit(CLIP.encode_text)(model.clip, tokens)
    image_guides = judge.embed(pictures)

    def draw(
        label: str,
        request: Request | None = None,
        ilvr: tuple[np.ndarray, int] | None = None,
        encoder: str = "noisy_clip",
    ) -> UInt8[np.ndarray, "g k s s 3"]:
        """`each` pictures of every guidance; the same noise for every method."""
        repeated = {
            a: (target.repeat(each, axis=0), s) for a, (target, s) in (request or {}).items()
        }
        mixed = (ilvr[0].repeat(each, axis=0), ilvr[1]) if ilvr else None
        count = len(mixed[0] if mixed else next(iter(repeated.values()))[0])
        drawing = Drawing(config, args.sampler, args.steps, encoder=encoder)
        drawn = drawing.batches(
            model, args.seed, count, args.batch_size, repeated, mixed, f"{label}:"
        )
        joined = np.concatenate(list(drawn))
        return joined.reshape(-1, each, *joined.shape[1:])

    made: dict[str, np.ndarray] = {}
    text_rows, image_rows = list(PAPER["text"]), list(PAPER["image"])

    def add_text(method: str, **how: Any) -> None:
        made[method] = draw(method, **how)
        text_rows.append(judge.row(method, made[method], text_guides, guides.classes, texts=True))

    def add_image(method: str, **how: Any) -> None:
        made[method] = draw(method, **how)
        image_rows.append(
            judge.row(method, made[method], image_guides, guides.classes, texts=False)
        )

    for scale in asked.text_scales:
        add_text(f"SDG, text ({scale:g})", request={"text": (tokens, scale)})
    strong = asked.text_scales[-1]
    add_text(f"clean CLIP on x_t ({strong:g})", request={"text": (tokens, strong)}, encoder="clip")
    add_text(
        f"clean CLIP on predicted x_0 ({strong:g})",
        request={"text": (tokens, strong)},
        encoder="clip_on_x0",
    )
    add_text(
        "classifier guidance (1)", request={"class": (_classes(guides, tokenizer, length), 1.0)}
    )
    for scale in asked.image_scales:
        add_image(f"SDG, image ({scale:g})", request={"image": (pictures, scale)})
    for factor in asked.ilvr_factors:
        add_image(f"ILVR (N={factor})", ilvr=(pictures, factor))

    _figures(config, guides, tokens, made, draw, out)
    return {"text": text_rows, "image": image_rows, "judged by": judge.notes}


def _judge(model: SDG, config: ConfigDict, args: argparse.Namespace) -> Judge:
    """A judge with the networks of the flags, and real pictures of the training set."""
    size = config.data.image_size
    training = open_source(config.data, fields=("image",))
    count = min(config.evaluation.real, len(training))
    real = np.stack([resize_and_crop(training[i]["image"], size) for i in range(count)])
    embed = jax.jit(lambda clip, pixels: clip.encode_image(to_unit(pixels)))
    inception = inception_features(args.inception) if args.inception else None
    distance = None
    if args.lpips:
        distance = lpips_distance(
            load(jax.eval_shape(lambda: LPIPS("vgg", rngs=nnx.Rngs(0))), args.lpips)
        )
    return Judge(
        functools.partial(embed, model.clip),
        real,
        data=config.data.name,
        inception=inception,
        distance=distance,
        batch_size=args.batch_size,
    )


def _classes(guides: Guides, tokenizer: Tokenizer, length: int) -> Int[np.ndarray, "g k n"]:
    """For each guidance, tokens of its class's prompt and of those that it should win against."""
    if guides.classes is None:
        texts, own = guides.texts, list(range(len(guides.texts)))
    else:
        texts = [prompt(shape, colour) for shape, colour in _KINDS]
        own = [_KINDS.index(kind) for kind in guides.classes]
    tokens = tokenizer(texts, length)
    # So many that texts stay a small part of the work.
    others = min(len(texts) - 1, 47)
    return np.stack([np.roll(tokens, -i, axis=0)[: others + 1] for i in own])


def _figures(
    config: ConfigDict,
    guides: Guides,
    tokens: Int[np.ndarray, "g n"],
    made: Mapping[str, np.ndarray],
    draw: Callable[..., np.ndarray],
    out: Path,
) -> None:
    """The contact sheets that stand for figures 4.3 to 4.8."""
    asked, scales = config.evaluation, config.guidance
    few = range(min(4, len(guides.texts), len(guides.pictures)))
    text = f"SDG, text ({asked.text_scales[-1]:g})"
    image = f"SDG, image ({asked.image_scales[-1]:g})"

    def sheet(name: str, rows: list[tuple[str, np.ndarray]]) -> None:
        write_png(out / f"{name}.png", contact_sheet(rows), {})

    def beside(i: int, drawn: np.ndarray) -> np.ndarray:
        """The reference picture, then what was made of it."""
        return np.concatenate([guides.pictures[i : i + 1], drawn])

    sheet(
        "figure_4.3_content",
        [("reference, then SDG" * (i == 0), beside(i, made[image][i])) for i in few],
    )
    sheet("figure_4.4_language", [(guides.texts[i], made[text][i]) for i in few])
    sheet(
        "figure_4.6_scales",
        [
            (f"{guides.texts[i]}: scale {scale:g}", made[f"SDG, text ({scale:g})"][i])
            for i in few[:2]
            for scale in asked.text_scales
        ],
    )
    ilvr = [f"ILVR (N={factor})" for factor in asked.ilvr_factors]
    sheet(
        "figure_4.7_ilvr",
        [(f"reference, then {m}", beside(i, made[m][i])) for i in few[:2] for m in (image, *ilvr)],
    )
    chosen = np.array(few)
    pictures = guides.pictures[chosen]
    turned = np.roll(chosen, 1)
    for name, label, request in (
        (
            "figure_4.5_multimodal",
            "reference, then with: ",
            {"image": (pictures, scales.image), "text": (tokens[turned], scales.text)},
        ),
        ("figure_4.8_style", "", {"style": (pictures, scales.style)}),
        ("figure_4.8_structure", "", {"structure": (pictures, scales.structure)}),
    ):
        drawn = draw(name.partition("_4.")[2], request=request)
        sheet(
            name,
            [(label and label + guides.texts[turned[i]], beside(i, drawn[i])) for i in few],
        )
