"""`CLIPSegForImageSegmentation` of `transformers`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vljax.errors import UserError
from vljax.models.folders.clip import tower_arguments, two_towers
from vljax.models.folders.configs import Files, Folder, image_processor, read_json
from vljax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD


def clipseg_arguments(folder: Folder) -> dict[str, Any]:
    """The arguments of `CLIPSeg` for the network of a `transformers` folder.

    Args:
        folder: Holds `config.json` and, where the side of the pictures is not 352,
            `preprocessor_config.json`.

    Raises:
        UserError: a file is missing or unreadable, or describes a network of another architecture.
    """
    config = read_json(Path(folder) / "config.json")
    if (kind := config.get("model_type")) != "clipseg":
        raise UserError(
            f"{folder}: model_type={kind!r}, but 'clipseg' is needed: give a published CLIPSeg"
        )
    return {
        **tower_arguments(config, folder),
        "extract_layers": tuple(config.get("extract_layers", (3, 6, 9))),
        "reduce_dim": config.get("reduce_dim", 64),
        "decoder_heads": config.get("decoder_num_attention_heads", 4),
        "decoder_hidden": config.get("decoder_intermediate_size", 2048),
        "conditional_layer": config.get("conditional_layer", 0),
        "refined": config.get("use_complex_transposed_convolution", False),
        "input_size": _input_size(Path(folder)),
    }


def _input_size(folder: Path) -> int:
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return 352
    config = read_json(path)
    for field, value in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        if not np.allclose(found := config.get(field, value), value):
            raise UserError(
                f"{path}: {field}={found}, but CLIPSeg was trained with ImageNet's {value}: give a "
                "published CLIPSeg"
            )
    size = config.get("size", 352)
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    if not isinstance(size, int):
        raise UserError(f"{path}: size={config['size']!r}: give the side of a square in pixels")
    return size


def clipseg_files(arguments: Mapping[str, Any]) -> Files:
    """The inverse of `clipseg_arguments`: what the folder of a `CLIPSeg` says of it.

    Raises:
        UserError: it is a CLIPSeg that the layout does not know.
    """
    if arguments["refined"] and (patch := arguments["patch_size"]) != 16:
        # There both steps enlarge by a quarter of the patch.
        raise UserError(
            f"a CLIPSeg with refined=True and patch_size={patch} has no layout in transformers, "
            "only one of 16: write its weights alone with "
            "vljax.pretrained.save(model, FILE.safetensors)"
        )
    towers = two_towers(arguments)
    towers["text_config"]["model_type"] = "clipseg_text_model"
    towers["vision_config"]["model_type"] = "clipseg_vision_model"
    config = {
        "architectures": ["CLIPSegForImageSegmentation"],
        "model_type": "clipseg",
        "torch_dtype": "float32",
        **towers,
        "extract_layers": list(arguments["extract_layers"]),
        "reduce_dim": arguments["reduce_dim"],
        "decoder_num_attention_heads": arguments["decoder_heads"],
        "decoder_intermediate_size": arguments["decoder_hidden"],
        "conditional_layer": arguments["conditional_layer"],
        "use_complex_transposed_convolution": arguments["refined"],
    }
    side = arguments["input_size"]
    pictures = image_processor(
        "ViTImageProcessor", {"height": side, "width": side}, None, IMAGENET_MEAN, IMAGENET_STD
    )
    return {"config.json": config, "preprocessor_config.json": pictures}
