"""Published checkpoints: safetensors, PyTorch's through its weights-only loader, caffemodels."""

import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import einops
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vljax import files
from vljax.errors import RunError, UserError
from vljax.models.parameters import named_parameters, variables, with_parameters
from vljax.pretrained.caffemodel import by_path, read_caffemodel

Model = TypeVar("Model")
Tensors = dict[str, np.ndarray]

# Where a published folder says how its shards are called.
INDEX = ".safetensors.index.json"
# What a Hugging Face folder may call its weights, the preferred first.
FOLDER_NAMES = (
    "diffusion_pytorch_model",
    "diffusion_pytorch_model.fp16",
    "model",
    "model.fp16",
    "pytorch_model",
)


# The networks of a Stable Diffusion pipeline.
PIPELINE = ("vae", "unet", "text_encoder")
# What diffusers calls the file of textual inversion's words.
WORDS = "learned_embeds"


def load(model: Model, path: str | os.PathLike, *, ignore: Sequence[str] = ()) -> Model:
    """The same model with the weights of a published checkpoint, in float32.

    Args:
        model: Gives names, shapes and layouts; may come from `jax.eval_shape`.
        path: A `.safetensors`, `.pt`, `.pth`, `.bin` or `.caffemodel` file, a `.index.json` of a
            sharded checkpoint, a folder that holds one of them (`diffusers`, `transformers`), or
            the folder of a whole Stable Diffusion pipeline.
        ignore: Prefixes of tensors that may be surplus (buffers, parts that are not used).

    Raises:
        UserError: there is no readable checkpoint at `path`, or its tensors are not those of the
            model: the message lists every missing, surplus and misshapen one.
    """
    return assign(model, our_names(model, read_tensors(path)), origin=path, ignore=ignore)


def our_names(model: Any, tensors: Tensors) -> Tensors:
    """A checkpoint's tensors by the names of the model.

    They are renamed by `published_names` of the model's class; where it has none, those of each of
    its parts by the part's. Of a caffemodel, which holds all parts of a system, a class with
    `caffe_layers` takes the layers that it names.
    """
    layers = getattr(model, "caffe_layers", {})
    if any(f"{layer}.0" in tensors for layer in layers):
        own = {n: t for n, t in tensors.items() if n.rpartition(".")[0] in layers}
        return by_path(own, layers)
    if rename := getattr(model, "published_names", None):
        return rename(tensors)
    renamed = dict(tensors)
    for name, part in vars(model).items():
        prefix = f"{name}."
        if isinstance(part, nnx.Module):
            names = [n for n in renamed if n.startswith(prefix)]
            own = our_names(part, {n.removeprefix(prefix): renamed.pop(n) for n in names})
            renamed |= {prefix + n: t for n, t in own.items()}
    return renamed


def folder_names(model: Any, tensors: Tensors) -> Tensors:
    """The inverse of `our_names`: a model's tensors by the names in its family's folder.

    Args:
        model: The model; its class, or that of a part, may have `folder_names`.
        tensors: By our names, in published layouts.
    """
    if rename := getattr(model, "folder_names", None):
        return rename(tensors)
    renamed = dict(tensors)
    for name, part in vars(model).items():
        prefix = f"{name}."
        if isinstance(part, nnx.Module):
            names = [n for n in renamed if n.startswith(prefix)]
            own = folder_names(part, {n.removeprefix(prefix): renamed.pop(n) for n in names})
            renamed |= {prefix + n: t for n, t in own.items()}
    return renamed


def assign(
    model: Model, tensors: Tensors, *, origin: str | os.PathLike, ignore: Sequence[str] = ()
) -> Model:
    """The same model holding a checkpoint's tensors; `origin` names them in errors. See `load`."""
    wanted = variables(model)
    missing = sorted(wanted.keys() - tensors.keys())
    surplus = sorted(n for n in tensors.keys() - wanted.keys() if not n.startswith(tuple(ignore)))
    values, misshapen = {}, []
    for name in wanted.keys() & tensors.keys():
        variable, tensor = wanted[name], tensors[name]
        try:
            value = from_published(tensor, variable)
        except einops.EinopsError:
            value = tensor
        if value.shape != variable.get_value().shape:
            expected = " ".join(map(str, variable.get_value().shape))
            found = " ".join(map(str, tensor.shape))
            misshapen.append(f"{name} (file: {found}; model, in its own layout: {expected})")
        else:
            dtype = variable.get_value().dtype
            values[name] = np.asarray(value, dtype, order="C")
    problems = [
        f"{len(names)} {kind}: {', '.join(names)}"
        for kind, names in (
            ("missing", missing),
            ("surplus", surplus),
            ("misshapen", sorted(misshapen)),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{origin} does not fit the model; check that the config describes the network that "
            f"this checkpoint holds. {'; '.join(problems)}"
        )
    return with_parameters(model, values)


def save(model: nnx.Module, path: str | os.PathLike) -> None:
    """Write a model's parameters as safetensors, in published layouts; `load` reads them.

    Raises:
        RunError: see `write_tensors`.
    """
    write_tensors(published_tensors(model), path)


def published_tensors(model: Any) -> Tensors:
    """A model's parameters by our names, in published layouts."""
    layouts = variables(model)
    parameters = named_parameters(model).items()
    return {n: to_published(np.asarray(v), layouts[n]) for n, v in parameters}


def in_dtype(tensors: Tensors, dtype: str) -> Tensors:
    """The same tensors, those of floats in another dtype (a name of JAX's, such as bfloat16)."""
    return {
        name: tensor.astype(jnp.dtype(dtype))
        if jnp.issubdtype(tensor.dtype, jnp.floating)
        else tensor
        for name, tensor in tensors.items()
    }


def write_shards(tensors: Tensors, folder: Path, stem: str, most: int) -> None:
    """Write tensors as a published folder has them: one file, or several and their index.

    Files of the same stem from an earlier time are gone afterwards.

    Args:
        tensors: Arrays by name.
        folder: Where to write.
        stem: The file's name without its ending; shards are `stem-00001-of-00003.safetensors`.
        most: Bytes of a file; only a larger tensor makes a larger one.

    Raises:
        RunError: see `write_tensors`.
    """
    shards: list[Tensors] = [{}]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].nbytes > most:
            shards.append({})
            size = 0
        size += tensors[name].nbytes
        shards[-1][name] = tensors[name]
    count = len(shards)
    names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    written = names if count > 1 else [f"{stem}.safetensors"]
    for name, shard in zip(written, shards, strict=True):
        # transformers asks for whom the layout of the tensors is.
        write_tensors(shard, folder / name, metadata={"format": "pt"})
    if count > 1:
        places = {n: name for name, shard in zip(names, shards, strict=True) for n in shard}
        total = sum(t.nbytes for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        written = [*written, stem + INDEX]
        files.write(folder / written[-1], json.dumps(index, indent=2, sort_keys=True) + "\n")
    ours = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path.name not in written:
            path.unlink()


def write_tensors(
    tensors: Tensors, path: str | os.PathLike, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically.

    Args:
        tensors: Arrays by name.
        path: Where to write; a file already there is replaced only when the new one is whole.
        metadata: Strings to store in the file's header.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    try:
        with files.replacing(path) as partial:
            save_file(
                {n: np.asarray(t, order="C") for n, t in tensors.items()},
                partial,
                metadata=dict(metadata or {}),
            )
    except (SafetensorError, OSError) as error:
        remedy = "make room" if files.lacks_room(error) else "see that it can be written there"
        raise RunError(f"{path} could not be written ({error}): {remedy} and try again") from error


def from_published(tensor: np.ndarray, variable: nnx.Variable) -> np.ndarray:
    """A checkpoint's tensor in our layout."""
    pattern = variable.get_metadata().get("published")
    return einops.rearrange(tensor, pattern) if pattern else tensor


def to_published(value: np.ndarray, variable: nnx.Variable) -> np.ndarray:
    """Our array in the checkpoint's layout."""
    pattern = variable.get_metadata().get("published")
    if pattern:
        theirs, ours = pattern.split("->")
        value = einops.rearrange(value, f"{ours} -> {theirs}")
    return np.asarray(value, order="C")


def read_tensors(path: str | os.PathLike) -> Tensors:
    """All tensors of a checkpoint by name, as numpy arrays; half precision becomes float32.

    Of a Stable Diffusion pipeline's folder, those of its autoencoder, U-Net and text tower, each
    with its folder's name before its own. Of a folder with what was learnt of one thing, those of
    its U-Net likewise, and the vectors of its word (`learned_embeds`) by the word.

    Raises:
        UserError: nothing readable is there.
    """
    path = files.expanded(path)
    networks = [name for name in PIPELINE if (path / name).is_dir()]
    words = [path / f"{WORDS}{suffix}" for suffix in (".safetensors", ".bin")]
    learnt = [file for file in words if file.is_file()][:1]
    if "unet" in networks or learnt:
        # diffusers' script of textual inversion leaves its word in a pipeline's folder, too.
        if len(networks) > 1:
            networks, learnt = [*PIPELINE], []
        named = {f"{p}.{n}": t for p in networks for n, t in read_tensors(path / p).items()}
        return named | {word: t for file in learnt for word, t in read_tensors(file).items()}
    path = _locate(path)
    try:
        if path.name.endswith(".index.json"):
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
            parts = [read_tensors(path.with_name(shard)) for shard in shards]
            return {name: tensor for part in parts for name, tensor in part.items()}
        if path.suffix == ".caffemodel":
            return read_caffemodel(path)
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except UserError:
        raise
    except Exception as error:  # every library names damage differently
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} is not a readable checkpoint ({reason}): fetch it again"
        ) from error


def _locate(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: give a file or a folder that exists")
    for name in FOLDER_NAMES:
        for suffix in (".safetensors", INDEX, ".bin", ".bin.index.json"):
            if (found := path / f"{name}{suffix}").is_file():
                return found
    raise UserError(
        f"{path} holds no checkpoint: it should contain {' or '.join(FOLDER_NAMES)}, as "
        ".safetensors or .bin, whole or with an index of shards"
    )


def _read_safetensors(path: Path) -> Tensors:
    tensors = {}
    # numpy has no bfloat16 of its own; ml_dtypes, which comes with JAX, gives it one.
    with safe_open(path, framework="flax") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dictionary)
            tensors[name] = _full_precision(np.asarray(file.get_tensor(name)))
    return tensors


def _read_torch(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file and PyTorch is not installed: install it "
            "(pip install torch), or convert the file to safetensors"
        ) from error
    if _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive, which holds code beside its weights: if you trust "
            f'it, take them out once with python -c "import torch; torch.save(torch.jit.load('
            f"'{path}', 'cpu').state_dict(), 'weights.pt')\" and give that file"
        )
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    # What trainers put beside their weights is left (Lightning's name, and detectron2's).
    for name in ("state_dict", "model"):
        loaded = loaded.get(name, loaded)
    return {
        name: _full_precision(
            (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t).detach().numpy()
        )
        for name, t in loaded.items()
        if isinstance(t, torch.Tensor)
    }


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _full_precision(array: np.ndarray) -> np.ndarray:
    return (
        array.astype(np.float32)
        if array.dtype.itemsize == 2 and array.dtype.kind in "fV"
        else array
    )
