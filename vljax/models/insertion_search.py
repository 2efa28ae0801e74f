"""Decoding with the insertion decoder: sampling, beam search, and the best order of a sequence.

Each is one compiled program: a loop over steps with the keys and values of earlier steps kept, that
ends as soon as every sequence has ended. Temperature, top-k, top-p and the length penalty are
traced; the length and the number of beams are static.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.models.insertion_decoder import END, PAD, START, InsertionDecoder
from vljax.ops.insertion import insert, movable, steps_of, successors


class Written(NamedTuple):
    """Sequences written, best first where there are several.

    Attributes:
        tokens: framed (start mark, words, end mark, padding), in natural order.
        order: `order[t]` is the place of what step t wrote; framed likewise.
        log_prob: log p(y, z | x).
        finished: whether the end mark was written before the room ended.
    """

    tokens: Int[Array, "b k n"]
    order: Int[Array, "b k n"]
    log_prob: Float[Array, "b k"]
    finished: Bool[Array, "b k"]


def truncated(
    log_probs: Float[Array, "*b v"], top_k: int | Int[Array, ""], top_p: float | Float[Array, ""]
) -> Bool[Array, "*b v"]:
    """Marks the `top_k` most probable entries (0 for all), and of those the fewest that hold top_p.

    Fan et al., "Hierarchical Neural Story Generation" (2018); Holtzman et al., "The Curious Case of
    Neural Text Degeneration" (2020). The most probable entry is always among them.
    """
    size = log_probs.shape[-1]
    falling = jnp.argsort(-log_probs, axis=-1)
    k = jnp.where(jnp.asarray(top_k) > 0, top_k, size)
    kept = jnp.arange(size) < k
    sorted_log_probs = jnp.take_along_axis(log_probs, falling, axis=-1)
    share = jax.nn.softmax(jnp.where(kept, sorted_log_probs, -jnp.inf), axis=-1)
    kept &= (jnp.cumsum(share, axis=-1) - share < top_p).at[..., 0].set(True)
    # By rank, not by comparing probabilities, which a compiler may round in two ways.
    return jnp.take_along_axis(kept, jnp.argsort(falling, axis=-1), axis=-1)


def sample(
    decoder: InsertionDecoder,
    batch: Mapping[str, Array],
    length: int,
    keys: Key[Array, " b"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] = 0,
    top_p: float | Float[Array, ""] = 1.0,
) -> Written:
    """One sequence for every source, words and slots drawn step by step.

    Args:
        decoder: The decoder.
        batch: The source, as `SourceEncoder` takes it.
        length: Room, marks included; static. A sequence that does not end in it is cut.
        keys: One per source; a result depends on its own only.
        temperature: Of words and slots; 0 takes the most probable ones (greedy decoding).
        top_k: See `truncated`; of words and slots.
        top_p: Likewise.

    Returns:
        `Written` with k = 1. Its `log_prob` is the decoder's own, untempered and untruncated.
    """
    contexts = decoder.encode(batch)
    (rows,) = keys.shape
    temperature = jnp.asarray(temperature, jnp.float32)

    def draw(log_probs: Array, step: Array, use: int) -> Array:
        """Gumbel's maximum, scaled so that a temperature of 0 needs no case of its own."""
        at = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, step), use))(keys)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, log_probs.shape[1:]))(at)
        allowed = truncated(log_probs / jnp.maximum(temperature, 1e-6), top_k, top_p)
        return jnp.argmax(
            jnp.where(allowed, log_probs + temperature * noise, -jnp.inf), axis=-1
        ).astype(jnp.int32)

    def body(state: dict[str, Any]) -> dict[str, Any]:
        step, ranks = state["step"], state["ranks"]
        relation = _relation(ranks, step)
        word = jnp.take(state["tokens"], step, axis=1)
        x, cache = decoder.step(word, relation, state["cache"], step, contexts)
        words = decoder.word_log_probs(x)
        new = draw(words, step, 0)
        ends = state["finished"] | (new == END)
        slots = decoder.slot_log_probs(x, new[:, None], cache, step, _successors(ranks, step))
        slots = slots[:, 0]
        slot = draw(slots, step, 1)
        gained = _pick(words, new) + jnp.where(ends, 0, _pick(slots, slot))
        slot = jnp.where(ends, _last(ranks, step), slot)
        new = jnp.where(state["finished"], PAD, new)
        return {
            "step": step + 1,
            "tokens": state["tokens"].at[:, step + 1].set(new),
            "ranks": insert(ranks, slot, step + 1),
            "cache": cache,
            "log_prob": state["log_prob"] + jnp.where(state["finished"], 0, gained),
            "finished": ends,
        }

    state: dict[str, Any] = lax.while_loop(
        lambda state: (state["step"] < length - 1) & ~state["finished"].all(),
        body,
        {
            "step": jnp.zeros((), jnp.int32),
            "tokens": jnp.full((rows, length), PAD, jnp.int32).at[:, 0].set(START),
            "ranks": jnp.zeros((rows, length), jnp.int32),
            "cache": decoder.start(rows, length - 1),
            "log_prob": jnp.zeros(rows),
            "finished": jnp.zeros(rows, bool),
        },
    )
    order = _complete(state["ranks"], state["step"])
    return Written(
        _natural(state["tokens"], order)[:, None],
        order[:, None],
        state["log_prob"][:, None],
        state["finished"][:, None],
    )


def beam_search(
    decoder: InsertionDecoder,
    batch: Mapping[str, Array],
    length: int,
    beams: int,
    *,
    length_penalty: float | Float[Array, ""] = 0.0,
) -> Written:
    """The sequences and orders of highest probability that a beam finds.

    A candidate is a word, one of the `beams` best, with a slot. Sequences that differ only in their
    order compete, as in InDIGO.

    Args:
        decoder: The decoder.
        batch: The source, as `SourceEncoder` takes it.
        length: Room, marks included; static.
        beams: Number of beams; static.
        length_penalty: The exponent α of Wu et al. (2016), equation 14, by which the results are
            ranked; 0 ranks by probability.

    Returns:
        `Written` with k = `beams`.
    """
    contexts = decoder.encode(batch)
    rows = contexts[0].mask.shape[0]
    room = length - 1
    worst = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)

    def body(state: dict[str, Any]) -> dict[str, Any]:
        step, ranks, ended = state["step"], state["ranks"], state["finished"]
        flat = ranks.reshape(rows * beams, length)
        word = jnp.take(state["tokens"], step, axis=2).reshape(-1)
        x, cache = decoder.step(word, _relation(flat, step), state["cache"], step, contexts)
        log_words = decoder.word_log_probs(x)
        candidates = min(beams, log_words.shape[-1])
        gain, words = lax.top_k(log_words, candidates)
        slots = decoder.slot_log_probs(x, words, cache, step, _successors(flat, step))
        last = _last(flat, step)[:, None, None] == jnp.arange(room)
        end = (words == END)[..., None]
        slots = jnp.where(end, jnp.where(last, 0.0, -jnp.inf), slots)
        # What has ended goes on in one way.
        over = ended.reshape(-1, 1)
        words = jnp.where(over, PAD, words)
        gain = jnp.where(over, jnp.where(jnp.arange(candidates) == 0, 0.0, -jnp.inf), gain)
        slots = jnp.where(over[..., None], jnp.where(last, 0.0, -jnp.inf), slots)

        joint = state["log_prob"].reshape(-1, 1, 1) + gain[..., None] + slots
        log_prob, chosen = lax.top_k(joint.reshape(rows, -1), beams)
        parent, rest = chosen // (candidates * room), chosen % (candidates * room)
        new = jnp.take_along_axis(
            words.reshape(rows, -1), parent * candidates + rest // room, axis=1
        )
        slot = rest % room
        tokens = _follow(state["tokens"], parent)
        return {
            "step": step + 1,
            "tokens": tokens.at[:, :, step + 1].set(new),
            "ranks": insert(_follow(ranks, parent), slot, step + 1),
            "cache": _follow_cache(cache, parent),
            "log_prob": log_prob,
            "finished": _follow(ended, parent) | (new == END),
        }

    state: dict[str, Any] = lax.while_loop(
        lambda state: (state["step"] < room) & ~state["finished"].all(),
        body,
        {
            "step": jnp.zeros((), jnp.int32),
            "tokens": jnp.full((rows, beams, length), PAD, jnp.int32).at[..., 0].set(START),
            "ranks": jnp.zeros((rows, beams, length), jnp.int32),
            "cache": decoder.start(rows * beams, room),
            "log_prob": jnp.broadcast_to(worst, (rows, beams)),
            "finished": jnp.zeros((rows, beams), bool),
        },
    )
    order = _complete(state["ranks"], state["step"])
    written = Written(_natural(state["tokens"], order), order, state["log_prob"], state["finished"])
    count = (written.tokens != PAD).sum(-1) - 1
    ranking = written.log_prob / ((5.0 + count) / 6.0) ** length_penalty
    best = jnp.argsort(-ranking, axis=-1)
    return Written(*(_follow(field, best) for field in written))


def search_order(decoder: InsertionDecoder, batch: Mapping[str, Array], beams: int = 1) -> Written:
    """The most probable orders of given targets that a beam finds.

    This is InDIGO's Searched Adaptive Order (Gu et al. 2019, section 4.2), and how VOI's decoder
    itself would have written a fixed sequence (thesis, section 3.6.3). One step after the other, it
    takes as many passes of the decoder as the target has words.

    Args:
        decoder: The decoder.
        batch: `target` and `target_mask`, framed, and the source.
        beams: Number of beams; static.

    Returns:
        `Written` with k = `beams`.
    """
    contexts = decoder.encode(batch)
    target, mask = batch["target"], batch["target_mask"]
    rows, n = target.shape
    words = movable(mask)
    place = jnp.arange(n)
    words_again = jnp.repeat(target, beams, axis=0)
    worst = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)

    def body(step: Array, state: dict[str, Any]) -> dict[str, Any]:
        order, left = state["order"], state["left"]
        flat = order.reshape(rows * beams, n)
        at = jnp.take(flat, step, axis=1)
        relation = jnp.sign(at[:, None] - flat[:, :-1])
        word = jnp.take_along_axis(words_again, at[:, None], axis=1)[:, 0]
        x, cache = decoder.step(word, relation, state["cache"], step, contexts)

        gain = jnp.take_along_axis(decoder.word_log_probs(x), words_again, axis=1)
        ends = jnp.where(words_again == END, gain, 0).reshape(rows, beams, n)
        sides = decoder.side_log_probs(x, words_again, cache, step)
        written = (jnp.arange(n - 1) <= step)[None, None]
        earlier = flat[:, None, :-1]
        before = jnp.where(written & (earlier < place[:, None]), earlier, -1).argmax(-1)
        after = jnp.where(written & (earlier > place[:, None]), earlier, n).argmin(-1)
        slot = jnp.logaddexp(
            jnp.take_along_axis(sides[..., 0], before[..., None], axis=-1)[..., 0],
            jnp.take_along_axis(sides[..., 1], after[..., None], axis=-1)[..., 0],
        )
        gain = (gain + slot).reshape(rows, beams, n)
        # After the last word only the end mark, then padding, each where it stands.
        following = jnp.where(left.any(-1, keepdims=True), left, place == step + 1)
        gain = jnp.where(words[:, None], gain, ends)
        joint = state["log_prob"][..., None] + jnp.where(following, gain, -jnp.inf)
        log_prob, chosen = lax.top_k(joint.reshape(rows, -1), beams)
        parent, new = chosen // n, chosen % n
        return {
            "order": _follow(order, parent).at[:, :, step + 1].set(new),
            "left": _follow(left, parent) & (place != new[..., None]),
            "cache": _follow_cache(cache, parent),
            "log_prob": log_prob,
        }

    state: dict[str, Any] = lax.fori_loop(
        0,
        n - 1,
        body,
        {
            "order": jnp.zeros((rows, beams, n), jnp.int32),
            "left": jnp.broadcast_to(words[:, None], (rows, beams, n)),
            "cache": decoder.start(rows * beams, n - 1),
            "log_prob": jnp.broadcast_to(worst, (rows, beams)),
        },
    )
    tokens = jnp.broadcast_to(target[:, None], (rows, beams, n))
    finished = jnp.isfinite(state["log_prob"])
    # With fewer orders than beams the others repeat the best one.
    order = jnp.where(finished[..., None], state["order"], state["order"][:, :1])
    return Written(tokens, order, state["log_prob"], finished)


def _relation(ranks: Int[Array, "r n"], step: Int[Array, ""]) -> Int[Array, "r t"]:
    return jnp.sign(jnp.take(ranks, step, axis=1)[:, None] - ranks[:, :-1])


def _successors(ranks: Int[Array, "r n"], step: Int[Array, ""]) -> Int[Array, "r t"]:
    """The right neighbours among what has been written; no step follows the last one's end mark."""
    return successors(ranks, step + 1)[:, :-1]


def _last(ranks: Int[Array, "r n"], step: Int[Array, ""]) -> Int[Array, " r"]:
    """The step whose word stands last."""
    written = jnp.arange(ranks.shape[1]) <= step
    return jnp.argmax(jnp.where(written, ranks, -1), axis=-1).astype(jnp.int32)


def _complete(ranks: Int[Array, "*b n"], step: Int[Array, ""]) -> Int[Array, "*b n"]:
    """The order: ranks where something was written, and padding in its place."""
    steps = jnp.arange(ranks.shape[-1])
    return jnp.where(steps <= step, ranks, steps)


def _natural(written: Int[Array, "*b n"], order: Int[Array, "*b n"]) -> Int[Array, "*b n"]:
    return jnp.take_along_axis(written, steps_of(order), axis=-1)


def _pick(values: Float[Array, "r v"], index: Int[Array, " r"]) -> Float[Array, " r"]:
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def _follow(values: Array, parent: Int[Array, "b k"]) -> Array:
    """The beams' values [b, k, …] in the order of `parent`."""
    return jnp.take_along_axis(
        values, parent.reshape(*parent.shape, *([1] * (values.ndim - 2))), axis=1
    )


def _follow_cache(cache: Any, parent: Int[Array, "b k"]) -> Any:
    def follow(values: Array) -> Array:
        beams = values.reshape(*parent.shape, *values.shape[1:])
        return _follow(beams, parent).reshape(values.shape)

    return jax.tree.map(follow, cache)
