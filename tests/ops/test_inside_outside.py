"""Inside-Outside Attention: fused against its definition, the published code's and PyTorch's."""

import importlib
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.lowering import lower, on_cuda
from vljax.errors import UserError
from vljax.ops import inside_outside as module
from vljax.ops.attention import attention
from vljax.ops.inside_outside import (
    SideMask,
    inside_outside_attention,
    inside_outside_weights,
    join_prompts,
    pixel_mask,
    resize_nearest,
    schedule_strength,
    token_mask,
)

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden" / "inside_outside.npz"


def inside_outside_reference(query, key, value, mask):
    """As algorithm 3 says it, the masked map stored."""
    weights = inside_outside_weights(query, key, mask)
    return jnp.einsum("bhqk,bkhe->bqhe", weights, value.astype(jnp.float32)).astype(query.dtype)


# Of few shapes, that they compile few times.
fused, reference = jax.jit(inside_outside_attention), jax.jit(inside_outside_reference)
QUERIES, TOKENS = 36, 77


def arrays(keys, width=4):
    rng = np.random.default_rng(keys)
    lengths = QUERIES, keys, keys
    return [rng.standard_normal((2, n, 2, width), dtype=np.float32) for n in lengths]


def random_shape():
    return (np.random.default_rng(1).random((2, QUERIES)) < 0.4).astype(np.float32)


def algorithm_3(query, key, value, shape, inside_columns, outside_columns):
    """Lines 3 to 9 in numpy, column by column, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    masked = np.zeros_like(weights)
    for b, m in enumerate(np.asarray(shape, np.float64)):
        for j in inside_columns[b]:
            masked[b, :, :, j] = weights[b, :, :, j] * m
        for j in outside_columns[b]:
            masked[b, :, :, j] = weights[b, :, :, j] * (1 - m)
    return np.einsum("bhqk,bkhe->bqhe", masked, v)


def test_self_attention_is_algorithm_3():
    inputs = arrays(QUERIES)
    shapes = {
        "random": random_shape(),
        "all inside": np.ones((2, QUERIES), np.float32),
        "all outside": np.zeros((2, QUERIES), np.float32),
        "one pixel": np.eye(QUERIES, dtype=np.float32)[[5, 20]],
    }
    for name, shape in shapes.items():
        columns = [[np.flatnonzero(m == side) for m in shape] for side in (1, 0)]
        expected = algorithm_3(*inputs, shape, *columns)
        mask = pixel_mask(shape)
        for f in (fused, reference):
            np.testing.assert_allclose(f(*inputs, mask), expected, atol=1e-5, err_msg=name)


def test_cross_attention_is_algorithm_3():
    inputs, shape = arrays(TOKENS), random_shape()
    expected = algorithm_3(*inputs, shape, [range(1, 39)] * 2, [range(39, 77)] * 2)
    for f in (fused, reference):
        np.testing.assert_allclose(f(*inputs, token_mask(shape)), expected, atol=1e-5)
    # Other parts than the published ones: what lies behind them acts nowhere.
    expected = algorithm_3(*inputs, shape, [range(1, 11)] * 2, [range(11, 14)] * 2)
    actual = fused(*inputs, token_mask(shape, split=(10, 3)))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_any_factors_equal_the_definition_and_its_gradients():
    """Soft masks, weights of any size, and a query that keeps no key, through every derivative."""
    inputs, rng = arrays(TOKENS), np.random.default_rng(3)
    shape = rng.random((2, QUERIES), np.float32)
    shape[:, 7] = 1.0
    factors = [2.5 * rng.random((1, TOKENS), np.float32) for _ in range(2)]
    factors[0][:, 3:] = 0.0
    mask = SideMask(shape, *factors)
    empty = SideMask(shape, np.zeros_like(factors[0]), factors[1])
    assert not np.asarray(fused(*inputs, empty))[:, 7].any()

    def run(f):
        def loss(inputs, mask):
            return jnp.sin(3 * f(*inputs, mask)).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(inputs, mask)

    actual, expected = run(inside_outside_attention), run(inside_outside_reference)
    chex.assert_trees_all_close(actual, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(61, 7), pytest.param((5, 40), marks=pytest.mark.slow)])
def test_any_lengths_and_blocks_equal_the_definition(lengths, monkeypatch):
    """Odd lengths, several blocks of queries, values of another width than the queries."""
    monkeypatch.setattr(importlib.import_module("vljax.ops.attention"), "_CPU_BYTES", 480)
    rng = np.random.default_rng(sum(lengths))
    query, key, value = (
        rng.standard_normal((3, n, 2, width), dtype=np.float32)
        for n, width in zip((lengths[0], *[lengths[1]] * 2), (6, 6, 9), strict=True)
    )
    factors = (rng.random((3, n), np.float32) < 0.5 for n in (lengths[0], *[lengths[1]] * 2))
    mask = SideMask(*(f.astype(np.float32) for f in factors))
    both = jax.jit(lambda *a: [inside_outside_attention(*a), inside_outside_reference(*a)])
    actual, expected = both(query, key, value, mask)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["pixels", "tokens"])
def test_bfloat16_equals_the_definition(kind):
    """Within the rounding of one bfloat16 result; before it, to 1e-5."""
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in arrays(QUERIES if kind == "pixels" else TOKENS)]
    mask = pixel_mask(random_shape()) if kind == "pixels" else token_mask(random_shape())
    wide = [np.asarray(x, np.float32) for x in inputs]
    expected = reference(*wide, mask)
    np.testing.assert_allclose(fused(*wide, mask), expected, atol=1e-5)
    actual = fused(*inputs, mask)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(actual, np.float32), expected, rtol=2**-7, atol=1e-5)


def test_without_a_side_to_keep_apart_it_is_plain_attention():
    inputs = arrays(QUERIES)
    plain = jax.jit(attention)(*inputs)
    ones = np.ones((2, QUERIES), np.float32)
    for mask in (pixel_mask(ones), pixel_mask(random_shape(), strength=0.0)):
        np.testing.assert_allclose(fused(*inputs, mask), plain, atol=1e-6)
    assert np.abs(fused(*inputs, pixel_mask(random_shape())) - plain).max() > 0.05


@pytest.mark.parametrize(("width", "calls"), [(4, [(8, 8)]), (80, [(80, 80), (80, 80)])])
def test_the_forms_for_cudnn_equal_the_definition(width, calls, monkeypatch):
    """Padded heads and two products, as an Ampere GPU would get them, run here."""
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in arrays(QUERIES, width)]
    mask = pixel_mask(random_shape())
    expected = reference(*(np.asarray(x, np.float32) for x in inputs), mask)
    widths = []

    def plain(query, key, value, scale):
        widths.append((query.shape[-1], value.shape[-1]))
        return attention(query, key, value, scale=scale)

    monkeypatch.setattr(module, "attention", plain)
    monkeypatch.setattr(module, "cudnn_serves", lambda query, *_: query.shape[-1] <= 128)
    actual = jax.jit(lambda *a: inside_outside_attention(*a))(*inputs, mask)
    assert widths == calls
    np.testing.assert_allclose(np.asarray(actual, np.float32), expected, rtol=2**-6, atol=1e-2)


@pytest.mark.parametrize(
    ("width", "capability", "calls"),
    [(40, (8, 0), 1), (80, (8, 0), 2), (80, (9, 0), 1), (160, (9, 0), 2), (160, (8, 0), 0)],
)
def test_fused_calls_at_the_widths_of_stable_diffusion(width, capability, calls):
    x = jax.ShapeDtypeStruct((2, 64, 8, width), jnp.bfloat16)
    shape = jax.ShapeDtypeStruct((2, 64), jnp.float32)

    def masked(query, key, value, shape):
        return inside_outside_attention(query, key, value, pixel_mask(shape))

    with on_cuda(capability):
        text = lower(masked, x, x, x, shape)["cuda"].as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == calls


@pytest.fixture(scope="module")
def published():
    """Inputs and outputs of the published attention.

    Golden numbers: `new_attention` of shape-guided-diffusion's utils.py at commit
    b9fac837798b1c73110436ae763f07d164038620, run in PyTorch in float32, two heads, layer 6×6, the
    mask below (with a grey edge) at 40×40, moment 0.4 of the schedule (0.04 for the exponential).
    """
    rng = np.random.default_rng(0)
    lengths = 36, 36, 36, 77, 77
    query, *rest = (rng.standard_normal((1, n, 2, 4), dtype=np.float32) for n in lengths)
    shape = np.zeros((1, 40, 40), np.float32)
    shape[:, 7:29, 13:31] = 1.0
    shape[:, 29:33, 13:31] = 128 / 255
    small = resize_nearest(shape, (6, 6), rule="centre").reshape(1, 36)
    assert len(np.unique(small)) == 3
    *inputs, small = (np.concatenate([x, x]) for x in (query, *rest, small))
    return inputs[0], inputs[1:3], inputs[3:], small, np.load(GOLDEN)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "exponential"])
def test_self_attention_matches_the_published_code(published, schedule):
    query, pair, _, shape, golden = published
    strength = schedule_strength(schedule, 0.04 if schedule == "exponential" else 0.4)
    actual = fused(query, *pair, pixel_mask(shape, strength))[0]
    np.testing.assert_allclose(actual, golden[f"self_{schedule}"], atol=1e-5)


@pytest.mark.parametrize("shared", [(), (1, 2, 5, 39, 40)])
def test_cross_attention_matches_the_published_code(published, shared):
    """Columns of new tokens scaled by 2.5; those shared with the source prompt are not."""
    query, _, pair, shape, golden = published
    scale = np.full(77, 2.5, np.float32)
    scale[list(shared)] = 1.0
    actual = fused(query, *pair, token_mask(shape, scale=scale))[0]
    expected = golden["cross_fixed" if shared else "cross_new"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_mask_strength_and_scale_are_traced():
    chex.clear_trace_counter()
    inputs = arrays(TOKENS)

    @jax.jit
    @chex.assert_max_traces(1)
    def run(shape, progress, scale):
        strength = schedule_strength("cosine", progress)
        mask = token_mask(resize_nearest(shape, (6, 6), rule="corner").reshape(1, 36), scale=scale)
        return inside_outside_attention(*inputs, mask), pixel_mask(shape[:, 0], strength)

    a = run(np.ones((1, 9, 9), np.float32), 0.1, np.ones(77, np.float32))
    b = run(np.zeros((1, 9, 9), np.float32), 0.9, np.full(77, 2.5, np.float32))
    assert np.abs(a[0] - b[0]).max() > 0.1
    assert not np.array_equal(a[1].inside, b[1].inside)


def test_weights_are_the_masked_map():
    query, key, _ = arrays(QUERIES)
    weigh = jax.jit(inside_outside_weights)
    weights = weigh(query, key)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    shape = (np.arange(QUERIES) < 5).astype(np.float32)[None]
    masked = np.asarray(weigh(query, key, pixel_mask(shape)))
    same = shape[0][:, None] == shape[0]
    np.testing.assert_array_equal(masked[..., ~same], 0.0)
    np.testing.assert_allclose(masked[..., same], np.asarray(weights)[..., same], atol=1e-7)


@pytest.mark.parametrize(("rule", "mode"), [("corner", "nearest"), ("centre", "nearest-exact")])
def test_resizing_picks_the_pixels_that_torch_picks(rule, mode):
    torch = pytest.importorskip("torch")
    sizes = [*range(1, 70), 96, 127, 257, 500, 512, 640]
    for old in sizes:
        x = torch.arange(old, dtype=torch.float32)[None, None, None]
        row = np.arange(old, dtype=np.float32)[None]
        for new in (1, 2, 3, 5, 7, 8, 13, 16, 31, 32, 48, 64):
            expected = torch.nn.functional.interpolate(x, (1, new), mode=mode)[0, 0].numpy()
            found = resize_nearest_numpy(row, (1, new), rule)
            np.testing.assert_array_equal(found, expected, err_msg=f"{old} → {new}")


def resize_nearest_numpy(x, size, rule):
    """Without a compilation for each size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.jnp, "take", np.take)
        return resize_nearest(x, size, rule=rule)


def test_resizing_both_axes_and_as_pillow():
    torch = pytest.importorskip("torch")
    mask = (np.random.default_rng(0).random((3, 100, 64)) < 0.5).astype(np.float32)
    actual = resize_nearest(jnp.asarray(mask), (12, 8), rule="corner")
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[:, None], (12, 8))[:, 0]
    np.testing.assert_array_equal(actual, expected.numpy())
    picture = Image.fromarray((255 * mask[0]).astype(np.uint8))
    expected = np.asarray(picture.resize((8, 12), Image.Resampling.NEAREST)) / 255
    actual = resize_nearest(jnp.asarray(mask[0]), (12, 8), rule="centre")
    np.testing.assert_array_equal(actual, expected)


def test_prompts_are_joined_as_the_mask_splits_them():
    index = jnp.arange(77.0)[None, :, None]
    inside, outside, empty = index, 100 + index, 200 + index
    joined = join_prompts(inside, outside, empty)[0, :, 0]
    expected = [200, *range(1, 39), *range(101, 139)]
    np.testing.assert_array_equal(joined, expected)
    joined = join_prompts(inside, outside, empty, split=(2, 3))[0, :, 0]
    np.testing.assert_array_equal(joined, [200, 1, 2, 101, 102, 103, *range(206, 277)])


def test_mistakes_are_refused():
    with pytest.raises(UserError, match=r"split=\(40, 38\): of 77 tokens"):
        token_mask(jnp.ones((1, 4)), split=(40, 38))
    with pytest.raises(UserError, match="schedule='stepwise'"):
        schedule_strength("stepwise", 0.5)


def test_memory_is_an_eighth_of_the_definitions():
    jax.config.update("jax_disable_most_optimizations", False)  # fused loops are what is tested
    x = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)
    shape = jax.ShapeDtypeStruct((1, 4096), jnp.float32)

    def temporaries(f):
        run = jax.jit(lambda query, key, value, shape: f(query, key, value, pixel_mask(shape)))
        return run.lower(x, x, x, shape).compile().memory_analysis().temp_size_in_bytes

    ours, theirs = temporaries(inside_outside_attention), temporaries(inside_outside_reference)
    print(f"\n4096 tokens: {ours / 2**20:.0f} MiB, definition {theirs / 2**20:.0f} MiB")
    assert 8 * ours < theirs
