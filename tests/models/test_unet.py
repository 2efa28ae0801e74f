"""The U-Net against OpenAI's guided-diffusion and GLIDE.

Golden numbers: outputs and gradients of guided-diffusion at commit
22e0df8183507e13a7813f8d38d51b072ca1e67c and, under a condition, of GLIDE's U-Net (glide-text2im) at
69b530740eb6cef69442d6180579ef5ba9ef063e with what its text transformer gives drawn at random, run
in PyTorch in float32 with the weights and inputs that `published_weights` and `inputs` make anew
here. The networks have the published depth and attention (LSUN and FFHQ at 256 px; GLIDE's are
shallower, `additive` with the other way of norms), fewer channels, and smaller pictures. A golden
file holds every eighth pixel, and of each parameter's gradient the norm and the product with a
random direction.
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

from tests.golden_weights import published_weights, with_golden_weights
from vljax import pretrained
from vljax.errors import UserError
from vljax.models.parameters import named_parameters, variables, with_parameters
from vljax.models.unet import UNet

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden"
ADM = {"channel_mult": (1, 1, 2, 2, 4, 4), "out_channels": 6}
GLIDE = {
    "image_size": 32,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "in_channels": 6,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": (16,),
    "context_features": 24,
}
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
    "glide": {
        **GLIDE,
        "num_head_channels": 16,
    },
    "additive": {**GLIDE, "num_heads": 4, "scale_shift_norm": False},
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


def inputs(name, batch):
    """Pictures, times, and for GLIDE's network a vector and a context."""
    size, channels = NETWORKS[name]["image_size"], NETWORKS[name].get("in_channels", 3)
    rng = np.random.default_rng(7)
    x = rng.standard_normal((batch, size, size, channels), dtype=np.float32)
    condition = ()
    if "context_features" in NETWORKS[name]:
        condition = [rng.standard_normal((batch, *s), dtype=np.float32) for s in ((128,), (10, 24))]
    return x, np.array([12, 871])[:batch], *condition


@pytest.mark.parametrize(
    "name",
    ["glide", *(pytest.param(n, marks=pytest.mark.slow) for n in ("additive", "ffhq", "lsun"))],
)
def test_output_and_gradients_match_openai(name):
    golden = np.load(GOLDEN / "unet.npz")
    model = with_golden_weights(skeleton(name))
    x, t, *condition = inputs(name, 2)
    shape = (*x.shape[:3], NETWORKS[name]["out_channels"])
    weights = np.random.default_rng(8).standard_normal(shape, dtype=np.float32)

    @jax.jit
    def run(parameters, x, condition):
        def weighted(parameters, x, condition):
            model_ = with_parameters(model, parameters)
            if condition:
                vector, context = condition
                y = model_(x, t, vector, model_.project_context(context))
            else:
                y = model_(x, t)
            return (y * weights).sum(), y

        gradient = jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True)
        return gradient(parameters, x, condition)

    (_, y), (gradients, input_gradient, others) = run(named_parameters(model), x, condition)
    np.testing.assert_allclose(y[:, ::8, ::8], golden[f"{name}_output"], atol=1e-4)
    compared = {"input": input_gradient[:, ::8, ::8]}
    compared |= dict(zip(("conditioning", "context"), others, strict=False))
    for what, gradient in compared.items():
        expected = golden[f"{name}_{what}_gradient"]
        np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())
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
    model = with_golden_weights(skeleton("full"))
    x, t = inputs("full", 1)
    y = jax.jit(lambda model, x: model(x, t))(model, x)
    golden = np.load(GOLDEN / "unet_full.npz")["full_output"]
    np.testing.assert_allclose(y[:, ::32, ::32], golden, atol=1e-4)


SMALL = {
    "image_size": 8,
    "model_channels": 32,
    "channel_mult": (1,),
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "dropout_rate": 0.5,
    "remat": True,
}


@pytest.fixture(scope="module")
def small():
    return with_golden_weights(jax.eval_shape(lambda: UNet(**SMALL, rngs=nnx.Rngs(0))))


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
    x, t = jnp.ones((2, 8, 8, 3)), jnp.array([5, 6])
    run = jax.jit(lambda key: small(x, t, key=key))
    a, b = run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(a, run(jax.random.key(0)))
    assert jnp.abs(a - b).max() > 1e-3
    plain = jax.jit(lambda: small(x, t))
    np.testing.assert_array_equal(plain(), plain())


def test_rematerialisation_and_bfloat16_keep_the_result(small):
    parameters = named_parameters(small)
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
        ({"num_head_channels": 24}, "num_head_channels=24: give"),
    ],
)
def test_impossible_configurations_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        UNet(**{**NETWORKS["ffhq"], **change}, rngs=nnx.Rngs(0))


def test_a_condition_is_optional_and_its_context_is_computed_once(small):
    """Layers for a context change nothing without one; every attention attends to one that is."""
    sizes = {**SMALL, "remat": False, "context_features": 5}
    model = with_golden_weights(jax.eval_shape(lambda: UNet(**sizes, rngs=nnx.Rngs(0))))
    plain = with_parameters(small, {n: named_parameters(model)[n] for n in named_parameters(small)})
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.array([5, 6])
    context = jax.random.normal(jax.random.key(1), (2, 4, 5))
    projected = jax.jit(lambda model: model.project_context(context))(model)
    # On the way down, in the middle, and on the way up twice.
    assert [k.shape for k, _ in projected] == [(2, 4, 1, 32)] * 4

    @jax.jit
    def run(model, *condition):
        return model(x, t, *condition)

    alone = run(model)
    np.testing.assert_array_equal(alone, run(plain))
    told = run(model, None, projected)
    assert jnp.abs(told - alone).max() > 1e-3
    for i in range(len(projected)):
        other = [(k, v + 1.0) if i == j else (k, v) for j, (k, v) in enumerate(projected)]
        assert jnp.abs(run(model, None, other) - told).max() > 1e-4, i
    with pytest.raises(ValueError, match="without context_features"):
        small.project_context(context)
