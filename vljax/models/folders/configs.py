"""What the families share: reading `config.json`, and the form of what is written."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vljax.errors import UserError

Folder = str | os.PathLike
# What a folder's JSON files say: the fields by the file's name.
Files = dict[str, dict[str, Any]]


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file in a published folder.

    Raises:
        UserError: the file is missing or unreadable, or holds no fields.
    """
    remedy = "give a folder that diffusers or transformers wrote"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable config ({error}): {remedy}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a readable config: {remedy}")
    return config


def read_config(
    folder: Folder,
    architecture: str,
    defaults: Mapping[str, Any],
    fixed: Mapping[str, tuple[Any, ...]],
    free: Sequence[str],
) -> dict[str, Any]:
    """The fields of a `diffusers` folder's `config.json` that describe the network.

    Args:
        folder: Holds the file.
        architecture: The only `_class_name` that is accepted.
        defaults: The fields that are returned, with the values of those the file leaves out.
        fixed: Fields with the values that are accepted.
        free: Fields whose value does not matter.

    Raises:
        UserError: the file is missing or unreadable, or describes another architecture.
    """
    path = Path(folder) / "config.json"
    config = read_json(path)
    if (name := config.get("_class_name")) != architecture:
        raise UserError(
            f"{path} describes a {name!r}, but a {architecture!r} is needed: give its folder"
        )
    for field, value in config.items():
        if field.startswith("_") or field in free or field in defaults:
            continue
        if value not in fixed.get(field, (None, False)):
            raise UserError(
                f"{path}: {field}={value!r} is an architecture that vljax does not build: give a "
                "folder of Stable Diffusion 1 or 2"
            )
    return {field: config.get(field, default) for field, default in defaults.items()}


def image_processor(kind: str, size: Any, crop: int | None, mean: Any, std: Any) -> dict[str, Any]:
    """The fields of `preprocessor_config.json`: how a picture becomes what the network sees.

    Args:
        kind: The class of `transformers`.
        size: To what sides pictures are resampled, in its words.
        crop: The side of the square that is cut out of their middle; None cuts none.
        mean: What is subtracted, for red, green and blue in [0, 1].
        std: What is divided by.
    """
    cut = {} if crop is None else {"crop_size": {"height": crop, "width": crop}}
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_center_crop": crop is not None,
        **cut,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
