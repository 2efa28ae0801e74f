"""SDG: Semantic Diffusion Guidance of an unconditional diffusion model.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 4; Liu et
al., *More Control for Free! Image Synthesis with Semantic Diffusion Guidance* (2023). Here stands
its first stage, `diffusion`: the unconditional ADM U-Net (section 4.3.1, equations 4.1 to 4.3).
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.data import oracle
from vljax.data.datasets import Span, open_source
from vljax.data.images import image_grid, image_transform, write_png
from vljax.data.pipeline import epoch
from vljax.diffusion.likelihood import bits_per_dimension
from vljax.diffusion.losses import named_loss
from vljax.diffusion.noise import example_keys, start_noise
from vljax.diffusion.process import Process
from vljax.diffusion.progress import Progress, progress_bar
from vljax.diffusion.samplers import ddim, ddpm, dpm_solver_pp_2m
from vljax.diffusion.schedules import named_schedule, parse_timesteps, respace
from vljax.diffusion.timesteps import named_timestep_sampler
from vljax.errors import UserError
from vljax.models.unet import UNet
from vljax.training.mesh import gather
from vljax.training.optimizer import get_optimizer_config
from vljax.training.stage import Stage

SAMPLERS = ("ddpm", "ddim", "dpm_solver")


def get_config() -> ConfigDict:
    """The fields of an SDG run, with a recipe that two CPU cores finish on scenes in minutes."""
    config = get_base_config("sdg")
    config.about = "SDG on the embedded scenes: a small recipe for two CPU cores, not the paper's."
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            # So many of the last examples are kept for evaluation.
            "held_out": 0,
            "image_size": 32,
            "flip": False,
            "scenes": {
                "size": 10_000,
                "min_objects": 1,
                "max_objects": 1,
                "sizes": ("large",),
            },
        }
    )
    config.model = {
        "diffusion": {
            "model_channels": 32,
            "channel_mult": (1.0, 1.0, 2.0, 4.0),
            "num_res_blocks": 1,
            "attention_resolutions": (8, 4),
            "num_heads": 1,
            "num_head_channels": 32,
            "head_order": "heads_first",
            "dropout_rate": 0.0,
            "scale_shift_norm": True,
            "norm_groups": 32,
            "resblock_updown": True,
            "remat": False,
            "dtype": "float32",
        }
    }
    config.diffusion = {
        "schedule": "cosine",
        "num_steps": 1000,
        "prediction": "v",
        "variance": "fixed_small",
        "loss": "simple",
        "timestep_sampler": "uniform",
    }
    config.stages = {
        "diffusion": {
            "batch_size": 8,
            "num_steps": 1700,
            "accumulate": 1,
            "ema_decay": 0.995,
            "optimizer": get_optimizer_config(
                learning_rate=2e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0
            ),
        }
    }
    config.pretrained = {"diffusion": ""}
    # Split over `tensor`: within a residual block and around attention, one pair of column and
    # row each; everything else as `fsdp`.
    config.sharding = (
        (r"in_layers\.2\.|\.qkv\.|emb_layers", "column"),
        (r"out_layers\.3\.weight|proj_out\.weight", "row"),
        (".*", "fsdp"),
    )
    # Pictures drawn during training.
    config.samples = {"count": 16, "sampler": "ddim", "steps": "50"}
    config.log.pictures_every = 500
    config.checkpoint.every = 500
    return config


def get_published_config(data_name: str, data_dir: str) -> ConfigDict:
    """The settings that the published FFHQ and LSUN models share: ADM at 256 pixels.

    Dhariwal & Nichol 2021, tables 11 and 12.
    """
    config = get_config()
    config.data.update(
        {"name": data_name, "path": data_dir, "image_size": 256, "flip": True, "workers": 8}
    )
    config.model.diffusion.update(
        {
            "channel_mult": (1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
            "num_head_channels": 64,
            "remat": True,
            "dtype": "bfloat16",
        }
    )
    config.diffusion.update(
        {
            "schedule": "linear",
            "prediction": "epsilon",
            "variance": "learned_range",
            "loss": "hybrid",
        }
    )
    config.stages.diffusion.update(
        {"ema_decay": 0.9999, "optimizer": get_optimizer_config(learning_rate=1e-4)}
    )
    config.samples.update({"sampler": "ddpm", "steps": "100"})
    config.log.pictures_every = 5000
    config.checkpoint.every = 5000
    return config


class SDG(nnx.Module):
    """The model: the denoiser `diffusion`, a `UNet`."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        channels = 6 if config.diffusion.variance == "learned_range" else 3
        self.diffusion = UNet(
            image_size=config.data.image_size,
            out_channels=channels,
            rngs=rngs,
            **config.model.diffusion,
        )


def make_model(config: ConfigDict) -> SDG:
    """The model at its random start."""
    return SDG(config, rngs=nnx.Rngs(config.seed))


def make_process(config: ConfigDict, steps: str = "") -> Process:
    """The diffusion process, respaced to `steps` where given (`"100"`, `"ddim50"`)."""
    fields = config.diffusion
    schedule = named_schedule(fields.schedule, fields.num_steps)
    if steps:
        schedule = respace(schedule, parse_timesteps(fields.num_steps, steps))
    return Process(schedule, fields.prediction, fields.variance)


def to_unit(image: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
    """Pixels 0…255 to [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(image: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
    """[-1, 1] to pixels 0…255."""
    return jnp.clip(jnp.round((image + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


# Training --------------------------------------------------------------------------------------


def stages(config: ConfigDict) -> list[Stage]:
    """The training stages: `diffusion`.

    Raises:
        UserError: the data is not there, or a field cannot be.
    """
    return [
        Stage(
            name="diffusion",
            loss=diffusion_loss(config),
            train=[(r"diffusion\.", 1.0)],
            source=open_source(config.data, fields=("image",)),
            transform=image_transform(config.data.image_size, flip=config.data.flip),
            config=config.stages.diffusion,
            memory=lambda: named_timestep_sampler(
                config.diffusion.timestep_sampler, config.diffusion.num_steps
            ),
            pictures=sample_pictures(config),
        )
    ]


def diffusion_loss(config: ConfigDict) -> Callable:
    """The denoiser's training loss (equation 4.2 noised, then as `config.diffusion.loss` says).

    Its memory is the timestep sampler.
    """
    process = make_process(config)
    per_example = named_loss(config.diffusion.loss)

    def loss(model: SDG, batch: dict, key: Key[Array, ""], timesteps: Any) -> Any:
        x0 = to_unit(batch["image"])
        step_key, noise_key, dropout_key = jax.random.split(key, 3)
        step, weight = timesteps.sample(step_key, len(x0))
        noise = jax.random.normal(noise_key, x0.shape)

        def denoiser(x_t: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
            return model.diffusion(x_t, t, key=dropout_key)

        losses, terms = per_example(process, denoiser, x0, step, noise)
        timesteps = timesteps.update(step, jax.lax.stop_gradient(losses))
        metrics = {name: term.mean() for name, term in terms.items()}
        return (weight * losses).mean(), (metrics, timesteps)

    return loss


def sample_pictures(config: ConfigDict) -> Callable[[SDG], dict[str, np.ndarray]]:
    """Draws one grid of samples, the same seeds each time, so that grids can be compared."""
    process = make_process(config, config.samples.steps)
    size = config.data.image_size
    if config.samples.sampler not in SAMPLERS:
        raise UserError(
            f"samples.sampler={config.samples.sampler!r}: choose one of {', '.join(SAMPLERS)}"
        )

    @jax.jit
    def draw(model: SDG) -> UInt8[Array, "b h w 3"]:
        keys = example_keys(jax.random.key(config.seed), config.samples.count)
        return sample(model, process, keys, config.samples.sampler, size)

    return lambda model: {"samples": image_grid(gather(draw(model)))}


# Use -------------------------------------------------------------------------------------------


def sample(
    model: SDG,
    process: Process,
    keys: Key[Array, " b"],
    sampler: str,
    image_size: int,
    *,
    eta: float | Float[Array, ""] = 0.0,
    progress: Progress | None = None,
) -> UInt8[Array, "b h w 3"]:
    """Unconditional samples, one for each key; a picture depends on its own key only.

    Args:
        model: The model.
        process: The process, respaced to the steps to take.
        keys: One per picture.
        sampler: `"ddpm"`, `"ddim"` or `"dpm_solver"`; static.
        image_size: Side in pixels; static.
        eta: DDIM's share of DDPM's noise.
        progress: Where to report steps.
    """
    x_T = start_noise(keys, (image_size, image_size, 3))
    match sampler:
        case "ddpm":
            x0 = ddpm(process, model.diffusion, x_T, keys, clip=True, progress=progress)
        case "ddim":
            x0 = ddim(
                process, model.diffusion, x_T, clip=True, eta=eta, keys=keys, progress=progress
            )
        case "dpm_solver":
            x0 = dpm_solver_pp_2m(process, model.diffusion, x_T, clip=True, progress=progress)
        case unknown:
            raise ValueError(f"sampler {unknown!r} is none of {', '.join(SAMPLERS)}")
    return to_pixels(x0)


_sample = jax.jit(sample, static_argnums=(3, 4))


def sample_in_batches(
    model: SDG,
    config: ConfigDict,
    count: int,
    batch_size: int,
    seed: int,
    sampler: str,
    steps: str,
    eta: float = 0.0,
) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
    """`count` samples with a progress bar, in batches of one size, so that one program serves."""
    process = make_process(config, steps)
    for first in range(0, count, batch_size):
        keys = example_keys(jax.random.key(seed), batch_size, first)
        last = min(first + batch_size, count)
        with progress_bar(f"pictures {first + 1} to {last} of {count}") as bar:
            pixels = _sample(
                model, process, keys, sampler, config.data.image_size, eta=eta, progress=bar
            )
        yield np.asarray(pixels)[: last - first]


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m vljax.generate` for this system."""
    parser.add_argument("--num_images", type=int, default=16, help="how many pictures")
    parser.add_argument("--batch_size", type=int, default=16, help="how many at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture's noise")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--steps", default="50", help="denoising steps: 100, ddim50, trailing25 …")
    parser.add_argument("--eta", type=float, default=0.0, help="DDIM: share of DDPM's noise")


def generate(model: SDG, config: ConfigDict, args: argparse.Namespace, out: Path) -> None:
    """Unconditional samples: `samples.png` (a grid) and `0000.png`, `0001.png`, ….

    Raises:
        UserError: a flag cannot be.
    """
    _check_count(args)
    settings = {name: str(getattr(args, name)) for name in ("sampler", "steps", "eta", "seed")}
    batches: list[np.ndarray] = []
    for batch in sample_in_batches(
        model,
        config,
        args.num_images,
        args.batch_size,
        args.seed,
        args.sampler,
        args.steps,
        args.eta,
    ):
        first = sum(map(len, batches))
        for i, picture in enumerate(batch, first):
            write_png(out / f"{i:04d}.png", picture, {**settings, "index": str(i)})
        batches.append(batch)
    write_png(out / "samples.png", image_grid(np.concatenate(batches)), settings)


def _check_count(args: argparse.Namespace) -> None:
    for name in ("num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: give 1 or more")


# Judgement -------------------------------------------------------------------------------------


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m vljax.evaluate` for this system."""
    parser.add_argument("--num_images", type=int, default=64, help="pictures to judge")
    parser.add_argument("--batch_size", type=int, default=32, help="how many at a time")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--steps", default="50", help="denoising steps of the samples")
    parser.add_argument("--bits_steps", default="100", help="denoising steps of the bits/dim bound")


def evaluate(model: SDG, config: ConfigDict, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Bits per dimension on held-out pictures and, on scenes, what the oracle sees in samples.

    Returns:
        The results by name, as they stand in `results.json`.

    Raises:
        UserError: a flag cannot be, or nothing is held out for evaluation.
    """
    _check_count(args)
    bits = np.concatenate(list(_bits(model, config, args)))
    results: dict[str, Any] = {
        "bits_per_dimension": float(bits.mean()),
        "bits_per_dimension_standard_error": float(bits.std() / len(bits) ** 0.5),
        "images": len(bits),
        "bits_steps": args.bits_steps,
    }
    samples = np.concatenate(
        list(
            sample_in_batches(
                model, config, args.num_images, args.batch_size, args.seed, args.sampler, args.steps
            )
        )
    )
    write_png(out / "samples.png", image_grid(samples), {})
    if config.data.name == "scenes":
        noise = np.random.default_rng(args.seed).integers(0, 256, samples.shape, np.uint8)
        results["oracle"] = oracle.summary(samples)
        results["oracle_on_noise"] = oracle.summary(noise)
    return results


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
