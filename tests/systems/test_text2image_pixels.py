"""text2image in pixels: guidance by CLIP, the second network, and published files' texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems.test_text2image import tiny_config
from vljax.data.text.tokenizers import END
from vljax.diffusion.editing import guided
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.parameters import copied, named_parameters, with_parameters
from vljax.systems.text2image import SYSTEM, get_published_config, with_upsampler
from vljax.systems.text2image.families import Wish, pixels
from vljax.systems.text2image.model import make_model

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def opened():
    """Two tiny networks of random weights, 16 and 32 px, and a CLIP; learned variances."""
    config = with_upsampler(tiny_config("pixels"), 32)
    config.data.image_size = config.model.clip.image_size = 16
    config.model.upsampler.update({"channel_mult": (1.0, 1.0), "attention_resolutions": ()})
    config.diffusion.variance = "learned_range"
    config.upsampling.steps = "2"
    skeleton = jax.eval_shape(lambda: make_model(config))
    rng = np.random.default_rng(0)
    weights = {
        name: name.endswith(("weight", "scale")) * (leaf.ndim < 2)
        + rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        for name, leaf in named_parameters(skeleton).items()
    }
    return config, with_parameters(skeleton, {n: jnp.float32(v) for n, v in weights.items()})


def test_clip_guides_the_first_network_and_the_second_enlarges(opened, compilations):
    config, model = opened

    def drawn(text="a red star", first=0, draw=pixels.draw_small, **how):
        wish = Wish((text,) * 2, (first, first + 1), **how).filled(config)
        return np.asarray(draw(model, config, wish))

    plain, bent = drawn(), drawn(clip_scale=300.0)
    large = drawn(draw=pixels.draw)
    assert (plain.shape, large.shape) == ((2, 16, 16, 3), (2, 32, 32, 3))
    assert not np.array_equal(plain, bent)
    compilations()
    assert not np.array_equal(drawn(clip_scale=30.0), bent)
    assert not np.array_equal(drawn("a blue circle", clip_scale=300.0, guidance_scale=2.0), bent)
    np.testing.assert_array_equal(drawn(first=1, draw=pixels.draw)[0], large[1])
    assert not np.array_equal(drawn("a blue circle", draw=pixels.draw), large)
    assert compilations() == 0


@pytest.mark.slow
def test_the_second_network_sees_the_small_picture(opened):
    """And its loss trains it alone, from pictures at its own size and their means."""
    config, model = opened
    stage = SYSTEM.stages(config)[-1]
    rng = np.random.default_rng(0)
    examples = [stage.transform(stage.source[i], rng) for i in range(2)]
    batch = {n: jnp.asarray(np.stack([e[n] for e in examples])) for n in examples[0]}
    assert batch["image"].shape == (2, 32, 32, 3)

    @jax.jit
    def gradient(model, batch):
        return jax.grad(lambda m: stage.loss(m, batch, jax.random.key(0)), has_aux=True)(model)[0]

    found = named_parameters(gradient(model, batch))
    moved = {n for n, g in found.items() if np.abs(g).max() > 0}
    assert {name.partition(".")[0] for name in moved} == {"upsampler"}
    seen = found["upsampler.input_blocks.0.0.weight"]
    assert np.abs(seen[:, :, 3:]).max() > 0


def test_a_learned_variance_is_that_under_the_text():
    def denoiser(x, t):
        half = len(x) // 2
        return jnp.concatenate([jnp.full((half, 2, 2, 6), 3.0), jnp.ones((half, 2, 2, 6))])

    out = guided(denoiser, 2.0)(jnp.zeros((1, 2, 2, 3)), jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(out[..., :3], 7.0)
    np.testing.assert_array_equal(out[..., 3:], 3.0)


def test_published_files_read_texts_by_their_own_tokenizer(tmp_path):
    """Bare tokens, then padding, which the published networks know for what it is."""
    config = get_published_config("pixels", str(tmp_path))
    config.pretrained.glide = "base.pt"
    with pytest.raises(UserError, match=r"--config\.glide_tokenizer"):
        pixels.text_tokenizer(config)
    words = {"a": 0, "Ġ": 1, "b": 2, "Ġb": 3, END: 4}
    (tmp_path / "encoder.json").write_text(json.dumps(words))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ b\n")
    config.glide_tokenizer = str(tmp_path / "vocab.bpe")
    config.pretrained.upsampler = "upsample.pt"
    assert SYSTEM.stages(config) == []
    reader = pixels.text_tokenizer(config)
    tokens = reader(["A ba", ""], 5)
    np.testing.assert_array_equal(tokens, [[0, 3, 0, 4, 4], [4] * 5])
    np.testing.assert_array_equal(reader.real(tokens), [[1, 1, 1, 0, 0], [0] * 5])
    assert reader.decode(tokens)[0] == "a ba"
    with pytest.raises(UserError, match="CLIPTokenizer"):
        reader.save_folder(tmp_path / "saved", 5)


@pytest.mark.slow
def test_published_networks_are_asked_for_by_recipe(tmp_path):
    """At OpenAI's sizes, with no CLIP unless one is given."""
    recipe = "configs/text2image_pixels_coco.py"
    config, _ = parse_config(("--config", f"{recipe}:{tmp_path}"))
    model = jax.eval_shape(lambda: make_model(config))
    sizes = {
        part: sum(leaf.size for n, leaf in named_parameters(model).items() if n.startswith(part))
        for part in ("glide.", "upsampler.", "clip.")
    }
    assert sizes == {"glide.": 385_030_726, "upsampler.": 398_361_286, "clip.": 0}


def test_what_cannot_be_is_told(opened):
    config, model = opened
    unasked = Wish(("a",), (0,), sampler="euler").filled(config)
    with pytest.raises(UserError, match=r"sampler=.euler"):
        pixels.draw(model, config, unasked)
    bare = copied(model)
    bare.clip = None
    with pytest.raises(UserError, match="no CLIP that could guide"):
        pixels.draw(bare, config, Wish(("a",), (0,), clip_scale=1.0).filled(config))
    odd = tiny_config("pixels")
    with pytest.raises(UserError, match=r"upsampler\.image_size=48"):
        jax.eval_shape(lambda: make_model(with_upsampler(odd, 48)))
