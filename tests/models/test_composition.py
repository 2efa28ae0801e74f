"""Compositions of a picture and a text against transcriptions in torch and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.models.clip_towers import ModifiedResNet, VisionTransformer
from vljax.models.composition import COMPOSITIONS, make_composition
from vljax.models.parameters import named_parameters

pytestmark = pytest.mark.usefixtures("quick_to_compile")

D = 8


@pytest.fixture(scope="module")
def vectors():
    generator = np.random.default_rng(0)
    return generator.normal(size=(2, 5, D)).astype(np.float32)


def made(kind):
    return make_composition(kind, D, rngs=nnx.Rngs(0))


def in_torch(torch, kind, weights, u, v):
    """Equation 1 of CDD-ICM, SLQA+'s scalar gate, TIRG's modules: as their papers and codes say."""
    w = {name: torch.tensor(np.asarray(value)) for name, value in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x, name):
        return torch.nn.functional.layer_norm(
            x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"]
        )

    if kind in ("gated", "scalar_gate"):
        q = torch.cat([u, v, u * v, u - v], dim=1)
        g = torch.sigmoid(linear(q, "gate"))
        change = linear(q, "change")
        h = torch.nn.functional.gelu(change) if kind == "gated" else torch.tanh(change)
        return g * h + (1 - g) * u
    both = torch.cat([u, v], dim=1)
    if kind == "concatenation":
        return linear(torch.nn.functional.gelu(linear(both, "first")), "second")
    gate = linear(torch.relu(norm(both, "gate_norm")), "gate")
    residue = linear(torch.relu(norm(both, "residual_norm")), "residual")
    residue = linear(torch.relu(residue), "residual_out")
    return torch.sigmoid(gate) * u * w["weights"][0] + residue * w["weights"][1]


@pytest.mark.parametrize("kind", ["gated", "scalar_gate", "concatenation", "tirg"])
def test_compositions_are_those_of_their_papers(kind, vectors):
    torch = pytest.importorskip("torch")
    compose = made(kind)
    u, v = vectors
    ours = jax.jit(lambda u, v: compose(u, v))(u, v)
    theirs = in_torch(torch, kind, named_parameters(compose), torch.tensor(u), torch.tensor(v))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)


def test_a_closed_gate_leaves_the_picture(vectors):
    """With a gate of 0 f is u; with 1 it is h, in which u can be forgotten."""
    compose = made("gated")
    u, v = vectors
    compose.gate.weight[...] *= 0.0
    compose.gate.bias[...] = jnp.full(D, -100.0)
    np.testing.assert_array_equal(compose(u, v), u)


def test_one_side_and_unknown_names(vectors):
    u, v = vectors
    assert made("text")(u, v) is v
    assert made("picture")(u, v) is u
    with pytest.raises(UserError, match=f"composition='sum': choose one of {COMPOSITIONS[0]}"):
        made("sum")


def test_positions_begin_with_the_embedding():
    """Projected, a ViT's first position is its embedding; a ResNet's is the mean of its map."""
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

    @jax.jit
    def looked(x):
        fields = {"image_size": 32, "embed_dim": 6, "rngs": nnx.Rngs(1)}
        vit = VisionTransformer(patch_size=8, layers=2, width=16, head_channels=8, **fields)
        resnet = ModifiedResNet(layers=(1, 1, 1, 1), width=4, head_channels=32, **fields)
        positions = vit.positions(x)
        projected = positions[:, 0] @ vit.proj[...]
        return positions, projected, vit(x)[0], resnet.positions(x), resnet(x)[1][-1]

    positions, projected, embedding, places, last = looked(x)
    assert positions.shape == (2, 1 + 16, 16)
    np.testing.assert_allclose(projected, embedding, atol=1e-5)
    assert places.shape == (2, 1 + 1, 128)
    np.testing.assert_allclose(places[:, 0], last.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(places[:, 1], last[:, 0, 0], atol=1e-6)
