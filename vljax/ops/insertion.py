"""Insertion orders: between absolute positions, slots and relative labels.

A sequence of n tokens is written by inserting one token after the other. Step 0 writes the start
mark; step t > 0 picks one of the t slots, each right of a token written before. Three forms of the
same thing (thesis, section 3.3; Gu et al., "Insertion-based Decoding with automatically Inferred
Generation Order", 2019, section 3):

- `order[t]`: the place in the finished sequence of what step t writes, the z of the thesis;
- `slots[t]`: the earlier step to whose right step t inserts, the r of the thesis;
- `ranks[t]`: the place of step t's token among those written so far.

Two tokens once written keep their relation whatever comes between them, so the labels −1, 0 and 1
of `relations` describe every partial sequence at once.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


def relations(order: Int[Array, "*b n"]) -> Int[Array, "*b n n"]:
    """Labels [i, j]: 1 where step i writes right of step j, −1 where left of it, 0 for i = j."""
    return jnp.sign(order[..., :, None] - order[..., None, :])


def neighbours(order: Int[Array, "*b n"]) -> tuple[Int[Array, "*b n"], Int[Array, "*b n"]]:
    """The earlier steps whose tokens enclose the token of each step.

    Args:
        order: places in the finished sequence; those written first need not be the leftmost.

    Returns:
        The step left of it, which is `slots`, and the step right of it. Where there is none it is
        step 0, as if the sequence were a ring closed by the start mark.
    """
    n = order.shape[-1]
    earlier = jnp.tri(n, k=-1, dtype=bool)
    place = order[..., None, :]
    left = earlier & (place < order[..., :, None])
    right = earlier & (place > order[..., :, None])
    last = jnp.argmax(jnp.where(left, place, -1), axis=-1)
    first = jnp.argmin(jnp.where(right, place, n), axis=-1)
    # argmax and argmin give 0 where every entry is filled in.
    return last.astype(jnp.int32), first.astype(jnp.int32)


def insert(
    ranks: Int[Array, "*b n"], slot: Int[Array, "*b"], step: int | Int[Array, ""]
) -> Int[Array, "*b n"]:
    """Writes the token of one step: later ranks move up, the new one gets its own.

    Args:
        ranks: ranks of steps 0 … step − 1; those from `step` on do not count.
        slot: the earlier step to whose right the token goes.
        step: the step that writes, 1 or more.
    """
    steps = jnp.arange(ranks.shape[-1])
    before = jnp.take_along_axis(ranks, slot[..., None], axis=-1)
    moved = ranks + ((ranks > before) & (steps < step))
    return jnp.where(steps == step, before + 1, moved)


def successors(ranks: Int[Array, "*b n"], count: int | Int[Array, ""]) -> Int[Array, "*b n"]:
    """The step whose token stands right of each of the first `count` steps'; the last one's is 0.

    It closes the ring as `neighbours` does. Entries from `count` on have no meaning.
    """
    steps = jnp.arange(ranks.shape[-1])
    written = steps < count
    follows = (ranks[..., None, :] == ranks[..., :, None] + 1) & written
    return jnp.argmax(follows, axis=-1).astype(jnp.int32)


def order_from_slots(slots: Int[Array, "*b n"]) -> Int[Array, "*b n"]:
    """Inverse of `neighbours(order)[0]`: the places in the finished sequence."""
    n = slots.shape[-1]

    def write(step: Int[Array, ""], ranks: Array) -> Array:
        return insert(ranks, jnp.take(slots, step, axis=-1), step)

    return lax.fori_loop(1, n, write, jnp.zeros(slots.shape, jnp.int32))


def in_order(values: Int[Array, "*b n"], order: Int[Array, "*b n"]) -> Int[Array, "*b n"]:
    """A sequence's values in the order of writing: result[t] = values[order[t]]."""
    return jnp.take_along_axis(values, order, axis=-1)


def steps_of(order: Int[Array, "*b n"]) -> Int[Array, "*b n"]:
    """The inverse permutation: the step that writes each place."""
    return jnp.argsort(order, axis=-1).astype(jnp.int32)


def movable(tokens_mask: Bool[Array, "*b n"]) -> Bool[Array, "*b n"]:
    """True for the tokens between the start and the end mark of a framed, padded sequence.

    Args:
        tokens_mask: True for the start mark, the tokens and the end mark; padding follows.
    """
    following = jnp.pad(tokens_mask[..., 1:], [(0, 0)] * (tokens_mask.ndim - 1) + [(0, 1)])
    return (tokens_mask & following).at[..., 0].set(False)
