"""SeMani-Trans's Transformer at 256 codes; torch in the same run. Narrow, as a CPU affords.

The published loop has no cache: for each of all codes the network reads the whole sequence so far.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models.test_token_transformer import transcription
from vljax.models.completion import complete, complete_in_parallel
from vljax.models.token_transformer import TokenTransformer

pytestmark = pytest.mark.benchmark

SIZES = {
    "features": 128,
    "layers": 4,
    "heads": 4,
    "head_channels": 32,
    "num_codes": 1024,
    "grid": 16,
    "vocabulary_size": 1000,
    "text_length": 64,
}
CODES, PASSES, BATCH = 256, 12, 4


@pytest.fixture(scope="module")
def ours():
    return TokenTransformer(**SIZES, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def theirs(torch):
    torch.manual_seed(0)
    return transcription(torch, **SIZES)


def inputs(rows):
    rng = np.random.default_rng(0)
    text = rng.integers(1, 1000, (rows, 64)).astype(np.int32)
    return text, rng.integers(0, 1024, (rows, CODES)).astype(np.int32)


def published_loop(torch, network, text, codes):
    """All codes one after the other, the growing sequence anew for each."""
    embed, places = network.image_emb, network.places()
    length, blocks = text.shape[1], network.transformer.layers.layers
    begun = torch.nn.functional.pad(text, (1, 0))
    prompt = network.text_emb(begun) + network.text_pos_emb.weight
    found = torch.zeros(len(text), 0, dtype=torch.long)
    for place in range(codes):
        x = torch.cat([prompt, embed(found) + places[:, :place]], dim=1)
        n = x.shape[1]
        mask = torch.ones(len(text), n, n).tril().bool()
        for pair in blocks:
            x = pair[1](pair[0](x, mask))
        logits = network.to_im_logits(x[:, length:])[:, -1]
        kept = torch.topk(logits, 10)
        drawn = torch.multinomial(torch.softmax(kept.values, -1), 1)
        found = torch.cat([found, kept.indices.gather(1, drawn)], dim=1)
    return found


def test_drawing(torch, ours, theirs, milliseconds):
    """Cached against the published loop, and all codes in a few passes against cached."""
    text, codes = inputs(1)
    masked = TokenTransformer(**SIZES, masked=True, rngs=nnx.Rngs(0))
    keys = jax.random.split(jax.random.key(0), 1)
    every, some = np.ones((1, CODES), bool), np.zeros((1, 16, 16), bool)
    some[:, 4:12, 4:12] = True
    some = some.reshape(1, CODES)
    raster = jax.jit(lambda model, edited: complete(model, text, codes, edited, keys, top_k=10))
    parallel = jax.jit(
        lambda model, edited: complete_in_parallel(
            model, text, codes, edited, keys, PASSES, top_k=10
        )
    )
    words = torch.from_numpy(text.astype(np.int64))

    def loop():
        with torch.no_grad():
            published_loop(torch, theirs.eval(), words, CODES)

    def draw(program, model, edited):
        return lambda: program(model, edited).codes.block_until_ready()

    took = milliseconds(
        3,
        draw(raster, ours, every),
        draw(raster, ours, some),
        draw(parallel, masked, every),
        loop,
    )
    cached, object_only, passes, uncached = took
    print(
        f"\n256 codes, {SIZES['layers']} layers of {SIZES['features']}: cached {cached:.0f} ms, "
        f"64 codes of an object {object_only:.0f} ms, {PASSES} parallel passes {passes:.0f} ms, "
        f"the published loop in torch {uncached:.0f} ms: cached is {uncached / cached:.1f} times "
        f"as fast, parallel {cached / passes:.2f} times cached, {uncached / passes:.1f} times the "
        "loop"
    )
    assert cached < uncached / 10


def test_training_step(torch, ours, theirs, milliseconds):
    """Loss, gradients and AdamW with gray pictures, half of them used."""
    text, codes = inputs(BATCH)
    gray, used = codes[::-1].copy(), np.arange(BATCH) < BATCH // 2
    optimizer = optax.adamw(1e-4)

    def loss(model):
        logits = model(text, codes, gray, used)
        pairs = ((logits.text, text), (logits.image, codes), (logits.gray, gray))
        return sum(
            optax.softmax_cross_entropy_with_integer_labels(one, labels).mean()
            for one, labels in pairs
        )

    @jax.jit
    def step(model, state):
        updates, state = optimizer.update(jax.grad(loss)(model), state, model)
        return optax.apply_updates(model, updates), state

    held = [ours, optimizer.init(ours)]

    def our_step():
        held[:] = step(*held)
        jax.block_until_ready(held[0].image_emb.weight[...])

    network = theirs.train()
    peer = torch.optim.AdamW(network.parameters(), 1e-4)
    given = [torch.from_numpy(x.astype(np.int64)) for x in (text, codes, gray)]
    uses, entropy = torch.from_numpy(used), torch.nn.functional.cross_entropy

    def their_step():
        found = network(*given, uses)
        total = sum(
            entropy(one.transpose(1, 2), labels) for one, labels in zip(found, given, strict=True)
        )
        peer.zero_grad(set_to_none=True)
        total.backward()
        peer.step()

    mine, torch_step = milliseconds(5, our_step, their_step)
    print(
        f"\ntraining step, batch {BATCH}: {mine:.0f} ms, torch {torch_step:.0f} ms, "
        f"ratio {mine / torch_step:.2f}"
    )
    assert mine <= 1.0 * torch_step
    assert jnp.isfinite(held[0].image_emb.weight[...]).all()
