"""`PriorTransformer` of `diffusers`: unCLIP's prior, as in Karlo and Kandinsky 2."""

from collections.abc import Mapping
from typing import Any

from vljax.errors import UserError
from vljax.models.folders.configs import Files, Folder, read_config

_FIXED: dict[str, tuple[Any, ...]] = {
    "added_emb_type": ("prd",),
    "additional_embeddings": (4,),
    "dropout": (0, 0.0),
    "embedding_proj_norm_type": (None,),
    "encoder_hid_proj_type": ("linear",),
    "norm_in_type": (None,),
    "time_embed_act_fn": ("silu",),
}
# Ours by theirs, with the values of those that a config leaves out.
_FIELDS = {
    "embedding_dim": ("embedding", 768),
    "num_embeddings": ("text_length", 77),
    "num_layers": ("layers", 20),
    "num_attention_heads": ("heads", 32),
    "attention_head_dim": ("head_channels", 64),
}
# Lengths that are others' where they are not told.
_SAME = {"embedding_proj_dim": "embedding", "clip_embed_dim": "embedding"}


def prior_arguments(folder: Folder) -> dict[str, Any]:
    """The arguments of `PriorTransformer` for the network of a `diffusers` folder.

    Args:
        folder: Holds the network's `config.json`.

    Raises:
        UserError: there is no such file, or it describes a network of another architecture, such
            as Shap-E's prior.
    """
    defaults = {theirs: default for theirs, (_, default) in _FIELDS.items()}
    free = (*_SAME, "time_embed_dim")
    config = read_config(
        folder, "PriorTransformer", {**defaults, **dict.fromkeys(free)}, _FIXED, ()
    )
    arguments = {ours: config[theirs] for theirs, (ours, _) in _FIELDS.items()}
    inner = arguments["heads"] * arguments["head_channels"]
    lengths = {field: arguments[ours] for field, ours in _SAME.items()} | {"time_embed_dim": inner}
    for field, length in lengths.items():
        if config[field] not in (None, length):
            raise UserError(
                f"{folder}: {field}={config[field]}, but vljax only builds {length} here: give the "
                "prior of Karlo or Kandinsky 2"
            )
    return arguments


def prior_files(arguments: Mapping[str, Any]) -> Files:
    """The inverse of `prior_arguments`: what the folder of a `PriorTransformer` says of it."""
    told = {theirs: arguments[ours] for theirs, (ours, _) in _FIELDS.items()}
    return {"config.json": {"_class_name": "PriorTransformer", **told, "additional_embeddings": 4}}
