"""The KL autoencoder against torch `diffusers`, same random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from vljax import pretrained
from vljax.errors import UserError
from vljax.models.autoencoder import AutoencoderKL, Gaussian
from vljax.models.folders import autoencoder_arguments
from vljax.models.parameters import named_parameters

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
FULL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


@pytest.fixture(scope="module", autouse=True)
def peers():
    """Imported when the first test runs, not when tests are collected."""
    global torch, diffusers
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")


def peer_of(config, folder):
    """A `diffusers` network with random weights, saved to a folder."""
    torch.manual_seed(0)
    peer = diffusers.AutoencoderKL(**config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    peer.save_pretrained(folder)
    return peer


def skeleton_of(folder, **changes):
    arguments = {**autoencoder_arguments(folder), **changes}
    return jax.eval_shape(lambda: AutoencoderKL(**arguments, rngs=nnx.Rngs(0)))


def images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@jax.jit
def there_and_back(model, pictures):
    posterior = model.encode(pictures)
    return posterior, model.decode(posterior.mean)


def compare(model, peer, pictures):
    """The largest relative error of mean, log-variance and picture."""
    with torch.no_grad():
        expected = peer.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2)).latent_dist
        decoded = peer.decode(expected.mean).sample
    posterior, picture = there_and_back(model, pictures)
    assert all(x.dtype == jnp.float32 for x in (*posterior, picture))
    errors = []
    for ours, theirs in (
        (posterior.mean, expected.mean),
        (posterior.log_variance, expected.logvar),
        (picture, decoded),
    ):
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        errors.append(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return max(errors)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    return peer_of(SMALL, folder), folder


def test_encoding_and_decoding_match_diffusers(small):
    peer, folder = small
    model = pretrained.load(skeleton_of(folder), folder)
    assert model.scaling_factor == 0.18215
    assert compare(model, peer, images(2, 16, 24)) <= 1e-4


def test_bfloat16_keeps_the_result(small):
    peer, folder = small
    model = pretrained.load(skeleton_of(folder, dtype="bfloat16"), folder)
    assert 1e-4 < compare(model, peer, images(2, 16, 24)) <= 0.05


def test_former_names_are_accepted(small):
    _, folder = small
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(tensors)
    for name in tensors:
        for today, before in former.items():
            if f".attentions.0.{today}." in name:
                old[name.replace(today, before)] = old.pop(name)
    assert len(old.keys() - tensors.keys()) == 2 * 2 * 4
    with pytest.raises(UserError, match="16 missing"):
        pretrained.assign(skeleton_of(folder), old, origin=folder)
    names = AutoencoderKL.published_names
    assert names(old).keys() == names(tensors).keys() == tensors.keys()
    model = pretrained.assign(skeleton_of(folder), names(old), origin=folder)
    expected = pretrained.load(skeleton_of(folder), folder)
    for name, value in named_parameters(expected).items():
        np.testing.assert_array_equal(named_parameters(model)[name], value)


def test_the_published_config_gives_the_published_network(tmp_path):
    """Every tensor of Stable Diffusion 1.5's autoencoder by name and shape, nothing computed."""
    with torch.device("meta"):
        peer = diffusers.AutoencoderKL(**FULL)
    peer.save_config(tmp_path)
    ours = named_parameters(skeleton_of(tmp_path))
    theirs = peer.state_dict()
    assert ours.keys() == theirs.keys()
    assert sum(p.size for p in ours.values()) == 83_653_863
    assert all(ours[name].size == theirs[name].numel() for name in ours)


def test_gaussian_matches_diffusers():
    moments = np.random.default_rng(0).standard_normal((3, 2, 2, 8), dtype=np.float32)
    ours = Gaussian(*np.split(moments, 2, axis=-1))
    theirs = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution(
        torch.from_numpy(moments).permute(0, 3, 1, 2)
    )
    np.testing.assert_allclose(ours.divergence(), theirs.kl().numpy(), rtol=1e-5)
    wide = Gaussian(*(np.broadcast_to(x[:1], (20_000, 2, 2, 4)) for x in ours))
    draws = np.asarray(jax.jit(Gaussian.sample)(wide, jax.random.key(0)))
    deviation = np.exp(0.5 * np.asarray(ours.log_variance[0]))
    np.testing.assert_allclose(draws.mean(0), ours.mean[0], atol=0.04 * deviation.max())
    np.testing.assert_allclose(draws.std(0), deviation, rtol=0.03)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "AutoencoderTiny"}, "'AutoencoderTiny'"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention=False"),
        ({"latents_mean": [0.0]}, "latents_mean="),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "'AttnDownEncoderBlock2D'"),
    ],
)
def test_other_architectures_are_refused(small, tmp_path, change, words):
    config = json.loads((small[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=words):
        autoencoder_arguments(tmp_path)


def test_impossible_sizes_are_refused(small):
    with pytest.raises(UserError, match="100, not a multiple of norm_groups=32"):
        AutoencoderKL(block_out_channels=(100,), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="pictures of 16×22 do not divide by 4"):
        skeleton_of(small[1]).encode(images(1, 16, 22))


@pytest.mark.slow
def test_full_size_matches_diffusers(tmp_path):
    """Stable Diffusion 1.5's autoencoder, 84 million parameters, on a picture of 256×256."""
    peer = peer_of(FULL, tmp_path)
    model = pretrained.load(skeleton_of(tmp_path), tmp_path)
    error = compare(model, peer, images(1, 256, 256))
    print(f"\nSD-1.5 autoencoder: relative error {error:.1e}")
    assert error <= 1e-4
