"""Poolings of two feature vectors against their definitions by the outer product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.ops.fusion import (
    block_tucker,
    compact_bilinear,
    count_sketch,
    factorised,
    l2_normalise,
    signed_sqrt,
    signed_unit,
    sketch_hashes,
    tucker,
)

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture
def normal():
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape, dtype=np.float32)


def test_signed_root_and_its_gradient():
    x = jnp.array([-4.0, -1e-12, 0.0, 1e-12, 9.0])
    value, pull = jax.vjp(signed_sqrt, x)
    np.testing.assert_allclose(value, [-2, -1e-6, 0, 1e-6, 3], rtol=1e-5)
    (gradient,) = pull(jnp.ones(5))
    # Caffe's: half over |y| + 0.03, so 16.7 where the true derivative is infinite.
    np.testing.assert_allclose(gradient, 0.5 / (np.abs(value) + 0.03), rtol=1e-5)
    np.testing.assert_allclose(gradient[2], 0.5 / 0.03, rtol=1e-6)
    # With a small floor it is the derivative.
    through = jax.grad(lambda x: signed_sqrt(x, 1e-6))(9.0)
    np.testing.assert_allclose(through, 1 / 6, rtol=1e-5)
    # Nor is there a second derivative or a vectorised one that is not finite.
    assert np.isfinite(jax.jit(jax.vmap(jax.grad(jax.grad(signed_sqrt))))(x)).all()


def test_norms_over_the_map_and_by_place(normal):
    x = normal(2, 3, 4, 5)
    flat = x.reshape(2, -1)
    whole = flat / np.sqrt((flat**2).sum(-1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(l2_normalise(x, "map").reshape(2, -1), whole, rtol=1e-5)
    place = x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(l2_normalise(x), place, rtol=1e-5)
    gradient = jax.grad(lambda x: l2_normalise(x, "map").sum())(jnp.zeros((2, 3)))
    np.testing.assert_allclose(gradient, np.full((2, 3), 1e-7**-0.5), rtol=1e-5)
    np.testing.assert_allclose(signed_unit(x), l2_normalise(signed_sqrt(x)), rtol=1e-6)


def test_fft_pooling_is_the_sketch_of_the_outer_product(normal):
    size = 37
    x, y = normal(2, 3, 1, 11), normal(2, 1, 4, 7)
    hx, hy = sketch_hashes(1, 11, size), sketch_hashes(2, 7, size)
    pooled = compact_bilinear(x, y, hx, hy, size)
    outer = (x[..., :, None] * y[..., None, :]).reshape(2, 3, 4, -1)
    joint = ((hx[0][:, None] + hy[0]) % size).ravel(), (hx[1][:, None] * hy[1]).ravel()
    np.testing.assert_allclose(pooled, count_sketch(outer, *joint, size), atol=1e-5)


def test_sketch_is_the_sum_by_target_and_keeps_inner_products(normal):
    targets, signs = sketch_hashes(3, 8, 5)
    x = normal(8)
    expected = np.zeros(5)
    for target, sign, value in zip(targets, signs, x, strict=True):
        expected[target] += sign * value
    np.testing.assert_allclose(count_sketch(x, targets, signs, 5), expected, rtol=1e-5)
    # ⟨φ(x, y), φ(x', y')⟩ ≈ ⟨x, x'⟩⟨y, y'⟩ with a deviation near √(2 / size) of the norms' product.
    size = 4000
    hashes = sketch_hashes(0, 64, size), sketch_hashes(1, 64, size)
    pairs = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in normal(4, 200, 64)]
    first, second = (compact_bilinear(*pairs[i : i + 2], *hashes, size) for i in (0, 2))
    true = (pairs[0] * pairs[2]).sum(-1) * (pairs[1] * pairs[3]).sum(-1)
    error = np.asarray((first * second).sum(-1)) - true
    assert np.sqrt((error**2).mean()) < 1.5 * (2 / size) ** 0.5
    np.testing.assert_allclose(np.square(first).sum(-1).mean(), 1, atol=0.05)


def test_hashes_stay_the_same():
    """Weights that were trained with them would lose their meaning."""
    targets, signs = sketch_hashes(0, 6, 16_000)
    np.testing.assert_array_equal(targets, [2271, 3617, 4024, 5533, 6971, 2894])
    np.testing.assert_array_equal(signs, [1, 1, 1, 1, 1, -1])
    assert abs(sketch_hashes(0, 10_000, 7)[1].mean()) < 0.03


def test_factorised_is_a_bilinear_form_of_that_rank(normal):
    left, right = normal(6, 4 * 3), normal(5, 4 * 3)
    x, y = normal(2, 6), normal(2, 5)
    forms = np.einsum("aok,cok->oac", left.reshape(6, 4, 3), right.reshape(5, 4, 3))
    expected = np.einsum("ba,oac,bc->bo", x, forms, y)
    np.testing.assert_allclose(factorised(x @ left, y @ right, 3), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(factorised(x[:, :5], y, 1), x[:, :5] * y, rtol=1e-6)


def test_full_rank_recovers_a_given_core(normal):
    """Each slice's singular vectors are MUTAN's two factors; fewer of them are the best rank."""
    core, x, y = normal(6, 5, 4), normal(3, 2, 1, 6), normal(3, 1, 2, 5)
    u, s, vt = np.linalg.svd(core.transpose(2, 0, 1), full_matrices=False)
    left = (u * s[:, None]).transpose(2, 1, 0)
    right = vt.transpose(1, 2, 0)
    assert left.shape == (5, 6, 4)
    expected = np.einsum("...a,aco,...c->...o", x, core, y)
    assert expected.shape == (3, 2, 2, 4)
    np.testing.assert_allclose(tucker(x, y, left, right), expected, atol=1e-4)
    # One rank less leaves an error that the last singular value bounds.
    error = np.abs(tucker(x, y, left[:4], right[:4]) - expected)
    bound = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    assert (error <= bound[..., None] * s[:, -1] * 1.001).all()
    assert error.max() > 1e-2


def test_one_block_is_mutan_and_more_are_a_block_diagonal_core(normal):
    x, y = normal(3, 6), normal(3, 4)
    left, right = normal(1, 3, 6, 5), normal(1, 3, 4, 5)
    np.testing.assert_allclose(
        block_tucker(x[:, None], y[:, None], left, right)[:, 0],
        tucker(x, y, left[0], right[0]),
        rtol=1e-5,
        atol=1e-5,
    )
    left, right = normal(2, 3, 3, 5), normal(2, 3, 2, 5)
    core = np.zeros((6, 4, 10), np.float32)
    for g in range(2):
        core[3 * g : 3 * g + 3, 2 * g : 2 * g + 2, 5 * g : 5 * g + 5] = np.einsum(
            "rao,rco->aco", left[g], right[g]
        )
    pooled = block_tucker(x.reshape(3, 2, 3), y.reshape(3, 2, 2), left, right)
    expected = np.einsum("ba,aco,bc->bo", x, core, y)
    np.testing.assert_allclose(pooled.reshape(3, 10), expected, atol=1e-4)
