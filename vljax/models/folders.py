"""Folders that `diffusers` and `transformers` write: what `config.json` says of a network there.

A reader takes a folder and gives the arguments of our network of that architecture, so that its
weights, which lie beside, fit (`vljax.pretrained` loads them); it refuses what we do not build.
The file is long because it has a reader for each architecture; they share nothing but the first two
functions.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljax.errors import UserError
from vljax.models.clip_towers import ACTIVATIONS
from vljax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD

Folder = str | os.PathLike


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


# The U-Net of Stable Diffusion -------------------------------------------------------------------

# What a config may say that this network does not do, with the values that it does.
_UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0, 0.0),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
}
# What needs no say here: the size is free, and softmax is float32 as it is; the rest belongs to
# what is fixed above.
_UNET_FREE = (
    "sample_size",
    "upcast_attention",
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "class_embeddings_concat",
    "mid_block_only_cross_attention",
    "projection_class_embeddings_input_dim",
)
_UNET_DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}


def unet_arguments(folder: Folder) -> dict[str, Any]:
    """The arguments of `ConditionalUNet` for the network of a `diffusers` folder.

    Args:
        folder: Holds the network's `config.json`.

    Raises:
        UserError: there is no such file, or it describes a network of another architecture.
    """
    config = read_config(folder, "UNet2DConditionModel", _UNET_DEFAULTS, _UNET_FIXED, _UNET_FREE)
    down, up = config["down_block_types"], config["up_block_types"]
    for block in down:
        if block not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise UserError(
                f"{folder}: down_block_types has {block!r}, which vljax does not build: give the "
                "U-Net of Stable Diffusion 1 or 2"
            )
    expected = [block.replace("Down", "Up") for block in reversed(down)]
    if list(up) != expected:
        raise UserError(
            f"{folder}: up_block_types={up}, but vljax only builds {expected} here: give the U-Net "
            "of Stable Diffusion 1 or 2"
        )
    # The published configs call the number of heads attention_head_dim.
    heads = config["attention_head_dim"]
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": tuple(config["block_out_channels"]),
        "attention_levels": tuple(block == "CrossAttnDownBlock2D" for block in down),
        "layers_per_block": config["layers_per_block"],
        "context_features": config["cross_attention_dim"],
        "num_heads": heads if isinstance(heads, int) else tuple(heads),
        "linear_projection": config["use_linear_projection"],
        "norm_groups": config["norm_num_groups"],
        "norm_epsilon": config["norm_eps"],
    }


# Its autoencoder ---------------------------------------------------------------------------------

_AUTOENCODER_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_AUTOENCODER_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}


def autoencoder_arguments(folder: Folder) -> dict[str, Any]:
    """The arguments of `AutoencoderKL` for the network of a `diffusers` folder.

    Args:
        folder: Holds the network's `config.json`.

    Raises:
        UserError: there is no such file, or it describes a network of another architecture.
    """
    free = ("sample_size", "force_upcast")
    config = read_config(folder, "AutoencoderKL", _AUTOENCODER_DEFAULTS, _AUTOENCODER_FIXED, free)
    for field, known in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        for block in config.pop(field):
            if block != known:
                raise UserError(
                    f"{folder}: {field} has {block!r}, which vljax does not build: give the "
                    "autoencoder of Stable Diffusion"
                )
    config["norm_groups"] = config.pop("norm_num_groups")
    return {**config, "block_out_channels": tuple(config["block_out_channels"])}


# VQGAN -------------------------------------------------------------------------------------------

_VQGAN_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "mid_block_add_attention": (True,),
    "norm_type": ("group",),
}
_VQGAN_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 3,
    "block_out_channels": (64,),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "num_vq_embeddings": 256,
    "vq_embed_dim": None,
}


def vqgan_arguments(folder: Folder) -> dict[str, Any]:
    """The arguments of `VQGAN` for the network of a `diffusers` folder of a `VQModel`.

    Args:
        folder: Holds the network's `config.json`.

    Raises:
        UserError: there is no such file, or it describes a network of another architecture.
    """
    free = ("sample_size", "scaling_factor", "force_upcast", "lookup_from_codebook")
    config = read_config(folder, "VQModel", _VQGAN_DEFAULTS, _VQGAN_FIXED, free)
    down, up = list(config.pop("down_block_types")), list(config.pop("up_block_types"))
    for block in down:
        if block not in ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"):
            raise UserError(
                f"{folder}: down_block_types has {block!r}, which vljax does not build: give a "
                "VQGAN of taming-transformers' kind"
            )
    mirrored = [b.replace("DownEncoder", "UpDecoder") for b in reversed(down)]
    if up != mirrored:
        raise UserError(
            f"{folder}: up_block_types={up}, but vljax only builds {mirrored} here: give a VQGAN "
            "of taming-transformers' kind"
        )
    groups, codes = config.pop("norm_num_groups"), config.pop("num_vq_embeddings")
    width = config.pop("vq_embed_dim")
    return {
        **config,
        "norm_groups": groups,
        "num_codes": codes,
        "code_channels": config["latent_channels"] if width is None else width,
        "block_out_channels": tuple(config["block_out_channels"]),
        "attention_levels": tuple(block.startswith("Attn") for block in down),
    }


# Its text tower, and the whole -------------------------------------------------------------------

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
    if said not in (names := {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}):
        raise UserError(
            f"{file}: prediction_type={said!r} is none of {', '.join(names)}: give a folder of "
            "Stable Diffusion 1 or 2"
        )
    return names[said]


def inpainting_arguments(folder: Folder, beside: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the inpainting `ConditionalUNet` in a folder, where it fits the rest.

    Args:
        folder: Holds the network's `config.json`; what `--config.pretrained.inpaint` gives.
        beside: The arguments that it must have to stand beside a Stable Diffusion; those that its
            folder does not tell are taken from here.

    Raises:
        UserError: the folder is of a whole pipeline, or of a network that does not fit.
    """
    if (Path(folder) / "unet").is_dir():
        raise UserError(
            f"--config.pretrained.inpaint={folder} is a whole pipeline: give its U-Net, "
            f"--config.pretrained.inpaint={folder}/unet"
        )
    found = {**beside, **unet_arguments(folder)}
    for field in ("in_channels", "context_features"):
        if found[field] != beside[field]:
            raise UserError(
                f"--config.pretrained.inpaint={folder} has {field}={found[field]}, but beside this "
                f"Stable Diffusion {beside[field]} is needed: give the one of the same version"
            )
    return found


# ResNet ------------------------------------------------------------------------------------------


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


# CLIPSeg -----------------------------------------------------------------------------------------

# What the fields are that a published config leaves out.
_CLIPSEG_VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_CLIPSEG_TEXT: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


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
    vision = {**_CLIPSEG_VISION, **(config.get("vision_config") or {})}
    text = {**_CLIPSEG_TEXT, **(config.get("text_config") or {})}
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
                    f"{value!r} here: give a published CLIPSeg"
                )
    if vision["hidden_act"] not in ACTIVATIONS:
        raise UserError(
            f"{folder}: vision_config has hidden_act={vision['hidden_act']!r}, which vljax does "
            "not build: give a published CLIPSeg"
        )
    return {
        "embed_dim": config.get("projection_dim", 512),
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "vision_layers": vision["num_hidden_layers"],
        "vision_width": vision["hidden_size"],
        "text_width": text["hidden_size"],
        "text_layers": text["num_hidden_layers"],
        "extract_layers": tuple(config.get("extract_layers", (3, 6, 9))),
        "reduce_dim": config.get("reduce_dim", 64),
        "decoder_heads": config.get("decoder_num_attention_heads", 4),
        "decoder_hidden": config.get("decoder_intermediate_size", 2048),
        "conditional_layer": config.get("conditional_layer", 0),
        "refined": config.get("use_complex_transposed_convolution", False),
        "input_size": _input_size(Path(folder)),
        "context_length": text["max_position_embeddings"],
        "vocabulary_size": text["vocab_size"],
        "head_channels": vision["hidden_size"] // vision["num_attention_heads"],
        "activation": vision["hidden_act"],
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
