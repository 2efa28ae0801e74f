"""VQGAN's loss: the discriminator and the adaptive weight against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax import pretrained
from vljax.models.adversarial import (
    PatchDiscriminator,
    hinge_loss,
    reconstruction_error,
    vqgan_loss,
)
from vljax.models.parameters import named_parameters
from vljax.models.vqgan import VQGAN

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {
    "num_codes": 8,
    "code_channels": 4,
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "attention_levels": (False, False),
    "layers_per_block": 1,
    "norm_groups": 4,
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def peer_of(torch, width, layers):
    """The discriminator of taming-transformers."""
    nn = torch.nn
    main = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for i in range(1, layers + 1):
        before, after = width * min(2 ** (i - 1), 8), width * min(2**i, 8)
        stride = 2 if i < layers else 1
        main += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after)]
        main += [nn.LeakyReLU(0.2)]
    peer = nn.Module()
    peer.main = nn.Sequential(*main, nn.Conv2d(width * min(2**layers, 8), 1, 4, 1, 1))
    return peer.train()


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32, 3)).astype(np.float32)


def test_the_discriminator_equals_torch(torch, pictures, tmp_path):
    torch.manual_seed(0)
    peer = peer_of(torch, 4, 3)
    torch.save(peer.state_dict(), tmp_path / "discriminator.pt")
    skeleton = jax.eval_shape(lambda: PatchDiscriminator(width=4, rngs=nnx.Rngs(0)))
    model = pretrained.load(skeleton, tmp_path / "discriminator.pt")
    logits = [jax.jit(PatchDiscriminator.__call__)(model, x) for x in pictures]
    theirs = [peer.main(torch.from_numpy(x).permute(0, 3, 1, 2)) for x in pictures]
    for one, other in zip(logits, theirs, strict=True):
        expected = other.detach().permute(0, 2, 3, 1).numpy()
        assert one.shape == expected.shape == (3, 2, 2, 1)
        np.testing.assert_allclose(one, expected, atol=1e-5)
    relu = torch.nn.functional.relu
    expected = 0.5 * (relu(1 - theirs[0]).mean() + relu(1 + theirs[1]).mean())
    np.testing.assert_allclose(hinge_loss(*logits), expected.item(), rtol=1e-5)
    full = jax.eval_shape(lambda: PatchDiscriminator(rngs=nnx.Rngs(0)))
    count = sum(p.size for p in named_parameters(full).values())
    assert count == sum(p.numel() for p in peer_of(torch, 64, 3).parameters()) == 2_765_633


def test_each_player_descends_its_own_term(pictures):
    """The generator's gradient is that of reconstruction, codes and the weighted deception.

    The weight is the ratio of the two gradients at the last layer; the discriminator's gradient is
    the hinge loss's alone.
    """
    vqgan, discriminator = jax.jit(
        lambda: (
            VQGAN(**SMALL, rngs=nnx.Rngs(0)),
            PatchDiscriminator(width=4, layers=2, rngs=nnx.Rngs(1)),
        )
    )()
    for block in vqgan.decoder.up_blocks:
        for resnet in block.resnets:
            resnet.conv2.weight[...] = 0.1 + resnet.conv2.weight[...]
    images = pictures[0]

    def total(models):
        return vqgan_loss(models[0], images, discriminator=models[1], gan_weight=0.5)

    (_, metrics), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        (vqgan, discriminator)
    )

    def drawn(vqgan):
        return vqgan.decode(vqgan.quantize(vqgan.encode(images)).vectors)

    def reconstruction(vqgan):
        return jnp.abs(drawn(vqgan) - images).mean()

    def deception(vqgan):
        return -discriminator(drawn(vqgan)).mean()

    def codes(vqgan):
        return vqgan.quantize(vqgan.encode(images)).loss

    def judge(discriminator):
        return hinge_loss(discriminator(images), discriminator(drawn(vqgan)))

    @jax.jit
    def gradients(vqgan, discriminator):
        terms = [jax.grad(term)(vqgan) for term in (reconstruction, deception, codes)]
        return *terms, jax.grad(judge)(discriminator)

    real, deceived, coded, judged = gradients(vqgan, discriminator)
    lengths = [jnp.linalg.norm(g.decoder.conv_out.weight[...]) for g in (real, deceived)]
    factor = 0.5 * lengths[0] / (lengths[1] + 1e-4)
    np.testing.assert_allclose(metrics["factor"], factor, rtol=1e-4)
    generated = jax.tree.map(lambda a, b, c: a + factor * b + c, real, deceived, coded)
    for found, expected in ((gradient[0], generated), (gradient[1], judged)):
        theirs = named_parameters(expected)
        for name, value in named_parameters(found).items():
            np.testing.assert_allclose(value, theirs[name], atol=1e-5, rtol=1e-3, err_msg=name)


def test_without_a_discriminator(pictures):
    loss, metrics = jax.jit(vqgan_loss)(VQGAN(**SMALL, rngs=nnx.Rngs(0)), pictures[0])
    np.testing.assert_allclose(loss, metrics["error"] + metrics["codebook"], rtol=1e-6)
    assert 1 <= metrics["codes_used"] <= 8


def test_squared_errors_are_added(pictures):
    one, other = pictures
    plain, both = (reconstruction_error(one, other, squared) for squared in (0.0, 4.0))
    np.testing.assert_allclose(plain, np.abs(one - other).mean(), rtol=1e-5)
    np.testing.assert_allclose(both - plain, 4 * np.square(one - other).mean(), rtol=1e-4)
