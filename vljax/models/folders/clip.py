"""`CLIPModel` of `transformers`, and the two towers that `CLIPSeg` shares with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vljax.errors import UserError
from vljax.models.clip_towers import ACTIVATIONS, PIXEL_MEAN, PIXEL_STD
from vljax.models.folders.configs import Files, Folder, image_processor, read_json
from vljax.models.folders.text import tower_fields

# What the fields are that a published config leaves out.
_VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def clip_arguments(folder: Folder) -> dict[str, Any]:
    """The arguments of `CLIP` for the network of a `transformers` folder.

    Args:
        folder: Holds `config.json`.

    Raises:
        UserError: the file is missing or unreadable, or describes a network of another
            architecture.
    """
    config = read_json(Path(folder) / "config.json")
    if (kind := config.get("model_type")) != "clip":
        raise UserError(
            f"{folder}: model_type={kind!r}, but 'clip' is needed: give a published CLIP with a "
            "vision transformer"
        )
    return tower_arguments(config, folder)


def tower_arguments(config: Mapping[str, Any], folder: Folder) -> dict[str, Any]:
    """The arguments of `CLIP` in a config of two towers; `folder` names it in errors.

    Raises:
        UserError: the towers are of another architecture.
    """
    vision = {**_VISION, **(config.get("vision_config") or {})}
    text = {**_TEXT, **(config.get("text_config") or {})}
    for name, tower in (("vision_config", vision), ("text_config", text)):
        width, heads = tower["hidden_size"], tower["num_attention_heads"]
        expected = {
            "intermediate_size": 4 * width,
            "hidden_act": vision["hidden_act"],
            "layer_norm_eps": 1e-5,
            "head_channels": vision["hidden_size"] // vision["num_attention_heads"],
        }
        found = {**tower, "head_channels": width // heads}
        for field, value in expected.items():
            if found[field] != value:
                raise UserError(
                    f"{folder}: {name} has {field}={found[field]!r}, but vljax only builds "
                    f"{value!r} here: give a published CLIP"
                )
    if vision["hidden_act"] not in ACTIVATIONS:
        raise UserError(
            f"{folder}: vision_config has hidden_act={vision['hidden_act']!r}, which vljax does "
            "not build: give a published CLIP"
        )
    return {
        "embed_dim": config.get("projection_dim", 512),
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "vision_layers": vision["num_hidden_layers"],
        "vision_width": vision["hidden_size"],
        "text_width": text["hidden_size"],
        "text_layers": text["num_hidden_layers"],
        "context_length": text["max_position_embeddings"],
        "vocabulary_size": text["vocab_size"],
        "head_channels": vision["hidden_size"] // vision["num_attention_heads"],
        "activation": vision["hidden_act"],
    }


def clip_files(arguments: Mapping[str, Any]) -> Files:
    """The inverse of `clip_arguments`: what the folder of a `CLIP` says of it.

    Raises:
        UserError: it is a CLIP that the layout does not know.
    """
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "torch_dtype": "float32",
        **two_towers(arguments),
    }
    size = arguments["image_size"]
    pictures = image_processor(
        "CLIPImageProcessor", {"shortest_edge": size}, size, PIXEL_MEAN, PIXEL_STD
    )
    return {"config.json": config, "preprocessor_config.json": pictures}


def two_towers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `tower_arguments`.

    Raises:
        UserError: the image tower is a ResNet, or has mask prompts.
    """
    if arguments["patch_size"] is None or arguments.get("mask_prompts"):
        what = "mask prompts" if arguments.get("mask_prompts") else "a ResNet for its image tower"
        raise UserError(
            f"a CLIP with {what} has no layout in transformers: write its weights alone with "
            "vljax.pretrained.save(model, FILE.safetensors)"
        )
    width = arguments["vision_width"]
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": arguments["vision_layers"],
        "num_attention_heads": width // arguments["head_channels"],
        "image_size": arguments["image_size"],
        "patch_size": arguments["patch_size"],
        "hidden_act": arguments["activation"],
        "layer_norm_eps": 1e-5,
        "projection_dim": arguments["embed_dim"],
    }
    text = {**tower_fields(arguments), "projection_dim": arguments["embed_dim"]}
    return {
        "projection_dim": arguments["embed_dim"],
        "text_config": text,
        "vision_config": vision,
    }
