"""Attention against its definition and torch's, its memory, and what cuDNN gets of it."""

import importlib
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.lowering import lower, on_cuda
from vljax.ops.attention import attention, attention_reference, cudnn_serves

# The package holds the function of this name.
module = importlib.import_module("vljax.ops.attention")

pytestmark = pytest.mark.usefixtures("quick_to_compile")

# Queries, keys, heads, widths of keys and values: square, cross, a prime length, odd widths.
SHAPES = [(32, 32, 2, 16, 16), (33, 40, 3, 8, 8), (61, 7, 1, 5, 9)]


def inputs(queries, keys, heads, width, value_width, batch=2, dtype=jnp.float32):
    rng = np.random.default_rng(queries)
    shapes = (queries, heads, width), (keys, heads, width), (keys, heads, value_width)
    return tuple(rng.standard_normal((batch, *s), np.float32).astype(dtype) for s in shapes)


def random_mask(*shape):
    """Each row with at least one key."""
    mask = np.random.default_rng(math.prod(shape)).random(shape) < 0.6
    mask[..., 0] = True
    return mask


SCORES = {
    "all at once": 2**30,
    "head by head": 4 * 61 * 40,
    "block by block": 4 * 40 * 7,
    "query by query": 1,
}


@pytest.fixture
def blocking(request, monkeypatch):
    """The same small arrays through a way of cutting them up."""
    monkeypatch.setattr(module, "_CPU_BYTES", SCORES[request.param])
    return request.param


def blockings(*quick, extra=()):
    """Every way to cut up, and with each all of `extra`; the quick ones in the default run."""
    cases = [(way, *more) for way in SCORES for more in itertools.product(*extra)]
    marked = [
        pytest.param(*case, marks=() if (case if extra else case[0]) in quick else pytest.mark.slow)
        for case in cases
    ]
    return marked


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-5, rtol=1e-5)


def masks(queries, keys, heads, batch=2):
    """Every broadcast that `mask` allows."""
    yield None
    for b, h, q in itertools.product((1, batch), (1, heads), (1, queries)):
        yield random_mask(b, h, q, keys)


@pytest.mark.parametrize(
    ("blocking", "shape"),
    blockings(
        ("all at once", SHAPES[0]),
        ("head by head", SHAPES[1]),
        ("block by block", SHAPES[2]),
        extra=(SHAPES,),
    ),
    indirect=["blocking"],
)
def test_value_and_gradients_equal_the_definition(shape, blocking):
    arrays = inputs(*shape)

    @jax.jit
    def both(*arrays):
        found = []
        for f in (attention, attention_reference):

            def loss(*arrays, f=f):
                out = f(*arrays)
                return jnp.sin(3 * out).sum(), out

            found.append(jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays))
        return found

    (actual, out), (expected, definition) = both(*arrays)
    np.testing.assert_allclose(out, definition, atol=2e-6)
    assert_close(actual, expected)


@pytest.mark.parametrize(
    ("blocking", "causal"),
    blockings(("block by block", True), extra=((False, True),)),
    indirect=["blocking"],
)
def test_every_mask_equals_the_definition(causal, blocking):
    shape = SHAPES[1]
    arrays = inputs(*shape)

    @jax.jit
    def both(arrays, masks):
        fields = {"causal": causal, "scale": 0.7}
        return [
            [f(*arrays, mask=mask, **fields) for f in (attention, attention_reference)]
            for mask in masks
        ]

    for actual, expected in both(arrays, list(masks(*shape[:3]))):
        np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize("blocking", blockings("block by block"), indirect=True)
def test_masked_gradient_equals_the_definitions(blocking):
    arrays = inputs(*SHAPES[1])
    mask = np.arange(40) < np.array([[40], [11]])

    def gradient(f):
        def loss(*arrays):
            return jnp.sin(3 * f(*arrays, mask=mask[:, None, None], causal=True)).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)

    actual, expected = gradient(attention), gradient(attention_reference)
    assert_close(actual, expected)
    assert not np.asarray(actual[1])[1, 11:].any(), "a key out of sight got a gradient"


@pytest.mark.parametrize(
    ("blocking", "dtype", "causal"),
    blockings(
        ("block by block", jnp.bfloat16, True),
        extra=((jnp.float32, jnp.bfloat16), (False, True)),
    ),
    indirect=["blocking"],
)
def test_value_and_gradients_equal_torchs(dtype, causal, blocking):
    torch = pytest.importorskip("torch")
    arrays = inputs(33, 33, 2, 16, 16, dtype=dtype)
    peers = [
        torch.tensor(np.asarray(a, np.float32)).permute(0, 2, 1, 3).requires_grad_() for a in arrays
    ]
    peer = torch.nn.functional.scaled_dot_product_attention(*peers, is_causal=causal)
    peer.square().sum().backward()

    def loss(*arrays):
        out = attention(*arrays, causal=causal)
        return jnp.square(out.astype(jnp.float32)).sum(), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    assert out.dtype == dtype
    tolerance = {"atol": 2e-5} if dtype == jnp.float32 else {"atol": 3e-2, "rtol": 2e-2}
    for ours, theirs in zip((out, *gradients), (peer, *(p.grad for p in peers)), strict=True):
        theirs = theirs.detach().permute(0, 2, 1, 3).numpy()
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, **tolerance)


@pytest.mark.parametrize("blocking", blockings("block by block"), indirect=True)
def test_large_scores_neither_overflow_nor_vanish(blocking):
    query, key, value = inputs(*SHAPES[1])
    # Whole numbers, whose scores are exact in any order of summation.
    arrays = np.round(query) * 8192, np.round(key), value
    both = jax.jit(lambda *a: [f(*a, scale=1.0) for f in (attention, attention_reference)])
    np.testing.assert_allclose(*both(*arrays), atol=1e-5)


@pytest.mark.parametrize("blocking", blockings("block by block"), indirect=True)
def test_a_query_without_keys_stays_finite(blocking):
    arrays = inputs(*SHAPES[1])
    mask = np.ones((1, 1, 33, 40), bool)
    mask[:, :, 5] = False

    def loss(*arrays):
        return attention(*arrays, mask=mask).sum()

    leaves = jax.tree.leaves(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize("blocking", blockings("block by block"), indirect=True)
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


@pytest.mark.parametrize("derivative", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiled_memory_is_linear_in_the_length(derivative):
    jax.config.update("jax_disable_most_optimizations", False)  # fused loops are what is tested
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


@pytest.mark.parametrize(
    ("causal", "masked"),
    [
        (True, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((False, False), (False, True), (True, False))
        ),
    ],
)
def test_accelerators_blocks_equal_the_definition(causal, masked, monkeypatch):
    """The path of platforms without a kernel of their own, run here."""
    monkeypatch.setattr(module, "_ACCELERATOR_BYTES", 4 * 2 * 3 * 40 * 7)
    arrays = inputs(*SHAPES[1])
    mask = random_mask(2, 1, 33, 40) if masked else None

    def gradient(f):
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sin(3 * f(*a)).sum(), argnums=(0, 1, 2)))

    def blocks(*arrays):
        return module._attend_by_block(*arrays, mask, causal, 0.7)

    def definition(*arrays):
        return attention_reference(*arrays, mask=mask, causal=causal, scale=0.7)

    assert_close(gradient(blocks)(*arrays), gradient(definition)(*arrays))


def shapes(queries=77, keys=None, heads=4, width=64, value_width=None, dtype=jnp.bfloat16, batch=2):
    keys, value_width = keys or queries, value_width or width
    sizes = (queries, width), (keys, width), (keys, value_width)
    return [jax.ShapeDtypeStruct((batch, n, heads, w), dtype) for n, w in sizes]


@pytest.mark.parametrize(
    ("arrays", "mask", "call"),
    [
        ({}, None, "fmhaSoftmax"),
        ({"dtype": jnp.float16, "keys": 50}, None, "fmhaSoftmax"),
        # Padding of VOI's texts: an odd number of queries, one row of the mask for all of them.
        ({"keys": 70}, (2, 1, 1, 70), "fmhaSoftmax"),
        ({"keys": 77}, (1, 1, 1, 77), "fmhaSoftmax"),
        # Other masks become scores to add.
        ({"queries": 78}, (2, 1, 78, 78), "fmhaScaleBiasSoftmax"),
        ({"queries": 78}, (1, 4, 1, 78), "fmhaScaleBiasSoftmax"),
        ({}, (2, 1, 77, 77), "fmhaScaleBiasSoftmax"),
        # Stable Diffusion's widths.
        ({"width": 40}, None, "fmhaSoftmax"),
        ({"width": 160}, None, "fmhaSoftmax"),
        ({"width": 264}, None, None),
        ({"width": 20}, None, None),
        ({"value_width": 128}, None, None),
        ({"dtype": jnp.float32}, None, None),
    ],
)
def test_cudnn_gets_what_it_takes_and_nothing_else(arrays, mask, call):
    """Value and gradient, lowered as on a Hopper device, through all that JAX checks."""
    arrays = shapes(**arrays)
    mask = None if mask is None else jax.ShapeDtypeStruct(mask, bool)

    def total(query, key, value, mask):
        return attention(query, key, value, mask=mask).astype(jnp.float32).sum()

    lowered = lower(jax.grad(total, argnums=(0, 1, 2)), *arrays, mask)
    text = lowered["cuda"].as_text()
    for name in ("fmhaSoftmax", "fmhaScaleBiasSoftmax"):
        assert (f"__cudnn${name}(" in text, f"__cudnn${name}Backward(" in text) == (
            (True, True) if name == call else (False, False)
        )
    if call == "fmhaSoftmax":
        assert ("PADDING" in text) == (mask is not None or arrays[1].shape[1] % 2 == 1)
    assert "__cudnn" not in lowered["tpu"].as_text()


def test_cudnn_by_device():
    assert not cudnn_serves(*shapes()), "this process has no CUDA device"
    for capability, widest in (((7, 5), 0), ((8, 0), 128), ((9, 0), 256), ((10, 0), 128)):
        with on_cuda(capability):
            for width in (64, 128, 136, 256, 264):
                assert cudnn_serves(*shapes(width=width)) == (width <= widest)


@pytest.mark.parametrize(
    ("keys", "shape", "causal"),
    [
        (39, (2, 1, 1, 39), False),
        (39, (2, 3, 1, 39), True),
        (31, None, False),
        *(
            pytest.param(keys, shape, causal, marks=pytest.mark.slow)
            for keys, shape, causal in (
                (40, (2, 1, 1, 40), False),
                (40, (1, 1, 1, 40), True),
                (40, (1, 1, 33, 40), False),
                (31, None, True),
            )
        ),
    ],
)
def test_what_cudnn_gets_equals_the_definition(keys, shape, causal, monkeypatch):
    """Keys in another order and their number, or a mask; JAX's own products run here."""
    jaxs = jax.nn.dot_product_attention

    def plain(*arrays, mask=None, implementation, **named):
        assert implementation == "cudnn"
        assert mask is None or mask.shape[2:] == (34, 40)
        return jaxs(*arrays, mask=mask, implementation="xla", **named)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    arrays = inputs(33, keys, 3, 8, 8)
    mask = None if shape is None else random_mask(*shape)

    @jax.jit
    def both(arrays, mask):
        def loss(f):
            return jax.value_and_grad(lambda *a: jnp.sin(3 * f(*a)).sum(), argnums=(0, 1, 2))

        def cudnn(*arrays):
            return module._attend_by_cudnn(*arrays, mask, causal, 0.7)

        def definition(*arrays):
            return attention_reference(*arrays, mask=mask, causal=causal, scale=0.7)

        return loss(cudnn)(*arrays), loss(definition)(*arrays)

    actual, expected = both(arrays, mask)
    assert_close(actual, expected)
