"""SeMani-Trans's stages and losses: equations 3 and 5 to 10 (sections 3.2.1 and 3.2.2)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import flip_horizontal, image_grid, random_square
from vljax.data.source import Source, Transform, readable
from vljax.errors import UserError
from vljax.models.adversarial import reconstruction_error, vqgan_loss
from vljax.models.alignment import mask_to_grid, own_pieces
from vljax.models.clip import CLIP
from vljax.models.parameters import copied, named_parameters, with_parameters
from vljax.models.token_transformer import Logits, TokenTransformer
from vljax.models.vqgan import codebook_of_centres
from vljax.ops.pixels import to_pixels, to_unit
from vljax.ops.quantization import gumbel_one_hot
from vljax.ops.similarity import clip_scale, contrastive_loss, cosine, late_interaction_loss
from vljax.systems.semani_trans.method import Read, codes_of, make_drawing, show, to_gray
from vljax.systems.semani_trans.model import SeManiTrans, make_tokenizer
from vljax.training.mesh import gather
from vljax.training.stage import Stage

Metrics = dict[str, Float[Array, ""]]

NAMES = (
    *("clip", "autoencoder", "vqgan", "adversarial"),
    *("pretrain", "plain", "language", "vision", "parallel"),
)
"""All stages, in their order."""

# Of the encoder's learning rate, where codes begin as centres of its encodings.
ENCODER_RATE = 0.1

# Pictures whose encodings begin the codebook.
_CODEBOOK_PICTURES = 256


def stages(config: ConfigDict) -> list[Stage]:
    """Those of `NAMES` that the config has.

    - `clip`: pictures and texts, as wholes and token by token (where no CLIP is published);
    - `autoencoder`: the codes' towers without codes yet; `vqgan`: with codes, which begin as
      centres of encodings after `autoencoder`; `adversarial`: the same with a discriminator;
    - `pretrain`: the Transformer by equations 5 and 6; `language`: and 7; `vision`: and 8;
    - `plain`: figure 8's ablation, from `pretrain` on as `vision`, without equation 7;
    - `parallel`: the Transformer that fills in masked codes, begun as the other one is.

    Raises:
        UserError: the data is not there, a field cannot be, or a stage has no such name.
    """
    if unknown := {*config.stages} - {*NAMES}:
        raise UserError(f"stages.{min(unknown)}: choose one of {', '.join(map(repr, NAMES))}")
    if not 0 <= config.data.entity_texts <= 1:
        raise UserError(f"data.entity_texts={config.data.entity_texts} is no share: give 0 to 1")
    if not 0 < config.data.least_crop <= 1:
        raise UserError(f"data.least_crop={config.data.least_crop}: give a share up to 1")
    benchmark = open_benchmark(config.data)
    entities = ("entity_texts", "entity_words", "masks") if config.data.entity_texts else ()
    told = ("image", "captions", *entities)
    pictures = benchmark.pictures()
    codes = (pictures, picture_transform(config))

    @functools.cache
    def words() -> tuple:
        # Made when a stage asks: codes alone are learnt from pictures without texts.
        fields = config.data
        if fields.entity_texts and (fields.flip or fields.least_crop < 1):
            changed = "flip=True" if fields.flip else f"least_crop={fields.least_crop}"
            raise UserError(
                f"data.{changed}: the entities that data.entity_texts={fields.entity_texts} names "
                "are where they are in whole pictures; give data.flip=False and "
                "data.least_crop=1.0, or data.entity_texts=0.0"
            )
        return benchmark.pictures(told), text_transform(config)

    def drawing(part: str, **how: bool) -> tuple:
        return [(rf"{part}\.", 1.0)], drawing_loss(config, part, **how), *words()

    clip, towers = [(r"clip\.(?!.*running_)", 1.0)], [(r"vqgan\.(?!quantize)", 1.0)]
    vqgan = [(r"vqgan\.", 1.0)]
    if "autoencoder" in config.stages:
        # Codes begin where encodings are, and are lost where these run away.
        vqgan.insert(0, (r"vqgan\.(encoder|quant_conv)\.", ENCODER_RATE))
    made: dict[str, Callable[[], tuple]] = {
        "clip": lambda: (clip, clip_loss, *words()),
        "autoencoder": lambda: (towers, autoencoder_loss(config), *codes),
        "vqgan": lambda: (vqgan, codes_loss(config, False), *codes),
        "adversarial": lambda: (
            [*vqgan, (r"discriminator\.", 1.0)],
            codes_loss(config, True),
            *codes,
        ),
        "pretrain": lambda: drawing("transformer"),
        "plain": lambda: drawing("plain", vision=True),
        "language": lambda: drawing("transformer", semantic=True),
        "vision": lambda: drawing("transformer", semantic=True, vision=True),
        "parallel": lambda: ([(r"parallel\.", 1.0)], filling_loss, *words()),
    }
    starts: dict[str, Callable[[SeManiTrans], SeManiTrans]] = {
        "plain": functools.partial(begun_as_transformer, part="plain"),
        "parallel": functools.partial(begun_as_transformer, part="parallel"),
    }
    if "autoencoder" in config.stages:
        starts["vqgan"] = codes_from(config, pictures)
    shown = {"vqgan": reconstructions, "adversarial": reconstructions}
    shown |= dict.fromkeys(("pretrain", "language", "vision"), drawings)
    left = {"plain": config.ablations, "parallel": config.parallel}
    found = []
    for name in NAMES:
        if name not in config.stages or not left.get(name, True):
            continue
        train, loss, source, transform = made[name]()
        found.append(
            Stage(
                name=name,
                loss=loss,
                train=train,
                source=source,
                transform=transform,
                config=config.stages[name],
                pictures=shown[name](config) if name in shown else None,
                start=starts.get(name),
            )
        )
    return found


# Examples ----------------------------------------------------------------------------------------


def picture_transform(config: ConfigDict) -> Transform:
    """A square of a picture by chance, perhaps mirrored: `{"image"}`."""
    fields = config.data

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = random_square(example["image"], fields.image_size, fields.least_crop, rng)
        if fields.flip and rng.random() < 0.5:
            image = flip_horizontal(image)
        return {"image": image}

    return transform


def text_transform(config: ConfigDict) -> Transform:
    """Beside the picture one of its texts, `text` for the Transformer, and what CLIP learns.

    A share `data.entity_texts` of the texts are of one entity alone, an object or the background;
    half of the time CLIP reads the word for it instead, as alignment asks. `tokens` are CLIP's,
    `own` marks those that count in alignment: all words of a text, or of a prompt the word itself;
    `region` [g·g] marks the patches that they are of.
    """
    picture, tokenizer, fields = picture_transform(config), make_tokenizer(config), config.model
    grid = (fields.clip.image_size // fields.clip.get("patch_size", fields.clip.image_size),) * 2
    length, prompt = fields.clip.context_length, config.alignment.prompt

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        alone = rng.random() < config.data.entity_texts
        texts = example["entity_texts" if alone else "captions"]
        chosen = rng.integers(len(texts))
        tokens = tokenizer([texts[chosen]], length, warn=False)
        place = np.arange(length)[None]
        own, region = (place > 0) & (place < tokens.argmax()), np.ones(grid, bool)
        if alone:
            masks = example["masks"]
            last = chosen == len(texts) - 1
            region = mask_to_grid(~masks.any(0) if last else masks[chosen], grid, "max")
            if rng.random() < 0.5:
                word = example["entity_words"][chosen]
                tokens, own = own_pieces(tokenizer, word, length, prompt)
        return {
            **picture(example, rng),
            "text": tokenizer.plain([texts[chosen]], fields.transformer.text_length, warn=False)[0],
            "tokens": tokens[0],
            "own": own[0],
            "region": region.reshape(-1),
        }

    return transform


# CLIP and codes ----------------------------------------------------------------------------------


def clip_loss(model: SeManiTrans, batch: dict, key: Key[Array, ""]) -> tuple[Array, Metrics]:
    """Pictures and texts as wholes (Radford et al. 2021), and what texts are of token by token.

    The one guides the Transformer, the other tells what a word names: FILIP's late interaction, of
    the patches of an entity alone where the text is of one.
    """
    clip, tokens = model.clip, batch["tokens"]
    scale = clip_scale(clip.logit_scale[...])
    seen = clip.image_tokens(to_unit(batch["image"]), whole=True)
    whole = contrastive_loss(seen[:, 0], clip.encode_text(tokens), scale)
    told = clip.text_tokens(tokens)
    parts = late_interaction_loss(seen[:, 1:], told, scale, batch["region"], batch["own"])
    return whole + parts, {"whole": whole, "tokens": parts, "scale": scale}


def autoencoder_loss(config: ConfigDict) -> Callable:
    """The error of pictures that go through the towers without codes."""

    def loss(model: SeManiTrans, batch: dict, key: Key[Array, ""]) -> tuple[Array, Metrics]:
        images = to_unit(batch["image"])
        drawn = model.vqgan.decode(model.vqgan.encode(images))
        return reconstruction_error(drawn, images, config.codes.squared), {}

    return loss


def codes_loss(config: ConfigDict, adversarial: bool) -> Callable:
    """See `vljax.models.adversarial.vqgan_loss`; LPIPS where it is published."""

    def loss(model: SeManiTrans, batch: dict, key: Key[Array, ""]) -> tuple[Array, Metrics]:
        return vqgan_loss(
            model.vqgan,
            to_unit(batch["image"]),
            lpips=model.lpips,
            discriminator=model.discriminator if adversarial else None,
            gan_weight=config.codes.gan_weight,
            squared=config.codes.squared,
        )

    return loss


def codes_from(config: ConfigDict, source: Source) -> Callable[[SeManiTrans], SeManiTrans]:
    """A codebook that begins with what the encoder makes of the first pictures."""
    transform = picture_transform(config)

    def start(model: SeManiTrans) -> SeManiTrans:
        rng = np.random.default_rng(config.seed)
        read = readable(source, config.data.on_corrupt, _CODEBOOK_PICTURES)
        images = np.stack([transform(example, rng)["image"] for _, example in read])
        begun = copied(model)
        begun.vqgan = codebook_of_centres(
            model.vqgan, to_unit(jnp.asarray(images)), jax.random.key(config.seed)
        )
        return begun

    return start


# The Transformer ---------------------------------------------------------------------------------


def begun_as_transformer(model: SeManiTrans, part: str) -> SeManiTrans:
    """Another Transformer of the model with all that it shares with `transformer`."""
    known = named_parameters(model.transformer)
    network = getattr(model, part)
    shared = {name: known[name] for name in named_parameters(network) if name in known}
    begun = copied(model)
    setattr(begun, part, with_parameters(network, shared))
    return begun


def use_gray(rows: int) -> Bool[Array, " b"]:
    """Which rows of a batch know the gray picture: half of them (section 3.2.2), at least one."""
    return jnp.arange(rows) < max(rows // 2, 1)


def cross_entropy(logits: Float[Array, "b n k"], labels: Int[Array, "b n"]) -> Float[Array, "b n"]:
    """Of each position, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def token_losses(
    network: TokenTransformer,
    logits: Logits,
    text: Int[Array, "b t"],
    codes: Int[Array, "b n"],
    gray: Int[Array, "b n"] | None,
    used: Bool[Array, " b"],
) -> Metrics:
    """Equations 5 (text), 6 (image) and 8 (gray, over rows that use it), in nats a token.

    Pads count as words, since each place has its own.
    """
    found = {
        "text": cross_entropy(logits.text, network.padded(text)).mean(),
        "image": cross_entropy(logits.image, codes).mean(),
    }
    if gray is not None and logits.gray is not None:
        rows = cross_entropy(logits.gray, gray).mean(1)
        found["gray"] = (rows * used).sum() / jnp.maximum(used.sum(), 1)
    return found


def semantic_loss(
    model: SeManiTrans,
    logits: Float[Array, "b n k"],
    tokens: Int[Array, "b c"],
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """Equation 7: 1 − cosine of the text and of the picture of the codes that are expected.

    Codes are drawn by Gumbel's noise, as in the code (the paper tells of the straight-through
    estimator only), from the logits of all positions under the true codes before them.
    """
    side = model.transformer.grid
    chosen = gumbel_one_hot(logits, key) @ model.vqgan.quantize.embedding.weight[...]
    drawn = model.vqgan.decode(chosen.reshape(len(logits), side, side, -1))
    clip: CLIP = model.clip
    seen = clip.encode_image(jnp.clip(drawn, -1, 1))
    return (1 - cosine(seen, jax.lax.stop_gradient(clip.encode_text(tokens)))).mean()


def drawing_loss(
    config: ConfigDict, part: str, *, semantic: bool = False, vision: bool = False
) -> Callable:
    """Equation 9, and with `semantic` 10.

    Args:
        config: `loss`.
        part: Which Transformer learns.
        semantic: Whether equation 7 counts.
        vision: Whether the sequence begins with the gray picture, used in half of the examples.
    """
    weights = config.loss

    def loss(model: SeManiTrans, batch: dict, key: Key[Array, ""]) -> tuple[Array, Metrics]:
        network: TokenTransformer = getattr(model, part)
        drop_key, gumbel_key = jax.random.split(key)
        images, text = to_unit(batch["image"]), batch["text"]
        rows = len(images)
        codes = codes_of(model, images)
        gray = codes_of(model, to_gray(images)) if vision else None
        used = use_gray(rows)
        logits = network(text, codes, gray, used if vision else None, key=drop_key)
        metrics = token_losses(network, logits, text, codes, gray, used)
        total = sum(weights[name] * value for name, value in metrics.items())
        total = total / sum(weights[name] for name in metrics)
        if semantic:
            # Spread over the batch, so that they are of rows with and without gray.
            every = max(rows // (weights.semantic_rows or rows), 1)
            fit = semantic_loss(model, logits.image[::every], batch["tokens"][::every], gumbel_key)
            metrics["semantic"] = fit
            total = total + weights.semantic * fit
        return total, metrics

    return loss


def filling_loss(model: SeManiTrans, batch: dict, key: Key[Array, ""]) -> tuple[Array, Metrics]:
    """Cross-entropy of masked codes given the others and the text (MaskGIT, equation 1).

    What is masked is a part of a region, a share cos(π u / 2) of it, u even: the region is the
    whole picture or, in half of the examples, a rectangle. Half of the examples know the gray
    picture.
    """
    assert model.parallel is not None
    drop_key, *keys = jax.random.split(key, 5)
    images = to_unit(batch["image"])
    codes, gray = codes_of(model, images), codes_of(model, to_gray(images))
    rows, side = len(images), model.parallel.grid
    region = regions(keys[0], rows, side)
    share = jnp.cos(0.5 * jnp.pi * jax.random.uniform(keys[1], (rows, 1)))
    # Half of the rows of each kind of region know the gray picture.
    used = jax.random.bernoulli(keys[2], 0.5, (rows,))
    noise = jnp.where(region, jax.random.uniform(keys[3], codes.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    count = jnp.ceil(share * region.sum(1, keepdims=True))
    unknown = region & (rank < jnp.maximum(count, 1))
    logits = model.parallel.fill(batch["text"], codes, unknown, gray, used, key=drop_key)
    each = cross_entropy(logits, codes)
    loss = (each * unknown).sum() / unknown.sum()
    right = ((logits.argmax(-1) == codes) & unknown).sum() / unknown.sum()
    return loss, {"image": loss, "right": right, "masked": unknown.mean()}


def regions(key: Key[Array, ""], rows: int, side: int) -> Bool[Array, "b n"]:
    """Of each row all places, or with probability ½ a rectangle of 1 to `side` places each way."""
    keys = jax.random.split(key, 3)
    ends = jax.random.randint(keys[0], (2, 2, rows), 0, side)
    low, high = ends.min(0)[..., None], ends.max(0)[..., None]
    place = jnp.arange(side)
    across, down = (place >= low) & (place <= high)
    rectangle = (down[:, :, None] & across[:, None]).reshape(rows, -1)
    return rectangle | jax.random.bernoulli(keys[1], 0.5, (rows, 1))


# What a run shows --------------------------------------------------------------------------------


def reconstructions(config: ConfigDict) -> Callable[[SeManiTrans], dict[str, np.ndarray]]:
    """Draws pictures above what their codes make of them."""
    source = open_benchmark(config.data).pictures(held_out=True)
    rng = np.random.default_rng(config.seed)
    transform = picture_transform(config)
    read = readable(source, config.data.on_corrupt, 8)
    images = np.stack([transform(example, rng)["image"] for _, example in read])

    @jax.jit
    def reconstruct(model: SeManiTrans) -> UInt8[Array, "b s s 3"]:
        vectors = model.vqgan.vectors(model.vqgan.codes(to_unit(jnp.asarray(images))))
        return to_pixels(model.vqgan.decode(vectors))

    def pictures(model: SeManiTrans) -> dict[str, np.ndarray]:
        both = np.concatenate([images, gather(reconstruct(model))])
        return {"reconstructions": image_grid(both, columns=len(images))}

    return pictures


def drawings(config: ConfigDict) -> Callable[[SeManiTrans], dict[str, np.ndarray]]:
    """Draws whole pictures from texts of the data, the same seeds each time."""
    benchmark, count = open_benchmark(config.data), config.samples.count
    read = readable(benchmark.pictures(("captions",)), config.data.on_corrupt, count)
    texts = [example["captions"][0] for _, example in read]
    words = make_tokenizer(config).plain(texts, config.model.transformer.text_length, warn=False)
    drawing = make_drawing(config)

    def pictures(model: SeManiTrans) -> dict[str, np.ndarray]:
        none = jnp.zeros((count, model.transformer.codes), jnp.int32)
        every, shapeless = np.ones(none.shape, bool), np.zeros(count, bool)
        codes = drawing(model, Read(none, none), words, every, range(count), shapeless)
        return {"captions": image_grid(gather(show(model, codes)), columns=count)}

    return pictures
