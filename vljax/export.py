"""Publish a trained system: `python -m vljax.export --workdir runs/scenes --out published`.

Each part of the model becomes a folder. A part of a published family is written as its library
does (`vljax.pretrained.networks`), so that diffusers or transformers open it as it is; of the
others, the weights and what they were made with. `README.md` is the card that the hub shows, with
the recipe and the results of `vljax.evaluate`; `--push ORG/NAME` puts all of it on the hub.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vljax import files
from vljax.config import to_json
from vljax.doors import door, open_run
from vljax.errors import UserError
from vljax.models.folders.families import family_of
from vljax.models.personal import Personal
from vljax.models.stable_diffusion import StableDiffusion
from vljax.pretrained import checkpoint, hub, networks
from vljax.pretrained.concepts import Concept, write_concept
from vljax.request import File, option
from vljax.systems import System


@dataclasses.dataclass(frozen=True)
class Publishing:
    """How to publish."""

    dtype: str = option(
        "float32", choices=("float32", "bfloat16", "float16"), help="of the weights"
    )
    results: File | None = option(
        None, help="results.md of vljax.evaluate (default: WORKDIR/evaluation/results.md)"
    )
    push: str | None = option(None, help="put it on the hub", metavar="ORG/NAME")
    public: bool = option(False, help="a new repository is seen by everybody")


def main(argv: Sequence[str]) -> int:
    """Run the door; returns the exit code.

    Raises:
        UserError: a flag, the config, the workdir or the weights are wrong, or the hub refuses.
    """
    run = open_run(argv, "vljax.export", __doc__, folder="export", asks=Publishing)
    asked: Publishing = run.asked
    judged = Path(asked.results or (run.workdir or run.out) / "evaluation" / "results.md")
    if asked.results and not judged.is_file():
        raise UserError(f"--results={judged}: no such file; give what vljax.evaluate wrote")
    parts = {
        name: _write(name, part, run.out / name, run.system, run.config, asked.dtype)
        for name, part in vars(run.model).items()
        if isinstance(part, nnx.Module)
    }
    recipe = to_json(run.config)
    files.write(run.out / "recipe.json", recipe + "\n")
    hub.write_card(
        run.out,
        title=f"{run.system.name}, trained with vljax",
        about=run.config.about,
        parts=parts,
        recipe=recipe,
        results=judged.read_text("utf-8") if judged.is_file() else "",
        tags=("vljax", "jax", run.system.name),
    )
    for name, what in parts.items():
        print(f"{run.out / name}: {what}")
    if asked.push:
        print(f"published: {hub.push(run.out, asked.push, private=not asked.public)}")
    return 0


def _write(
    name: str, part: Any, folder: Path, system: System, config: ConfigDict, dtype: str
) -> str:
    """Write a part of the model into a folder; what this holds, in words."""
    if isinstance(part, Personal):
        return _write_personal(name, part, folder, config, dtype)
    if isinstance(part, StableDiffusion):
        given = config.pretrained.get(name)
        if given and (files.expanded(given) / "model_index.json").is_file():
            networks.save(part, folder, like=given, dtype=dtype)
        else:
            networks.save(
                part,
                folder,
                tokenizer=system.make_tokenizer(config) if system.make_tokenizer else None,
                diffusion=config.diffusion,
                image_size=config.data.image_size,
                dtype=dtype,
            )
        return "a pipeline that `diffusers.DiffusionPipeline.from_pretrained` opens"
    if found := family_of(part):
        family, _ = found
        texts = hasattr(part, "context_length") or hasattr(part, "clip")
        tokenizer = system.make_tokenizer(config) if texts and system.make_tokenizer else None
        networks.save(part, folder, tokenizer=tokenizer, dtype=dtype)
        return f"a `{family.kind}` of {family.library}"
    tensors = checkpoint.in_dtype(checkpoint.published_tensors(part), dtype)
    checkpoint.write_shards(tensors, folder, "model", networks.SHARD)
    told = {"system": system.name, "part": name, "model": config.model.to_dict()}
    files.write(folder / "config.json", json.dumps(told, indent=2) + "\n")
    return f"weights, for `--config.pretrained.{name}=FOLDER`"


def _write_personal(name: str, part: Personal, folder: Path, config: ConfigDict, dtype: str) -> str:
    """As diffusers keeps textual inversion's words and DreamBooth's U-Nets."""
    told = []
    if part.vectors is not None:
        vectors = np.asarray(part.vectors[...], np.float32)
        concept = Concept(config.personal.word, vectors)
        write_concept(folder / f"{checkpoint.WORDS}.safetensors", concept, dtype)
        told.append("a word that `load_textual_inversion` of diffusers and `--concept` read")
    if part.unet is not None:
        networks.save(part.unet, folder / "unet", dtype=dtype)
        told.append("a U-Net that `UNet2DConditionModel.from_pretrained` of diffusers opens")
    return f"{', '.join(told)}; for `--config.pretrained.{name}=FOLDER`"


run = door(main)

if __name__ == "__main__":
    run()
