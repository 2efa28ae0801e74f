"""Gaussian noise that belongs to an example, not to its place in a batch.

Each example carries its own key, and noise is a function of that key and of a step index. The
picture of a seed is therefore the same alone, in any batch, and on any mesh.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def example_keys(key: Key[Array, ""], count: int, first: int = 0) -> Key[Array, " b"]:
    """Keys of the examples `first` … `first + count - 1` of a run seeded by `key`.

    For pictures with seeds of their own use `jax.vmap(jax.random.key)(seeds)`.

    Args:
        key: Of the run.
        count: How many.
        first: Number of the first example.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def start_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b h w c"]:
    """x_T: standard normal float32 of `shape` (h, w, c) for each key.

    Args:
        keys: One an example, see `example_keys`.
        shape: (h, w, c) of a picture; static.
    """
    return _normal(keys, jnp.asarray(0), shape)


def step_noise(
    keys: Key[Array, " b"], step: Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "b h w c"]:
    """The noise of diffusion step `step` (index into the schedule) for each key, float32.

    Args:
        keys: One an example, see `example_keys`.
        step: Index into the schedule.
        shape: (h, w, c) of a picture; static.
    """
    return _normal(keys, step + 1, shape)


def _normal(
    keys: Key[Array, " b"], index: Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "b h w c"]:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)
