"""Directions, cosines and the contrast of pairs: closed forms, the SDG authors' loss, shards.

Golden numbers: the loss of SDG_code's fine-tuning script at commit
62fb2725035f2cc327bcfc3710384d9cec0dac3c with its gradient, in PyTorch in float32.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.ops.similarity import (
    clip_scale,
    contrastive_loss,
    cosine,
    late_interaction,
    late_interaction_loss,
    normalise,
)

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden"


def test_cosines_of_known_angles():
    a = np.array([[2, 0], [1, 1], [0, 3], [-1, 0], [0, 0]], np.float32)
    found = cosine(a, np.float32([5, 0]))
    np.testing.assert_allclose(found, [1, 0.5**0.5, 0, -1, 0], atol=1e-6)
    table = cosine(a[:, None], a[None])
    np.testing.assert_allclose(table, normalise(a) @ normalise(a).T, atol=1e-6)


def test_lengths_are_one_in_float32_and_zero_stays_zero():
    x = jnp.asarray([[3, 4], [0, 0], [3e-4, -4e-4]], jnp.bfloat16)
    found = normalise(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[:2], [[0.6, 0.8], [0, 0]], atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(found[2]), 1, atol=1e-6)


def test_zero_vectors_have_finite_gradients():
    zero, one = jnp.zeros((2, 3)), jnp.eye(2, 3)
    for a, b in ((zero, one), (one, zero), (zero, zero)):
        gradients = (
            *jax.grad(lambda a, b: cosine(a, b).sum(), (0, 1))(a, b),
            jax.grad(lambda a: normalise(a).sum())(a),
            *jax.grad(lambda a, b: contrastive_loss(a, b, 100.0), (0, 1))(a, b),
        )
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert max(np.abs(gradient).max() for gradient in gradients) < 200


def test_the_factor_is_limited():
    value, slope = jax.vmap(jax.value_and_grad(clip_scale))(jnp.log(jnp.float32([14.0, 99, 101])))
    np.testing.assert_allclose(value, [14, 99, 100], rtol=1e-5)
    np.testing.assert_allclose(slope, [14, 99, 0], rtol=1e-5)


def test_contrastive_loss_matches_sdg():
    golden = np.load(GOLDEN / "clip_noisy.npz")
    noisy = np.random.default_rng(1).standard_normal((6, 16), dtype=np.float32)
    noise = np.random.default_rng(2).standard_normal((6, 16), dtype=np.float32)
    clean = np.float32(0.3) * noisy + noise

    def summed(noisy):
        return contrastive_loss(noisy, clean, 100.0, directions="sum")

    loss, gradient = jax.value_and_grad(summed)(noisy)
    assert golden["loss"] > 1
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, golden["loss_gradient"], atol=1e-4)
    assert float(contrastive_loss(noisy, clean, 100.0)) == pytest.approx(float(loss) / 2)


def test_contrastive_loss_of_embeddings_that_tell_nothing():
    same = np.ones((8, 4), np.float32)
    assert float(contrastive_loss(same, same, 100.0)) == pytest.approx(np.log(8), rel=1e-5)
    apart = np.eye(8, dtype=np.float32)
    assert float(contrastive_loss(apart, apart, 100.0)) == pytest.approx(0, abs=1e-6)
    assert float(contrastive_loss(apart, apart[::-1], 100.0)) == pytest.approx(100, rel=1e-6)


SHARDED = """
import functools, jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from vljax.ops.similarity import contrastive_loss

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
a, b = rng.standard_normal((2, 8, 16)).astype(np.float32)
b = b + 0.3 * a
run = jax.jit(jax.value_and_grad(functools.partial(contrastive_loss, scale=100.0)))
whole = run(a, b)
rows = NamedSharding(mesh, PartitionSpec("data"))
split = run(jax.device_put(a, rows), jax.device_put(b, rows))
assert len(split[1].sharding.device_set) == 4
for one, other in zip(whole, split):
    np.testing.assert_allclose(one, other, atol=1e-5)
local = np.mean([run(x, y)[0] for x, y in zip(np.split(a, 4), np.split(b, 4))])
assert abs(local - whole[0]) > 0.1
"""


def test_contrastive_loss_is_over_the_global_batch():
    """Four devices with two examples each see eight partners, not two."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    subprocess.run([sys.executable, "-c", SHARDED], check=True, env=environment, timeout=300)


def test_late_interaction_is_the_mean_of_each_tokens_best():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4, 5)), rng.normal(size=(2, 6, 5))
    counts = np.arange(6) < np.array([[6], [2]])
    from_a, from_b = late_interaction(jnp.asarray(a), jnp.asarray(b), None, jnp.asarray(counts))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
    for i in range(3):
        for j in range(2):
            cosines = (unit[0][i] @ unit[1][j].T)[:, counts[j]]
            np.testing.assert_allclose(from_a[i, j], cosines.max(1).mean(), rtol=1e-5)
            np.testing.assert_allclose(from_b[i, j], cosines.max(0).mean(), rtol=1e-5)


def test_late_interaction_of_single_tokens_is_clips_contrast():
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=(4, 1, 5))) for _ in range(2))
    np.testing.assert_allclose(
        late_interaction_loss(a, b, 7.0), contrastive_loss(a[:, 0], b[:, 0], 7.0), rtol=1e-5
    )
    nothing = jnp.zeros((4, 1), bool)
    assert np.isfinite(late_interaction_loss(a, b, 7.0, None, nothing))
