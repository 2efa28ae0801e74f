"""LPIPS against its authors' implementation.

Golden numbers: distances, in all and layer by layer, of PerceptualSimilarity at commit
082bb24f84c091ea94de2867d34c4544f68e0963, on torchvision 0.29.2 (commit
f12281517f1b2f6255904639b027c9436f3e5008), in PyTorch in float32, with the weights and pictures
that are made anew here.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.golden_weights import (
    published_weights,
    random_tensor,
    standard_normal,
    with_golden_weights,
)
from vljax import pretrained
from vljax.errors import UserError
from vljax.models.parameters import variables
from vljax.models.perceptual import LPIPS

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden" / "lpips.npz"


def lpips_tensor(name, shape):
    """The heads weigh differences, so none is negative."""
    if name.startswith("lin"):
        return np.abs(standard_normal(name, shape))
    return random_tensor(name, shape, gain=2.0)


def skeleton(network):
    return jax.eval_shape(lambda: LPIPS(network, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def alex():
    return with_golden_weights(skeleton("alex"), tensor=lpips_tensor)


def pairs():
    rng = np.random.default_rng(7)
    x, y = (rng.integers(0, 256, (3, 64, 72, 3)).astype(np.float32) / 127.5 - 1 for _ in range(2))
    y[1] = x[1] + 0.1 * (y[1] - x[1])
    y[2] = 0.25
    return x, y


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_distances_match_the_authors(network):
    golden = np.load(GOLDEN)
    model = with_golden_weights(skeleton(network), tensor=lpips_tensor)

    @jax.jit
    def run(model, x, y):
        a, b = model.encode(x), model.encode(y)
        layers = []
        for i in range(5):
            only = [a[j] if j == i else b[j] for j in range(5)]
            layers.append(model.distance(only, b))
        return model.distance(a, b), jnp.stack(layers)

    total, layers = run(model, *pairs())
    np.testing.assert_allclose(total, golden[network], rtol=1e-4)
    np.testing.assert_allclose(layers, golden[f"{network}_layers"], rtol=1e-4)


def test_distance_is_symmetric_and_zero_for_equal_pictures(alex):
    x, y = pairs()
    run = jax.jit(lambda model, x, y: model(x, y))
    np.testing.assert_allclose(run(alex, x, y), run(alex, y, x), rtol=1e-6)
    np.testing.assert_allclose(run(alex, x, x), np.zeros(3), atol=1e-12)


def test_gradient_is_finite_where_all_features_are_zero(alex):
    dead = jax.tree.map(jnp.zeros_like, alex)
    x, y = pairs()
    gradient = jax.jit(jax.grad(lambda x: dead(x, y).sum()))(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


def test_trunk_and_heads_come_from_two_published_files(alex, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = published_weights(alex, tensor=lpips_tensor)
    trunk = {n: torch.from_numpy(t) for n, t in tensors.items() if n.startswith("features.")}
    trunk |= {"classifier.1.weight": torch.ones(2, 2), "classifier.1.bias": torch.ones(2)}
    heads = {n: torch.from_numpy(t) for n, t in tensors.items() if n.startswith("lin")}
    assert heads["lin4.model.1.weight"].shape == (1, 256, 1, 1)
    torch.save(trunk, tmp_path / "alexnet.pth")
    torch.save(heads, tmp_path / "alex.pth")
    read = [pretrained.read_tensors(tmp_path / f"{name}.pth") for name in ("alexnet", "alex")]
    model = pretrained.assign(
        skeleton("alex"), read[0] | read[1], origin=tmp_path, ignore=("classifier.",)
    )
    for name, variable in variables(model).items():
        published = pretrained.to_published(np.asarray(variable.get_value()), variable)
        np.testing.assert_array_equal(published, tensors[name])


def test_mistakes_are_named(alex):
    with pytest.raises(UserError, match="network='squeeze'"):
        LPIPS("squeeze", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="16×16 px are too small"):
        jax.eval_shape(lambda: alex(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 16, 3))))
