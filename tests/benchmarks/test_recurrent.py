"""PJ-X's decoder, two LSTMs of 2048 and 1024 over 36 words, batch 64, against torch in one run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax import pretrained
from vljax.models.recurrent import LSTM

pytestmark = pytest.mark.benchmark

BATCH, STEPS, WORD, FIRST, SECOND = 64, 36, 300, 2048, 1024


@pytest.fixture(scope="module")
def networks(torch):
    theirs = [torch.nn.LSTM(WORD, FIRST), torch.nn.LSTM(FIRST, SECOND)]
    ours = [LSTM(WORD, FIRST, rngs=nnx.Rngs(0)), LSTM(FIRST, SECOND, rngs=nnx.Rngs(0))]
    for i, (peer, model) in enumerate(zip(theirs, ours, strict=True)):
        tensors = {n: t.detach().numpy() for n, t in peer.named_parameters()}
        ours[i] = pretrained.assign(model, LSTM.published_names(tensors), origin="torch")
    return ours, theirs


def test_a_step_of_the_decoder(networks, milliseconds, torch):
    ours, theirs = networks
    x = np.random.default_rng(0).standard_normal((BATCH, WORD), np.float32)
    states = [model.start(BATCH) for model in ours]

    @jax.jit
    def step(models, states, x):
        first = models[0].step(x, states[0])
        return first, models[1].step(first[0], states[1])

    def mine():
        return jax.block_until_ready(step(ours, states, jnp.asarray(x)))

    zeros = [[torch.zeros(1, BATCH, size)] * 2 for size in (FIRST, SECOND)]

    @torch.no_grad()
    def peers():
        h, _ = theirs[0](torch.from_numpy(x)[None], zeros[0])
        return theirs[1](h, zeros[1])[0]

    np.testing.assert_allclose(mine()[1][0], peers()[0], atol=1e-5)
    our_time, their_time = milliseconds(15, mine, peers)
    ratio = our_time / their_time
    print(f"\ndecoder step: {our_time:.1f} ms, torch {their_time:.1f} ms, ratio {ratio:.2f}")
    assert ratio <= 1.0


def test_a_training_step(networks, milliseconds, torch):
    ours, theirs = networks
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, WORD), np.float32)
    words = jnp.asarray(x.swapaxes(0, 1))

    @jax.jit
    def gradients(models, x):
        def loss(models):
            return (models[1](models[0](x)[0])[0] ** 2).sum()

        return jax.grad(loss)(models)

    def mine():
        return jax.block_until_ready(gradients(ours, words))

    parameters = [p for peer in theirs for p in peer.parameters()]

    def peers():
        h, _ = theirs[0](torch.from_numpy(x))
        return torch.autograd.grad((theirs[1](h)[0] ** 2).sum(), parameters)

    their_weight = LSTM.published_names(
        {
            name: gradient.numpy()
            for (name, _), gradient in zip(theirs[0].named_parameters(), peers(), strict=False)
        }
    )["weight_hh"]
    np.testing.assert_allclose(mine()[0].weight_hh[...].T, their_weight, rtol=1e-3, atol=1e-3)
    our_time, their_time = milliseconds(5, mine, peers)
    ratio = our_time / their_time
    print(f"\ntraining step: {our_time:.0f} ms, torch {their_time:.0f} ms, ratio {ratio:.2f}")
    assert ratio <= 1.0
