"""The insertion decoder and its searches against enumeration."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.marks import END, PAD, START
from vljax.models.insertion_decoder import InsertionDecoder
from vljax.models.insertion_search import beam_search, sample, search_order
from vljax.ops.insertion import order_from_slots

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOM = 6
WORDS = (3, 4, 5)  # the vocabulary beside padding and marks


@functools.lru_cache
def model():
    return InsertionDecoder(6, 0, layers=1, features=16, heads=2, hidden=16, rngs=nnx.Rngs(0))


def source(rows):
    """Sources of every length from none."""
    length = np.arange(rows) % 4
    mask = np.arange(3)[None] < length[:, None]
    words = np.random.default_rng(0).integers(3, 6, (rows, 3))
    return {"source": np.where(mask, words, 0).astype(np.int32), "source_mask": mask}


def framed(*sequences):
    """Targets between their marks, padded to `ROOM`."""
    target = np.zeros((len(sequences), ROOM), np.int32)
    for row, words in zip(target, sequences, strict=True):
        row[: len(words) + 2] = [START, *words, END]
    mask = np.arange(ROOM)[None] < [[len(words) + 2] for words in sequences]
    return {"target": target, "target_mask": mask}


def framed_order(permutation):
    n = len(permutation)
    return [0, *(p + 1 for p in permutation), *range(n + 1, ROOM)]


@functools.lru_cache
def scorer():
    @jax.jit
    def compiled(model, batch, orders):
        scores = model.scores(batch, orders)
        return scores.log_prob(), scores.smoothed(0.1), scores

    return functools.partial(compiled, model())


@functools.lru_cache
def stepper():
    """Log p of every word, and of every slot for every word, after a partial sequence."""

    @jax.jit
    def compiled(model, batch, words, slots, count):
        contexts = model.encode(batch)
        order = order_from_slots(slots)
        steps = jnp.arange(ROOM)
        # Slots of steps not yet taken are void: ranks among the first `count` steps.
        ranks = (order[:, None] < order[:, :, None]) & (steps < count)
        ranks = ranks.sum(-1)
        cache, x = model.start(len(words), ROOM - 1), jnp.zeros((len(words), 16))

        def body(step, carry):
            cache, x = carry
            relation = jnp.sign(jnp.take(ranks, step, axis=1)[:, None] - ranks[:, :-1])
            x, cache = model.step(jnp.take(words, step, axis=1), relation, cache, step, contexts)
            return cache, x

        cache, x = jax.lax.fori_loop(0, count, body, (cache, x))
        follows = (ranks[:, None, :] == ranks[:, :, None] + 1) & (steps < count)
        candidates = jnp.broadcast_to(jnp.arange(6), (len(words), 6))
        slots = model.slot_log_probs(x, candidates, cache, count - 1, follows.argmax(-1)[:, :-1])
        return model.word_log_probs(x), slots

    return lambda *args: tuple(map(np.asarray, compiled(model(), *args)))


@functools.lru_cache
def enumeration(length):
    """Every way to write, up to `length` words, for the source of row 3: {(words, slots): log p}.

    A way is the words in the order of writing and the slot of each; the end mark closes it. Also
    returned: the log p of every way of `length` words before it is closed.
    """
    batch = {name: value[3:] for name, value in source(4).items()}
    closed, open_ways = {}, {((START,), (0,)): 0.0}
    for count in range(1, length + 2):
        ways = list(open_ways)
        rows = 3 ** (length) * 24 if len(ways) > 81 else 81
        words, slots = np.zeros((2, rows, ROOM), np.int32)
        for row, (way_words, way_slots) in enumerate(ways):
            words[row, :count], slots[row, :count] = way_words, way_slots
        assert len(ways) <= rows
        word_log_prob, slot_log_prob = stepper()(batch, words, slots, count)
        further = {}
        for row, way in enumerate(ways):
            closed[way] = open_ways[way] + word_log_prob[row, END]
            for word, slot in itertools.product(WORDS, range(count)):
                gain = word_log_prob[row, word] + slot_log_prob[row, word, slot]
                further[(*way[0], word), (*way[1], slot)] = open_ways[way] + gain
        last, open_ways = open_ways, further
    return closed, last


def sequence(words, slots):
    written = [0]
    for step, slot in enumerate(slots[1:], 1):
        written.insert(written.index(slot) + 1, step)
    return tuple(words[step] for step in written[1:])


def test_the_probabilities_of_all_ways_to_write_sum_to_one():
    closed, _ = enumeration(2)
    _, reached = enumeration(2)
    shorter = sum(np.exp(p) for (words, _), p in closed.items() if len(words) < 3)
    np.testing.assert_allclose(shorter + sum(map(np.exp, reached.values())), 1, atol=1e-5)


@pytest.mark.parametrize("target", [(3, 4, 5, 4), (5, 5, 5, 5)])
def test_all_orders_of_four_words_sum_to_all_ways_to_write_them(target):
    orders = np.array([framed_order(p) for p in itertools.permutations(range(4))], np.int32)
    batch = {name: value[3:] for name, value in source(4).items()} | framed(target)
    found = np.asarray(scorer()(batch, orders[None])[0][0])
    # Brute force over words and slots: only ways whose words are those of the target can end in it.
    total, ways = -np.inf, [((START,), (0,), 0.0)]
    for count in range(1, 6):
        words, slots = np.zeros((2, 24 * 24, ROOM), np.int32)
        assert len(ways) <= len(words)
        for row, (way_words, way_slots, _) in enumerate(ways):
            words[row, :count], slots[row, :count] = way_words, way_slots
        word_log_prob, slot_log_prob = stepper()(
            {name: value[3:] for name, value in source(4).items()}, words, slots, count
        )
        further = []
        for row, (way_words, way_slots, log_prob) in enumerate(ways):
            if count == 5:
                if sequence(way_words, way_slots) == target:
                    total = np.logaddexp(total, log_prob + word_log_prob[row, END])
                continue
            for word in set(target):
                if way_words.count(word) < target.count(word):
                    for slot in range(count):
                        gain = word_log_prob[row, word] + slot_log_prob[row, word, slot]
                        further.append(((*way_words, word), (*way_slots, slot), log_prob + gain))
        ways = further if count == 5 else [w for w in further if _can_become(w, target)]
    np.testing.assert_allclose(np.logaddexp.reduce(found), total, atol=1e-4)


def _can_become(way, target):
    """Whether the words written so far are a subsequence of the target."""
    rest = iter(target)
    return all(word in rest for word in sequence(*way[:2]))


def test_padding_and_later_words_change_nothing():
    targets = ((3, 4, 5), (4,), ())
    orders = np.array([[framed_order(p), framed_order(p[::-1])] for p in ((1, 2, 0), (0,), ())])
    batch = source(4) | framed(*targets, (5, 5))
    batch = {name: value[:3] for name, value in batch.items()}
    log_prob, _, scores = scorer()(batch, orders)
    spoilt = {name: np.array(value) for name, value in batch.items()}
    spoilt["target"][~batch["target_mask"]] = 5
    spoilt["source"][~batch["source_mask"]] = 5
    np.testing.assert_allclose(scorer()(spoilt, orders)[0], log_prob, atol=1e-5)
    # A change of the word written last leaves the scores of the steps before it.
    spoilt = {name: np.array(value) for name, value in batch.items()}
    spoilt["target"][0, orders[0, 0, 3]] = 5
    changed = scorer()(spoilt, orders)[2]
    np.testing.assert_allclose(changed.word[0, 0, :2], scores.word[0, 0, :2], atol=1e-5)
    np.testing.assert_allclose(changed.slot[0, 0, :2], scores.slot[0, 0, :2], atol=1e-5)
    assert np.abs(changed.word[0, 0, 2] - scores.word[0, 0, 2]) > 1e-4


def test_label_smoothing_mixes_in_all_words_that_may_be_written():
    batch = {name: value[:1] for name, value in source(4).items()} | framed((3, 4))
    orders = np.array([[framed_order((1, 0))]])
    log_prob, smoothed, scores = scorer()(batch, orders)
    # END, 3, 4, 5 at every step: the mean of log p is below that of a certain word.
    difference = 0.1 * (scores.spread - scores.word)[0, 0, :3].sum()
    np.testing.assert_allclose(smoothed[0, 0] - log_prob[0, 0], difference, atol=1e-5)
    assert (scores.spread <= -np.log(4) + 1e-6).all()


# Searches ------------------------------------------------------------------------------------


@functools.lru_cache
def drawn():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def compiled(model, batch, keys, temperature, top_k, top_p):
        return sample(model, batch, ROOM, keys, temperature=temperature, top_k=top_k, top_p=top_p)

    return compiled


def draw(batch, seed, temperature=1.0, top_k=0, top_p=1.0):
    keys = jax.random.split(jax.random.key(seed), len(batch["source"]))
    limits = (np.float32(temperature), np.int32(top_k), np.float32(top_p))
    return drawn()(model(), batch, keys, *limits)


def scores_again(batch, written):
    """Teacher forcing on what a search wrote: log p, for the sequences that ended."""
    k = written.tokens.shape[1]
    again = {name: np.repeat(value, k, axis=0) for name, value in batch.items()}
    tokens = np.asarray(written.tokens).reshape(-1, ROOM)
    again |= {"target": tokens, "target_mask": tokens != PAD}
    order = np.asarray(written.order).reshape(-1, 1, ROOM)
    return np.asarray(scorer()(again, order)[0]).reshape(-1, k)


def test_what_is_sampled_has_the_probability_of_teacher_forcing():
    batch = source(64)
    written = draw(batch, seed=0)
    done = np.asarray(written.finished)
    assert done.sum() > 10
    np.testing.assert_allclose(
        scores_again(batch, written)[done], np.asarray(written.log_prob)[done], atol=1e-4
    )
    tokens, order = np.asarray(written.tokens[:, 0]), np.asarray(written.order[:, 0])
    np.testing.assert_array_equal(np.sort(order, -1), [range(ROOM)] * 64)
    lengths = (tokens != PAD).sum(-1)
    for row in np.flatnonzero(done[:, 0]):
        assert tokens[row, 0] == START
        assert tokens[row, lengths[row] - 1] == END
        assert set(tokens[row, 1 : lengths[row] - 1]) <= set(WORDS)
    # Not written from left to right only.
    assert any(
        (np.diff(row[:length]) < 0).any() for row, length in zip(order, lengths, strict=True)
    )


def test_samples_follow_the_model():
    """Frequencies of the first word and of ending at once, by a χ² test."""
    batch = {name: np.repeat(value[3:], 64, axis=0) for name, value in source(4).items()}
    firsts = []
    for seed in range(20):
        written = draw(batch, seed=seed)
        order = np.asarray(written.order[:, 0])
        firsts += list(np.take_along_axis(np.asarray(written.tokens[:, 0]), order, 1)[:, 1])
    way = np.zeros((81, ROOM), np.int32)
    way[:, 0] = START
    expected = np.exp(stepper()({n: v[3:] for n, v in source(4).items()}, way, way * 0, 1)[0][0])
    counts = np.bincount(firsts, minlength=6)[END:]
    expected = expected[END:] * len(firsts)
    # 3 degrees of freedom: 16.27 is exceeded once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 16.27


def test_greedy_is_temperature_zero_and_one_candidate():
    batch = source(64)
    greedy, again = draw(batch, 0, temperature=0.0), draw(batch, 1, temperature=0.0)
    np.testing.assert_array_equal(greedy.tokens, again.tokens)
    np.testing.assert_array_equal(draw(batch, 2, top_k=1).order, greedy.order)
    np.testing.assert_array_equal(draw(batch, 3, top_p=0.0).tokens, greedy.tokens)


def test_a_wide_beam_finds_the_best_of_all_ways():
    closed, _ = enumeration(2)
    batch = {name: value[3:] for name, value in source(4).items()}
    found = jax.jit(beam_search, static_argnums=(2, 3))(model(), batch, 4, 60)
    done = np.asarray(found.finished)
    expected = np.sort([p for (words, _), p in closed.items() if len(words) < 4])[::-1]
    assert (np.diff(found.log_prob[done]) <= 1e-6).all()
    np.testing.assert_allclose(found.log_prob[done][:10], expected[:10], atol=1e-4)
    words = sequence(*max(closed, key=closed.get))
    np.testing.assert_array_equal(found.tokens[0, 0, 1 : 1 + len(words)], words)
    # Teacher forcing agrees, also on the orders.
    longer = [(0, 0), (0, 0), (0, ROOM - 4)]
    order = np.concatenate([found.order, np.tile([4, 5], (1, 60, 1))], axis=-1)
    again = found._replace(tokens=np.pad(found.tokens, longer), order=order)
    np.testing.assert_allclose(
        scores_again(batch, again)[done], np.asarray(found.log_prob)[done], atol=1e-4
    )


def test_the_order_of_a_fixed_sequence():
    targets = ((3, 4, 5, 4), (5, 3), (4,), ())
    batch = source(4) | framed(*targets)
    found = jax.jit(search_order, static_argnums=2)(model(), batch, 24)
    best = np.asarray(found.order[:, 0])
    assert np.isfinite(found.log_prob[:, 0]).all()
    np.testing.assert_allclose(
        scorer()(batch, best[:, None])[0][:, 0], found.log_prob[:, 0], atol=1e-4
    )
    for row, target in enumerate(targets):
        orders = [framed_order(p) for p in itertools.permutations(range(len(target)))]
        one = {name: value[row : row + 1] for name, value in batch.items()}
        all_orders = np.array((orders * 24)[:24])[None]
        every = np.asarray(scorer()(one, all_orders)[0][0])
        np.testing.assert_allclose(found.log_prob[row, 0], every.max(), atol=1e-4)
        np.testing.assert_array_equal(best[row], all_orders[0][every.argmax()])
