"""The convolution and its gradients against XLA's own and torch's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vljax.ops.convolution import conv2d

pytestmark = pytest.mark.usefixtures("quick_to_compile")

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
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in (x_shape, weight_shape))
    return x.astype(dtype), (weight / np.prod(weight_shape[:3]) ** 0.5).astype(dtype)


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


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_xlas(case):
    *shapes, stride, padding = CASES[case]

    @jax.jit
    def both(x, weight):
        def run(convolve):
            gradient = jax.grad(curved(convolve, stride, padding), argnums=(0, 1))
            return convolve(x, weight, stride, padding), gradient(x, weight)

        return run(ours), run(xla)

    assert_close(*both(*inputs(*shapes)))


@pytest.mark.parametrize("case", ["3x3", "3x3 with few pixels", "7x7 stride 2"])
def test_gradients_equal_torchs(case):
    torch = pytest.importorskip("torch")
    *shapes, stride, padding = CASES[case]
    x, weight = inputs(*shapes)
    torch_x = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).requires_grad_()
    torch_weight = torch.tensor(np.asarray(weight)).permute(3, 2, 0, 1).requires_grad_()
    out = torch.nn.functional.conv2d(torch_x, torch_weight, stride=stride, padding=padding[0][0])
    torch.sin(3 * out).sum().backward()
    actual = jax.jit(jax.grad(curved(ours, stride, padding), argnums=(0, 1)))(x, weight)
    expected = (torch_x.grad.permute(0, 2, 3, 1), torch_weight.grad.permute(2, 3, 1, 0))
    assert_close(actual, [e.numpy() for e in expected])


def test_integer_arguments_mean_both_axes():
    x, weight = inputs((2, 8, 8, 3), (3, 3, 3, 4))
    chex.assert_trees_all_equal(
        conv2d(x, weight, stride=2, padding=1), ours(x, weight, (2, 2), SAME)
    )


def test_composes_with_vmap_scan_checkpoint_forward_mode_and_a_second_derivative():
    x, weight = inputs((3, 2, 2, 3, 12), (3, 3, 12, 12))

    def through(convolve):
        def loss(x, weight):
            layer = jax.checkpoint(lambda x: jnp.tanh(convolve(x, weight, (1, 1), SAME)))
            y, _ = lax.scan(lambda x, _: (layer(x), None), x, length=3)
            return (y**2).sum()

        def per_group(x, weight):
            return jax.vmap(jax.grad(loss, argnums=1), (0, None))(x, weight)

        def penalty(x, weight):
            return (jax.grad(loss)(x[0], weight) ** 2).sum()

        tangent = jax.jvp(loss, (x[0], weight), (x[1], -weight))
        return per_group(x, weight), tangent, jax.grad(penalty, argnums=(0, 1))(x, weight)

    assert_close(*jax.jit(lambda: (through(ours), through(xla)))())


@pytest.mark.parametrize(("platform", "count"), [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_few_pixels_are_columns_on_cpu_alone(platform, count):
    x, weight = inputs((2, 3, 2, 5), (3, 3, 5, 20))
    traced = jax.jit(lambda x, weight: ours(x, weight, (1, 1), SAME)).trace(x, weight)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == count
