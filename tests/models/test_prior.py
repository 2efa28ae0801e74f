"""unCLIP's prior: its drawing as diffusers draws; what it learns; names and sizes of Karlo's.

That the network has diffusers' outputs and files `tests/pretrained/test_networks.py` shows.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.golden_weights import with_golden_weights
from vljax.diffusion.noise import start_noise, step_noise
from vljax.diffusion.prior import draw_embeddings, measured, nearest, prior_loss, read_text
from vljax.diffusion.process import Process
from vljax.diffusion.schedules import named_schedule, parse_timesteps, respace
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.folders import prior_arguments
from vljax.models.parameters import named_parameters, variables
from vljax.models.prior import PriorTransformer
from vljax.pretrained import networks

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {"embedding": 8, "text_length": 4, "layers": 1, "heads": 2, "head_channels": 8}


@pytest.fixture(scope="module")
def prior():
    return with_golden_weights(jax.eval_shape(lambda: PriorTransformer(**SMALL, rngs=nnx.Rngs(0))))


def text(seed, batch=2):
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((batch, 4, 8), np.float32)
    real = np.arange(4) < rng.integers(1, 5, (batch, 1))
    return rng.standard_normal((batch, 8), np.float32), hidden, real


def process(steps=""):
    schedule = named_schedule("cosine", 1000)
    if steps:
        schedule = respace(schedule, parse_timesteps(1000, steps))
    return Process(schedule, "x0")


@jax.jit
def drawn(prior, process, text, without, scale, keys):
    return draw_embeddings(prior, process, text, without, scale, keys, limit=5.0)


def keys_of(*seeds):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def test_embeddings_are_drawn_as_by_diffusers(prior, tmp_path, monkeypatch, compilations):
    """Five ancestral steps under guidance; and other texts, scales and seeds compile nothing."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    networks.save(prior, tmp_path)
    peer = diffusers.PriorTransformer.from_pretrained(tmp_path).eval()
    scheduler = diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)
    scheduler.set_timesteps(5)
    wanted, without, keys = text(1), text(2), keys_of(3, 4)
    ours = drawn(prior, process("5"), wanted, without, 1.5, keys)

    noises = [np.asarray(step_noise(keys, jnp.asarray(i), (1, 1, 8)))[:, 0, 0] for i in range(5)]
    given = [torch.from_numpy(np.concatenate(pair)) for pair in zip(wanted, without, strict=True)]
    z = torch.from_numpy(np.asarray(start_noise(keys, (1, 1, 8)))[:, 0, 0].copy())
    times = scheduler.timesteps
    for i, t in enumerate(times):
        noise = torch.from_numpy(noises[4 - i].copy())
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_unclip.randn_tensor", lambda *_, n=noise, **__: n
        )
        with torch.no_grad():
            both = peer(torch.cat([z, z]), t, *given).predicted_image_embedding
        cond, free = both.chunk(2)
        previous = times[i + 1] if i < 4 else None
        step = scheduler.step(free + 2.5 * (cond - free), t, z, previous)
        z = step.prev_sample
    expected = peer.post_process_latents(z).detach().numpy()
    # Theirs multiplies a thousand float32 factors up to ᾱ, where ours sums float64 logarithms.
    np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())

    compilations()
    other = drawn(prior, process("5"), text(5), without, 0.0, keys_of(4, 9))
    assert not np.allclose(other, ours)
    assert compilations() == 0


@pytest.mark.slow
def test_a_prior_learns_what_texts_say_and_pictures_vary():
    """Embeddings are the text's turned by a matrix, and noise: the mean comes out, and its spread.

    Without the matrix nothing would be learnt that the text does not show: the cosine with the
    picture's embedding rises from about 0 to the one that the noise allows.
    """
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)

    def examples(count):
        told = rng.standard_normal((count, 8)).astype(np.float32)
        pictures = told @ turn + 0.3 * rng.standard_normal((count, 8)).astype(np.float32)
        return told, pictures

    def of(told):
        return told, np.zeros((len(told), 4, 8), np.float32), np.ones((len(told), 4), bool)

    prior = jax.jit(lambda: PriorTransformer(**SMALL, rngs=nnx.Rngs(1)))()
    prior = measured(prior, jnp.asarray(examples(2000)[1]))
    np.testing.assert_allclose(prior.unwhiten(prior.whiten(jnp.ones((1, 8)))), 1, atol=1e-5)
    graph, parameters, rest = nnx.split(prior, nnx.Param, ...)
    import optax

    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(parameters, state, told, pictures, key):
        def loss(parameters):
            model = nnx.merge(graph, parameters, rest)
            return prior_loss(model, process(), pictures, of(told), key)

        value, gradient = jax.value_and_grad(loss)(parameters)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, change), state, value

    state, losses = optimizer.init(parameters), []
    for i in range(400):
        parameters, state, value = step(parameters, state, *examples(64), jax.random.key(i))
        losses.append(float(value))
    prior = nnx.merge(graph, parameters, rest)
    told, pictures = examples(200)
    made = drawn(prior, process("10"), of(told), of(told), 0.0, keys_of(*range(200)))

    def cosine(a, b):
        return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()

    assert np.mean(losses[-50:]) < 0.6 * np.mean(losses[:20])
    assert abs(cosine(told, pictures)) < 0.2
    assert cosine(np.asarray(made), pictures) > 0.6


def test_no_gradient_reaches_what_is_measured(prior):
    def loss(m):
        return prior_loss(m, process(), jnp.ones((2, 8)), text(0), jax.random.key(0))

    gradient = jax.jit(jax.grad(loss))(prior)
    found = named_parameters(gradient)
    assert not np.abs(found["clip_mean"]).max()
    assert not np.abs(found["clip_std"]).max()
    assert np.abs(found["prd_embedding"]).max() > 0


def test_the_nearest_of_candidates():
    told = jnp.eye(2)
    candidates = jnp.asarray([[[4.0, 1.0], [1.0, 0.0]], [[1.0, 4.0], [3.0, 20.0]]])
    np.testing.assert_array_equal(nearest(candidates, told), [[4.0, 1.0], [3.0, 20.0]])


def test_padding_and_what_is_read_of_a_clip():
    pictures = {"image_size": 8, "vision_layers": 1, "vision_width": 8, "patch_size": 8}
    texts = {"text_width": 8, "text_layers": 1, "context_length": 4, "vocabulary_size": 20}
    clip = with_golden_weights(
        jax.eval_shape(
            lambda: CLIP(**pictures, **texts, embed_dim=8, head_channels=8, rngs=nnx.Rngs(0))
        )
    )
    tokens = jnp.asarray([[18, 3, 19, 19], [18, 19, 0, 0]])
    embedding, hidden, real = jax.jit(read_text)(clip, tokens)
    np.testing.assert_array_equal(real, [[1, 1, 1, 0], [1, 1, 0, 0]])
    assert embedding.shape == (2, 8)
    assert hidden.shape == (2, 4, 8)
    clip.text_projection = nnx.Param(jnp.zeros((8, 6)))
    with pytest.raises(UserError, match="text_width=8 and embed_dim=6"):
        jax.eval_shape(read_text, clip, tokens)


def karlo():
    """Names and shapes of Karlo's prior, written from its description."""
    shapes = {"positional_embedding": (1, 81, 2048), "prd_embedding": (1, 1, 2048)}
    shapes |= {"clip_mean": (1, 768), "clip_std": (1, 768)}

    def layer(name, out, features):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, features), (out,)

    for name in ("proj_in", "embedding_proj", "encoder_hidden_states_proj"):
        layer(name, 2048, 768)
    for name in ("time_embedding.linear_1", "time_embedding.linear_2"):
        layer(name, 2048, 2048)
    for i in range(20):
        block = f"transformer_blocks.{i}"
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            layer(f"{block}.attn1.{name}", 2048, 2048)
        layer(f"{block}.ff.net.0.proj", 8192, 2048)
        layer(f"{block}.ff.net.2", 2048, 8192)
        for norm in ("norm1", "norm3"):
            shapes |= {f"{block}.{norm}.{kind}": (2048,) for kind in ("weight", "bias")}
    shapes |= {f"norm_out.{kind}": (2048,) for kind in ("weight", "bias")}
    layer("proj_to_clip_embeddings", 768, 2048)
    return shapes


def test_karlos_names_and_shapes_are_ours(tmp_path):
    told = {"_class_name": "PriorTransformer", "num_embeddings": 77, "dropout": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(told))
    arguments = prior_arguments(tmp_path)
    model = jax.eval_shape(lambda: PriorTransformer(**arguments, rngs=nnx.Rngs(0)))
    ours = {}
    for name, variable in variables(model).items():
        shape = variable.get_value().shape
        layout = variable.get_metadata().get("published")
        ours[name] = shape[::-1] if layout == "o i -> i o" else shape
    assert ours == karlo()


@pytest.mark.parametrize(
    ("field", "value"),
    [("clip_embed_dim", 1024), ("norm_in_type", "layer"), ("added_emb_type", None)],
)
def test_other_architectures_are_refused(tmp_path, field, value):
    told = {"_class_name": "PriorTransformer", field: value}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=field):
        prior_arguments(tmp_path)


def test_a_text_of_another_length_is_refused(prior):
    with pytest.raises(UserError, match="text_length=4"):
        prior(
            jnp.ones((1, 8)), jnp.ones(1), jnp.ones((1, 8)), jnp.ones((1, 3, 8)), jnp.ones((1, 3))
        )
