"""GLIDE against OpenAI's, and the published files' names and shapes.

Golden numbers: outputs of glide-text2im at commit 69b530740eb6cef69442d6180579ef5ba9ef063e, run in
PyTorch in float32 with the weights and inputs that `golden_weights` and `inputs` make anew here: a
text Transformer of two layers of 24 and a narrow U-Net at 16 px, as the base model and as the
upsampler. A golden file holds every fourth pixel, and every eighth value of what joins the embedded
time.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.golden_weights import published_weights, with_golden_weights
from vljax.models.glide import GLIDE, PUBLISHED

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden" / "glide.npz"
NARROW = {
    "image_size": 16,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "num_head_channels": 16,
    "text_length": 6,
    "text_width": 24,
    "text_layers": 2,
    "text_heads": 3,
    "vocabulary_size": 40,
}


def skeleton(**changes):
    return jax.eval_shape(lambda: GLIDE(**{**NARROW, **changes}, rngs=nnx.Rngs(0)))


def inputs():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, 16, 16, 3), dtype=np.float32)
    small = rng.standard_normal((2, 4, 4, 3), dtype=np.float32)
    tokens = np.array([[3, 17, 9, 39, 39, 39], [39] * 6])
    real = np.array([[1, 1, 1, 0, 0, 0], [0] * 6], bool)
    return x, small, tokens, real, np.array([12, 871])


@pytest.mark.parametrize("name", ["base", "upsample"])
def test_outputs_match_openai(name):
    """One text of three tokens, and the empty one, which is all padding."""
    golden = np.load(GOLDEN)
    upsampler = name == "upsample"
    model = with_golden_weights(skeleton(in_channels=6 if upsampler else 3))
    x, small, tokens, real, t = inputs()

    @jax.jit
    def run(model, x, small, tokens, real, t):
        told = model.tell(tokens, real)
        return told.conditioning, model.denoise(x, t, told, small if upsampler else None)

    conditioning, y = run(model, x, small, tokens, real, t)
    np.testing.assert_allclose(conditioning[:, ::8], golden[f"{name}_proj"], atol=1e-4)
    np.testing.assert_allclose(y[:, ::4, ::4], golden[f"{name}_output"], atol=1e-4)


def published(levels, blocks, attends, in_channels):
    """Names and shapes of a published file.

    Args:
        levels: Channels of each level.
        blocks: Residual blocks a level.
        attends: From which level on there is attention.
        in_channels: Of the pictures.
    """
    shapes = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, channels, out):
        layer(f"{name}.in_layers.0", channels)
        layer(f"{name}.in_layers.2", out, channels, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * out, 768)
        layer(f"{name}.out_layers.0", out)
        layer(f"{name}.out_layers.3", out, out, 3, 3)
        if channels != out:
            layer(f"{name}.skip_connection", out, channels, 1, 1)

    def attending(name, channels):
        layer(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1)
        layer(f"{name}.encoder_kv", 2 * channels, 512, 1)
        layer(f"{name}.proj_out", channels, channels, 1)

    for i, channels in ((0, 192), (2, 768)):
        layer(f"time_embed.{i}", 768, channels)
    layer("input_blocks.0.0", 192, in_channels, 3, 3)
    channels, number, across = 192, 1, [192]
    for level, out in enumerate(levels):
        for _ in range(blocks):
            residual(f"input_blocks.{number}.0", channels, out)
            if level >= attends:
                attending(f"input_blocks.{number}.1", out)
            channels, number, across = out, number + 1, [*across, out]
        if out != levels[-1] or level < len(levels) - 1:
            residual(f"input_blocks.{number}.0", out, out)
            number, across = number + 1, [*across, out]
    for i in (0, 2):
        residual(f"middle_block.{i}", channels, channels)
    attending("middle_block.1", channels)
    number = 0
    for level, out in reversed(list(enumerate(levels))):
        for i in range(blocks + 1):
            residual(f"output_blocks.{number}.0", channels + across.pop(), out)
            channels = out
            if level >= attends:
                attending(f"output_blocks.{number}.1", out)
            if level and i == blocks:
                residual(f"output_blocks.{number}.{1 + (level >= attends)}", out, out)
            number += 1
    layer("out.0", 192)
    layer("out.2", 6, 192, 3, 3)

    shapes["token_embedding.weight"] = (50_257, 512)
    shapes |= dict.fromkeys(("positional_embedding", "padding_embedding"), (128, 512))
    for i in range(16):
        block = f"transformer.resblocks.{i}"
        layer(f"{block}.ln_1", 512)
        layer(f"{block}.ln_2", 512)
        layer(f"{block}.attn.c_qkv", 1536, 512)
        layer(f"{block}.attn.c_proj", 512, 512)
        layer(f"{block}.mlp.c_fc", 2048, 512)
        layer(f"{block}.mlp.c_proj", 512, 2048)
    layer("final_ln", 512)
    layer("transformer_proj", 768, 512)
    return shapes


FILES = {
    "base": (((192, 384, 576, 768), 3, 1, 3), 385_030_726),
    "upsample": (((192, 192, 384, 384, 768, 768), 2, 3, 6), 398_361_286),
}


@pytest.mark.parametrize("name", ["base", "upsample"])
def test_published_names_and_shapes_are_ours(name):
    """Every tensor of `base.pt` and `upsample.pt`, and no other; their numbers as counted there."""
    described, numbers = FILES[name]
    ours = jax.eval_shape(lambda: GLIDE(**PUBLISHED[name], rngs=nnx.Rngs(0)))
    zeros = published_weights(ours, tensor=lambda name, shape: np.zeros(shape, bool))
    assert {name: value.shape for name, value in zeros.items()} == published(*described)
    assert sum(value.size for value in zeros.values()) == numbers
