"""SDG's training stages and their losses (sections 4.3.1 and 4.3.5)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import contact_sheet, image_grid, image_transform
from vljax.data.scenes import prompt
from vljax.data.text.tokenizers import captioned
from vljax.diffusion.losses import denoising_loss, named_loss
from vljax.diffusion.noise import example_keys
from vljax.diffusion.process import make_process, q_sample
from vljax.diffusion.timesteps import TimestepSampler, named_timestep_sampler
from vljax.models.noisy_clip import from_clip
from vljax.models.parameters import copied
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import clip_scale, contrastive_loss, cosine
from vljax.systems.sdg.method import Drawing
from vljax.systems.sdg.model import SDG, is_guided, make_tokenizer
from vljax.training.contrast import clip_loss
from vljax.training.mesh import gather
from vljax.training.stage import Stage


def stages(config: ConfigDict) -> list[Stage]:
    """The stages: `diffusion`; of a guided model also `clip` (where captions are) and `noisy_clip`.

    Raises:
        UserError: the data is not there, or a field cannot be.
    """
    size, flip = config.data.image_size, config.data.flip
    benchmark = open_benchmark(config.data)
    source = benchmark.pictures()
    found = [
        Stage(
            name="diffusion",
            loss=diffusion_loss(config),
            train=[(r"diffusion\.", 1.0)],
            source=source,
            transform=image_transform(size, flip=flip),
            config=config.stages.diffusion,
            memory=lambda: named_timestep_sampler(
                config.diffusion.timestep_sampler, config.diffusion.num_steps
            ),
            pictures=sample_pictures(config),
        )
    ]
    if not is_guided(config):
        return found
    if benchmark.captioned:
        found.append(
            Stage(
                name="clip",
                loss=clip_loss(lambda model: model.clip),
                train=[(r"clip\.(?!.*running_)", 1.0)],
                source=benchmark.pictures(("image", "captions")),
                transform=captioned(make_tokenizer(config), config.model.clip.context_length),
                config=config.stages.clip,
            )
        )
    found.append(
        Stage(
            name="noisy_clip",
            loss=noisy_clip_loss(config),
            train=[
                (r"noisy_clip\.(time_embed|emb_layers)\.", config.stages.noisy_clip.time_rate),
                # Batch norms keep their running statistics.
                (r"noisy_clip\.(?!.*running_)", 1.0),
            ],
            source=source,
            transform=image_transform(size, flip=flip),
            config=config.stages.noisy_clip,
            start=lambda model: start_noisy_clip(model, config),
            pictures=guided_pictures(config) if benchmark.captioned else None,
        )
    )
    return found


def diffusion_loss(config: ConfigDict) -> Callable:
    """The denoiser's training loss, `config.diffusion.loss`, of pictures noised by equation 4.2.

    Its memory is the timestep sampler.
    """
    process, per_example = make_process(config), named_loss(config.diffusion.loss)

    def loss(model: SDG, batch: dict, key: Key[Array, ""], timesteps: TimestepSampler) -> Any:
        *keys, dropout_key = jax.random.split(key, 3)
        denoiser = functools.partial(model.diffusion, key=dropout_key)
        x0 = to_unit(batch["image"])
        return denoising_loss(process, denoiser, x0, keys, timesteps, per_example)

    return loss


def start_noisy_clip(model: SDG, config: ConfigDict) -> SDG:
    """The model whose noise-aware CLIP is yet the clean one (section 4.3.5)."""
    started = copied(model)
    size = config.model.noisy_clip.image_size
    started.noisy_clip = from_clip(model.clip, size, rngs=nnx.Rngs(config.seed))
    return started


def noisy_clip_loss(config: ConfigDict) -> Callable:
    """Noisy pictures must find their clean selves in the batch (section 4.3.5); no captions."""
    process = make_process(config)

    def loss(model: SDG, batch: dict, key: Key[Array, ""]) -> tuple[Array, dict[str, Array]]:
        x0 = to_unit(batch["image"])
        step_key, noise_key = jax.random.split(key)
        t = jax.random.randint(step_key, (len(x0),), 0, config.diffusion.num_steps)
        x_t = q_sample(process.schedule, x0, t, jax.random.normal(noise_key, x0.shape))
        clean = jax.lax.stop_gradient(model.clip.encode_image(x0))
        noisy = model.noisy_clip.encode_image(x_t, t)
        # As sharp as the CLIP was trained: the published ones all ended at 100.
        scale = jax.lax.stop_gradient(clip_scale(model.clip.logit_scale[...]))
        metrics = {"cosine": cosine(noisy, clean).mean()}
        return contrastive_loss(noisy, clean, scale, directions="sum"), metrics

    return loss


def sample_pictures(config: ConfigDict) -> Callable[[SDG], dict[str, np.ndarray]]:
    """Draws one grid of samples, the same seeds each time, so that grids can be compared."""
    drawing = Drawing(config)

    def draw(model: SDG) -> dict[str, np.ndarray]:
        keys = example_keys(jax.random.key(config.seed), config.samples.count)
        return {"samples": image_grid(gather(drawing(model, keys)))}

    return draw


def guided_pictures(config: ConfigDict) -> Callable[[SDG], dict[str, np.ndarray]]:
    """Draws a sheet of pictures for a few texts, the same seeds each time."""
    kinds = (("circle", "red"), ("square", "blue"), ("star", "yellow"), ("heart", "green"))
    texts = [prompt(shape, colour) for shape, colour in kinds]
    count = max(1, config.samples.count // len(texts))
    tokens = make_tokenizer(config)(texts, config.model.clip.context_length)
    targets = {"text": (tokens.repeat(count, axis=0), config.guidance.text)}
    drawing = Drawing(config)

    def draw(model: SDG) -> dict[str, np.ndarray]:
        keys = example_keys(jax.random.key(config.seed), len(texts) * count)
        pictures = np.split(gather(drawing(model, keys, targets)), len(texts))
        return {"guided": contact_sheet(list(zip(texts, pictures, strict=True)))}

    return draw
