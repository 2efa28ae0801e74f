"""Networks of published families from a folder or the hub, and into a folder of the same form.

    unet = load("stable-diffusion-v1-5/stable-diffusion-v1-5/unet")
    save(unet, "my-unet")  # diffusers.UNet2DConditionModel.from_pretrained("my-unet") opens it

Read `vljax.models.folders` for the families. What lies in no family's layout is read and written
as a file of weights, by `vljax.pretrained.load` and `save`, into a model that you make.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vljax import files
from vljax.data.text.tokenizers import Tokenizer
from vljax.errors import UserError
from vljax.models.arguments import arguments_of
from vljax.models.clip import CLIP, TextTransformer
from vljax.models.folders import stable_diffusion_arguments
from vljax.models.folders.configs import Files
from vljax.models.folders.families import FAMILIES, family_in, family_of
from vljax.models.folders.pipeline import pipeline_files
from vljax.models.parameters import named_parameters, with_parameters
from vljax.models.stable_diffusion import StableDiffusion
from vljax.pretrained import checkpoint, hub
from vljax.pretrained.checkpoint import PIPELINE

# Bytes of a file of weights, as the hub advises.
SHARD = 5_000_000_000
# What a pipeline's folder holds beside its networks.
_BESIDE = ("model_index.json", "scheduler", "tokenizer", "feature_extractor")


def load(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    param_dtype: str = "float32",
    **changes: Any,
) -> Any:
    """A network with its weights: what a folder of diffusers or transformers says it is.

    Args:
        source: A folder, or a repository of the hub (`org/name`, or `org/name/subfolder`), which
            is fetched once. A pipeline's gives a `StableDiffusion`.
        revision: A branch, tag or commit of the repository.
        param_dtype: In which the parameters are held.
        **changes: Arguments of the network that the folder does not tell (`dtype`, `remat`); of a
            pipeline, those of each of its networks.

    Returns:
        A `ConditionalUNet`, `AutoencoderKL`, `VQGAN`, `PriorTransformer`, `TextTransformer`,
        `CLIP`, `CLIPSeg`, `ResNet` or `StableDiffusion`.

    Raises:
        UserError: nothing is there, it is of no family that vljax builds, an argument is none of
            the network's, or its weights do not fit.
    """
    folder = hub.folder_of(source, revision)

    def make() -> Any:
        if (folder / "unet").is_dir():
            parts = stable_diffusion_arguments(folder)
            told = {name: {**arguments, **changes} for name, arguments in parts.items()}
            return StableDiffusion(**told, rngs=nnx.Rngs(0))
        family = family_in(folder)
        network: Any = family.network
        return network(**{**family.read(folder), **changes}, rngs=nnx.Rngs(0))

    try:
        skeleton = jax.eval_shape(make)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged config.json, or a change, makes go wrong
        given = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        told = f"cannot be built{' with ' * bool(given)}{given}"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{source} {told} ({reason}): its config.json or what was given is wrong"
        ) from error
    model = checkpoint.load(skeleton, folder)
    dtype = jnp.dtype(param_dtype)
    return jax.tree.map(lambda value: jnp.asarray(value.astype(dtype)), model)


def save(
    model: nnx.Module,
    folder: str | os.PathLike,
    *,
    tokenizer: Tokenizer | None = None,
    diffusion: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    like: str | os.PathLike | None = None,
    dtype: str = "float32",
    shard_bytes: int = SHARD,
) -> None:
    """Write a network as its family's library does, so that this library opens it as it is.

    Args:
        model: As `load` returns, or a part of a system's model. A `StableDiffusion` becomes a
            whole pipeline; where its text encoder is a `CLIP`, this lies in `clip` beside it.
        folder: Where to write. Files of the same names are replaced, each when it is whole.
        tokenizer: Of a text tower, a CLIP or a pipeline: is written with it.
        diffusion: Of a pipeline: `schedule`, `num_steps`, `prediction`, as recipes call them.
        image_size: Of a pipeline: the side of the pictures that it draws unless told otherwise.
        like: Of a pipeline: the folder from which scheduler and tokenizer are copied instead.
        dtype: Of the weights.
        shard_bytes: Most bytes of a file; of more, several are written.

    Raises:
        UserError: the model is of no family with a layout, or a pipeline lacks its tokenizer or
            its noise.
        RunError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    if isinstance(model, StableDiffusion):
        written = _pipeline_files(model, folder, tokenizer, diffusion, like)
        for name in PIPELINE:
            network = _text_tower(model) if name == "text_encoder" else getattr(model, name)
            side = None if image_size is None else image_size // model.shrink
            more = {"sample_size": side} if name == "unet" and side else {}
            if name == "vae" and image_size:
                more = {"sample_size": image_size}
            _save_network(network, folder / name, dtype, shard_bytes, more)
        if isinstance(model.text_encoder, CLIP):
            # What the pipeline has no place for: the tower of pictures.
            save(
                model.text_encoder,
                folder / "clip",
                tokenizer=tokenizer,
                dtype=dtype,
                shard_bytes=shard_bytes,
            )
        _write_json(written, folder)
        return
    _save_network(model, folder, dtype, shard_bytes, {})
    if tokenizer is not None and (length := getattr(model, "context_length", None)):
        tokenizer.save_folder(folder, length)
    elif tokenizer is not None and hasattr(model, "clip"):
        tokenizer.save_folder(folder, model.clip.context_length)


def _save_network(
    model: Any, folder: Path, dtype: str, shard_bytes: int, more: Mapping[str, Any]
) -> None:
    found = family_of(model)
    if found is None:
        known = ", ".join(family.network.__name__ for family in FAMILIES)
        raise UserError(
            f"{folder}: no published layout holds this {type(model).__name__}; give one of "
            f"{known} (a CLIP with a vision transformer, without mask prompts), or write its "
            "weights alone with vljax.pretrained.save(model, FILE.safetensors)"
        )
    family, written = found
    tensors = checkpoint.folder_names(model, checkpoint.published_tensors(model))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = checkpoint.in_dtype(tensors, dtype)
    checkpoint.write_shards(tensors, folder, family.weights, shard_bytes)
    written["config.json"].update(more)
    _write_json(written, folder)


def _text_tower(model: StableDiffusion) -> TextTransformer:
    """The text encoder without a tower of pictures."""
    whole = model.text_encoder
    if not isinstance(whole, CLIP):
        return whole
    told = arguments_of(whole)
    fields = (
        *("text_width", "text_layers", "context_length", "vocabulary_size"),
        *("head_channels", "activation", "remat", "dtype"),
    )
    own: Any = {field: told[field] for field in fields}
    tower = jax.eval_shape(lambda: TextTransformer(**own, rngs=nnx.Rngs(0)))
    weights = named_parameters(whole)
    return with_parameters(tower, {name: weights[name] for name in named_parameters(tower)})


def _pipeline_files(
    model: StableDiffusion,
    folder: Path,
    tokenizer: Tokenizer | None,
    diffusion: Mapping[str, Any] | None,
    like: str | os.PathLike | None,
) -> Files:
    """Write a pipeline's tokenizer, or copy what it is like; what its JSON files say."""
    if like is not None:
        like = files.expanded(like)
        for name in _BESIDE:
            source = like / name
            if source.is_dir():
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
        index = json.loads((like / "model_index.json").read_text("utf-8"))
        # A network that looks at the finished pictures, and is none of the model's.
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
        return {"model_index.json": index}
    if tokenizer is None or diffusion is None:
        raise UserError(
            f"{folder}: a pipeline needs its tokenizer and its noise: give tokenizer=… and "
            "diffusion={'schedule': …, 'num_steps': …, 'prediction': …}, or like=FOLDER of the "
            "pipeline that it was"
        )
    tokenizer.save_folder(folder / "tokenizer", model.tokens)
    return pipeline_files(arguments_of(model.unet), arguments_of(model.vae), diffusion)


def _write_json(written: Files, folder: Path) -> None:
    for name, fields in written.items():
        files.write(folder / name, json.dumps(fields, indent=2) + "\n")
