"""Shape-Guided Diffusion against the published algorithm, step by step with torch `diffusers`."""

import difflib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax import pretrained
from vljax.diffusion.process import Process
from vljax.diffusion.schedules import parse_timesteps, respace, scaled_linear_schedule
from vljax.models.folders import stable_diffusion_arguments
from vljax.models.stable_diffusion import StableDiffusion
from vljax.systems.shape_guided.batch import Batch, published_scale
from vljax.systems.shape_guided.method import (
    attention_maps,
    generate,
    invert,
    plain_attention,
    slerp,
)
from vljax.systems.shape_guided.prompt_to_prompt import TokenMap

pytestmark = pytest.mark.usefixtures("quick_to_compile")

STEPS = 5


@pytest.fixture(scope="module")
def sd(tiny_stable_diffusion):
    """Our model, with the weights of the folder."""
    folder, _ = tiny_stable_diffusion
    skeleton = jax.eval_shape(
        lambda: StableDiffusion(**stable_diffusion_arguments(folder), rngs=nnx.Rngs(0))
    )
    return pretrained.load(skeleton, folder)


# As the tiny folder's tokenizer has them: the last token ends texts, the one before starts them.
END = 701


def row(*words):
    """A text's tokens between start and end, padded by the end."""
    tokens = np.full(77, END)
    tokens[: len(words) + 1] = [END - 1, *words]
    return tokens


SOURCE = (row(5, 9), row(70))
EDIT = (row(5, 9, 31, 32), row(70))
EMPTY = row()


def batch(picture, shape, source=SOURCE, edit=EDIT, *, keep=None, **fields):
    """A batch of one picture, with everything as in the paper."""
    plain = {
        "image": picture[None],
        "shape": shape[None],
        "keep": (1 - shape if keep is None else keep)[None],
        "source": np.stack(source)[None],
        "edit": np.stack(edit)[None],
        "empty": EMPTY[None],
        "source_scale": np.ones((1, 77), np.float32),
        "edit_scale": np.ones((1, 77), np.float32),
        "guidance_scale": np.float32(3.5),
        "noise_mixing": np.float32(0.0),
        "shape_until": np.float32(1.0),
        "seeds": np.zeros(1, np.int32),
        "mapping": TokenMap(*(np.zeros((1, *n), np.float32) for n in ((77, 77), (77,), (77,)))),
    }
    given = {name: np.asarray(value, plain[name].dtype) for name, value in fields.items()}
    return Batch(**jax.tree.map(jnp.asarray, {**plain, **given}))


def new_tokens():
    """The published code's factors, found by matching the padded prompts."""
    factors = np.full(77, 2.5, np.float32)
    for old, new, first in ((SOURCE[0], EDIT[0], 0), (SOURCE[1], EDIT[1], 38)):
        end, shared = int(np.argmax(new == END)), []
        matcher = difflib.SequenceMatcher(None, old.tolist(), new.tolist())
        for kind, _, _, begin, stop in matcher.get_opcodes():
            if kind == "equal" and begin < end:
                shared += range(begin, min(stop, 38))
        factors[[first + i for i in shared[1:]]] = 1.0
    return factors


@pytest.fixture(scope="module")
def published(tiny_stable_diffusion):
    """Algorithm 4 with torch networks: `(picture, shape, *, code, scale, …) -> (z̄₀, z̄_T, z₀)`.

    With `code` in the ways of the published code.
    """
    torch = pytest.importorskip("torch")
    unet, vae, text = tiny_stable_diffusion[1]

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

    def joined(pair):
        """38 + 38 tokens of two prompts in the empty prompt's embedding."""
        inside, outside, empty = (
            text(torch.from_numpy(tokens)[None]).last_hidden_state for tokens in (*pair, EMPTY)
        )
        context = empty.clone()
        context[:, 1:39] = inside[:, 1:39]
        context[:, 39:77] = outside[:, 1:39]
        return context, empty

    @torch.no_grad()
    def run(picture, shape, *, code, scale, attention=True, noise=None, mixing=0.0, guided=STEPS):
        processor = MaskedProcessor(torch.from_numpy(shape))
        processor.on = attention
        unet.set_attn_processor(processor)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = (1 - betas).cumprod(0)
        times = list(range(0, 1000, 1000 // STEPS))
        source, _ = joined(SOURCE)
        edit, empty = joined(EDIT)
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
            processor.scale = torch.from_numpy(new_tokens())
            other = torch.from_numpy(np.array(noise)).permute(0, 3, 1, 2)
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

    return run


def process(clean_end=True):
    times = parse_timesteps(1000, f"leading{STEPS}")
    return Process(respace(scaled_linear_schedule(), times, clean_end=clean_end), "epsilon")


def picture_and_shape(seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    shape = np.zeros((32, 32), np.float32)
    shape[4 + seed : 22, 6 : 25 - seed] = 1.0
    return picture, shape


@pytest.fixture
def inverted(sd, quick_to_compile):
    """Of the first picture; compiled once."""
    return invert(sd, process(), batch(*picture_and_shape(0)))


def test_a_whole_edit_is_the_published_algorithm(sd, inverted, published):
    picture, shape = picture_and_shape(0)
    pictures, latents = generate(sd, process(), batch(picture, shape), inverted)
    edited = np.asarray(latents[0])
    z0, z_T, expected = published(picture, shape, code=False, scale=3.5)
    np.testing.assert_allclose(inverted[0], z0, atol=1e-5)
    np.testing.assert_allclose(inverted[-1], z_T, atol=1e-3)
    error = np.abs(edited - expected).max()
    assert error <= 1e-3, f"latents differ by {error:.1e}"
    assert pictures.shape == (1, 32, 32, 3)
    # The mask does something: without it the edit is another one.
    plain = published(picture, shape, code=False, scale=3.5, attention=False)[2]
    assert np.abs(plain - expected).max() > 0.05
    # Outside of the shape the latents are the picture's own, bit for bit.
    outside = shape[1::2, 1::2] == 0
    np.testing.assert_array_equal(edited[0][outside], np.asarray(inverted)[0, 0][outside])
    assert np.abs(edited - np.asarray(inverted)[0])[0][~outside].min() > 0


def test_the_shape_may_guide_the_first_steps_only(sd, inverted, published):
    """Figure 5.7."""
    picture, shape = picture_and_shape(0)
    asked = batch(picture, shape)
    _, half = generate(sd, process(), asked._replace(shape_until=jnp.float32(0.4)), inverted)
    expected = published(picture, shape, code=False, scale=3.5, guided=2)[2]
    np.testing.assert_allclose(half[0], expected, atol=1e-3)
    _, always = generate(sd, process(), asked, inverted)
    assert np.abs(np.asarray(half[0]) - np.asarray(always[0])).max() > 0.05


def test_other_prompts_masks_pictures_and_scales_compile_nothing(sd, inverted, compilations):
    picture, shape = picture_and_shape(0)
    generate(sd, process(), batch(picture, shape), inverted)
    picture, shape = picture_and_shape(1)
    wide, narrow = np.ones_like(shape), np.zeros_like(shape)
    edits = [
        batch(picture, shape, (row(1), row()), (row(8, 9), row(3)), keep=keep, guidance_scale=7.0)
        for keep in (1 - shape, shape, narrow)
    ]
    # All inside and all outside are shapes too.
    edits += [batch(picture, full, shape_until=0.5) for full in (wide, narrow)]
    compilations()
    other = invert(sd, process(), edits[0])
    made = [generate(sd, process(), asked, other)[1][0] for asked in edits]
    assert compilations() == 0
    source = np.asarray(other)[0, 0]
    for asked, edited in zip(edits[:3], made, strict=False):
        small = np.asarray(asked.keep)[0, 1::2, 1::2] == 1
        np.testing.assert_array_equal(np.asarray(edited)[0][small], source[small])
        assert (np.asarray(edited)[0][~small] != source[~small]).any(-1).all()
    assert all(np.isfinite(edited).all() for edited in made)


def test_the_ways_of_the_published_code_are_named_options(sd, published):
    """Its levels, its scaling of tokens, a fading mask on self-attention, and mixed noise."""
    picture, shape = picture_and_shape(2)
    factors = published_scale(SOURCE, EDIT, END)
    np.testing.assert_array_equal(factors[1:], new_tokens()[1:])
    asked = batch(
        picture,
        shape,
        source_scale=np.full((1, 77), 2.5, np.float32),
        edit_scale=factors[None],
        noise_mixing=0.3,
    )
    inverted = invert(sd, process(clean_end=False), asked, evaluate_at="current")
    _, latents = generate(sd, process(), asked, inverted, self_schedule="cosine", copied="left")
    noise = np.asarray(asked.noise(inverted[-1]))
    _, z_T, expected = published(picture, shape, code=True, scale=3.5, noise=noise, mixing=0.3)
    np.testing.assert_allclose(inverted[-1], z_T, atol=1e-3)
    np.testing.assert_allclose(latents[0], expected, atol=1e-3)


def test_published_scale_on_known_prompts():
    """Numbers follow from the rule: shared tokens 1, new ones and what follows the end 2.5."""
    factors = published_scale(SOURCE, EDIT, END)
    # Inside: 5 and 9 stay; 31, 32 are new, and so is all after them.
    assert factors[1:3].tolist() == [1.0, 1.0]
    assert set(factors[3:39].tolist()) == {2.5}
    # Outside: nothing changed; the last place counts as new.
    assert set(factors[39:76].tolist()) == {1.0}
    assert factors[76] == 2.5
    assert set(published_scale(SOURCE, (row(1, 2), row(3)), END)[1:].tolist()) == {2.5}


def test_published_scale_knows_learnt_words_from_the_end():
    """Their indices are larger than the end token's; what follows them may still be shared."""
    source, edit = (row(5, 9, 7), row(70)), (row(5, END + 1, 9, 7), row(70))
    factors = published_scale(source, edit, END)
    assert factors[1:5].tolist() == [1.0, 2.5, 1.0, 1.0]


def test_slerp_keeps_the_length_of_noise():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 16, 16, 4))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)
    assert abs(float(slerp(a, b, 0.5).std()) - 1.0) < 0.05
    assert float((0.5 * (a + b)).std()) < 0.75


def test_reconstruction_with_the_source_prompt_and_no_guidance(sd, inverted):
    """Nothing is copied, and yet the picture comes back; with guidance it drifts (figure 5.4)."""
    picture, shape = picture_and_shape(0)

    def psnr(scale):
        asked = batch(picture, shape, edit=SOURCE, keep=np.zeros_like(shape), guidance_scale=scale)
        again = np.asarray(generate(sd, process(), asked, inverted)[0][0], np.float32)
        return 10 * np.log10(255**2 / np.square(again - truth).mean())

    truth = np.asarray(jax.jit(lambda sd, z: sd.decode(z))(sd, inverted[0]))[0]
    truth = ((truth + 1) * 127.5).clip(0, 255)
    faithful, drifted = psnr(0.0), psnr(7.5)
    print(f"\nreconstruction: PSNR {faithful:.1f} dB, with guidance 7.5 {drifted:.1f} dB")
    assert faithful > 30
    assert faithful > drifted + 3


def test_attention_maps_stay_on_their_side(sd):
    picture, shape = picture_and_shape(0)
    asked = batch(picture, shape, edit=SOURCE)
    z0 = jax.jit(lambda sd, image: sd.encode(image / 127.5 - 1))(sd, asked.image)
    levels = jnp.stack([z0] * (STEPS + 1))
    alone = asked._replace(source=asked.source[:, :1], edit=asked.edit[:, :1])
    ours = np.asarray(attention_maps(sd, process(), asked, levels))[0]
    plain = attention_maps(sd, process(), alone, levels, attention=plain_attention)
    plain = np.asarray(plain)[0]
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
