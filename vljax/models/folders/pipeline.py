"""A pipeline of `diffusers`: the networks of Stable Diffusion, its scheduler and its tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vljax.errors import UserError
from vljax.models.folders.autoencoder import autoencoder_arguments
from vljax.models.folders.configs import Files, Folder, read_json
from vljax.models.folders.text import text_tower_arguments
from vljax.models.folders.unet import unet_arguments

# What a network predicts, in our words and those of diffusers.
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}


def stable_diffusion_arguments(folder: Folder) -> dict[str, dict[str, Any]]:
    """The arguments of `StableDiffusion` for a `diffusers` folder.

    Args:
        folder: Holds `vae`, `unet` and `text_encoder`, each with its `config.json`.

    Raises:
        UserError: one of them is missing or unreadable, or of another architecture.
    """
    path = Path(folder)
    return {
        "vae": autoencoder_arguments(path / "vae"),
        "unet": unet_arguments(path / "unet"),
        "text_encoder": text_tower_arguments(path / "text_encoder"),
    }


def predicts(folder: Folder) -> str | None:
    """What a pipeline's network predicts, as `Process` calls it; its scheduler alone tells.

    Args:
        folder: Holds `scheduler/scheduler_config.json`, or does not: then nothing is known, None.

    Raises:
        UserError: the file is unreadable, or names something else.
    """
    file = Path(folder) / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None
    said = read_json(file).get("prediction_type", "epsilon")
    names = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
    if said not in names:
        raise UserError(
            f"{file}: prediction_type={said!r} is none of {', '.join(names)}: give a folder of "
            "Stable Diffusion 1 or 2"
        )
    return names[said]


def drawing_arguments(folder: Folder, prediction: str) -> dict[str, dict[str, Any]]:
    """The arguments of a `StableDiffusion` that draws from text, where it predicts as a run has it.

    Args:
        folder: What `--config.pretrained.sd` gives.
        prediction: `diffusion.prediction` of the run.

    Raises:
        UserError: the folder is of a pipeline that inpaints, or its scheduler tells otherwise.
    """
    published = stable_diffusion_arguments(folder)
    taken, given = published["unet"]["in_channels"], published["vae"]["latent_channels"]
    if taken != given:
        raise UserError(
            f"--config.pretrained.sd={folder}: its U-Net takes {taken} channels and the "
            f"autoencoder gives {given}, so it inpaints: give Stable Diffusion itself, and this "
            f"one with --config.pretrained.inpaint={folder}/unet"
        )
    if (told := predicts(folder)) not in (None, prediction):
        raise UserError(
            f"--config.diffusion.prediction={prediction}: the scheduler of {folder} tells of "
            f"another; give --config.diffusion.prediction={told}"
        )
    return published


def as_published(
    arguments: Mapping[str, Mapping[str, Any]], configured: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Parts' arguments with what is the run's own of each, its `dtype` and `remat`.

    Args:
        arguments: By part, from a folder.
        configured: By part, `config.model`'s.
    """
    own = {
        name: {k: v for k, v in configured[name].items() if k in ("dtype", "remat")}
        for name in arguments
    }
    return {name: {**told, **own[name]} for name, told in arguments.items()}


def unet_beside(folder: Folder, beside: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The arguments of a second `ConditionalUNet`, such as one that inpaints, where it fits.

    Args:
        folder: Holds the network's `config.json`.
        beside: The arguments that it must have to stand beside a Stable Diffusion; those that its
            folder does not tell are taken from here.
        part: Of the model; the folder is what `config.pretrained` gives for it.

    Raises:
        UserError: the folder is of a whole pipeline, or of a network that does not fit.
    """
    if (Path(folder) / "unet").is_dir():
        raise UserError(
            f"--config.pretrained.{part}={folder} is a whole pipeline: give its U-Net, "
            f"--config.pretrained.{part}={folder}/unet"
        )
    found = {**beside, **unet_arguments(folder)}
    for field in ("in_channels", "context_features"):
        if found[field] != beside[field]:
            raise UserError(
                f"--config.pretrained.{part}={folder} has {field}={found[field]}, but beside this "
                f"Stable Diffusion {beside[field]} is needed: give the one of the same version"
            )
    return found


def pipeline_files(
    unet: Mapping[str, Any], vae: Mapping[str, Any], diffusion: Mapping[str, Any]
) -> Files:
    """What the folder of a `StableDiffusion` says beside its networks' own folders.

    Args:
        unet: Arguments of its `ConditionalUNet`.
        vae: Arguments of its `AutoencoderKL`.
        diffusion: `schedule`, `num_steps` and `prediction`, as recipes call them; `clean_end`
            where the recipe has it.

    Raises:
        UserError: the schedule is none that diffusers has.
    """
    inpaints = unet["in_channels"] == 2 * vae["latent_channels"] + 1
    index = {
        "_class_name": f"StableDiffusion{'Inpaint' * inpaints}Pipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
    return {
        "model_index.json": index,
        "scheduler/scheduler_config.json": _scheduler(diffusion),
    }


def _scheduler(diffusion: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler that has our noise, see `vljax.diffusion.schedules`."""
    steps = diffusion["num_steps"]
    schedules: dict[str, dict[str, Any]] = {
        "scaled_linear": {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
        "linear": {
            "beta_schedule": "linear",
            "beta_start": 1e-4 * 1000 / steps,
            "beta_end": 0.02 * 1000 / steps,
        },
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    }
    if (name := diffusion["schedule"]) not in schedules:
        raise UserError(
            f"schedule={name!r}: diffusers has none of this name, choose one of "
            f"{', '.join(schedules)}"
        )
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": steps,
        **schedules[name],
        "prediction_type": _PREDICTIONS[diffusion["prediction"]],
        "clip_sample": False,
        "set_alpha_to_one": bool(diffusion.get("clean_end", True)),
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
