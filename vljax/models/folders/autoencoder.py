"""`AutoencoderKL` of `diffusers`: the autoencoder of Stable Diffusion."""

from collections.abc import Mapping
from typing import Any

from vljax.errors import UserError
from vljax.models.folders.configs import Files, Folder, read_config

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


def autoencoder_files(arguments: Mapping[str, Any]) -> Files:
    """The inverse of `autoencoder_arguments`: what the folder of an `AutoencoderKL` says of it."""
    levels = len(arguments["block_out_channels"])
    same = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "scaling_factor")
    config = {
        "_class_name": "AutoencoderKL",
        **{field: arguments[field] for field in same},
        "block_out_channels": list(arguments["block_out_channels"]),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": arguments["norm_groups"],
    }
    return {"config.json": config}
