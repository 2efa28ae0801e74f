"""Attention against its definition and torch's, and its memory against the lengths."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vljax.ops import attention as module
from vljax.ops.attention import attention, attention_reference

# Queries, keys, heads, widths of keys and values: square, cross, a prime length, odd widths.
SHAPES = [(32, 32, 2, 16, 16), (33, 40, 3, 8, 8), (61, 7, 1, 5, 9)]


def inputs(queries, keys, heads, width, value_width, batch=2, dtype=jnp.float32):
    key = jax.random.split(jax.random.key(queries), 3)
    shapes = (queries, heads, width), (keys, heads, width), (keys, heads, value_width)
    return tuple(jax.random.normal(k, (batch, *s), dtype) for k, s in zip(key, shapes, strict=True))


@pytest.fixture(params=["all at once", "head by head", "block by block", "query by query"])
def blocking(request, monkeypatch):
    """The same small arrays through every way of cutting them up."""
    scores = {
        "all at once": 2**30,
        "head by head": 4 * 61 * 40,
        "block by block": 4 * 40 * 7,
        "query by query": 1,
    }
    monkeypatch.setattr(module, "_CPU_BYTES", scores[request.param])
    return request.param


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-5, rtol=1e-5)


def masks(queries, keys, heads, batch=2):
    """Every broadcast that `mask` allows, each row with at least one key."""
    yield None
    for b, h, q in itertools.product((1, batch), (1, heads), (1, queries)):
        mask = jax.random.bernoulli(jax.random.key(b + h + q), 0.6, (b, h, q, keys))
        yield mask.at[..., 0].set(True)


@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients_equal_the_definition(shape, blocking):
    arrays = inputs(*shape)

    def loss(f):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sin(3 * f(*a)).sum(), argnums=(0, 1, 2)))

    np.testing.assert_allclose(attention(*arrays), attention_reference(*arrays), atol=2e-6)
    actual, expected = loss(attention)(*arrays), loss(attention_reference)(*arrays)
    assert_close(actual, expected)


@pytest.mark.parametrize("causal", [False, True])
def test_every_mask_equals_the_definition(causal, blocking):
    shape = SHAPES[1]
    arrays = inputs(*shape)
    for mask in masks(*shape[:3]):
        actual = attention(*arrays, mask=mask, causal=causal, scale=0.7)
        expected = attention_reference(*arrays, mask=mask, causal=causal, scale=0.7)
        np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_masked_gradient_equals_the_definitions(blocking):
    arrays = inputs(*SHAPES[1])
    mask = jnp.arange(40) < jnp.array([[40], [11]])

    def gradient(f):
        def loss(*arrays):
            return jnp.sin(3 * f(*arrays, mask=mask[:, None, None], causal=True)).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)

    actual, expected = gradient(attention), gradient(attention_reference)
    assert_close(actual, expected)
    assert not np.asarray(actual[1])[1, 11:].any(), "a key out of sight got a gradient"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_value_and_gradients_equal_torchs(dtype, causal, blocking):
    arrays = inputs(33, 33, 2, 16, 16, dtype=dtype)
    peers = [
        torch.tensor(np.asarray(a, np.float32)).permute(0, 2, 1, 3).requires_grad_() for a in arrays
    ]
    peer = torch.nn.functional.scaled_dot_product_attention(*peers, is_causal=causal)
    peer.square().sum().backward()

    def loss(*arrays):
        out = attention(*arrays, causal=causal)
        return jnp.square(out.astype(jnp.float32)).sum(), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
    assert out.dtype == dtype
    tolerance = {"atol": 2e-5} if dtype == jnp.float32 else {"atol": 3e-2, "rtol": 2e-2}
    for ours, theirs in zip((out, *gradients), (peer, *(p.grad for p in peers)), strict=True):
        theirs = theirs.detach().permute(0, 2, 1, 3).numpy()
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, **tolerance)


def test_large_scores_neither_overflow_nor_vanish(blocking):
    query, key, value = inputs(*SHAPES[1])
    query = query * 1e4
    np.testing.assert_allclose(
        attention(query, key, value), attention_reference(query, key, value), atol=1e-5
    )


def test_a_query_without_keys_stays_finite(blocking):
    arrays = inputs(*SHAPES[1])
    mask = jnp.ones((1, 1, 33, 40), bool).at[:, :, 5].set(False)

    def loss(*arrays):
        return attention(*arrays, mask=mask).sum()

    leaves = jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1, 2))(*arrays))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_composes_with_vmap_scan_forward_mode_and_second_derivatives(blocking):
    arrays = inputs(9, 9, 2, 4, 4)

    def through(f):
        def stack(query, key, value):
            return jax.lax.scan(lambda x, _: (f(x, key, value), None), query, length=2)[0]

        many = jax.vmap(stack, (0, None, None))(jnp.stack([arrays[0], -arrays[0]]), *arrays[1:])
        _, tangent = jax.jvp(stack, arrays, arrays)

        def penalty(*arrays):
            return (jax.grad(lambda *a: jnp.sin(stack(*a)).sum())(*arrays) ** 2).sum()

        return many, tangent, jax.grad(penalty, argnums=(0, 1, 2))(*arrays)

    actual = jax.jit(lambda: through(attention))()
    expected = jax.jit(lambda: through(attention_reference))()
    assert_close(actual, expected)


def largest_array(jaxpr) -> int:
    """Elements of the largest array that any equation of a jaxpr makes, at any depth."""
    largest = 0
    for equation in jaxpr.eqns:
        largest = max(largest, *(math.prod(v.aval.shape) for v in equation.outvars), 0)
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                largest = max(largest, largest_array(inner))
    return largest


def by_head(query, key, value):
    """The CPU's path alone: a trace of `attention` holds every platform's."""
    return module._attend_by_head(query, key, value, None, False, 0.5)


def by_block(query, key, value):
    """The accelerators' path alone."""
    return module._attend_by_block(query, key, value, None, False, 0.5)


@pytest.mark.parametrize("path", [by_head, by_block])
@pytest.mark.parametrize("derivative", [False, True])
def test_no_array_grows_with_the_square_of_the_length(path, derivative, monkeypatch):
    """The compiler's report omits its kernels' own buffers, so look at every array instead."""
    monkeypatch.setattr(module, "_ACCELERATOR_BYTES", 64 * 2**20)
    f = jax.grad(lambda *a: path(*a).sum(), argnums=(0, 1, 2)) if derivative else path
    for length in (8192, 65536):
        x = jax.ShapeDtypeStruct((2, length, 8, 40), jnp.float32)
        largest = largest_array(jax.make_jaxpr(f)(x, x, x).jaxpr)
        assert largest <= max(16 * 2**20, 2 * math.prod(x.shape))
    plain = jax.make_jaxpr(attention_reference)(x, x, x)
    assert largest_array(plain.jaxpr) == 2 * 8 * length**2, "the measure must see an N² array"


@pytest.mark.parametrize("derivative", [False, True])
def test_compiled_memory_is_linear_in_the_length(derivative):
    f = attention
    if derivative:
        f = jax.grad(lambda *a: attention(*a).sum(), argnums=(0, 1, 2))

    def temporaries(f, length):
        x = jax.ShapeDtypeStruct((1, length, 2, 40), jnp.float32)
        return jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(f, 4096), temporaries(f, 16384)
    linear = 16 * math.prod((1, 16384, 2, 40)) * 4
    assert large <= small + linear + 3 * module._CPU_BYTES
    assert large * 8 < temporaries(attention_reference, 16384)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform, monkeypatch):
    """Batch and heads stay axes of one product in every block, so that both may be sharded."""
    query, key, value = inputs(*SHAPES[0], dtype=jnp.bfloat16)
    for budget, loops in ((2**30, 0), (4 * 2 * 2 * 32 * 10, 1)):
        monkeypatch.setattr(module, "_ACCELERATOR_BYTES", budget)
        traced = jax.jit(lambda *a: attention(*a)).trace(query, key, value)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.while") == loops
        assert text.count("stablehlo.dot_general") == 2
        assert "batching_dims = [0, 1]" in text or "batching_dims = [0, 2]" in text


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_accelerators_blocks_equal_the_definition(causal, masked, monkeypatch):
    """The path of platforms without a kernel of their own, run here."""
    monkeypatch.setattr(module, "_ACCELERATOR_BYTES", 4 * 2 * 3 * 40 * 7)
    arrays = inputs(*SHAPES[1])
    mask = jax.random.bernoulli(jax.random.key(0), 0.6, (2, 1, 33, 40)) if masked else None
    mask = mask.at[..., 0].set(True) if masked else None

    def gradient(f):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sin(3 * f(*a)).sum(), argnums=(0, 1, 2)))

    def blocks(*arrays):
        return module._attend_by_block(*arrays, mask, causal, 0.7)

    def definition(*arrays):
        return attention_reference(*arrays, mask=mask, causal=causal, scale=0.7)

    assert_close(gradient(blocks)(*arrays), gradient(definition)(*arrays))


def test_cudnn_is_asked_only_for_what_it_takes(monkeypatch):
    class Device:
        compute_capability = "9.0"

        class client:  # noqa: N801
            platform_version = "PJRT C API cuda 12090"

    def serves(dtype=jnp.bfloat16, width=64, queries=77, mask=None):
        shape = (1, queries, 4, width)
        x = jax.ShapeDtypeStruct(shape, dtype)
        return module._cudnn_serves(x, x, x, mask)

    assert not serves(), "this process has no CUDA device"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    assert all((serves(), serves(jnp.float16), serves(width=40)))
    assert not any((serves(jnp.float32), serves(width=20), serves(width=160)))
    assert not serves(mask=jnp.ones((1, 1, 1, 77), bool))
    assert serves(queries=78, mask=jnp.ones((1, 1, 1, 78), bool))
    monkeypatch.setattr(Device, "compute_capability", "7.5")
    assert not serves()
