"""Weights that are random and yet the same everywhere: each tensor is made from its own name.

A golden run made them so in the library that it ran; a test makes them anew here.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from vljax import pretrained
from vljax.models.parameters import variables


def standard_normal(name, shape):
    """Float32, from the name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)


def random_tensor(name, shape, gain=1.0):
    """What a tensor of that name may be: features keep their size.

    Args:
        name: Its published name.
        shape: Its published shape.
        gain: Of a layer's weights, in variance: 2 where rectified features follow.
    """
    w = standard_normal(name, shape)
    if len(shape) == 1:
        w = 0.1 * w + (1.0 if name.endswith(("weight", "running_var")) else 0.0)
    elif len(shape) > 1:
        w = w * np.float32((gain / np.prod(shape[1:])) ** 0.5)
    return np.asarray(w, np.float32)


def published_weights(model, tensor=random_tensor, published_name=lambda name: name):
    """A checkpoint of the model as it would be published.

    Args:
        model: Its arrays may be shapes only.
        tensor: `(published name, published shape) -> tensor`.
        published_name: What the checkpoint calls one of our parameters.
    """
    tensors = {}
    for name, variable in variables(model).items():
        ours = np.zeros(variable.get_value().shape, bool)
        published = published_name(name)
        tensors[published] = tensor(published, pretrained.to_published(ours, variable).shape)
    return tensors


def with_golden_weights(model, **making):
    """The model with `published_weights`."""
    tensors = published_weights(model, **making)
    return jax.tree.map(jnp.asarray, pretrained.assign(model, tensors, origin="golden weights"))
