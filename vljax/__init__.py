"""Controllable vision-and-language generation in JAX and Flax.

A system is a model (a pytree), a list of training stages, a way to judge it and a way to use
it; everything else exists once and serves all systems. Start reading at `vljax.systems.sdg`.

`load` and `save` take the networks of published families out of folders or the hub and into folders
(`vljax.pretrained.networks`); `systems` has the methods. They load when they are asked for. With
what `vljax.ops`, `vljax.diffusion` and `vljax.metrics` export they are what programs may rely on:
names beside them, and modules below, may move between versions.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vljax import systems
    from vljax.pretrained.networks import load, save

__version__ = "0.1.0"

__all__ = ["__version__", "load", "save", "systems"]


def __getattr__(name: str) -> Any:
    if name == "systems":
        return importlib.import_module("vljax.systems")
    if name in ("load", "save"):
        return getattr(importlib.import_module("vljax.pretrained.networks"), name)
    raise AttributeError(f"module 'vljax' has no attribute {name!r}")
