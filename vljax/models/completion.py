"""Drawing a part of a picture's codes anew, given a text and the other codes.

`complete` goes code by code in raster order, as published for SeMani-Trans (Wang et al. 2023,
section 3.2.3): a code sees those before it only. `complete_in_parallel` fills in all codes in a few
passes in which each sees the whole picture (Chang et al., *MaskGIT: Masked Generative Image
Transformer*, 2022, section 3.2), which is what the paper finds wanting (section 3.3).

Which codes are drawn is a traced mask; each is one compiled program for every mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.models.token_transformer import Cache, TokenTransformer, uses


class Completed(NamedTuple):
    """Pictures completed.

    Attributes:
        codes: Those kept and those drawn.
        passes: How often the network was run, one after the other.
    """

    codes: Int[Array, "b n"]
    passes: Int[Array, ""]


class _Progress(NamedTuple):
    codes: Int[Array, "b n"]
    cache: Cache
    read: Int[Array, ""]  # how many codes have been read
    last: Float[Array, "b f"]  # what the last of them gave
    passes: Int[Array, ""]


def complete(
    model: TokenTransformer,
    text: Int[Array, "b t"],
    codes: Int[Array, "b n"],
    edited: Bool[Array, "b n"],
    keys: Key[Array, " b"],
    *,
    gray: Int[Array, "b n"] | None = None,
    uses_gray: Bool[Array, " b"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] = 0,
) -> Completed:
    """Codes drawn in raster order; kept ones stay and are read in their turn.

    What comes out is what the published loop gives, which runs the network on the whole sequence
    for each of all codes. Here keys and values are cached, and kept codes that follow each other
    are read together: first all before the first edited code, later up to a row of the picture at
    once. So a picture takes one pass for each code that is drawn, and one more for each further row
    of kept codes between two of them. Rows of a batch with different masks go in step, so that a
    pass serves the codes at one place of all of them.

    (In the published code the query of the first edited code sees no code before it where a gray
    picture is used; here it does.)

    Args:
        model: The network.
        text: Words, 0 for padding.
        codes: The picture's codes; what stands at edited ones does not matter.
        edited: Which codes are drawn.
        keys: One a row; what is drawn depends on its own only.
        gray: The gray picture's codes, where the model is to know the shape of what was there.
        uses_gray: Which rows see it; all by default.
        temperature: What log p is divided by; 0 takes the most probable code.
        top_k: Draw among so many of the most probable codes; 0 for all.
    """
    count, width = codes.shape[1], model.grid
    wanted, places = edited.any(0), jnp.arange(count)

    def next_from(place: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.min(jnp.where(wanted & (places >= place), places, count))

    prompt = model.prompt(text, gray)
    before = prompt.shape[1]
    cache = model.empty(len(text), before, uses(text, gray, uses_gray))
    # What is read of codes from the first edited one on is read again once they are known.
    sequence = jnp.concatenate([prompt, model.picture(codes)[:, :-1]], axis=1)
    given, cache = model.read(sequence, cache)
    first = next_from(jnp.zeros((), jnp.int32))
    last = lax.dynamic_index_in_dim(given, before - 1 + first, axis=1, keepdims=False)

    def read(progress: _Progress, until: Int[Array, ""], size: int) -> _Progress:
        """Reads the next codes, `size` of them; those from `until` on are not known yet."""
        at = jnp.minimum(progress.read, count - size)
        x = model.stretch(progress.codes, at, size)
        given, cache = model.read(x, progress.cache._replace(at=before + at))
        end = jnp.minimum(at + size, until)
        last = lax.dynamic_index_in_dim(given, end - 1 - at, axis=1, keepdims=False)
        return progress._replace(cache=cache, read=end, last=last, passes=progress.passes + 1)

    def body(progress: _Progress) -> _Progress:
        place = progress.read
        log_p = jax.nn.log_softmax(model.next_code(progress.last))
        now = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
        drawn = jax.vmap(_draw, (0, 0, None, None))(log_p, now, temperature, top_k)
        kept = lax.dynamic_index_in_dim(progress.codes, place, axis=1, keepdims=False)
        chosen = jnp.where(edited[:, place], drawn, kept)
        progress = progress._replace(codes=progress.codes.at[:, place].set(chosen))
        until = next_from(place + 1)
        # After the last edited code nothing need be read.
        until, over = jnp.where(until < count, until, place), until == count
        progress = lax.while_loop(
            lambda p: until - p.read > 1, lambda p: read(p, until, width), progress
        )
        progress = lax.while_loop(lambda p: p.read < until, lambda p: read(p, until, 1), progress)
        return progress._replace(read=jnp.where(over, count, progress.read))

    one = jnp.ones((), jnp.int32)
    progress = _Progress(codes.astype(jnp.int32), cache, first, last, one)
    progress = lax.while_loop(lambda p: p.read < count, body, progress)
    return Completed(progress.codes, progress.passes)


def complete_in_parallel(
    model: TokenTransformer,
    text: Int[Array, "b t"],
    codes: Int[Array, "b n"],
    edited: Bool[Array, "b n"],
    keys: Key[Array, " b"],
    passes: int,
    *,
    gray: Int[Array, "b n"] | None = None,
    uses_gray: Bool[Array, " b"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] = 0,
    choice: float | Float[Array, ""] = 1.0,
) -> Completed:
    """Codes drawn in a few passes, the surest first; each sees all of the picture that is known.

    In pass t of T all masked codes are drawn, and of n edited ones all but n · cos(π t / 2T) stay:
    those of highest log p, plus noise that fades from pass to pass.

    Args:
        model: A network with `masked`.
        text: Words, 0 for padding.
        codes: The picture's codes; what stands at edited ones does not matter.
        edited: Which codes are drawn.
        keys: One a row; what is drawn depends on its own only.
        passes: T; static.
        gray: The gray picture's codes, where the model is to know the shape of what was there.
        uses_gray: Which rows see it; all by default.
        temperature: What log p is divided by; 0 takes the most probable code.
        top_k: Draw among so many of the most probable codes; 0 for all.
        choice: Of the noise (Gumbel's) by which codes stay; 0 keeps the surest.
    """
    count = codes.shape[1]
    prompt = model.prompt(text, gray)
    cache = model.empty(len(text), prompt.shape[1], uses(text, gray, uses_gray))
    # The prompt sees no codes: it is read once.
    _, cache = model.read(prompt, cache)
    total = edited.sum(1)

    def body(
        state: tuple[Int[Array, "b n"], Bool[Array, "b n"]], index: Int[Array, ""]
    ) -> tuple[tuple[Array, Array], None]:
        codes, unknown = state
        given, _ = model.read(model.picture(codes, unknown), cache)
        log_p = jax.nn.log_softmax(model.next_code(given))

        def by_row(key: Array, log_p: Array, unknown: Array, total: Array) -> tuple[Array, Array]:
            draw_key, choose_key = jax.random.split(jax.random.fold_in(key, index))
            drawn = _draw(log_p, draw_key, temperature, top_k)
            sure = jnp.take_along_axis(log_p, drawn[:, None], axis=1)[:, 0]
            share = (index + 1) / passes
            sure += choice * (1 - share) * jax.random.gumbel(choose_key, (count,))
            left = jnp.floor(total * jnp.cos(0.5 * jnp.pi * share)).astype(jnp.int32)
            left = jnp.where(index + 1 == passes, 0, jnp.minimum(left, unknown.sum() - 1))
            rank = jnp.argsort(jnp.argsort(jnp.where(unknown, sure, jnp.inf)))
            return drawn, unknown & (rank < left)

        drawn, still = jax.vmap(by_row)(keys, log_p, unknown, total)
        return (jnp.where(unknown & ~still, drawn, codes), still), None

    start = (codes.astype(jnp.int32), edited)
    (found, _), _ = lax.scan(body, start, jnp.arange(passes))
    return Completed(found, jnp.full((), passes + 1, jnp.int32))


def _draw(
    log_p: Float[Array, "*n k"],
    key: Key[Array, ""],
    temperature: float | Float[Array, ""],
    top_k: int | Int[Array, ""],
) -> Int[Array, "*n"]:
    """A code of every position, as `vljax.models.decoding.draw` draws it.

    That sorts all codes, which for a whole picture takes longer than the network; here the least
    log p of the `top_k` most probable ones is found by halving an interval.
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    wanted = jnp.where(jnp.asarray(top_k) > 0, top_k, log_p.shape[-1])

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends  # as many as wanted, or more, reach the low end
        middle = 0.5 * (low + high)
        enough = (log_p >= middle).sum(-1, keepdims=True) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    ends = (log_p.min(-1, keepdims=True), log_p.max(-1, keepdims=True) + 1e-3)
    least, _ = lax.fori_loop(0, 32, halve, ends)
    noise = jax.random.gumbel(key, log_p.shape)
    drawn = jnp.where(log_p >= least, log_p + temperature * noise, -jnp.inf)
    return jnp.argmax(drawn, axis=-1).astype(jnp.int32)
