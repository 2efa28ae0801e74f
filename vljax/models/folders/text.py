"""`CLIPTextModel` of `transformers`: the text tower of Stable Diffusion."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vljax.errors import UserError
from vljax.models.clip_towers import ACTIVATIONS
from vljax.models.folders.configs import Files, Folder, read_json

# A text tower's fields by our names, and the values of those that its config leaves out.
_TEXT_FIELDS = {
    "text_width": ("hidden_size", 512),
    "text_layers": ("num_hidden_layers", 12),
    "context_length": ("max_position_embeddings", 77),
    "vocabulary_size": ("vocab_size", 49_408),
    "activation": ("hidden_act", "quick_gelu"),
}


def text_tower_arguments(folder: Folder) -> dict[str, Any]:
    """The arguments of `TextTransformer` for the text tower of a `diffusers` pipeline.

    Args:
        folder: Holds the tower's `config.json`.

    Raises:
        UserError: there is no such file, or it describes a network of another architecture.
    """
    path = Path(folder) / "config.json"
    config = read_json(path)
    if (kind := config.get("model_type")) != "clip_text_model":
        raise UserError(
            f"{path}: model_type={kind!r}, but 'clip_text_model' is needed: give a folder of "
            "Stable Diffusion 1 or 2"
        )
    arguments = {
        ours: config.get(theirs, default) for ours, (theirs, default) in _TEXT_FIELDS.items()
    }
    width, heads = arguments["text_width"], config.get("num_attention_heads", 8)
    for field, value, built in (
        ("intermediate_size", config.get("intermediate_size", 2048), (4 * width,)),
        ("layer_norm_eps", config.get("layer_norm_eps", 1e-5), (1e-5,)),
        ("hidden_act", arguments["activation"], tuple(ACTIVATIONS)),
    ):
        if value not in built:
            raise UserError(
                f"{path}: {field}={value!r}, but vljax only builds {built} here: give the text "
                "tower of Stable Diffusion 1 or 2"
            )
    return {**arguments, "head_channels": width // heads}


def text_tower_files(arguments: Mapping[str, Any]) -> Files:
    """The inverse of `text_tower_arguments`: what the folder of a `TextTransformer` says of it."""
    config = {
        "architectures": ["CLIPTextModel"],
        "torch_dtype": "float32",
        **tower_fields(arguments),
        "projection_dim": arguments["text_width"],
    }
    return {"config.json": config}


def tower_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a text tower.

    A text's embedding is read at its largest token. `transformers` does so where the config calls
    2 the end token, as in the folders that were published first; any other number is looked for.
    """
    width = arguments["text_width"]
    return {
        "model_type": "clip_text_model",
        **{theirs: arguments[ours] for ours, (theirs, _) in _TEXT_FIELDS.items()},
        "intermediate_size": 4 * width,
        "num_attention_heads": width // arguments["head_channels"],
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
