"""PJ-X's explainer at its published size, batch 64, features made once; torch in the same run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vljax.models.explainer import Encoded, Explainer, explanation_loss

pytestmark = pytest.mark.benchmark

BATCH, SIDE, STEPS, FEATURES, ANSWERS, WORDS = 64, 14, 36, 2048, 3000, 8247
RATE = 7e-4


@pytest.fixture(scope="module")
def ours():
    return Explainer(
        answers=ANSWERS,
        words=WORDS,
        channels=FEATURES,
        features=FEATURES,
        hidden=512,
        embedding=300,
        decoder_features=(2048, 1024),
        attended="raw",
        decoder="double",
        dropout_rate=0.0,
        rngs=nnx.Rngs(0),
    )


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def theirs(torch):
    """The same network of torch's own layers."""

    class Peer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear = torch.nn.Linear
            self.answer = torch.nn.Embedding(ANSWERS, 300)
            self.answer2 = linear(300, FEATURES)
            self.joint = linear(FEATURES, FEATURES)
            self.hidden, self.score = linear(FEATURES, 512), linear(512, 1)
            self.seen, self.question = linear(FEATURES, FEATURES), linear(FEATURES, FEATURES)
            self.word = torch.nn.Embedding(WORDS, 300)
            self.lstm1 = torch.nn.LSTM(300, 2048, batch_first=True)
            self.lstm2 = torch.nn.LSTM(2048, 1024, batch_first=True)
            self.out = linear(1024, WORDS)

        def root(self, x):
            return torch.sign(x) * torch.sqrt(torch.abs(x) + 1e-9)

        def forward(self, features, joint, question, answers, words):
            a = self.answer2(torch.tanh(self.answer(answers)))
            fused = self.root(self.joint(joint) * a[:, None])
            fused = fused / (fused.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
            scores = self.score(torch.relu(self.hidden(fused)))[..., 0]
            seen = torch.einsum("bp,bpc->bc", torch.softmax(scores, 1), features)
            cause = self.seen(seen) * self.question(question) * a
            h, _ = self.lstm1(torch.tanh(self.word(words)))
            h = torch.nn.functional.normalize(self.root(h * cause[:, None]), dim=-1)
            return self.out(self.lstm2(h)[0])

    return Peer()


def inputs():
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((BATCH, SIDE * SIDE, FEATURES), np.float32) for _ in range(2)]
    question = rng.standard_normal((BATCH, FEATURES), np.float32)
    answers = rng.integers(0, ANSWERS, BATCH)
    words = rng.integers(0, WORDS, (BATCH, STEPS + 1))
    return *maps, question, answers, words


def test_a_training_step(ours, theirs, torch, milliseconds):
    """Forward, backward and Adam; the answering model's maps are given."""
    features, joint, question, answers, words = inputs()
    maps = [jnp.asarray(m.reshape(BATCH, SIDE, SIDE, -1)) for m in (features, joint)]
    encoded = Encoded(maps[0], maps[0], maps[1], jnp.asarray(question))
    batch = {"answer": answers, "read": words[:, :-1], "written": words[:, 1:]}
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(model, state, encoded, batch):
        loss, gradient = jax.value_and_grad(explanation_loss)(model, encoded, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(model, updates), state, loss

    state = jax.jit(optimizer.init)(ours)

    def mine():
        return jax.block_until_ready(step(ours, state, encoded, batch))

    adam = torch.optim.Adam(theirs.parameters(), lr=RATE)
    given = [torch.from_numpy(a) for a in (features, joint, question, answers, words[:, :-1])]
    wanted = torch.from_numpy(words[:, 1:]).flatten()

    def peers():
        adam.zero_grad()
        logits = theirs(*given).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, wanted).backward()
        adam.step()

    assert np.isfinite(mine()[2])
    our_time, their_time = milliseconds(3, mine, peers)
    ratio = our_time / their_time
    print(f"\ntraining step: {our_time:.0f} ms, torch {their_time:.0f} ms, ratio {ratio:.2f}")
    assert ratio <= 1.0


def test_a_step_of_the_decoder(ours, theirs, torch, milliseconds):
    """A word more of 64 justifications, the next one's probabilities included."""
    _, _, question, _, words = inputs()
    cause, token = jnp.asarray(question), jnp.asarray(words[:, 0])
    cache = ours.start(cause)
    step = jax.jit(lambda model, cache, token: model.step(cache, token))

    def mine():
        return jax.block_until_ready(step(ours, cache, token))

    x, product = torch.from_numpy(words[:, :1]), torch.from_numpy(question)[:, None]
    states = [[torch.zeros(1, BATCH, size)] * 2 for size in (2048, 1024)]

    @torch.no_grad()
    def peers():
        h, _ = theirs.lstm1(torch.tanh(theirs.word(x)), states[0])
        h = torch.nn.functional.normalize(theirs.root(h * product), dim=-1)
        return torch.log_softmax(theirs.out(theirs.lstm2(h, states[1])[0]), -1)

    assert mine()[0].shape == peers()[:, 0].shape
    our_time, their_time = milliseconds(15, mine, peers)
    ratio = our_time / their_time
    print(f"\ndecoder step: {our_time:.1f} ms, torch {their_time:.1f} ms, ratio {ratio:.2f}")
    assert ratio <= 1.0
