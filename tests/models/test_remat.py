"""What blocks keep for the backward pass: less by policy, and the same gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.models.autoencoder import AutoencoderKL
from vljax.models.parameters import named_parameters, with_parameters
from vljax.models.remat import rematerialised
from vljax.models.transformer import Encoder
from vljax.models.unet import UNet

pytestmark = pytest.mark.usefixtures("quick_to_compile")

POLICIES = ("off", "keep_products", "keep_attention", "keep_nothing")


SEEN = np.ones((2, 24), bool)


def transformer(remat):
    fields = {"hidden": 32, "heads": 2, "scheme": "relative", "remat": remat}
    return Encoder(2, 16, rngs=nnx.Rngs(0), **fields)


def unet(remat):
    return UNet(
        image_size=8,
        model_channels=16,
        out_channels=3,
        num_res_blocks=1,
        attention_resolutions=(8,),
        channel_mult=(1.0,),
        num_head_channels=8,
        norm_groups=8,
        remat=remat,
        rngs=nnx.Rngs(0),
    )


def autoencoder(remat):
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_groups": 8}
    return AutoencoderKL(**sizes, remat=remat, rngs=nnx.Rngs(0))


CALLS = {
    transformer: lambda model, x: model(x, SEEN),
    unet: lambda model, x: model(x, jnp.ones(2)),
    autoencoder: lambda model, x: model.decode(model.encode(x).mean),
}
SHAPES = {
    make: jax.ShapeDtypeStruct(shape, jnp.float32)
    for make, shape in (
        (transformer, (2, 24, 16)),
        (unet, (2, 8, 8, 3)),
        (autoencoder, (2, 16, 16, 3)),
    )
}


def kept(make, remat):
    """Bytes that are held between forward and backward pass, from shapes."""
    model = jax.eval_shape(lambda: make(remat))
    pull = jax.eval_shape(lambda *a: jax.vjp(CALLS[make], *a)[1], model, SHAPES[make])
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


@pytest.mark.parametrize("make", [transformer, unet, autoencoder])
def test_less_is_kept(make):
    sizes = {remat: kept(make, remat) for remat in POLICIES}
    assert sizes["keep_nothing"] < sizes["keep_attention"] < sizes["off"]
    assert sizes["keep_nothing"] < sizes["keep_products"] < sizes["off"]


def test_the_gradient_stays():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 24, 16), np.float32)
    skeletons = [jax.eval_shape(lambda r=remat: transformer(r)) for remat in POLICIES]
    weights = {
        name: rng.standard_normal(value.shape, np.float32) / 4
        for name, value in named_parameters(skeletons[0]).items()
    }

    @jax.jit
    def gradients(x, weights):
        models = [with_parameters(skeleton, weights) for skeleton in skeletons]
        return [jax.grad(lambda x, m=m: jnp.sin(m(x, SEEN)).sum())(x) for m in models]

    expected, *others = gradients(x, weights)
    assert np.abs(expected).max() > 0.1
    for found in others:
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "meant"),
    [(False, "off"), ("False", "off"), (True, "keep_nothing"), ("true", "keep_nothing")],
)
def test_earlier_values_keep_their_meaning(said, meant):
    assert kept(transformer, said) == kept(transformer, meant)


def test_an_unknown_policy_is_named():
    with pytest.raises(UserError, match=r"remat='some': choose 'off', 'keep_products'"):
        rematerialised(lambda x: x, "some")
