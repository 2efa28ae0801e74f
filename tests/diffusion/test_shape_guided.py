"""Shape-Guided Diffusion against the published algorithm, step by step with torch `diffusers`."""

import difflib
import itertools

import chex
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from vljax import pretrained
from vljax.diffusion.process import Process
from vljax.diffusion.schedules import parse_timesteps, respace, scaled_linear_schedule
from vljax.diffusion.shape_guided import (
    attention_maps,
    generate,
    invert,
    published_scale,
    slerp,
)
from vljax.models.folders import stable_diffusion_arguments
from vljax.models.stable_diffusion import StableDiffusion
from vljax.ops.inside_outside import join_prompts

STEPS, END = 10, 599


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """A folder as `diffusers` writes it: the torch networks, and our model that loaded it."""
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            # Attention that matters: flat maps would hide a mask that does nothing.
            parameter *= 3.0 if "to_" in name else 1.0
            parameter += 0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0.0
            # Small predictions, as a trained network's are for a picture of little contrast.
            parameter *= 0.1 if "conv_out" in name else 1.0
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()
    with torch.no_grad():
        vae.quant_conv.weight *= 30.0  # latents of about unit variance
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=24,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=END + 1,
        )
    ).eval()
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        part.save_pretrained(folder / name)
    skeleton = jax.eval_shape(
        lambda: StableDiffusion(**stable_diffusion_arguments(folder), rngs=nnx.Rngs(0))
    )
    return (unet, vae, text), pretrained.load(skeleton, folder)


def row(*words):
    """A text's tokens between start and end, padded by the end."""
    tokens = np.full(77, END)
    tokens[: len(words) + 1] = [END - 1, *words]
    return tokens


SOURCE = (row(5, 9), row(70))
EDIT = (row(5, 9, 31, 32), row(70))
EMPTY = row()


class MaskedProcessor:
    """Algorithm 3: the attention map of a layer, masked after the softmax, column by column."""

    def __init__(self, shape):
        self.shape, self.scale, self.strength, self.on = shape, torch.ones(77), 1.0, True

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        weights = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
        if self.on:
            side = int(query.shape[2] ** 0.5)
            m = torch.nn.functional.interpolate(
                self.shape[None, None], (side, side), mode="nearest-exact"
            ).flatten()
            if cross:
                mask = torch.zeros(len(m), 77)
                mask[:, 1:39] = m[:, None]
                mask[:, 39:77] = 1 - m[:, None]
                mask = mask * self.scale
            else:
                mask = torch.where(m[None] == 1, m[:, None], 1 - m[:, None])
                mask = (mask - 1) * self.strength + 1
            weights = weights * mask
        return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))


def joined(text, pair):
    """38 + 38 tokens of two prompts in the empty prompt's embedding."""
    inside, outside, empty = (
        text(torch.from_numpy(tokens)[None]).last_hidden_state for tokens in (*pair, EMPTY)
    )
    context = empty.clone()
    context[:, 1:39] = inside[:, 1:39]
    context[:, 39:77] = outside[:, 1:39]
    return context, empty


def new_tokens():
    """The published code's factors, found by matching the padded prompts."""
    factors = torch.full((77,), 2.5)
    for old, new, first in ((SOURCE[0], EDIT[0], 0), (SOURCE[1], EDIT[1], 38)):
        end, shared = int(np.argmax(new == END)), []
        matcher = difflib.SequenceMatcher(None, old.tolist(), new.tolist())
        for kind, _, _, begin, stop in matcher.get_opcodes():
            if kind == "equal" and begin < end:
                shared += range(begin, min(stop, 38))
        factors[[first + i for i in shared[1:]]] = 1.0
    return factors


@torch.no_grad()
def published(
    networks, picture, shape, *, code, scale, attention=True, noise=None, mixing=0.0, guided=STEPS
):
    """Algorithm 4 with torch networks; with `code` in the ways of the published code."""
    unet, vae, text = networks
    processor = MaskedProcessor(torch.from_numpy(shape))
    processor.on = attention
    unet.set_attn_processor(processor)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    times = list(range(0, 1000, 1000 // STEPS))
    source, _ = joined(text, SOURCE)
    edit, empty = joined(text, EDIT)
    image = torch.from_numpy(picture)[None].permute(0, 3, 1, 2) / 127.5 - 1
    z = vae.encode(image).latent_dist.mean * 0.18215
    small = torch.nn.functional.interpolate(
        torch.from_numpy(shape)[None, None], z.shape[2:], mode="nearest-exact"
    )

    def move(z, noise, a, b):
        return (b**0.5 * (z - (1 - a) ** 0.5 * noise) / a**0.5 + (1 - b) ** 0.5 * noise).float()

    inverted = [z]
    if code:
        processor.scale = torch.full((77,), 2.5)
        for t, later in itertools.pairwise(times):
            prediction = unet(z, t, source).sample
            z = move(z, prediction, kept[t], kept[later])
            inverted.append(z)
    else:
        level = torch.ones(())
        for t in times:
            prediction = unet(z, t, source).sample
            z, level = move(z, prediction, level, kept[t]), kept[t]
            inverted.append(z)
    if code:
        processor.scale = new_tokens()
        other = torch.from_numpy(noise).permute(0, 3, 1, 2)
        angle = torch.acos((z * other).sum() / (z.norm() * other.norm()))
        mixed = torch.sin((1 - mixing) * angle) * z + torch.sin(mixing * angle) * other
        z = torch.where(small == 1, mixed / torch.sin(angle), z)
    for i, t in reversed(list(enumerate(times))):
        guides = STEPS - i <= guided
        processor.on = attention and guides
        if code:
            processor.strength = float(1 + np.cos(np.pi * (STEPS - 1 - i) / STEPS)) / 2
        conditional, unconditional = unet(z, t, edit).sample, unet(z, t, empty).sample
        prediction = conditional + scale * (conditional - unconditional)
        z = move(z, prediction, kept[t], kept[times[i - 1]] if i else torch.ones(()))
        z = z * small + inverted[i] * (1 - small) if guides else z
    return [x.permute(0, 2, 3, 1).numpy() for x in (inverted[0], inverted[-1], z)]


def process(clean_end=True):
    times = parse_timesteps(1000, f"leading{STEPS}")
    return Process(respace(scaled_linear_schedule(), times, clean_end=clean_end), "epsilon")


def embedded(model, source, edit):
    """Contexts of both sides of both prompts, and the empty one."""
    inside, outside, new_inside, new_outside, empty = (
        model.embed(tokens[None]) for tokens in (*source, *edit, EMPTY)
    )
    return (
        join_prompts(inside, outside, empty),
        join_prompts(new_inside, new_outside, empty),
        empty,
    )


@pytest.fixture(scope="module")
def paper():
    """Inversion and generation as in the paper, one program each."""

    @jax.jit
    @chex.assert_max_traces(1)
    def run_inversion(model, picture, shape, source):
        z0 = model.encode(picture[None] / 127.5 - 1)
        context = embedded(model, source, source)[0]
        return invert(process(), model.unet, z0, context, shape[None])

    @jax.jit
    @chex.assert_max_traces(1)
    def run_generation(model, inverted, shape, keep, edit, scale, shape_until):
        _, context, empty = embedded(model, edit, edit)
        return generate(
            process(),
            model.unet,
            inverted,
            context,
            empty,
            shape[None],
            keep[None],
            guidance_scale=scale,
            shape_until=shape_until,
        )

    return run_inversion, run_generation


def picture_and_shape(seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (32, 32, 3)).astype(np.float32)
    shape = np.zeros((32, 32), np.float32)
    shape[4 + seed : 22, 6 : 25 - seed] = 1.0
    return picture, shape


def test_a_whole_edit_is_the_published_algorithm(sd, paper):
    networks, model = sd
    picture, shape = picture_and_shape(0)
    run_inversion, run_generation = paper
    inverted = run_inversion(model, picture, shape, SOURCE)
    edited = run_generation(model, inverted, shape, 1 - shape, EDIT, 3.5, 1.0)
    z0, z_T, expected = published(networks, picture, shape, code=False, scale=3.5)
    np.testing.assert_allclose(inverted[0], z0, atol=1e-5)
    np.testing.assert_allclose(inverted[-1], z_T, atol=1e-3)
    error = np.abs(np.asarray(edited) - expected).max()
    assert error <= 1e-3, f"latents differ by {error:.1e}"
    # The mask does something: without it the edit is another one.
    plain = published(networks, picture, shape, code=False, scale=3.5, attention=False)[2]
    assert np.abs(plain - expected).max() > 0.05
    # Outside of the shape the latents are the picture's own, bit for bit.
    outside = shape[1::2, 1::2] == 0
    np.testing.assert_array_equal(
        np.asarray(edited)[0][outside], np.asarray(inverted)[0, 0][outside]
    )
    assert np.abs(np.asarray(edited) - np.asarray(inverted)[0])[0][~outside].min() > 0


def test_the_shape_may_guide_the_first_steps_only(sd, paper):
    """Figure 5.7."""
    networks, model = sd
    picture, shape = picture_and_shape(0)
    run_inversion, run_generation = paper
    inverted = run_inversion(model, picture, shape, SOURCE)
    edited = run_generation(model, inverted, shape, 1 - shape, EDIT, 3.5, 0.4)
    expected = published(networks, picture, shape, code=False, scale=3.5, guided=4)[2]
    np.testing.assert_allclose(edited, expected, atol=1e-3)
    always = run_generation(model, inverted, shape, 1 - shape, EDIT, 3.5, 1.0)
    assert np.abs(np.asarray(edited) - np.asarray(always)).max() > 0.05


def test_other_prompts_masks_pictures_and_scales_compile_nothing(sd, paper):
    """The programs of `paper` allow one trace each; the test before may have used it."""
    _, model = sd
    run_inversion, run_generation = paper
    picture, shape = picture_and_shape(1)
    inverted = run_inversion(model, picture, shape, (row(1), row()))
    for keep in (1 - shape, shape, np.zeros_like(shape)):
        other = run_generation(model, inverted, shape, keep, (row(8, 9), row(3)), 7.0, 1.0)
        small = keep[1::2, 1::2] == 1
        source = np.asarray(inverted)[0, 0]
        np.testing.assert_array_equal(np.asarray(other)[0][small], source[small])
        assert (np.asarray(other)[0][~small] != source[~small]).any(-1).all()
    # All inside and all outside are shapes too.
    for full in (np.ones_like(shape), np.zeros_like(shape)):
        assert np.isfinite(run_generation(model, inverted, full, 1 - full, EDIT, 3.5, 0.5)).all()


def test_the_ways_of_the_published_code_are_named_options(sd):
    """Its levels, its scaling of tokens, a fading mask on self-attention, and mixed noise."""
    networks, model = sd
    picture, shape = picture_and_shape(2)
    noise = np.random.default_rng(3).standard_normal((1, 16, 16, 4)).astype(np.float32)
    factors = published_scale(SOURCE, EDIT)
    np.testing.assert_array_equal(factors[1:], new_tokens()[1:])

    @jax.jit
    def run(model, picture, shape, noise, factors, mixing):
        source, edit, empty = embedded(model, SOURCE, EDIT)
        z0 = model.encode(picture[None] / 127.5 - 1)
        inverted = invert(
            process(clean_end=False),
            model.unet,
            z0,
            source,
            shape[None],
            token_scale=2.5,
            evaluate_at="current",
        )
        return inverted, generate(
            process(),
            model.unet,
            inverted,
            edit,
            empty,
            shape[None],
            1 - shape[None],
            token_scale=factors[None],
            self_schedule="cosine",
            copied="left",
            noise=noise,
            noise_mixing=mixing,
        )

    inverted, edited = run(model, picture, shape, noise, factors, 0.3)
    _, z_T, expected = published(
        networks, picture, shape, code=True, scale=3.5, noise=noise, mixing=0.3
    )
    np.testing.assert_allclose(inverted[-1], z_T, atol=1e-3)
    np.testing.assert_allclose(edited, expected, atol=1e-3)


def test_published_scale_on_known_prompts():
    """Numbers follow from the rule: shared tokens 1, new ones and what follows the end 2.5."""
    factors = published_scale(SOURCE, EDIT)
    # Inside: 5 and 9 stay; 31, 32 are new, and so is all after them.
    assert factors[1:3].tolist() == [1.0, 1.0]
    assert set(factors[3:39].tolist()) == {2.5}
    # Outside: nothing changed; the last place counts as new.
    assert set(factors[39:76].tolist()) == {1.0}
    assert factors[76] == 2.5
    assert set(published_scale(SOURCE, (row(1, 2), row(3)))[1:].tolist()) == {2.5}


def test_slerp_keeps_the_length_of_noise():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 16, 16, 4))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)
    assert abs(float(slerp(a, b, 0.5).std()) - 1.0) < 0.05
    assert float((0.5 * (a + b)).std()) < 0.75


def test_reconstruction_with_the_source_prompt_and_no_guidance(sd, paper):
    """Nothing is copied, and yet the picture comes back; with guidance it drifts (figure 5.4)."""
    _, model = sd
    picture, shape = picture_and_shape(0)
    run_inversion, run_generation = paper
    inverted = run_inversion(model, picture, shape, SOURCE)

    def psnr(scale):
        nothing = np.zeros_like(shape)
        again = run_generation(model, inverted, shape, nothing, SOURCE, scale, 1.0)
        pixels, truth = (np.asarray(decode(model, z)) for z in (again, inverted[0]))
        return 10 * np.log10(4.0 / np.square(pixels - truth).mean())

    decode = jax.jit(lambda model, z: model.decode(z))
    faithful, drifted = psnr(0.0), psnr(7.5)
    print(f"\nreconstruction: PSNR {faithful:.1f} dB, with guidance 7.5 {drifted:.1f} dB")
    assert faithful > 30
    assert faithful > drifted + 3


def test_one_row_of_factors_serves_a_batch(sd):
    _, model = sd
    inverted, context = jnp.zeros((STEPS + 1, 2, 16, 16, 4)), jnp.zeros((2, len(EMPTY), 24))
    edited = jax.eval_shape(
        lambda factors: generate(
            process(),
            model.unet,
            inverted,
            context,
            context[:1],
            jnp.ones((1, 32, 32)),
            jnp.zeros((1, 32, 32)),
            token_scale=factors,
        ),
        jax.ShapeDtypeStruct((1, len(EMPTY)), jnp.float32),
    )
    assert edited.shape == (2, 16, 16, 4)


def test_attention_maps_stay_on_their_side(sd):
    _, model = sd
    picture, shape = picture_and_shape(0)

    @jax.jit
    def maps(model, picture, shape):
        source, _, _ = embedded(model, SOURCE, SOURCE)
        z0 = model.encode(picture[None] / 127.5 - 1)
        levels = jnp.stack([z0] * (STEPS + 1))
        return [
            attention_maps(
                process(), model.unet.observed, levels, source, shape[None], attention=on
            )
            for on in (True, False)
        ]

    ours, plain = (np.asarray(x)[0] for x in maps(model, picture, shape))
    assert ours.shape == plain.shape == (77, 16, 16)
    # Coarse layers are enlarged: two latents from the border every layer is on one side.
    around = np.pad(shape[1::2, 1::2], 3, mode="edge")
    near = np.stack([around[i : i + 16, j : j + 16] for i in range(7) for j in range(7)])
    inside, outside = near.min(0) == 1, near.max(0) == 0
    assert inside.any()
    assert outside.any()
    assert (ours[1:39][:, outside] == 0).all()
    assert (ours[39:77][:, inside] == 0).all()
    assert (ours[0] == 0).all()
    np.testing.assert_allclose(plain.sum(0), 1.0, atol=1e-5)
    assert (plain[1:, outside] > 0).all()
