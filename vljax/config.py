"""Configs: one `ml_collections` recipe per run, from a file and flags on top.

```
--config configs/sdg_ffhq.py                           the recipe on the embedded scenes
--config configs/sdg_ffhq.py:/data/ffhq                the paper's recipe on that folder
--config.stages.diffusion.batch_size=64                any field
```
"""

import functools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
            # Of weights in use (training keeps float32): bfloat16 takes half the memory.
            "param_dtype": "float32",
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


def read_json(file: Path) -> dict[str, Any]:
    """A config as `to_json` wrote it.

    Raises:
        UserError: the file is damaged.
    """
    try:
        config = json.loads(file.read_text())
        if not isinstance(config, dict) or not isinstance(config.get("system"), str):
            raise ValueError("no system is named")
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}): give another run's workdir, or remove the file and "
            "start training again with the same command, it writes the file anew"
        ) from error
    return config


# Fields of `model.diffusion` that are gone, each with the one value that networks still have.
_RETIRED = {"head_order": "heads_first", "resblock_updown": True}


def from_workdir(path: str | os.PathLike) -> ConfigDict:
    """The config that a run left in its workdir.

    Raises:
        UserError: there is none, it is damaged, or it is an earlier version's and asks for what is
            gone.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise UserError(
            f"--workdir={path} holds no config.json: give a training run's workdir, or --config"
        )
    config = read_json(file)
    network = config.get("model", {}).get("diffusion", {})
    for name, only in _RETIRED.items():
        if (value := network.pop(name, only)) != only:
            raise UserError(
                f"{file}: model.diffusion.{name}={value!r} is no longer built, only {only!r}: "
                "train anew"
            )
    return ConfigDict(config)


def on_scenes_without_data(
    small: Callable[[], ConfigDict],
) -> Callable[[Callable[[str], ConfigDict]], Callable[..., ConfigDict]]:
    """Makes a recipe's `get_config(data_dir)` run without data, too: as `small()`, on scenes."""

    def decorate(published: Callable[[str], ConfigDict]) -> Callable[..., ConfigDict]:
        @functools.wraps(published)
        def get_config(data_dir: str | None = None) -> ConfigDict:
            return small() if data_dir is None else published(data_dir)

        return get_config

    return decorate


def completed(config: ConfigDict, usual: ConfigDict) -> list[str]:
    """Give a config the fields that it lacks, such as an older version's; tells which.

    What a recipe chooses whole (networks, stages, weights) stays as it is.

    Args:
        config: Changed in place.
        usual: Has all fields, such as the system's own.
    """
    own = config.to_dict()
    added = []
    for name, value in flatten(usual.to_dict()).items():
        parents, _, last = name.rpartition(".")
        if name.partition(".")[0] in ("model", "stages", "pretrained", "data"):
            continue
        here: Any = own
        for parent in parents.split(".") if parents else ():
            here = here.get(parent) if isinstance(here, dict) else None
        if here is None or (isinstance(here, dict) and last not in here):
            with config.unlocked():
                config.update(ConfigDict(_nested(name, value)))
            added.append(f"{name}={value!r}")
    return added


def _nested(name: str, value: object) -> dict[str, Any]:
    first, _, rest = name.partition(".")
    return {first: _nested(rest, value) if rest else value}


DTYPES = ("float32", "bfloat16", "float16")
# No array has an axis of more elements.
_LARGEST = 2**31 - 1
# Numbers that a field may have: from the first on, below the second.
_RANGES = (
    (
        r"checkpoint\.(every|keep)|log\.every|stages\.[^.]+\.(num_steps|batch_size|accumulate)",
        (1, math.inf),
    ),
    (
        r"log\.pictures_every|profile\.(start|steps)|data\.workers"
        r"|stages\.[^.]+\.optimizer\.warmup_steps",
        (0, math.inf),
    ),
    (r"stages\.[^.]+\.ema_decay", (0, 1)),  # at 1 the average would stay as it began
)


def check(config: ConfigDict, recipe: ConfigDict) -> None:
    """Refuse values of fields that no run can have, whatever the system.

    Args:
        config: The config of a run.
        recipe: The same without a person's changes; its values tell each field's type.

    Raises:
        UserError: a number is not finite, larger than any array or out of its field's range, a
            text cannot be a path, a data type is none, or a sequence holds what the recipe's does
            not.
    """
    known = flatten(recipe.to_dict())
    for name, value in flatten(config.to_dict()).items():
        told = f"--config.{name}={value if len(str(value)) < 80 else str(value)[:77] + '...'}"
        usual = known.get(name)
        if name.rpartition(".")[2].endswith("dtype") and value not in DTYPES:
            raise UserError(f"{told}: choose one of {', '.join(DTYPES)}")
        for fields, (low, end) in _RANGES:
            if not re.fullmatch(fields, name) or not isinstance(value, int | float):
                continue
            if not low <= value < end:
                below = "" if end == math.inf else f", and less than {end}"
                raise UserError(f"{told}: give {low} or more{below}")
        if isinstance(value, tuple | list):
            kinds = {_kind(one) for one in usual} if isinstance(usual, tuple | list) else set()
            if kinds and not {_kind(one) for one in value} <= kinds:
                raise UserError(f"{told}: give values like those of the recipe, {usual}")
            for one in value:
                _check_value(told, one)
        else:
            _check_value(told, value)


def _kind(value: Any) -> Any:
    """Numbers are of one kind; the kind of a sequence is that of its elements."""
    if isinstance(value, tuple | list):
        return tuple(_kind(one) for one in value)
    return float if isinstance(value, int | float) else type(value)


def _check_value(told: str, value: Any) -> None:
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise UserError(f"{told}: give a finite number")
        if abs(value) > _LARGEST:
            raise UserError(f"{told}: give a number up to {_LARGEST:,}")
    if isinstance(value, str) and (len(os.fsencode(value)) >= 4096 or "\0" in value):
        raise UserError(f"{told}: no file has such a name; give another")
