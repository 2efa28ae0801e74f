"""The U-Net against OpenAI's guided-diffusion.

Golden numbers: outputs and gradients of guided-diffusion at commit
22e0df8183507e13a7813f8d38d51b072ca1e67c, run in PyTorch in float32 with the weights and inputs
that `published_weights` and `inputs` make anew here. The networks have the published depth and
attention (LSUN and FFHQ at 256 px; the third one every option the other way round), fewer
channels, and smaller pictures. A golden file holds every eighth pixel, and of each parameter's
gradient the norm and the product with a random direction.
"""

import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from vljax import pretrained
from vljax.errors import UserError
from vljax.models.parameters import named_parameters, variables, with_parameters
from vljax.models.unet import UNet

GOLDEN = Path(__file__).parents[1] / "golden"
ADM = {"channel_mult": (1, 1, 2, 2, 4, 4), "out_channels": 6}
NETWORKS = {
    "lsun": {
        **ADM,
        "image_size": 64,
        "model_channels": 32,
        "num_res_blocks": 2,
        "attention_resolutions": (8, 4, 2),
        "num_head_channels": 16,
    },
    "ffhq": {
        **ADM,
        "image_size": 64,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "num_head_channels": 16,
    },
    "classes": {
        "image_size": 32,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "out_channels": 3,
        "num_res_blocks": 1,
        "attention_resolutions": (16,),
        "num_heads": 4,
        "head_order": "qkv_first",
        "num_classes": 1000,
        "resblock_updown": False,
        "scale_shift_norm": False,
    },
    "full": {
        **ADM,
        "image_size": 256,
        "model_channels": 256,
        "num_res_blocks": 2,
        "attention_resolutions": (32, 16, 8),
        "num_head_channels": 64,
    },
}


def skeleton(name):
    return jax.eval_shape(lambda: UNet(**NETWORKS[name], rngs=nnx.Rngs(0)))


def published_shape(variable):
    """The shape of a parameter in the checkpoint."""
    return pretrained.to_published(np.zeros(variable.get_value().shape, bool), variable).shape


def published_weights(model):
    """Every tensor from its own name, as the golden run made it."""
    tensors = {}
    for name, variable in variables(model).items():
        shape = published_shape(variable)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        w = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            w = 0.1 * w + (1.0 if name.endswith("weight") else 0.0)
        else:
            w *= np.float32(np.prod(shape[1:]) ** -0.5)
        tensors[name] = w.astype(np.float32)
    return tensors


def inputs(name, batch):
    size = NETWORKS[name]["image_size"]
    x = np.random.default_rng(7).standard_normal((batch, size, size, 3), dtype=np.float32)
    label = np.array([3, 977]) if name == "classes" else None
    return x, np.array([12, 871])[:batch], label


@pytest.mark.parametrize("name", ["lsun", "ffhq", "classes"])
def test_output_and_gradients_match_guided_diffusion(name):
    golden = np.load(GOLDEN / "unet.npz")
    model = skeleton(name)
    model = pretrained.assign(model, published_weights(model), origin="golden weights")
    x, t, label = inputs(name, 2)

    @jax.jit
    def run(parameters, x):
        def weighted(parameters, x):
            y = with_parameters(model, parameters)(x, t, label)
            return (y * jnp.asarray(weights)).sum(), y

        return jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(parameters, x)

    shape = (*x.shape[:3], NETWORKS[name]["out_channels"])
    weights = np.random.default_rng(8).standard_normal(shape, dtype=np.float32)
    (_, y), (gradients, input_gradient) = run(named_parameters(model), x)
    np.testing.assert_allclose(y[:, ::8, ::8], golden[f"{name}_output"], atol=1e-4)
    expected = golden[f"{name}_input_gradient"]
    np.testing.assert_allclose(
        input_gradient[:, ::8, ::8], expected, atol=1e-3 * np.abs(expected).max()
    )
    layouts = variables(model)
    golden = golden[f"{name}_parameter_gradients"].astype(float)
    # A bias before a norm has no effect but for rounding: nothing is asked below this size.
    negligible = 1e-5 * golden[:, 0].max()
    for (size, along), parameter in zip(golden, sorted(layouts), strict=True):
        gradient = pretrained.to_published(np.asarray(gradients[parameter]), layouts[parameter])
        rng = np.random.default_rng(zlib.crc32(f"d{parameter}".encode()))
        direction = rng.standard_normal(gradient.shape)
        tolerance = max(1e-3 * size, negligible)
        assert np.linalg.norm(gradient) == pytest.approx(size, abs=tolerance), parameter
        product = (gradient * direction).sum() / np.linalg.norm(direction)
        assert product == pytest.approx(along, abs=tolerance), parameter


@pytest.mark.slow
def test_full_size_matches_guided_diffusion():
    """ADM for LSUN at 256 px: 553 million parameters, about 10 GB of memory and minutes."""
    model = skeleton("full")
    model = pretrained.assign(model, published_weights(model), origin="golden weights")
    x, t, _ = inputs("full", 1)
    y = jax.jit(lambda model, x: model(x, t))(model, x)
    golden = np.load(GOLDEN / "unet_full.npz")["full_output"]
    np.testing.assert_allclose(y[:, ::32, ::32], golden, atol=1e-4)


@pytest.fixture(scope="module")
def small():
    return UNet(
        image_size=8,
        model_channels=32,
        channel_mult=(1, 2),
        out_channels=3,
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout_rate=0.5,
        remat=True,
        rngs=nnx.Rngs(0),
    )


def test_reads_pt_and_safetensors(small, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = published_weights(small)
    torch.save({n: torch.from_numpy(t) for n, t in tensors.items()}, tmp_path / "m.pt")
    save_file(tensors, tmp_path / "m.safetensors")
    from_pt = pretrained.load(skeleton_of(small), tmp_path / "m.pt")
    from_safetensors = pretrained.load(skeleton_of(small), tmp_path / "m.safetensors")
    chex.assert_trees_all_equal(named_parameters(from_pt), named_parameters(from_safetensors))
    layouts = variables(small)
    for name, value in named_parameters(from_pt).items():
        published = pretrained.to_published(np.asarray(value), layouts[name])
        np.testing.assert_array_equal(published, tensors[name])


def skeleton_of(model):
    return jax.eval_shape(lambda: model)


def test_dropout_needs_a_key_and_follows_it(small):
    # The last convolution starts at zero and would hide everything.
    parameters = {n: v + 0.05 for n, v in named_parameters(small).items()}
    model = with_parameters(small, parameters)
    x, t = jnp.ones((2, 8, 8, 3)), jnp.array([5, 6])
    run = jax.jit(lambda key: model(x, t, key=key))
    a, b = run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(a, run(jax.random.key(0)))
    assert jnp.abs(a - b).max() > 1e-3
    plain = jax.jit(lambda: model(x, t))
    np.testing.assert_array_equal(plain(), plain())


def test_rematerialisation_and_bfloat16_keep_the_result(small):
    parameters = {n: v + 0.02 for n, v in named_parameters(small).items()}
    x = jax.random.normal(jax.random.key(3), (2, 8, 8, 3))
    t = jnp.array([5.0, 600.0])
    exact = jax.jit(lambda p: with_parameters(small, p)(x, t))(parameters)

    def variant(**changes):
        model = jax.eval_shape(lambda: small)
        for name, value in changes.items():
            setattr(model, name, value)
        return jax.jit(lambda p: with_parameters(model, p)(x, t))(parameters)

    np.testing.assert_allclose(variant(remat=False), exact, atol=1e-5)
    half = variant(dtype="bfloat16")
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, atol=0.05 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 63}, "image_size=63"),
        ({"attention_resolutions": (7,)}, "attention_resolutions has 7"),
        ({"model_channels": 40}, "multiple of the 32 groups"),
        ({"num_head_channels": 24}, "num_head_channels=24"),
        ({"head_order": "newest"}, "head_order='newest'"),
    ],
)
def test_impossible_configurations_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        UNet(**{**NETWORKS["ffhq"], **change}, rngs=nnx.Rngs(0))


def test_label_exactly_when_the_model_has_classes(small):
    with pytest.raises(ValueError, match="if and only if"):
        small(jnp.ones((1, 8, 8, 3)), jnp.ones(1), jnp.ones(1, int))
