"""`VQModel` of `diffusers`: VQGAN."""

from collections.abc import Mapping
from typing import Any

from vljax.errors import UserError
from vljax.models.folders.configs import Files, Folder, read_config

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


def vqgan_files(arguments: Mapping[str, Any]) -> Files:
    """The inverse of `vqgan_arguments`: what the folder of a `VQGAN` says of it.

    `beta` and `legacy`, which weigh a loss of training alone, are no part of it.
    """
    down = [f"{'Attn' * here}DownEncoderBlock2D" for here in arguments["attention_levels"]]
    same = ("in_channels", "out_channels", "latent_channels", "layers_per_block")
    config = {
        "_class_name": "VQModel",
        **{field: arguments[field] for field in same},
        "block_out_channels": list(arguments["block_out_channels"]),
        "down_block_types": down,
        "up_block_types": [b.replace("DownEncoder", "UpDecoder") for b in reversed(down)],
        "norm_num_groups": arguments["norm_groups"],
        "num_vq_embeddings": arguments["num_codes"],
        "vq_embed_dim": arguments["code_channels"],
    }
    return {"config.json": config}
