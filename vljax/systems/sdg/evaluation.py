"""How SDG is judged: tables 4.1 to 4.3 and figures 4.3 to 4.8, bits per dimension, free samples."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import contact_sheet, image_grid, image_transform, resize_and_crop
from vljax.data.pipeline import epoch
from vljax.data.scenes import prompt
from vljax.data.scenes.world import COLOURS, SHAPES
from vljax.data.source import Span, readable
from vljax.data.text.tokenizers import Tokenizer
from vljax.diffusion.likelihood import bits_per_dimension
from vljax.diffusion.noise import example_keys
from vljax.diffusion.process import make_process
from vljax.diffusion.progress import Progress, progress_bar
from vljax.diffusion.samplers import SAMPLERS
from vljax.errors import UserError
from vljax.metrics.diversity import picture_distance
from vljax.metrics.frechet import inception_features
from vljax.metrics.guided import Judge, attribute_accuracy
from vljax.metrics.report import Report, Row, paper_rows
from vljax.metrics.statistics import standard_error
from vljax.models.clip import CLIP
from vljax.ops.pixels import to_unit
from vljax.request import File, option
from vljax.systems.sdg.face_instructions import face_instructions
from vljax.systems.sdg.method import Drawing, Ilvr, Targets
from vljax.systems.sdg.model import SDG, is_guided, make_tokenizer

TEXT = "tables 4.1 and 4.3: guidance by text"
IMAGE = "tables 4.1 and 4.2: guidance by a picture"
_COLUMNS = ("data", "FID", "diversity", "top1", "top5", "top10", "top20")
#: The paper's rows; diversity is LPIPS.
PAPER = (
    *paper_rows(
        TEXT,
        "paper, table 4.1",
        _COLUMNS,
        ("StyleGAN+CLIP", "FFHQ", 57.45, 0.578, 0.749, 0.934, 0.974, 0.996),
    ),
    *paper_rows(
        TEXT,
        "paper, table 4.3",
        _COLUMNS,
        ("SDG (120)", "FFHQ", 19.60, 0.650, 0.248, 0.526, 0.654, 0.795),
        ("SDG (160)", "FFHQ", 22.63, 0.644, 0.263, 0.548, 0.679, 0.801),
        ("SDG (320)", "FFHQ", 28.38, 0.610, 0.553, 0.795, 0.878, 0.947),
    ),
    *paper_rows(
        IMAGE,
        "paper, table 4.1",
        _COLUMNS,
        ("ILVR (N=32)", "FFHQ", 17.15, 0.439, 0.205, 0.416, 0.556, 0.727),
        ("SDG", "FFHQ", 14.37, 0.583, 0.520, 0.742, 0.816, 0.906),
    ),
    *paper_rows(
        IMAGE,
        "paper, table 4.2",
        _COLUMNS,
        ("SDG (100)", "LSUN cat", 16.02, 0.617, 0.178, 0.443, 0.592, 0.766),
        ("SDG (200)", "LSUN cat", 16.23, 0.565, 0.278, 0.533, 0.738, 0.880),
        ("SDG (100)", "LSUN horse", 10.30, 0.597, 0.165, 0.418, 0.568, 0.704),
        ("SDG (200)", "LSUN horse", 11.22, 0.585, 0.298, 0.609, 0.738, 0.863),
        ("SDG (100)", "LSUN bedroom", 5.18, 0.633, 0.364, 0.745, 0.866, 0.942),
        ("SDG (200)", "LSUN bedroom", 5.19, 0.550, 0.445, 0.805, 0.900, 0.951),
    ),
)


@dataclass(frozen=True)
class Judging:
    """How SDG is judged; what is asked of it stands in `config.evaluation`."""

    num_images: int = option(48, low=1, help="unguided pictures to judge")
    batch_size: int = option(24, low=1, help="how many at a time")
    seed: int = option(1, seed=True, help="of the noise")
    sampler: str | None = option(None, choices=SAMPLERS, help="default: config.samples.sampler")
    steps: str | None = option(
        None, help="denoising steps: 100, ddim50, trailing25 … (default: config.samples.steps)"
    )
    bits_steps: str = option("50", help="denoising steps of the bits/dim bound")
    inception: File | None = option(None, help="published FID weights, for FID")
    lpips: tuple[File, ...] = option(
        (),
        help="published LPIPS weights, for diversity: the heads (vgg.pth) and torchvision's VGG-16 "
        "(vgg16-397923af.pth), or one file that holds both",
    )


def judge(model: SDG, config: ConfigDict, judging: Judging) -> Report:
    """Bits per dimension, free samples, and where the model is guided tables 4.1 to 4.3.

    Raises:
        UserError: a flag cannot be, or nothing is held out for evaluation.
    """
    bits = np.concatenate(list(_bits(model, config, judging)))
    notes: dict[str, Any] = {
        "bits_per_dimension": float(bits.mean()),
        "bits_per_dimension_standard_error": standard_error(bits),
        "images": len(bits),
        "bits_steps": judging.bits_steps,
    }
    drawing = Drawing(config, judging.sampler, judging.steps)
    drawn = drawing.batches(model, judging.seed, judging.num_images, judging.batch_size)
    samples = np.concatenate(list(drawn))
    figures = {"samples": image_grid(samples)}
    if oracle := open_benchmark(config.data).oracle:
        noise = np.random.default_rng(judging.seed).integers(0, 256, samples.shape, np.uint8)
        notes["oracle"] = oracle.summary(samples)
        notes["oracle_on_noise"] = oracle.summary(noise)
    report = Report((), notes, figures)
    return report + _judge_guided(model, config, judging) if is_guided(config) else report


def _bits(model: SDG, config: ConfigDict, judging: Judging) -> Iterator[Float[np.ndarray, " b"]]:
    """Bits per dimension of each held-out picture, batch by batch."""
    held_out = open_benchmark(config.data).pictures(held_out=True)
    source = Span(held_out, 0, min(judging.num_images, len(held_out)))
    transform = image_transform(config.data.image_size, flip=False)
    process = make_process(config, judging.bits_steps)

    @jax.jit
    def bound(model: SDG, pixels: Array, keys: Array, progress: Progress) -> Float[Array, " b"]:
        x0 = to_unit(pixels)
        return bits_per_dimension(
            process, model.diffusion, x0, keys, clip=True, progress=progress
        ).total

    done = 0
    batches = epoch(
        source,
        batch_size=judging.batch_size,
        transform=transform,
        on_corrupt=config.data.on_corrupt,
    )
    for number, batch in enumerate(batches):
        first = number * judging.batch_size
        keys = example_keys(jax.random.key(judging.seed), judging.batch_size, first)
        done += int(batch["valid"].sum())
        with progress_bar(f"bits/dim {done} of {len(source)}") as bar:
            total = np.asarray(bound(model, batch["image"], keys, bar))
        yield total[batch["valid"]]


# What is asked ---------------------------------------------------------------------------------

# Shape and colour of each of the scenes' classes.
_KINDS = [(shape, colour) for shape in SHAPES for colour in COLOURS]


class Guides(NamedTuple):
    """What the tables ask for.

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
    benchmark = open_benchmark(config.data)
    described = kind == "scenes" and benchmark.captioned
    fields = ("image", "captions", "class_ids") if described else ("image",)
    held_out = benchmark.pictures(fields, held_out=True)
    examples = [one for _, one in readable(held_out, config.data.on_corrupt, count)]
    size = config.data.image_size
    pictures = np.stack([resize_and_crop(example["image"], size) for example in examples])
    if described:
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


def _class_texts(guides: Guides, tokenizer: Tokenizer, length: int) -> Int[np.ndarray, "g k n"]:
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


# What is made of it ----------------------------------------------------------------------------


class Made(NamedTuple):
    """A method, and the pictures that it made of each guidance."""

    method: str
    pictures: UInt8[np.ndarray, "g k s s 3"]


@dataclass(frozen=True)
class Study:
    """Makes `config.evaluation.images_each` pictures of each guidance, by any method.

    The same noise serves for every method.
    """

    model: SDG
    config: ConfigDict
    judging: Judging

    def __call__(
        self,
        method: str,
        targets: Targets | None = None,
        *,
        ilvr: Ilvr | None = None,
        encoder: str = "noisy_clip",
    ) -> Made:
        """What a method makes; targets and ILVR's pictures are one for each guidance."""
        each = self.config.evaluation.images_each
        asked = {a: (target.repeat(each, axis=0), s) for a, (target, s) in (targets or {}).items()}
        mixed = (ilvr[0].repeat(each, axis=0), ilvr[1]) if ilvr else None
        count = len(mixed[0] if mixed else next(iter(asked.values()))[0])
        drawing = Drawing(self.config, self.judging.sampler, self.judging.steps, encoder=encoder)
        drawn = drawing.batches(
            *(self.model, self.judging.seed, count, self.judging.batch_size),
            asked,
            mixed,
            f"{method}:",
        )
        joined = np.concatenate(list(drawn))
        return Made(method, joined.reshape(-1, each, *joined.shape[1:]))


# Whose rows the judge knows too well; there is no other CLIP at hand that could judge them.
_OWN_GUIDANCE = (
    "the rows 'clean CLIP on …' are guided by the very CLIP that judges them, and all others by "
    "text towards its embeddings of the texts: how well a row fits by this CLIP (retrieval, CLIP "
    "score, R-precision, and what is a stand-in) tells how well its guide was followed, not how "
    "well anybody else finds it to fit"
)


def _judge_guided(model: SDG, config: ConfigDict, judging: Judging) -> Report:
    """Tables 4.1 to 4.3 and figures 4.3 to 4.8."""
    asked, guides = config.evaluation, read_guides(config)
    tokenizer, length = make_tokenizer(config), config.model.clip.context_length
    tokens, pictures = tokenizer(guides.texts, length), guides.pictures
    judged_by = _make_judge(model, config, judging)
    study, strong = Study(model, config, judging), asked.text_scales[-1]

    texts = [study(f"SDG, text ({s:g})", {"text": (tokens, s)}) for s in asked.text_scales]
    other_texts = [
        study(f"clean CLIP on {what} ({strong:g})", {"text": (tokens, strong)}, encoder=encoder)
        for what, encoder in (("x_t", "clip"), ("predicted x_0", "clip_on_x0"))
    ]
    classes = _class_texts(guides, tokenizer, length)
    other_texts.append(study("classifier guidance (1)", {"class": (classes, 1.0)}))
    images = [study(f"SDG, image ({s:g})", {"image": (pictures, s)}) for s in asked.image_scales]
    ilvr = [study(f"ILVR (N={n})", ilvr=(pictures, n)) for n in asked.ilvr_factors]

    def rows(table: str, made: Sequence[Made], embeddings: Float[Array, "g e"]) -> Iterator[Row]:
        for method, drawn in made:
            columns = judged_by.columns(drawn, embeddings, texts=table == TEXT)
            if guides.classes is not None:
                wanted = [kind for kind in guides.classes for _ in range(asked.images_each)]
                columns |= attribute_accuracy(drawn.reshape(-1, *drawn.shape[2:]), wanted)
            yield Row(table, method, {"data": config.data.name, **columns})

    return Report(
        (
            *PAPER,
            *rows(TEXT, texts + other_texts, jax.jit(CLIP.encode_text)(model.clip, tokens)),
            *rows(IMAGE, images + ilvr, judged_by.embed(pictures)),
        ),
        {"judged by": {**judged_by.notes, "its own guidance": _OWN_GUIDANCE}},
        {
            **_figures_of_tables(config, guides, texts, images, ilvr),
            **_figures_of_mixtures(config, guides, tokens, study),
        },
    )


def _make_judge(model: SDG, config: ConfigDict, judging: Judging) -> Judge:
    """A judge with the networks of the flags, and real pictures of the training set."""
    size = config.data.image_size
    training = open_benchmark(config.data).pictures()
    shown = readable(training, config.data.on_corrupt, config.evaluation.real)
    real = np.stack([resize_and_crop(example["image"], size) for _, example in shown])
    encode = jax.jit(lambda clip, pixels: clip.encode_image(to_unit(pixels)))
    embed, name = functools.partial(encode, model.clip), "the clean CLIP"
    return Judge(
        embed,
        real,
        name=name,
        inception=inception_features(judging.inception) if judging.inception else None,
        distance=picture_distance(judging.lpips, embed, name),
        batch_size=judging.batch_size,
    )


# The contact sheets that stand for figures 4.3 to 4.8 --------------------------------------------


def _few(guides: Guides) -> range:
    """The guidances shown."""
    return range(min(4, len(guides.texts), len(guides.pictures)))


def _beside(guides: Guides, index: int, made: Made) -> UInt8[np.ndarray, "n s s 3"]:
    """A reference picture, then what was made of it."""
    return np.concatenate([guides.pictures[index : index + 1], made.pictures[index]])


def _figures_of_tables(
    config: ConfigDict,
    guides: Guides,
    texts: Sequence[Made],
    images: Sequence[Made],
    ilvr: Sequence[Made],
) -> dict[str, np.ndarray]:
    """Figures of what the tables judge, by text and by picture at each scale, and by ILVR."""
    few, scales = _few(guides), config.evaluation.text_scales
    content = [("reference, then SDG" * (i == 0), _beside(guides, i, images[-1])) for i in few]
    language = [(guides.texts[i], texts[-1].pictures[i]) for i in few]
    by_scale = [
        (f"{guides.texts[i]}: scale {scale:g}", made.pictures[i])
        for i in few[:2]
        for scale, made in zip(scales, texts, strict=True)
    ]
    compared = [
        (f"reference, then {made.method}", _beside(guides, i, made))
        for i in few[:2]
        for made in (images[-1], *ilvr)
    ]
    return {
        "figure_4.3_content": contact_sheet(content),
        "figure_4.4_language": contact_sheet(language),
        "figure_4.6_scales": contact_sheet(by_scale),
        "figure_4.7_ilvr": contact_sheet(compared),
    }


def _figures_of_mixtures(
    config: ConfigDict, guides: Guides, tokens: Int[np.ndarray, "g n"], study: Study
) -> dict[str, np.ndarray]:
    """Figures of picture and text at once, of style and of structure; drawn for them alone."""
    few, scales = np.array(_few(guides)), config.guidance
    pictures, turned = guides.pictures[few], np.roll(few, 1)
    asked: Mapping[str, Targets] = {
        "multimodal": {"image": (pictures, scales.image), "text": (tokens[turned], scales.text)},
        "style": {"style": (pictures, scales.style)},
        "structure": {"structure": (pictures, scales.structure)},
    }
    made = {name: study(name, targets) for name, targets in asked.items()}
    mixed = [
        (f"reference, then with: {guides.texts[j]}", _beside(guides, i, made["multimodal"]))
        for i, j in zip(few, turned, strict=True)
    ]
    return {
        "figure_4.5_multimodal": contact_sheet(mixed),
        **{
            f"figure_4.8_{name}": contact_sheet([("", _beside(guides, i, made[name])) for i in few])
            for name in ("style", "structure")
        },
    }
