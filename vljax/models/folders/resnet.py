"""`ResNetModel` and `ResNetForImageClassification` of `transformers`: He's ResNet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vljax.errors import UserError
from vljax.models.folders.configs import Files, Folder, image_processor, read_json
from vljax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD


def resnet_arguments(folder: Folder) -> dict[str, Any]:
    """The arguments of the `ResNet` that a Hugging Face folder (`microsoft/resnet-152`) describes.

    Args:
        folder: Holds `config.json`.

    Raises:
        UserError: the config cannot be read, or describes a network that is not He's of
            bottleneck blocks.
    """
    config = read_json(Path(folder) / "config.json")
    layers = config.get("depths", [3, 4, 6, 3])
    width = config.get("embedding_size", 64)
    sizes = config.get("hidden_sizes", [256, 512, 1024, 2048])
    needed = {
        "model_type": ("resnet", None),
        "layer_type": ("bottleneck", "bottleneck"),
        "hidden_act": ("relu", "relu"),
        "num_channels": (3, 3),
        "downsample_in_first_stage": (False, False),
    }
    for field, (value, default) in needed.items():
        if (found := config.get(field, default)) != value:
            raise UserError(
                f"{folder}: {field}={found!r} in config.json, but {value!r} is needed; give a "
                "folder of He's ResNet-50, 101 or 152"
            )
    if not isinstance(layers, list) or sizes != [4 * width * 2**i for i in range(4)]:
        raise UserError(
            f"{folder}: hidden_sizes={sizes!r} in config.json are not those of He's network; give "
            "a folder of ResNet-50, 101 or 152"
        )
    strides = "1x1" if config.get("downsample_in_bottleneck", False) else "3x3"
    return {"layers": tuple(layers), "width": width, "stride_in": strides}


def classifier_arguments(folder: Folder) -> dict[str, Any]:
    """Those of `resnet_arguments`, with as many classes as the folder's network tells apart.

    Raises:
        UserError: see `resnet_arguments`.
    """
    config = read_json(Path(folder) / "config.json")
    told = config.get("id2label")
    labels = config.get("num_labels", 2) if told is None else len(told)
    classifies = "ResNetForImageClassification" in (config.get("architectures") or ())
    return {**resnet_arguments(folder), "classes": labels if classifies else 0}


def resnet_files(arguments: Mapping[str, Any]) -> Files:
    """The inverse of `classifier_arguments`: what the folder of a `ResNet` says of it.

    Raises:
        UserError: its stem pools as the caffemodels do, which the layout does not know.
    """
    if arguments["pool"] != "padded":
        raise UserError(
            f"a ResNet with pool={arguments['pool']!r} has no layout in transformers: write its "
            "weights alone with vljax.pretrained.save(model, FILE.safetensors)"
        )
    width, classes = arguments["width"], arguments["classes"]
    labels = [f"LABEL_{i}" for i in range(classes)]
    names = {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    config = {
        "architectures": ["ResNetForImageClassification" if classes else "ResNetModel"],
        "model_type": "resnet",
        "torch_dtype": "float32",
        "num_channels": 3,
        "embedding_size": width,
        "hidden_sizes": [4 * width * 2**level for level in range(4)],
        "depths": list(arguments["layers"]),
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": arguments["stride_in"] == "1x1",
        **(names if classes else {}),
    }
    pictures = image_processor(
        "ConvNextImageProcessor", {"shortest_edge": 224}, None, IMAGENET_MEAN, IMAGENET_STD
    )
    return {"config.json": config, "preprocessor_config.json": {**pictures, "crop_pct": 0.875}}
