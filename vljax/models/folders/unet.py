"""`UNet2DConditionModel` of `diffusers`: the U-Net of Stable Diffusion."""

from collections.abc import Mapping
from typing import Any

from vljax.errors import UserError
from vljax.models.folders.configs import Files, Folder, read_config

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


def unet_files(arguments: Mapping[str, Any]) -> Files:
    """The inverse of `unet_arguments`: what the folder of a `ConditionalUNet` says of it."""
    heads, attention = arguments["num_heads"], arguments["attention_levels"]
    down = ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention]
    config = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": arguments["in_channels"],
        "out_channels": arguments["out_channels"],
        "block_out_channels": list(arguments["block_out_channels"]),
        "down_block_types": down,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
        "layers_per_block": arguments["layers_per_block"],
        "cross_attention_dim": arguments["context_features"],
        "attention_head_dim": heads if isinstance(heads, int) else list(heads),
        "use_linear_projection": arguments["linear_projection"],
        "norm_num_groups": arguments["norm_groups"],
        "norm_eps": arguments["norm_epsilon"],
    }
    return {"config.json": config}
