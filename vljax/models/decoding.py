"""Decoding: greedy, sampling and beam search, written once over the decoder protocol.

A decoder writes one token after the other. It has two functions (methods or closures, as you like):

- `start(...) -> cache`: what the first step needs of the source, the picture or the prompt; its
  arguments are the decoder's own affair and nothing here calls it;
- `step(cache, token) -> (log_probs, cache)`, a `Step`: reads a token of every row and predicts the
  next one.

The cache is any pytree. Its leaves have the rows as their first axis (states of an LSTM, keys and
values), or no axis at all (the number of steps so far). A beam search repeats the rows of what
`start` made, the beams of a row side by side, and reorders them as it goes. What is the same for
all beams (an encoded source) need not travel in the cache: a step may close over it and let the
r = rows × beams tokens share its rows.

```
class Captioner(nnx.Module):
    def start(self, features: Float[Array, "b f"]) -> State: ...
    def step(self, cache: State, token: Int[Array, " r"]) -> tuple[Float[Array, "r v"], State]:
        cache = self.lstm(self.embedding(token), cache)
        return jax.nn.log_softmax(self.words(cache.output)), cache

first = jnp.full(rows, START)
beam_search(model.step, model.start(features), first, length=20, beams=5, end=END).tokens[:, 0]
```

`start` reads a prompt but for its last token, which is the first that `step` gets. Tokens that
must not be written get log p of −∞ from `step`.

Each way of decoding is one compiled program: a loop that ends as soon as every sequence has.
Temperature, top-k, top-p and the length penalty are traced; lengths and beams are static.

Decoders whose move is more than a token (`vljax.models.insertion_search` chooses a word and its
slot) use the two loops beneath, `write` and `search`, where a move is any number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.errors import UserError

Cache = TypeVar("Cache")


class Step(Protocol[Cache]):
    """One step of a decoder, pure: the second half of the protocol (see the module)."""

    def __call__(
        self, cache: Cache, token: Int[Array, " r"], /
    ) -> tuple[Float[Array, "r v"], Cache]:
        """Reads a token and predicts the next.

        Args:
            cache: From `start` or from the step before.
            token: Of every row.

        Returns:
            Log p of every token that may come next (float32, summing to one; −∞ where it must
            not), and the cache with what was read.
        """
        ...


class Decoded(NamedTuple):
    """Sequences written; with beams b is [rows, beams], best first, otherwise [rows].

    Attributes:
        tokens: Tokens written, the end among them, then padding. (Of `write` and `search`: moves.)
        length: How many there are before the padding.
        log_prob: Log p of them by the decoder, whatever temperature and truncation drew them.
        finished: Whether the end was written before the room ended.
    """

    tokens: Int[Array, "*b n"]
    length: Int[Array, "*b"]
    log_prob: Float[Array, "*b"]
    finished: Bool[Array, "*b"]


def greedy(
    step: Step[Cache],
    cache: Cache,
    first: Int[Array, " b"],
    length: int,
    *,
    end: int | Int[Array, ""],
    pad: int | Int[Array, ""] = 0,
) -> Decoded:
    """The most probable token at every step.

    Args:
        step: The decoder's.
        cache: From its `start`.
        first: What the first step reads: the start mark, or the last token of a prompt.
        length: Room for tokens written; static.
        end: The token that ends a sequence; −1 for none.
        pad: What follows it.
    """

    def choose(log_probs: Array, cache: Cache, at: Array) -> tuple[Array, Array]:
        token = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
        return token, pick(log_probs, token)

    return write(step, choose, cache, first, length, ends=lambda token: token == end, rest=pad)


def sample(
    step: Step[Cache],
    cache: Cache,
    first: Int[Array, " b"],
    length: int,
    keys: Key[Array, " b"],
    *,
    end: int | Int[Array, ""],
    pad: int | Int[Array, ""] = 0,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] = 0,
    top_p: float | Float[Array, ""] = 1.0,
) -> Decoded:
    """A token drawn at every step.

    Args:
        step: The decoder's.
        cache: From its `start`.
        first: What the first step reads.
        length: Room for tokens written; static.
        keys: One a row; a result depends on its own only.
        end: The token that ends a sequence; −1 for none.
        pad: What follows it.
        temperature: See `draw`.
        top_k: Likewise.
        top_p: Likewise.
    """

    def choose(log_probs: Array, cache: Cache, at: Array) -> tuple[Array, Array]:
        now = jax.vmap(lambda key: jax.random.fold_in(key, at))(keys)
        token = draw(log_probs, now, temperature, top_k, top_p)
        return token, pick(log_probs, token)

    return write(step, choose, cache, first, length, ends=lambda token: token == end, rest=pad)


def beam_search(
    step: Step[Cache],
    cache: Cache,
    first: Int[Array, " b"],
    length: int,
    beams: int,
    *,
    end: int | Int[Array, ""],
    pad: int | Int[Array, ""] = 0,
    length_penalty: float | Float[Array, ""] = 0.0,
) -> Decoded:
    """The sequences of highest probability that a beam finds; see `search`.

    Args:
        step: The decoder's.
        cache: From its `start`, for the rows without beams.
        first: What the first step reads.
        length: Room for tokens written; static.
        beams: Number of beams; static.
        end: The token that ends a sequence; −1 for none.
        pad: What follows it.
        length_penalty: See `search`.
    """

    def moves(cache: Cache, token: Array) -> tuple[Array, Array, Cache]:
        log_probs, cache = step(cache, token)
        every = jnp.arange(log_probs.shape[-1], dtype=jnp.int32)
        return log_probs, jnp.broadcast_to(every, log_probs.shape), cache

    return search(
        moves,
        cache,
        first,
        length,
        beams,
        ends=lambda token: token == end,
        rest=pad,
        length_penalty=length_penalty,
    )


# What they are made of -----------------------------------------------------------------------


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


def draw(
    log_probs: Float[Array, "b v"],
    keys: Key[Array, " b"],
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] = 0,
    top_p: float | Float[Array, ""] = 1.0,
) -> Int[Array, " b"]:
    """Draws an entry of every row.

    Args:
        log_probs: Log p of the entries.
        keys: One a row.
        temperature: What log p is divided by; 0 takes the most probable entry.
        top_k: See `truncated`, which comes after the temperature.
        top_p: Likewise.
    """
    # Gumbel's maximum, scaled so that a temperature of 0 needs no case of its own.
    temperature = jnp.asarray(temperature, jnp.float32)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, log_probs.shape[1:]))(keys)
    allowed = truncated(log_probs / jnp.maximum(temperature, 1e-6), top_k, top_p)
    drawn = jnp.where(allowed, log_probs + temperature * noise, -jnp.inf)
    return jnp.argmax(drawn, axis=-1).astype(jnp.int32)


def check_choice(beams: int, temperature: float, *, top_p: float, top_k: int = 0) -> None:
    """Refuse what a person asks of a decoder that searches, or draws at a temperature above 0.

    Raises:
        UserError: one asks to search and to draw at once, or limits what is not drawn.
    """
    if beams > 1 and temperature > 0:
        raise UserError(
            f"--beams={beams} searches and --temperature={temperature:g} draws: give one of them"
        )
    if (top_k or top_p < 1) and not temperature:
        limit = f"--top_k={top_k}" if top_k else f"--top_p={top_p:g}"
        raise UserError(
            f"{limit} limits what is drawn, and nothing is: give --temperature, such as 1"
        )


def pick(values: Float[Array, "b v"], index: Int[Array, " b"]) -> Float[Array, " b"]:
    """One value of each row."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def write(
    read: Callable[[Cache, Int[Array, " b"]], tuple[Any, Cache]],
    choose: Callable[[Any, Cache, Int[Array, ""]], tuple[Int[Array, " b"], Float[Array, " b"]]],
    cache: Cache,
    first: Int[Array, " b"],
    length: int,
    *,
    ends: Callable[[Int[Array, " b"]], Bool[Array, " b"]],
    rest: int | Int[Array, ""] = 0,
) -> Decoded:
    """Writes one sequence a row, move by move.

    Args:
        read: Reads the last move: `read(cache, move) -> (state, cache)`.
        choose: Chooses the next: `choose(state, cache, index of the step) -> (move, log p)`.
        cache: Before the first step.
        first: The move that the first step reads.
        length: Room for moves; static.
        ends: Which moves end a sequence.
        rest: The move that fills the room after it.

    Returns:
        The moves, [b, length].
    """
    rows = first.shape[0]

    def body(state: dict[str, Any]) -> dict[str, Any]:
        step, over = state["step"], state["finished"]
        read_now, cache = read(state["cache"], state["move"])
        move, gain = choose(read_now, cache, step)
        move = jnp.where(over, rest, move).astype(jnp.int32)
        return {
            "step": step + 1,
            "move": move,
            "moves": state["moves"].at[:, step].set(move),
            "length": state["length"] + ~over,
            "cache": cache,
            "log_prob": state["log_prob"] + jnp.where(over, 0, gain),
            "finished": over | ends(move),
        }

    state: dict[str, Any] = lax.while_loop(
        lambda state: (state["step"] < length) & ~state["finished"].all(),
        body,
        {
            "step": jnp.zeros((), jnp.int32),
            "move": first.astype(jnp.int32),
            "moves": jnp.full((rows, length), rest, jnp.int32),
            "length": jnp.zeros(rows, jnp.int32),
            "cache": cache,
            "log_prob": jnp.zeros(rows),
            "finished": jnp.zeros(rows, bool),
        },
    )
    return Decoded(state["moves"], state["length"], state["log_prob"], state["finished"])


def search(
    moves: Callable[
        [Cache, Int[Array, " r"]], tuple[Float[Array, "r c"], Int[Array, "r c"], Cache]
    ],
    cache: Cache,
    first: Int[Array, " b"],
    length: int,
    beams: int,
    *,
    ends: Callable[[Int[Array, "b k"]], Bool[Array, "b k"]],
    rest: int | Int[Array, ""] = 0,
    length_penalty: float | Float[Array, ""] = 0.0,
) -> Decoded:
    """The sequences of moves of highest probability that a beam finds.

    At every step the `beams` best continuations of a row's beams go on. What has ended stays in the
    beam with the probability it has, until the others have ended or pushed it out.

    Args:
        moves: Reads the last move and tells candidates for the next one:
            `moves(cache, move) -> (log p, candidates, cache)`, r being rows × beams.
        cache: Before the first step, for the rows without beams.
        first: The move that the first step reads.
        length: Room for moves; static.
        beams: Number of beams; static.
        ends: Which moves end a sequence.
        rest: The move that fills the room after it.
        length_penalty: The exponent α of Wu et al., "Google's Neural Machine Translation System"
            (2016), equation 14, by which the results are ranked; 0 ranks by probability.

    Returns:
        The moves, [b, k, length], best first. Where there are fewer sequences than beams, the last
        ones have log p of −∞ and no meaning.
    """
    rows = first.shape[0]

    def widen(leaf: Array) -> Array:
        return leaf if jnp.ndim(leaf) == 0 else jnp.repeat(leaf, beams, axis=0)

    def body(state: dict[str, Any]) -> dict[str, Any]:
        step, over = state["step"], state["finished"]
        log_probs, candidates, cache = moves(state["cache"], state["move"].reshape(-1))
        # What has ended goes on in one way.
        one_way = jnp.where(jnp.arange(log_probs.shape[-1]) == 0, 0.0, -jnp.inf)
        log_probs = jnp.where(over.reshape(-1, 1), one_way, log_probs)
        candidates = jnp.where(over.reshape(-1, 1), rest, candidates)

        joint = state["log_prob"].reshape(-1, 1) + log_probs
        log_prob, chosen = lax.top_k(joint.reshape(rows, -1), beams)
        move = jnp.take_along_axis(candidates.reshape(rows, -1), chosen, axis=1)
        parent = chosen // log_probs.shape[-1]
        over = _follow(over, parent)
        return {
            "step": step + 1,
            "move": move.astype(jnp.int32),
            "moves": _follow(state["moves"], parent).at[:, :, step].set(move),
            "length": _follow(state["length"], parent) + ~over,
            "cache": jax.tree.map(lambda leaf: _follow_rows(leaf, parent), cache),
            "log_prob": log_prob,
            "finished": over | ends(move),
        }

    # At first there is one sequence a row, empty.
    alone = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    state: dict[str, Any] = lax.while_loop(
        lambda state: (state["step"] < length) & ~state["finished"].all(),
        body,
        {
            "step": jnp.zeros((), jnp.int32),
            "move": jnp.repeat(first.astype(jnp.int32)[:, None], beams, axis=1),
            "moves": jnp.full((rows, beams, length), rest, jnp.int32),
            "length": jnp.zeros((rows, beams), jnp.int32),
            "cache": jax.tree.map(widen, cache),
            "log_prob": jnp.broadcast_to(alone, (rows, beams)),
            "finished": jnp.zeros((rows, beams), bool),
        },
    )
    found = Decoded(state["moves"], state["length"], state["log_prob"], state["finished"])
    ranking = found.log_prob / ((5.0 + found.length) / 6.0) ** length_penalty
    best = jnp.argsort(-ranking, axis=-1)
    return Decoded(*(_follow(field, best) for field in found))


def _follow(values: Array, parent: Int[Array, "b k"]) -> Array:
    """The beams' values [b, k, …] in the order of `parent`."""
    parent = parent.reshape(*parent.shape, *([1] * (values.ndim - 2)))
    return jnp.take_along_axis(values, parent, axis=1)


def _follow_rows(leaf: Array, parent: Int[Array, "b k"]) -> Array:
    """Likewise of a cache's leaf, [b × k, …] or without an axis."""
    if leaf.ndim == 0:
        return leaf
    return _follow(leaf.reshape(*parent.shape, *leaf.shape[1:]), parent).reshape(leaf.shape)
