"""VQGAN against torch `diffusers` and a PyTorch transcription of taming-transformers' network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax import pretrained
from vljax.errors import UserError
from vljax.models.folders import vqgan_arguments
from vljax.models.parameters import named_parameters
from vljax.models.vqgan import PUBLISHED, VQGAN, Quantizer
from vljax.ops.quantization import gumbel_one_hot, nearest

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {
    "num_codes": 32,
    "code_channels": 6,
    "latent_channels": 8,
    "block_out_channels": (16, 16, 32),
    "attention_levels": (False, False, True),
    "layers_per_block": 1,
    "norm_groups": 8,
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def skeleton(arguments):
    return jax.eval_shape(lambda: VQGAN(**arguments, rngs=nnx.Rngs(0)))


@jax.jit
def there_and_back(model, pictures):
    codes = model.codes(pictures)
    return model.encode(pictures), codes, model.decode(model.vectors(codes))


def shaken(torch, peer):
    """Random weights that make every layer matter, and codes about as far as encodings."""
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            if name == "quantize.embedding.weight":
                parameter.normal_(0, 0.5)
    return peer.eval()


def config_of(arguments):
    """The fields of a `VQModel` with these arguments."""
    down = ["Attn" * a + "DownEncoderBlock2D" for a in arguments["attention_levels"]]
    return {
        "down_block_types": down,
        "up_block_types": [b.replace("DownEncoder", "UpDecoder") for b in reversed(down)],
        "block_out_channels": list(arguments["block_out_channels"]),
        "layers_per_block": arguments["layers_per_block"],
        "latent_channels": arguments["latent_channels"],
        "vq_embed_dim": arguments["code_channels"],
        "num_vq_embeddings": arguments["num_codes"],
        "norm_num_groups": arguments["norm_groups"],
    }


def diffusers_peer(torch, diffusers, arguments, folder):
    torch.manual_seed(0)
    peer = shaken(torch, diffusers.VQModel(**config_of(arguments)))
    peer.save_pretrained(folder)
    return peer


def compare_with_diffusers(torch, model, peer, pictures):
    """Relative errors of encodings and pictures, and the share of equal codes."""
    with torch.no_grad():
        z = peer.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2)).latents
        chosen, _, (_, _, codes) = peer.quantize(z)
        decoded = peer.decode(chosen, force_not_quantize=True).sample
    ours = there_and_back(model, pictures)
    same = float((ours[1].reshape(-1) == codes.numpy().reshape(-1)).mean())
    pairs = ((ours[0], z), (ours[2], decoded))
    pairs = [(a, b.permute(0, 2, 3, 1).numpy()) for a, b in pairs]
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs), same


def test_it_equals_diffusers(torch, diffusers, tmp_path):
    peer = diffusers_peer(torch, diffusers, SMALL, tmp_path)
    arguments = vqgan_arguments(tmp_path)
    assert {**arguments, **SMALL} == arguments
    model = pretrained.load(skeleton(arguments), tmp_path)
    error, same = compare_with_diffusers(torch, model, peer, images(2, 16, 24))
    assert error <= 1e-4
    assert same == 1


def test_what_is_trained_here_loads_in_diffusers(torch, diffusers, tmp_path):
    model = VQGAN(**SMALL, rngs=nnx.Rngs(0))
    fields = {**config_of(SMALL), "_class_name": "VQModel"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    pretrained.save(model, tmp_path / "diffusion_pytorch_model.safetensors")
    peer = diffusers.VQModel.from_pretrained(tmp_path).eval()
    pictures = images(1, 16, 16)
    with torch.no_grad():
        z = peer.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2)).latents
    ours = there_and_back(model, pictures)[0]
    np.testing.assert_allclose(ours, z.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def taming(torch, arguments):
    """taming-transformers' network by its names, transcribed from the facts of its files."""
    nn, f = torch.nn, torch.nn.functional
    levels, attention = arguments["block_out_channels"], arguments["attention_levels"]
    blocks, groups = arguments["layers_per_block"], arguments["norm_groups"]

    def norm(channels):
        return nn.GroupNorm(groups, channels, eps=1e-6)

    class Block(nn.Module):
        def __init__(self, channels, out):
            super().__init__()
            self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
            self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
            self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

        def forward(self, x):
            h = self.conv1(f.silu(self.norm1(x)))
            h = self.conv2(f.silu(self.norm2(h)))
            return h + (self.nin_shortcut(x) if self.nin_shortcut else x)

    class Attention(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.norm = norm(channels)
            self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
            self.proj_out = nn.Conv2d(channels, channels, 1)

        def forward(self, x):
            h = self.norm(x)
            q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
            weights = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, dim=-1)
            return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))

    class Resample(nn.Module):
        def __init__(self, channels, down):
            super().__init__()
            self.down = down
            self.conv = nn.Conv2d(channels, channels, 3, stride=1 + down, padding=1 - down)

        def forward(self, x):
            if self.down:
                return self.conv(f.pad(x, (0, 1, 0, 1)))
            return self.conv(f.interpolate(x, scale_factor=2.0, mode="nearest"))

    class Middle(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.block_1, self.block_2 = Block(channels, channels), Block(channels, channels)
            self.attn_1 = Attention(channels)

        def forward(self, x):
            return self.block_2(self.attn_1(self.block_1(x)))

    def level(channels, out, count, attended, resample, down):
        part = nn.Module()
        part.block = nn.ModuleList(Block(channels if i == 0 else out, out) for i in range(count))
        part.attn = nn.ModuleList(Attention(out) for _ in range(count if attended else 0))
        if resample:
            setattr(part, "downsample" if down else "upsample", Resample(out, down))
        return part

    def through(part, x):
        for i, block in enumerate(part.block):
            x = block(x)
            if len(part.attn):
                x = part.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(part, name):
                x = getattr(part, name)(x)
        return x

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in = nn.Conv2d(3, levels[0], 3, padding=1)
            before = (levels[0], *levels)
            last = len(levels) - 1
            self.down = nn.ModuleList(
                level(before[i], levels[i], blocks, attention[i], i < last, True)
                for i in range(len(levels))
            )
            self.mid, self.norm_out = Middle(levels[-1]), norm(levels[-1])
            self.conv_out = nn.Conv2d(levels[-1], arguments["latent_channels"], 3, padding=1)

        def forward(self, x):
            x = self.conv_in(x)
            for part in self.down:
                x = through(part, x)
            return self.conv_out(f.silu(self.norm_out(self.mid(x))))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in = nn.Conv2d(arguments["latent_channels"], levels[-1], 3, padding=1)
            self.mid = Middle(levels[-1])
            after = (*levels, levels[-1])
            self.up = nn.ModuleList(
                level(after[i + 1], levels[i], blocks + 1, attention[i], i > 0, False)
                for i in range(len(levels))
            )
            self.norm_out = norm(levels[0])
            self.conv_out = nn.Conv2d(levels[0], 3, 3, padding=1)

        def forward(self, x):
            x = self.mid(self.conv_in(x))
            for part in reversed(self.up):
                x = through(part, x)
            return self.conv_out(f.silu(self.norm_out(x)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = Encoder(), Decoder()
            self.quantize = nn.Module()
            channels, width = arguments["latent_channels"], arguments["code_channels"]
            self.quantize.embedding = nn.Embedding(arguments["num_codes"], width)
            self.quant_conv = nn.Conv2d(channels, width, 1)
            self.post_quant_conv = nn.Conv2d(width, channels, 1)

        def forward(self, x):
            z = self.quant_conv(self.encoder(x))
            flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            codes = torch.cdist(flat, self.quantize.embedding.weight).argmin(1)
            chosen = self.quantize.embedding(codes)
            chosen = chosen.reshape(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
            return z, codes, self.decoder(self.post_quant_conv(chosen))

    return Network()


def compare_with_taming(torch, arguments, file, pictures):
    torch.manual_seed(0)
    peer = shaken(torch, taming(torch, arguments))
    # As in the published file: a Lightning checkpoint with the networks of the loss beside.
    loss = {"loss.discriminator.main.0.weight": torch.zeros(2, 3, 4, 4)}
    torch.save({"state_dict": {**peer.state_dict(), **loss}}, file)
    model = pretrained.load(skeleton(arguments), file)
    with torch.no_grad():
        z, codes, decoded = peer(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    ours = there_and_back(model, pictures)
    errors = []
    for mine, theirs in ((ours[0], z), (ours[2], decoded)):
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        errors.append(np.abs(mine - theirs).max() / np.abs(theirs).max())
    return peer, max(errors), float((ours[1].reshape(-1) == codes.numpy()).mean())


def test_it_equals_taming(torch, tmp_path):
    _, error, same = compare_with_taming(torch, SMALL, tmp_path / "last.ckpt", images(2, 16, 24))
    assert error <= 1e-4
    assert same == 1


def test_the_published_size(torch):
    """Every tensor of vqgan_imagenet_f16_1024 by name and shape, nothing computed."""
    arguments = PUBLISHED["imagenet_f16_1024"]
    ours = named_parameters(skeleton(arguments))
    with torch.device("meta"):
        theirs = taming(torch, arguments).state_dict()
    assert len(ours) == len(theirs) == 343
    assert sum(p.size for p in ours.values()) == 72_141_699
    renamed = VQGAN.published_names(theirs)
    assert renamed.keys() == ours.keys()
    assert all(renamed[name].numel() == ours[name].size for name in ours)
    for part, count in (("encoder", 29_298_176), ("decoder", 42_449_795)):
        assert sum(p.size for n, p in ours.items() if n.startswith(part)) == count


@pytest.mark.slow
def test_full_size(torch, diffusers, tmp_path):
    """72 million parameters on a picture of 256×256, as diffusers and as taming."""
    arguments, pictures = PUBLISHED["imagenet_f16_1024"], images(1, 256, 256)
    peer = diffusers_peer(torch, diffusers, arguments, tmp_path)
    model = pretrained.load(skeleton(vqgan_arguments(tmp_path)), tmp_path)
    error, same = compare_with_diffusers(torch, model, peer, pictures)
    print(f"\nVQGAN: relative error {error:.1e} of diffusers, {same:.2%} of the codes")
    assert error <= 1e-4
    assert same >= 0.999
    _, error, same = compare_with_taming(torch, arguments, tmp_path / "last.ckpt", pictures)
    print(f"VQGAN: relative error {error:.1e} of taming, {same:.2%} of the codes")
    assert error <= 1e-4
    assert same >= 0.999


@pytest.mark.parametrize("legacy", [True, False])
def test_both_conventions_of_beta(torch, legacy):
    """Values and gradients of codebook and commitment, and the gradient straight through."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 3, 3, 4)).astype(np.float32)
    codes = rng.standard_normal((5, 4)).astype(np.float32)
    after = rng.standard_normal(z.shape).astype(np.float32)

    def ours(z, codes):
        quantizer = Quantizer(5, 4, 0.25, legacy, rngs=nnx.Rngs(0))
        quantizer.embedding.weight[...] = codes
        found = quantizer(z)
        return found.loss + (found.vectors * after).sum()

    value, gradients = jax.value_and_grad(ours, (0, 1))(jnp.asarray(z), jnp.asarray(codes))
    x = torch.tensor(z, requires_grad=True)
    table = torch.tensor(codes, requires_grad=True)
    chosen = table[torch.cdist(x.reshape(-1, 4), table).argmin(1)].reshape(x.shape)
    commitment = ((chosen.detach() - x) ** 2).mean()
    codebook = ((chosen - x.detach()) ** 2).mean()
    loss = commitment + 0.25 * codebook if legacy else codebook + 0.25 * commitment
    total = loss + ((x + (chosen - x).detach()) * torch.tensor(after)).sum()
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    np.testing.assert_allclose(gradients[0], x.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(gradients[1], table.grad.numpy(), atol=1e-5)


def test_the_nearest_code():
    rng = np.random.default_rng(0)
    z, codes = rng.standard_normal((7, 3)), rng.standard_normal((9, 3))
    expected = ((z[:, None] - codes) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest(jnp.asarray(z), jnp.asarray(codes)), expected)


def test_gumbel_draws_by_softmax_and_passes_the_soft_gradient():
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    drawn = gumbel_one_hot(jnp.broadcast_to(logits, (20_000, 3)), jax.random.key(0))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0), [0.1, 0.2, 0.7], atol=0.02)
    key, weights = jax.random.key(1), jnp.array([1.0, -2.0, 0.5])
    found = jax.grad(lambda x: gumbel_one_hot(x, key, 0.7) @ weights)(logits)
    noise = jax.random.gumbel(key, (3,))
    expected = jax.grad(lambda x: jax.nn.softmax((x + noise) / 0.7) @ weights)(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "'AutoencoderKL'"),
        ({"norm_type": "spatial"}, "norm_type='spatial'"),
        ({"down_block_types": ["SkipDownBlock2D"] * 3}, "'SkipDownBlock2D'"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "up_block_types="),
    ],
)
def test_other_architectures_are_refused(tmp_path, change, words):
    fields = {**config_of(SMALL), "_class_name": "VQModel", **change}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=words):
        vqgan_arguments(tmp_path)


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="attention_levels has 1 entries"):
        skeleton({**SMALL, "attention_levels": (True,)})
    with pytest.raises(UserError, match="pictures of 16×22 do not divide by 4"):
        skeleton(SMALL).encode(images(1, 16, 22))
