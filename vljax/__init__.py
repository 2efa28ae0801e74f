"""Controllable vision-and-language generation in JAX and Flax.

A system is a model (a pytree), a list of training stages, a way to judge it and a way to use
it; everything else exists once and serves all systems. Start reading at `vljax.systems.sdg`.
"""

__version__ = "0.1.0"
