"""LSTM and GRU against torch's, and against Caffe's layer written down in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax import pretrained
from vljax.models.recurrent import GRU, LSTM

pytestmark = pytest.mark.usefixtures("quick_to_compile")

BATCH, STEPS, INPUTS, FEATURES = 3, 6, 5, 7


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ours_and_theirs(kind):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind.__name__)(INPUTS, FEATURES, batch_first=True)
    tensors = {name: t.detach().numpy() for name, t in theirs.named_parameters()}
    model = jax.eval_shape(lambda: kind(INPUTS, FEATURES, rngs=nnx.Rngs(0)))
    return pretrained.assign(model, kind.published_names(tensors), origin="torch"), theirs


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_outputs_and_gradients_are_torchs(kind, rng):
    torch = pytest.importorskip("torch")
    model, theirs = ours_and_theirs(kind)
    x = rng.standard_normal((BATCH, STEPS, INPUTS)).astype(np.float32)
    first = [rng.standard_normal((BATCH, FEATURES)).astype(np.float32) for _ in model.start(1)]
    weights = rng.standard_normal((BATCH, STEPS, FEATURES)).astype(np.float32)

    @jax.jit
    def run(model, x, state):
        def loss(model, x, state):
            outputs, last = model(x, state=state)
            return (outputs * weights).sum() + sum((s**2).sum() for s in last), (outputs, last)

        gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, (outputs, last)), gradients = gradient(model, x, state)
        return outputs, last, gradients

    outputs, last, (to_model, to_x, to_state) = run(model, x, tuple(first))
    leaves = [torch.from_numpy(a).requires_grad_() for a in (x, *first)]
    state = tuple(a[None] for a in leaves[1:])
    their_outputs, their_last = theirs(leaves[0], state if kind is LSTM else state[0])
    their_last = their_last if kind is LSTM else (their_last,)
    loss = (their_outputs * torch.from_numpy(weights)).sum() + sum((s**2).sum() for s in their_last)
    loss.backward()

    def near(mine, other):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-5, atol=1e-5)

    near(outputs, their_outputs)
    for mine, other in zip(last, their_last, strict=True):
        near(mine, other[0])
    for mine, other in zip((to_x, *to_state), leaves, strict=True):
        near(mine, other.grad)
    gradients = {name: t.grad.numpy() for name, t in theirs.named_parameters()}
    if kind is LSTM:  # each of the two biases has the gradient of the one
        gradients["bias_ih_l0"] = 0 * gradients["bias_hh_l0"]
    expected = pretrained.assign(to_model, kind.published_names(gradients), origin="torch")
    for mine, other in zip(jax.tree.leaves(to_model), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


def caffe_lstm(x, going_on, input_weight, bias, state_weight):
    """Caffe's LSTM layer: gates i, f, o, g; where `going_on` is 0 a sequence begins anew."""
    features = state_weight.shape[1]
    h = c = np.zeros((x.shape[0], features))
    outputs = []
    for t in range(x.shape[1]):
        goes = going_on[:, t : t + 1]
        gates = x[:, t] @ input_weight.T + bias + (goes * h) @ state_weight.T
        i, f, o = (1 / (1 + np.exp(-gates[:, n * features :][:, :features])) for n in range(3))
        c = goes * (f * c) + i * np.tanh(gates[:, 3 * features :])
        h = o * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1)


def test_caffes_layer_with_words_on_the_right(rng):
    """Left padding, passed over by the mask, is what Caffe's marks of beginnings make of it."""
    blobs = [
        rng.standard_normal((4 * FEATURES, INPUTS)),
        rng.standard_normal(4 * FEATURES),
        rng.standard_normal((4 * FEATURES, FEATURES)),
    ]
    tensors = {str(i): blob.astype(np.float32) for i, blob in enumerate(blobs)}
    model = jax.eval_shape(lambda: LSTM(INPUTS, FEATURES, rngs=nnx.Rngs(0)))
    model = pretrained.assign(model, LSTM.published_names(tensors), origin="blobs")
    x = rng.standard_normal((BATCH, STEPS, INPUTS))
    lengths = np.array([STEPS, 4, 1])
    mask = np.arange(STEPS) >= STEPS - lengths[:, None]
    begins = np.arange(STEPS) <= STEPS - lengths[:, None]
    theirs = caffe_lstm(x, ~begins, *blobs)
    outputs, (h, _) = jax.jit(lambda m, x, mask: m(x, mask))(model, x.astype(np.float32), mask)
    np.testing.assert_allclose(np.asarray(outputs)[mask], theirs[mask], atol=1e-5)
    np.testing.assert_allclose(h, theirs[:, -1], atol=1e-5)
    assert not np.asarray(outputs)[~mask].any()


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_padding_changes_nothing_and_gets_no_gradient(kind, rng):
    model = kind(INPUTS, FEATURES, rngs=nnx.Rngs(1))
    x = jnp.asarray(rng.standard_normal((BATCH, STEPS, INPUTS)), jnp.float32)
    mask = np.arange(STEPS) < np.array([[STEPS], [2], [0]])

    @jax.jit
    def run(model, x, mask):
        def loss(x):
            outputs, last = model(x, mask)
            return (outputs**2).sum() + (last[0] ** 3).sum(), (outputs, last)

        (_, (outputs, last)), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        # The one-step form over the two words of the second example.
        state = model.start(BATCH)
        for t in range(2):
            state = model.step(x[:, t], state)
        return outputs, last, gradient, state

    outputs, last, gradient, state = run(model, x, mask)
    for whole, stepwise in zip(last, state, strict=True):
        np.testing.assert_allclose(whole[1], stepwise[1], atol=1e-6)
        assert not whole[2].any()
    np.testing.assert_array_equal(outputs[1, 1:], np.tile(outputs[1, 1], (STEPS - 1, 1)))
    assert not np.asarray(gradient)[~mask].any()
    assert np.asarray(gradient)[mask].all()


def test_half_precision_keeps_the_cell_in_full(rng):
    model = LSTM(INPUTS, FEATURES, rngs=nnx.Rngs(1))
    x = jnp.asarray(rng.standard_normal((BATCH, STEPS, INPUTS)), jnp.bfloat16)

    @jax.jit
    def run(model, x):
        def loss(model):
            outputs, state = model(x)
            return outputs.astype(jnp.float32).sum(), (outputs, state)

        gradient, (outputs, state) = jax.grad(loss, has_aux=True)(model)
        return outputs, state, gradient, model(x.astype(jnp.float32))[0]

    outputs, (h, c), gradient, full = run(model, x)
    assert (outputs.dtype, h.dtype, c.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(outputs.astype(jnp.float32), full, atol=0.02)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradient))
