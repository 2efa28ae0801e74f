"""Configs: one `ml_collections` recipe per run, from a file and flags on top.

```
--config configs/sdg_ffhq.py                           the recipe on the embedded scenes
--config configs/sdg_ffhq.py:/data/ffhq                the paper's recipe on that folder
--config.stages.diffusion.batch_size=64                any field
```
"""

import functools
import importlib
import json
import os
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from vljax import files
from vljax.errors import UserError


def get_base_config(system: str) -> ConfigDict:
    """The fields that every run has, with their defaults."""
    return ConfigDict(
        {
            # The module of `vljax.systems`.
            "system": system,
            # What the first line on the console says of this recipe.
            "about": "",
            "seed": 0,
            # Worker processes that prepare batches (0 uses threads of the main process), and what
            # an unreadable example does: 'stop' or 'skip'.
            "data": {"workers": 0, "on_corrupt": "stop"},
            # The training stages by name; their order is that of the list that the system makes.
            "stages": {},
            # Published weights, {part of the model: checkpoint}; a stage whose every part is given
            # is not trained.
            "pretrained": {},
            # Sizes of the mesh axes; -1 takes the devices that the others leave.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            # (regular expression over parameter names, strategy): see vljax.training.mesh.
            "sharding": ((".*", "fsdp"),),
            "checkpoint": {"every": 1000, "keep": 2},
            "log": {"every": 50, "pictures_every": 1000},
            # Trace so many steps with the profiler, from this step of the run on.
            "profile": {"start": 10, "steps": 0},
            # Where compiled programs are kept between runs; empty for nowhere.
            "compilation_cache": files.CACHE,
        }
    )


def flatten(tree: object, prefix: str = "") -> dict[str, object]:
    """Nested dictionaries as one, keys joined with dots."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def to_json(config: ConfigDict) -> str:
    """A config as JSON, fields sorted."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


# Fields of earlier runs' configs that are gone, each with the one value that networks still have.
_RETIRED = {"model.diffusion.head_order": "heads_first", "model.diffusion.resblock_updown": True}


def from_workdir(path: str | os.PathLike) -> ConfigDict:
    """The config that a run left in its workdir.

    Raises:
        UserError: there is none, or it is an earlier version's and asks for what is gone.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(
            f"--workdir={path} holds no config.json: give a training run's workdir, or --config"
        )
    config = json.loads(file.read_text())
    for name, only in _RETIRED.items():
        *sections, field = name.split(".")
        holder = functools.reduce(lambda fields, section: fields.get(section, {}), sections, config)
        if (value := holder.pop(field, only)) != only:
            raise UserError(
                f"{file}: {name}={value!r} is no longer built, only {only!r}: train anew"
            )
    return ConfigDict(config)


def load_system(config: ConfigDict) -> ModuleType:
    """The module of the config's system."""
    return importlib.import_module(f"vljax.systems.{config.system}")
