"""The convolution and its gradients against XLA's own and torch's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from vljax.ops import convolution
from vljax.ops.convolution import conv2d

SAME = ((1, 1), (1, 1))
CASES = {
    "3x3": ((4, 9, 8, 5), (3, 3, 5, 7), (1, 1), SAME),
    "3x3 narrowing": ((4, 9, 8, 7), (3, 3, 7, 5), (1, 1), SAME),
    "3x3 valid": ((1, 9, 8, 7), (3, 3, 7, 5), (1, 1), ((0, 0), (0, 0))),
    "3x3 stride 2": ((2, 8, 9, 7), (3, 3, 7, 5), (2, 2), SAME),
    "3x3 stride 2, one side padded": ((2, 8, 8, 3), (3, 3, 3, 5), (2, 2), ((0, 1), (0, 1))),
    "3x3 padded beyond the kernel": ((2, 5, 6, 4), (3, 3, 4, 4), (1, 1), ((3, 1), (0, 4))),
    "7x7 stride 2": ((2, 16, 15, 3), (7, 7, 3, 6), (2, 2), ((3, 3), (3, 3))),
    "2x3, strides 2 and 1": ((3, 8, 9, 4), (2, 3, 4, 2), (2, 1), ((1, 0), (1, 1))),
    "3x3 with few pixels": ((2, 3, 2, 5), (3, 3, 5, 20), (1, 1), SAME),
    "3x3 stride 2 with few pixels": ((2, 4, 5, 3), (3, 3, 3, 12), (2, 2), SAME),
    "1x1": ((2, 6, 5, 4), (1, 1, 4, 3), (1, 1), ((0, 0), (0, 0))),
    "1x1 stride 2": ((2, 6, 5, 4), (1, 1, 4, 3), (2, 2), ((0, 0), (0, 0))),
}


def inputs(x_shape, weight_shape, dtype=jnp.float32):
    x_key, weight_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, x_shape, dtype)
    fan_in = np.prod(weight_shape[:3])
    return x, jax.random.normal(weight_key, weight_shape, dtype) / np.asarray(fan_in**0.5, dtype)


def xla(x, weight, stride, padding):
    return lax.conv_general_dilated(
        x, weight, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def ours(x, weight, stride, padding):
    return conv2d(x, weight, stride=stride, padding=padding)


def curved(convolve, stride, padding):
    """A loss whose gradient differs at every output."""
    return lambda x, weight: jnp.sin(3 * convolve(x, weight, stride, padding)).sum()


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert np.abs(a - e).max() <= tolerance * np.abs(e).max()


@pytest.mark.parametrize("one_image_at_a_time", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_xlas(case, one_image_at_a_time, monkeypatch):
    if one_image_at_a_time:
        monkeypatch.setattr(convolution, "_COLUMN_BYTES", 1)
    *shapes, stride, padding = CASES[case]
    x, weight = inputs(*shapes)
    assert_close(ours(x, weight, stride, padding), xla(x, weight, stride, padding))
    gradients = [
        jax.jit(jax.grad(curved(f, stride, padding), argnums=(0, 1)))(x, weight)
        for f in (ours, xla)
    ]
    assert_close(*gradients)


@pytest.mark.parametrize("case", ["3x3", "3x3 narrowing", "7x7 stride 2"])
def test_gradients_equal_torchs(case):
    *shapes, stride, padding = CASES[case]
    x, weight = inputs(*shapes)
    torch_x = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).requires_grad_()
    torch_weight = torch.tensor(np.asarray(weight)).permute(3, 2, 0, 1).requires_grad_()
    out = torch.nn.functional.conv2d(torch_x, torch_weight, stride=stride, padding=padding[0][0])
    torch.sin(3 * out).sum().backward()
    actual = jax.grad(curved(ours, stride, padding), argnums=(0, 1))(x, weight)
    expected = (torch_x.grad.permute(0, 2, 3, 1), torch_weight.grad.permute(2, 3, 1, 0))
    assert_close(actual, [e.numpy() for e in expected])


def test_bfloat16_weight_gradient_is_summed_in_float32():
    x, weight = inputs((8, 16, 16, 4), (3, 3, 4, 4), jnp.bfloat16)
    wide = tuple(a.astype(jnp.float32) for a in (x, weight))
    cotangent = jax.random.normal(jax.random.key(1), (8, 16, 16, 4), jnp.bfloat16)
    out, pull = jax.vjp(lambda *a: ours(*a, (1, 1), SAME), x, weight)
    _, wide_pull = jax.vjp(lambda *a: xla(*a, (1, 1), SAME), *wide)
    assert out.dtype == jnp.bfloat16
    expected = tuple(g.astype(jnp.bfloat16) for g in wide_pull(cotangent.astype(jnp.float32)))
    assert_close(pull(cotangent), expected, 2**-7)


def test_integer_arguments_mean_both_axes():
    x, weight = inputs((2, 8, 8, 3), (3, 3, 3, 4))
    chex.assert_trees_all_equal(
        conv2d(x, weight, stride=2, padding=1), ours(x, weight, (2, 2), SAME)
    )


def test_composes_with_vmap_scan_checkpoint_and_a_second_derivative():
    x, weight = inputs((3, 2, 6, 6, 4), (3, 3, 4, 4))

    def through(convolve):
        def loss(x, weight):
            layer = jax.checkpoint(lambda x: jnp.tanh(convolve(x, weight, (1, 1), SAME)))
            y, _ = lax.scan(lambda x, _: (layer(x), None), x, length=3)
            return (y**2).sum()

        def per_group(x, weight):
            return jax.vmap(jax.grad(loss, argnums=1), (0, None))(x, weight)

        def penalty(x, weight):
            return (jax.grad(loss)(x[0], weight) ** 2).sum()

        return per_group(x, weight), jax.grad(penalty, argnums=(0, 1))(x, weight)

    assert_close(jax.jit(lambda: through(ours))(), jax.jit(lambda: through(xla))())


def test_gradient_of_the_input_alone_holds_no_columns():
    """Guidance needs only this one; the weight's part must disappear in the compiler."""
    x, weight = inputs((4, 16, 16, 8), (3, 3, 8, 8))
    text = jax.jit(jax.grad(curved(ours, (1, 1), SAME))).lower(x, weight).compile().as_text()
    both = jax.jit(jax.grad(curved(ours, (1, 1), SAME), (0, 1))).lower(x, weight).compile()
    assert "f32[4,16,16,72]" not in text.replace("1024,72", "4,16,16,72")
    assert "f32[4,16,16,72]" in both.as_text().replace("1024,72", "4,16,16,72")


@pytest.mark.parametrize(("platform", "count"), [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_few_pixels_are_columns_on_cpu_alone(platform, count):
    x, weight = inputs((2, 3, 2, 5), (3, 3, 5, 20))
    traced = jax.jit(lambda x, weight: ours(x, weight, (1, 1), SAME)).trace(x, weight)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == count


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_keep_xlas_weight_gradient(platform):
    x, weight = inputs((4, 16, 16, 8), (3, 3, 8, 8))
    traced = jax.jit(jax.grad(curved(ours, (1, 1), SAME), argnums=1)).trace(x, weight)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 2
    assert "stablehlo.dot_general" not in text
