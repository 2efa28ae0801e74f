"""How text2image is judged: one table for all families, the decks' trilemma by numbers.

Quality (the Fréchet distance, and of scenes whether the largest object is what was asked for),
diversity (how different the pictures of one text are) and seconds a picture stand side by side.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import image_grid
from vljax.data.scenes import COLOURS, SHAPES, oracle
from vljax.data.scenes.truth import named_pairs
from vljax.data.scenes.wording import listed, words
from vljax.data.source import readable, stacked
from vljax.data.text.tokenizers import Tokenizer
from vljax.errors import UserError
from vljax.metrics.batches import features_of, parts
from vljax.metrics.diversity import picture_distance
from vljax.metrics.frechet import (
    Gaussian,
    frechet_distance,
    inception_features,
    moments,
    object_crops,
)
from vljax.metrics.guided import Judge, attribute_accuracy
from vljax.metrics.report import Report, Row
from vljax.metrics.statistics import standard_error
from vljax.metrics.text_fidelity import captioned_back, semantic_object_accuracy
from vljax.models.clip import CLIP
from vljax.models.parameters import named_parameters
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import normalise
from vljax.pretrained.clips import judging_clip
from vljax.request import File, option
from vljax.systems.text2image.families import FAMILIES, Wish
from vljax.systems.text2image.families.family import (
    caption_transform,
    first_pictures,
    open_captions,
)
from vljax.systems.text2image.likeness import judge_likeness
from vljax.systems.text2image.model import Text2Image, clip_of, make_tokenizer
from vljax.systems.text2image.use import Request, draw_best

TABLE = "pictures of texts"


@dataclass(frozen=True)
class Judging:
    """How text2image is judged."""

    num_texts: int = option(
        48, low=2, help="texts: of scenes every colour and shape; of one thing learnt, pictures"
    )
    each: int = option(4, low=2, help="pictures of each")
    real: int = option(500, low=100, help="held-out pictures to compare with")
    candidates: int = option(
        8, low=1, help="best of so many, by the model's own CLIP, in a row of its own; 1 for none"
    )
    seed: int = option(1, seed=True, help="of the first picture")
    sampler: str | None = option(None, help="of diffusion (default: config.samples)")
    steps: str | None = option(None, help="of diffusion (default: config.samples)")
    inception: File | None = option(None, help="published FID weights, for FID")
    lpips: tuple[File, ...] = option((), help="published LPIPS weights, heads and trunk")
    clip: File | None = option(
        None, metavar="FOLDER", help="the CLIP that judges (default: the model's own)"
    )


def judge(model: Text2Image, config: ConfigDict, judging: Judging) -> Report:
    """One row a way of drawing, beside chance and the nearest training picture.

    Where one thing was learnt, how well (`vljax.systems.text2image.likeness`).

    Raises:
        UserError: a flag cannot be, or there is no CLIP to judge by.
    """
    judged_by, tokenizer, name = _judging_clip(model, config, judging)
    if config.model.get("personal"):
        return _judge_likeness(model, config, judging, judged_by, tokenizer, name)
    texts, classes = _texts(config, judging)
    real = _real(config, judging.real)
    embed: Callable = jax.jit(lambda pictures: judged_by.encode_image(to_unit(pictures)))
    columns = Judge(
        embed,
        real,
        name=name,
        inception=inception_features(judging.inception) if judging.inception else None,
        distance=picture_distance(judging.lpips, embed, name),
        seed=judging.seed,
    )
    tokens = jnp.asarray(tokenizer(texts, judged_by.context_length, warn=False))
    guides = np.asarray(jax.jit(CLIP.encode_text)(judged_by, tokens))
    parameters = sum(
        leaf.size
        for path, leaf in named_parameters(model).items()
        if not path.startswith(("clip.", "discriminator.", "critic."))
    )

    def row(method: str, pictures: UInt8[np.ndarray, "g k h w 3"], **more: Any) -> Row:
        values = columns.columns(pictures, jnp.asarray(guides), texts=True)
        if classes:
            asked = [one for one in classes for _ in range(pictures.shape[1])]
            values |= attribute_accuracy(pictures.reshape(-1, *pictures.shape[2:]), asked)
            values |= _objects(columns, pictures, texts, crops)
        return Row(TABLE, method, {**values, **more})

    crops = _crops(columns, [oracle.detect(one) for one in real], real) if classes else None
    rows: list[Row] = []
    figures: dict[str, np.ndarray] = {}
    for method, candidates, changed in _ways(config, judging):
        made, seconds = _draw(model, config, judging, texts, candidates, changed)
        told: dict[str, Any] = {"seconds a picture": seconds}
        if not rows:
            told |= {"parameters": parameters, **_likelihoods(model, config, judging)}
        rows.append(row(method, made, **told))
        figures[f"figure_{len(rows)}_{method.replace(' ', '_')}"] = _figure(made)
    clip = clip_of(model)
    if clip is not None:
        words = make_tokenizer(config)(texts, clip.context_length, warn=False)
        found = _nearest(clip, config, words)
        rows.append(row("nearest training pictures by CLIP", found))
    if classes:
        chance = {"shape right": 1 / len(SHAPES), "colour right": 1 / len(COLOURS)}
        chance["both right"] = chance["shape right"] * chance["colour right"]
        rows.append(Row(TABLE, "chance", chance))
    notes = {
        "texts": len(texts),
        "pictures of each": judging.each,
        "seconds": "after compilation, batches of all pictures of one text",
        "judged by": columns.notes,
        **({"SOA, SceneFID, captioned back": "the oracle's objects and words"} if classes else {}),
    }
    return Report(tuple(rows), notes, figures)


def _judge_likeness(
    model: Text2Image,
    config: ConfigDict,
    judging: Judging,
    clip: CLIP,
    tokenizer: Tokenizer,
    name: str,
) -> Report:
    # A row is as many pictures of one text as --num_texts says, beside those of the thing.
    for field in ("each", "real", "inception", "candidates"):
        if (given := getattr(judging, field)) != getattr(Judging, field):
            raise UserError(
                f"--{field}={given}: of one thing learnt no row asks for it; leave it out"
            )
    embed: Callable = jax.jit(lambda pictures: clip.encode_image(to_unit(pictures)))
    distance = picture_distance(judging.lpips, embed, name)
    text = config.personal.templates[0].replace("{}", config.personal.noun)
    tokens = jnp.asarray(tokenizer([text], clip.context_length))
    return judge_likeness(
        model,
        config,
        Wish((), (), sampler=judging.sampler, steps=judging.steps),
        count=judging.num_texts,
        seed=judging.seed,
        embed=embed,
        text=np.asarray(jax.jit(CLIP.encode_text)(clip, tokens))[0],
        distance=distance,
        notes={"judged by": name, "diversity": distance.label},
    )


def _objects(
    columns: Judge,
    pictures: UInt8[np.ndarray, "g k h w 3"],
    texts: Sequence[str],
    real: Gaussian | None,
) -> dict[str, float]:
    """What the oracle finds of what is named; its objects beside real ones; and its words."""
    flat = pictures.reshape(-1, *pictures.shape[2:])
    asked = [text for text in texts for _ in range(pictures.shape[1])]
    seen = [oracle.detect(one) for one in flat]
    named = [[(one.shape, one.colour) for one in named_pairs(words(text))] for text in asked]
    there = [[(one.shape, one.colour) for one in some] for some in seen]
    values = semantic_object_accuracy(named, there)
    ours = _crops(columns, seen, flat)
    if ours is not None and real is not None:
        values["SceneFID"] = frechet_distance(ours, real)
    told = [_told(some) for some in seen]
    back = captioned_back(flat, [" ".join(words(text)) for text in asked], lambda _: told)
    return values | {f"captioned back, {name}": value for name, value in back.items()}


def _crops(
    columns: Judge, seen: Sequence[Sequence[oracle.Detection]], pictures: np.ndarray
) -> Gaussian | None:
    """Of the oracle's objects, each by itself; None where there are fewer than two."""
    boxes = [np.reshape([one.box for one in some], (-1, 4)) for some in seen]
    crops = object_crops(pictures, boxes, pictures.shape[1])
    if len(crops) < 2:
        return None
    return moments(columns.features, parts(crops, columns.batch_size)).finish()


def _told(seen: Sequence[oracle.Detection]) -> str:
    """The oracle's objects in words, the largest first: the caption that names every object."""
    ordered = sorted(seen, key=lambda one: -one.mask.sum())
    names = [f"a {one.colour} {one.shape}" for one in ordered]
    return " ".join(words(f"a photo of {listed(names) if names else 'nothing'}"))


def _ways(config: ConfigDict, judging: Judging) -> list[tuple[str, int, dict[str, float]]]:
    """What is compared: name, candidates, and what of a wish is changed."""
    name = config.family
    found: list[tuple[str, int, dict[str, float]]] = [(name, 1, {})]
    if "guidance_scale" in FAMILIES[name].heeds:
        usual = float(config.samples.guidance_scale)
        found[0] = (f"{name}, guidance w = {usual:g}", 1, {})
        found += [
            (f"{name}, guidance w = {w:g}", 1, {"guidance_scale": w})
            for w in (0.0, 3.0)
            if w != usual
        ]
    if judging.candidates > 1:
        found.append((f"{found[0][0]}, best of {judging.candidates}", judging.candidates, {}))
    return found


def _draw(
    model: Text2Image,
    config: ConfigDict,
    judging: Judging,
    texts: Sequence[str],
    candidates: int,
    changed: dict[str, float],
) -> tuple[UInt8[np.ndarray, "g k h w 3"], float]:
    """Pictures of every text, and the seconds of one once all is compiled."""
    wish = Wish((), (), sampler=judging.sampler, steps=judging.steps, **changed)  # type: ignore[arg-type]
    made, started = [], 0.0
    for number, text in enumerate(texts):
        if number == 1:
            started = time.perf_counter()
        asked = Request(
            prompt=(text,),
            count=judging.each,
            candidates=candidates,
            seed=judging.seed + number * judging.each * candidates,
        )
        label = f"{number + 1} of {len(texts)} texts"
        made.append(draw_best(model, config, wish, text, asked, label)[0])
    seconds = (time.perf_counter() - started) / ((len(texts) - 1) * judging.each)
    return np.stack(made), seconds


def _texts(config: ConfigDict, judging: Judging) -> tuple[list[str], list[tuple[str, str]] | None]:
    """What is asked for: of scenes every colour and shape in turn, else held-out captions."""
    if open_benchmark(config.data).oracle is not None:
        pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
        # In steps that share no factor with their number, so that few texts differ in both.
        chosen = [pairs[(i * 11) % len(pairs)] for i in range(judging.num_texts)]
        return [f"a photo of a {colour} {shape}" for shape, colour in chosen], chosen
    source = open_captions(config, held_out=True)
    read = readable(source, config.data.on_corrupt, judging.num_texts)
    return [example["captions"][0] for _, example in read], None


def _real(config: ConfigDict, count: int) -> UInt8[np.ndarray, "n h w 3"]:
    pictures = first_pictures(config, max(count, 100), held_out=True)
    if len(pictures) < 100:
        raise UserError(
            f"{len(pictures)} pictures are held out: retrieval needs 100 or more to choose among"
        )
    return pictures[:count]


def _likelihoods(model: Text2Image, config: ConfigDict, judging: Judging) -> dict[str, float]:
    """Means over held-out pictures under their own captions, of what the family tells."""
    family = FAMILIES[config.family]
    wanted = {"bits/dim": family.bits, "nats a code": family.nats}
    asked = {name: function for name, function in wanted.items() if function is not None}
    if not asked:
        return {}
    source = open_captions(config, held_out=True)
    fields = config.model.text_encoder or {}
    length = fields.get("text_length", config.model.clip.get("context_length", 77))
    transform, rng = caption_transform(config, length), np.random.default_rng(judging.seed)
    read = readable(source, config.data.on_corrupt, 48)
    examples = [transform(example, rng) for _, example in read]
    batch = jax.tree.map(jnp.asarray, stacked(examples))
    values = {}
    for name, function in asked.items():
        each = np.asarray(function(model, config, batch, jax.random.key(judging.seed)), float)
        values[name] = float(each.mean())
        values[f"standard error of {name}"] = standard_error(each)
    return values


def _nearest(clip: CLIP, config: ConfigDict, tokens: np.ndarray) -> UInt8[np.ndarray, "g 2 h w 3"]:
    """Retrieval as generation: of 1,000 training pictures the two that CLIP finds best."""
    pictures = first_pictures(config, 1000)
    embed: Callable = jax.jit(lambda pictures: clip.encode_image(to_unit(pictures)))
    seen = features_of(embed, pictures, 50)
    asked = jax.jit(CLIP.encode_text)(clip, jnp.asarray(tokens))
    similar = np.asarray(normalise(asked) @ normalise(jnp.asarray(seen)).T)
    return pictures[np.argsort(-similar, axis=1)[:, :2]]


def _judging_clip(
    model: Text2Image, config: ConfigDict, judging: Judging
) -> tuple[CLIP, Tokenizer, str]:
    if judging.clip:
        return *judging_clip(judging.clip, make_tokenizer(config)), "the CLIP given"
    own = clip_of(model)
    if own is None:
        raise UserError("there is no CLIP to judge by: give one with --clip=FOLDER")
    return own, make_tokenizer(config), "the model's own CLIP"


def _figure(made: UInt8[np.ndarray, "g k h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Twelve texts, a column each."""
    few = made[:12, :4].swapaxes(0, 1)
    return image_grid(few.reshape(-1, *few.shape[2:]), columns=few.shape[1])
