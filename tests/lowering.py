"""Programs lowered for CUDA and for TPUs on a machine that has neither, from shapes alone.

Lowering is the last step before a platform's own compiler: it meets every check that JAX makes
for a platform (which shapes cuDNN's attention takes, which primitives a TPU knows), allocates
nothing and compiles nothing. A program is traced once and lowered for each platform; `jax.export`
does the same, but refuses what cannot be written to a file (cuDNN's calls, reports of progress).

A system's test says which program to lower, in one of two ways:

- `lower(f, *arguments)`, f being a function or a jitted one, arrays given as shapes; for a
  training stage there are `lower_step` and `lower_gradient`.
- Where a request makes its programs itself, `lower_instead(monkeypatch, module, "_draw")` puts a
  stand-in in the place of a jitted function of that module. Called, it lowers the program for the
  arguments it gets and returns zeros of the right shapes, so that the request runs to its end,
  on a model that is only shapes.
"""

import contextlib
import importlib
from unittest import mock

import jax
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo
from jax._src.interpreters import mlir

from vljax.training import loop
from vljax.training.mesh import make_mesh

# The package holds the function of this name.
attention = importlib.import_module("vljax.ops.attention")

PLATFORMS = ("cuda", "tpu")
HOPPER = (9, 0)
CUDNN = 91000


@contextlib.contextmanager
def on_cuda(capability=HOPPER):
    """Traces see a CUDA device of this compute capability, in our code and in JAX's checks."""

    def reaches(version):
        return capability >= tuple(int(part) for part in version.split("."))

    def equals(version):
        return capability == tuple(int(part) for part in version.split("."))

    backend_of = mlir.ModuleContext.get_backend

    def backend(context, optional=False):
        found = backend_of(context, optional=True)
        return found if found or optional else mock.Mock(platform=context.platforms[0])

    with (
        mock.patch.object(attention, "cuda_capability", return_value=capability),
        mock.patch.multiple(
            fused_attention_stablehlo,
            check_cudnn_version=mock.Mock(return_value=CUDNN),
            check_compute_capability=reaches,
            is_cuda_compute_capability_equal=equals,
        ),
        # A callback to the host asks for the platform's client, which is not here.
        mock.patch.object(mlir.ModuleContext, "get_backend", backend),
        # Means what None does, and is a part of the key of JAX's caches: what is traced here is
        # used nowhere else, nor the other way round.
        jax.default_matmul_precision("default"),
    ):
        yield


def lower(f, *arguments, **named):
    """`jax.stages.Lowered` of a function by platform; arguments may be shapes.

    Outside of `on_cuda` the device is a Hopper one with cuDNN 9.10.
    """
    jitted = f if hasattr(f, "trace") else jax.jit(f)
    faked = contextlib.nullcontext() if attention.cuda_capability() else on_cuda()
    with faked:
        traced = jitted.trace(*arguments, **named)
        return {p: traced.lower(lowering_platforms=(p,)) for p in PLATFORMS}


def lower_gradient(stage, skeleton, config):
    """A stage's loss and its gradient, by platform, without the optimizer: a third of the time."""
    with on_cuda():
        batch = loop.abstract_batch(stage, config.seed, config.data.on_corrupt)
        part = stage.config.batch_size // stage.config.accumulate
        batch = {n: jax.ShapeDtypeStruct((part, *x.shape[1:]), x.dtype) for n, x in batch.items()}
        memory = (jax.eval_shape(stage.memory),) if stage.memory else ()
        key = jax.eval_shape(lambda: jax.random.key(0))

        def gradient(model, *inputs):
            return jax.grad(lambda model: stage.loss(model, *inputs), has_aux=True)(model)

        return lower(gradient, skeleton, batch, key, *memory)


def lower_step(stage, skeleton, config):
    """The whole training step of a stage, by platform; of its data one example is read."""
    with on_cuda():
        traced = loop.make_program(stage, skeleton, config, make_mesh(config.mesh)).traced
        return {p: traced.lower(lowering_platforms=(p,)) for p in PLATFORMS}


def lower_instead(monkeypatch, owner, name):
    """Replaces a jitted function by one that lowers; returns the list of what it has lowered."""
    jitted, lowered = getattr(owner, name), []

    def stand_in(*arguments, **named):
        lowered.append(lower(jitted, *arguments, **named))
        return jax.tree.map(
            lambda out: np.broadcast_to(np.zeros((), out.dtype), out.shape),
            lowered[-1][PLATFORMS[0]].out_info,
        )

    monkeypatch.setattr(owner, name, stand_in)
    return lowered
