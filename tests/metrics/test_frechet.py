"""The Fréchet distance against closed forms, scipy and pytorch-fid; its statistics against numpy.

Golden numbers: `calculate_frechet_distance` of pytorch-fid at commit
b9c18118d082cbd263c1b8963fc4221dc1cbb659, for the features that `two_sets` makes anew here.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.errors import RunError, UserError
from vljax.metrics.frechet import Gaussian, Moments, frechet_distance, moments

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "fid.npz"


def gaussian(features):
    return Gaussian(features.mean(0), np.cov(features, rowvar=False))


def two_sets(count, dimensions=64):
    rng = np.random.default_rng(count)
    mixing = rng.standard_normal((dimensions, dimensions))
    a = rng.standard_normal((count, dimensions)) @ mixing
    b = 0.5 + 1.2 * rng.standard_normal((count + 5, dimensions)) @ mixing
    return a, b


def by_square_root(a, b):
    """The definition, by scipy's square root of the product."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    traces = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root).real
    return ((a.mean - b.mean) ** 2).sum() + traces


@pytest.mark.parametrize(("name", "count"), [("full", 400), ("deficient", 20)])
def test_matches_pytorch_fid(name, count):
    a, b = map(gaussian, two_sets(count))
    assert frechet_distance(a, b) == pytest.approx(float(np.load(GOLDEN)[name]), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("counts", [(300, 250), (30, 250), (250, 12), (30, 12), (2, 2)])
def test_matches_scipy_also_with_singular_covariances(counts):
    a, b = (two_sets(400)[i][: counts[i]] for i in range(2))
    a, b = gaussian(a), gaussian(b)
    expected = by_square_root(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-4)


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((50, 50)))
    deviations = rng.random((2, 50))
    deviations[0, :10] = 0
    deviations[1, 5:20] = 0
    means = rng.standard_normal((2, 50))
    a, b = (
        Gaussian(mean, (basis * s**2) @ basis.T) for mean, s in zip(means, deviations, strict=True)
    )
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_points_and_equal_gaussians():
    rng = np.random.default_rng(0)
    a = gaussian(rng.standard_normal((40, 30)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    point = Gaussian(a.mean + 2, np.zeros((30, 30)))
    other = Gaussian(a.mean, np.zeros((30, 30)))
    assert frechet_distance(point, other) == pytest.approx(4 * 30)
    assert frechet_distance(a, point) == pytest.approx(4 * 30 + np.trace(a.covariance))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_streaming_equals_all_at_once(sizes, seed):
    rng = np.random.default_rng(seed)
    # A mean far from zero is what makes naive sums of squares lose their digits.
    batches = [rng.standard_normal((size, 6)) + 1e6 for size in sizes]
    total = Moments()
    for batch in batches:
        total = total.update(batch)
    parts = [Moments().update(batch) for batch in batches]
    merged = Moments()
    for part in reversed(parts):
        merged = part.merge(merged)
    features = np.concatenate(batches)
    assert total.count == merged.count == len(features)
    if len(features) < 2:
        with pytest.raises(UserError, match=f"got {len(features)}"):
            total.finish()
        return
    for found in (total.finish(), merged.finish()):
        np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-14)
        np.testing.assert_allclose(
            found.covariance, np.cov(features, rowvar=False), rtol=1e-8, atol=1e-9
        )


def test_moments_are_a_pytree_of_a_networks_features():
    images = np.random.default_rng(0).standard_normal((5, 4, 2, 2, 3)).astype(np.float32)
    total = moments(jax.jit(lambda x: x.reshape(4, 12)), images)
    expected = gaussian(images.reshape(20, 12).astype(float))
    leaves, structure = jax.tree.flatten(total)
    found = jax.tree.unflatten(structure, leaves).finish()
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-14)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-14)


def test_float64_statistics_are_needed_where_covariances_are_singular():
    """Why features leave the device: rounding covariances alone costs more than 1e-4."""
    a, b = two_sets(400)
    a = a[:20]
    exact = frechet_distance(gaussian(a), gaussian(b))
    rounded = [Gaussian(g.mean, g.covariance.astype(np.float32)) for g in map(gaussian, (a, b))]
    streamed = [Moments().update(x.astype(np.float32)).finish() for x in (a, b)]
    assert frechet_distance(*streamed) == pytest.approx(exact, rel=1e-5)
    assert abs(frechet_distance(*rounded) - exact) > 1e-4 * exact


def test_features_that_are_not_finite_stop_the_run():
    total = Moments().update(np.zeros((3, 2)))
    with pytest.raises(RunError, match="pictures 3 to 4 are not finite"):
        total.update(np.array([[0, 0], [0, np.nan]]))


def test_statistics_are_read_and_written(tmp_path):
    a = gaussian(np.random.default_rng(0).standard_normal((20, 3)))
    a.write(tmp_path / "ffhq.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["ffhq.npz"]
    with np.load(tmp_path / "ffhq.npz") as file:
        assert set(file) == {"mu", "sigma"}
    assert frechet_distance(a, Gaussian.read(tmp_path / "ffhq.npz")) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "content", [{"mu": np.zeros(3)}, {"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, None]
)
def test_what_holds_no_statistics_is_refused(tmp_path, content):
    path = tmp_path / "odd.npz"
    if content is None:
        path.write_bytes(b"no archive")
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match=r"odd\.npz holds no statistics for FID"):
        Gaussian.read(path)


PROCESS = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from vljax.metrics.frechet import Moments
features = np.random.default_rng(0).standard_normal((24, 3)).astype(np.float32) + 50
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "copy"))
def spread(rows, *spec):
    sharding = NamedSharding(mesh, P(*spec))
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])
total = Moments().update(spread(features[:8], ("data", "copy")))
total = total.update(spread(features[8:16], "data")).update(spread(features[16:20]))
if jax.process_index() == 1:
    total = total.update(features[20:])
total = total.over_processes()
found = total.finish()
expected = features.astype(float)
assert total.count == 24, total.count
np.testing.assert_allclose(found.mean, expected.mean(0), rtol=1e-14)
np.testing.assert_allclose(found.covariance, np.cov(expected, rowvar=False), rtol=1e-12)
np.testing.assert_equal(Moments().over_processes().count, 0)
print("agreed", found.covariance.tobytes().hex())
"""


def test_two_processes_agree_to_the_bit_on_all_features():
    """Split, copied and local features, each counted once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    verdicts = {output.splitlines()[-1] for output, _ in outputs}
    assert len(verdicts) == 1
    assert verdicts.pop().startswith("agreed")
