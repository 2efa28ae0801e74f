"""Decoding with the insertion decoder: sampling, beam search, and the best order of a sequence.

The loops are those of `vljax.models.decoding`. A move is a word with its slot, as one number,
word × room + slot; of `search_order` it is a place of the target.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.marks import END, PAD, START
from vljax.models import decoding
from vljax.models.insertion_decoder import Cache, InsertionDecoder
from vljax.ops.insertion import insert, movable, order_from_slots, steps_of, successors


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


class Partial(NamedTuple):
    """Partial sequences, and what the decoder remembers of them.

    Attributes:
        step: the newest step; −1 before the first.
        ranks: of what the steps wrote, see `vljax.ops.insertion`.
        seen: the decoder's cache.
    """

    step: Int[Array, ""]
    ranks: Int[Array, "r n"]
    seen: Cache

    def successors(self) -> Int[Array, "r t"]:
        """The right neighbours among what is written; no step follows the last one's end mark."""
        return successors(self.ranks, self.step + 1)[:, :-1]

    def last(self) -> Int[Array, " r"]:
        """The step whose word stands last."""
        written = jnp.arange(self.ranks.shape[1]) <= self.step
        return jnp.argmax(jnp.where(written, self.ranks, -1), axis=-1).astype(jnp.int32)


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
        top_k: See `decoding.truncated`; of words and slots.
        top_p: Likewise.

    Returns:
        `Written` with k = 1. Its `log_prob` is the decoder's own, untempered and untruncated.
    """
    contexts, room = decoder.encode(batch), length - 1

    def choose(x: Array, partial: Partial, step: Array) -> tuple[Array, Array]:
        def draw(log_probs: Array, use: int) -> Array:
            at = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, step), use))(keys)
            return decoding.draw(log_probs, at, temperature, top_k, top_p)

        words = decoder.word_log_probs(x)
        word = draw(words, 0)
        slots = decoder.slot_log_probs(x, word[:, None], partial.seen, step, partial.successors())
        slots = slots[:, 0]
        slot, ends = draw(slots, 1), word == END
        gain = decoding.pick(words, word) + jnp.where(ends, 0, decoding.pick(slots, slot))
        return word * room + jnp.where(ends, partial.last(), slot), gain

    written = decoding.write(
        lambda partial, move: _read(decoder, contexts, partial, move),
        choose,
        _start(decoder, keys.shape[0], length),
        jnp.full(keys.shape, START * room),
        room,
        ends=lambda move: move // room == END,
        rest=PAD * room,
    )
    return _natural(decoding.Decoded(*(field[:, None] for field in written)))


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
        length_penalty: See `decoding.search`.

    Returns:
        `Written` with k = `beams`.
    """
    contexts, room = decoder.encode(batch), length - 1
    rows = contexts[0].mask.shape[0]

    def moves(partial: Partial, move: Array) -> tuple[Array, Array, Partial]:
        x, partial = _read(decoder, contexts, partial, move)
        log_words = decoder.word_log_probs(x)
        gain, words = lax.top_k(log_words, min(beams, log_words.shape[-1]))
        slots = decoder.slot_log_probs(x, words, partial.seen, partial.step, partial.successors())
        last = partial.last()[:, None, None] == jnp.arange(room)
        slots = jnp.where((words == END)[..., None], jnp.where(last, 0.0, -jnp.inf), slots)
        candidates = words[..., None] * room + jnp.arange(room)
        flat = (rows * beams, -1)
        return (gain[..., None] + slots).reshape(flat), candidates.reshape(flat), partial

    found = decoding.search(
        moves,
        _start(decoder, rows, length),
        jnp.full(rows, START * room),
        room,
        beams,
        ends=lambda move: move // room == END,
        rest=PAD * room,
        length_penalty=length_penalty,
    )
    return _natural(found)


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
    place = jnp.arange(n)
    words = jnp.repeat(target, beams, axis=0)
    sorts = jnp.repeat(movable(mask), beams, axis=0)

    def moves(cache: dict[str, Any], at: Array) -> tuple[Array, Array, dict[str, Any]]:
        step = cache["step"]
        order = cache["order"].at[:, step].set(at)
        left = cache["left"] & (place != at[:, None])
        relation = jnp.sign(at[:, None] - order[:, :-1])
        x, seen = decoder.step(
            jnp.take_along_axis(words, at[:, None], axis=1)[:, 0],
            relation,
            cache["seen"],
            step,
            contexts,
        )
        gain = jnp.take_along_axis(decoder.word_log_probs(x), words, axis=1)
        ends = jnp.where(words == END, gain, 0)
        sides = decoder.side_log_probs(x, words, seen, step)
        written = (jnp.arange(n - 1) <= step)[None, None]
        earlier = order[:, None, :-1]
        before = jnp.where(written & (earlier < place[:, None]), earlier, -1).argmax(-1)
        after = jnp.where(written & (earlier > place[:, None]), earlier, n).argmin(-1)
        slot = jnp.logaddexp(
            jnp.take_along_axis(sides[..., 0], before[..., None], axis=-1)[..., 0],
            jnp.take_along_axis(sides[..., 1], after[..., None], axis=-1)[..., 0],
        )
        # After the last word only the end mark, then padding, each where it stands.
        gain = jnp.where(sorts, gain + slot, ends)
        following = jnp.where(left.any(-1, keepdims=True), left, place == step + 1)
        cache = {"step": step + 1, "order": order, "left": left, "seen": seen}
        return (
            jnp.where(following, gain, -jnp.inf),
            jnp.broadcast_to(place, gain.shape),
            cache,
        )

    found = decoding.search(
        moves,
        {
            "step": jnp.zeros((), jnp.int32),
            "order": jnp.zeros((rows, n), jnp.int32),
            "left": movable(mask),
            "seen": decoder.start(rows, n - 1),
        },
        jnp.zeros(rows, jnp.int32),
        n - 1,
        beams,
        ends=lambda at: jnp.zeros_like(at, bool),
    )
    order = jnp.pad(found.tokens, [(0, 0), (0, 0), (1, 0)])  # the start mark stands first
    tokens = jnp.broadcast_to(target[:, None], (rows, beams, n))
    finished = jnp.isfinite(found.log_prob)
    # With fewer orders than beams the others repeat the best one.
    order = jnp.where(finished[..., None], order, order[:, :1])
    return Written(tokens, order, found.log_prob, finished)


def _start(decoder: InsertionDecoder, rows: int, length: int) -> Partial:
    # Right of a step whose rank is −1 the start mark gets rank 0.
    ranks = jnp.full((rows, length), -1, jnp.int32)
    return Partial(jnp.full((), -1, jnp.int32), ranks, decoder.start(rows, length - 1))


def _read(
    decoder: InsertionDecoder, contexts: Any, partial: Partial, move: Int[Array, " r"]
) -> tuple[Float[Array, "r f"], Partial]:
    """Writes a move, and the decoder reads it."""
    step, room = partial.step + 1, partial.ranks.shape[1] - 1
    ranks = insert(partial.ranks, move % room, step)
    relation = jnp.sign(jnp.take(ranks, step, axis=1)[:, None] - ranks[:, :-1])
    x, seen = decoder.step(move // room, relation, partial.seen, step, contexts)
    return x, Partial(step, ranks, seen)


def _natural(found: decoding.Decoded) -> Written:
    """What moves wrote, in natural order."""
    *rows, room = found.tokens.shape
    words = jnp.concatenate([jnp.full((*rows, 1), START), found.tokens // room], axis=-1)
    # Padding follows what was written before it.
    slots = jnp.pad(found.tokens % room, [(0, 0)] * len(rows) + [(1, 0)])
    order = order_from_slots(jnp.where(words == PAD, jnp.arange(room + 1) - 1, slots))
    tokens = jnp.take_along_axis(words, steps_of(order), axis=-1)
    return Written(tokens, order, found.log_prob, found.finished)
