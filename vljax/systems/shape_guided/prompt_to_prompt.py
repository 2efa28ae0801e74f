"""Prompt-to-Prompt: an edit that takes its attention maps from a picture of another prompt.

Hertz et al., "Prompt-to-Prompt Image Editing with Cross-Attention Control" (2022), algorithm 1
and section 3.2. Two pictures are generated side by side, one of the source prompt and one of the
edit prompt. For the first steps the edit's attention maps are replaced by the source's: in
cross-attention column by column as the tokens of the two prompts correspond (`replacement` for
prompts that differ in single words, `refinement` for prompts with words added, `reweighted` for
words that shall count more or less), in self-attention whole, at low resolutions.

All of these replace the edit's map A by  S·P + A·diag(w),  S being the source's map, P [source
tokens, edit tokens] and w [edit tokens]. So no map need exist, for

    (S·P + A·diag(w)) V = S (P V) + A (w ∘ V),

two plain attentions with changed values, in memory linear in the lengths.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vljax.diffusion.editing import guided, keep_from, steps_done
from vljax.diffusion.process import Process
from vljax.diffusion.progress import Progress
from vljax.diffusion.samplers import ddim
from vljax.errors import UserError
from vljax.models.control import Control, Network, Place
from vljax.models.stable_diffusion import with_and_without
from vljax.ops.attention import attention

CROSS_SHARE = 0.8
"""Share of the steps in which cross-attention is replaced (the published examples)."""

SELF_SHARE = 0.4
"""Share of the steps in which self-attention is replaced."""

MOST_PIXELS = 16**2
"""Self-attention is replaced in layers of at most so many pixels."""

Tokenize = Callable[[Sequence[str], int], Int[np.ndarray, "b n"]]


class TokenMap(NamedTuple):
    """Of what the columns of an edit's cross-attention are made.

    Attributes:
        source: P, the share that each token of the source prompt gives to each of the edit prompt.
        own: The share of its own column that each token of the edit prompt keeps.
        scale: Factor on each column, after that.
    """

    source: Float[Array | np.ndarray, "*b n n"]
    own: Float[Array | np.ndarray, "*b n"]
    scale: Float[Array | np.ndarray, "*b n"]


def token_map(
    tokenize: Tokenize,
    source: str,
    edit: str,
    tokens: int,
    factors: Mapping[str, float] | None = None,
) -> TokenMap:
    """How two prompts correspond: word for word where there are as many, else aligned.

    Arguments as in `replacement` and `reweighted`.
    """
    same = len(source.split()) == len(edit.split())
    mapping = (replacement if same else refinement)(tokenize, source, edit, tokens)
    return reweighted(mapping, tokenize, edit, factors or {})


def replacement(tokenize: Tokenize, source: str, edit: str, tokens: int) -> TokenMap:
    """Words replaced by words: each new word takes the map of the one in its place.

    Where the two words have different numbers of tokens, each new token gets the sum of the old
    ones over the number of new ones. Tokens beyond the end correspond in order.

    Args:
        tokenize: Texts and a length to tokens, as `vljax.data.text.tokenizers.Tokenizer`.
        source: The source prompt.
        edit: The edit prompt, of as many words.
        tokens: Length of the context.

    Raises:
        UserError: the prompts differ in their number of words.
    """
    old, new = source.split(), edit.split()
    if len(old) != len(new):
        raise UserError(
            f"Prompt-to-Prompt cannot replace words: {source!r} has {len(old)} and {edit!r} "
            f"{len(new)}: give as many words, or use refinement"
        )
    shares = np.zeros((tokens, tokens), np.float32)
    shares[0, 0] = 1.0
    i = j = 1
    for before, after in zip(old, new, strict=True):
        m, n = (_token_count(tokenize, word, tokens) for word in (before, after))
        block = np.eye(m) if m == n else np.full((m, n), 1 / n)
        rows, columns = slice(i, min(i + m, tokens)), slice(j, min(j + n, tokens))
        shares[rows, columns] = block[: max(tokens - i, 0), : max(tokens - j, 0)]
        i, j = i + m, j + n
    for column in range(j, tokens):
        shares[min(i + column - j, tokens - 1), column] = 1.0
    return TokenMap(shares, np.zeros(tokens, np.float32), np.ones(tokens, np.float32))


def refinement(tokenize: Tokenize, source: str, edit: str, tokens: int) -> TokenMap:
    """Words added: tokens that both prompts have take the source's map, new ones keep their own.

    Which tokens correspond says the longest common subsequence. Arguments as in `replacement`.
    """
    old, new = (tokenize([text], tokens)[0] for text in (source, edit))
    # From the start up to and with the end token.
    old, new = (row[: _end(tokenize, row) + 1] for row in (old, new))
    length = np.zeros((len(old) + 1, len(new) + 1), int)
    for i, a in enumerate(old, 1):
        for j, b in enumerate(new, 1):
            best = max(length[i, j - 1], length[i - 1, j])
            length[i, j] = max(best, length[i - 1, j - 1] + (1 if a == b else -1))
    shares = np.zeros((tokens, tokens), np.float32)
    i, j = len(old), len(new)
    while i and j:
        if length[i, j] == length[i, j - 1]:
            j -= 1
        elif length[i, j] == length[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            shares[i, j] = 1.0
    # What pads the two prompts corresponds place by place.
    beyond = np.arange(len(new), tokens)
    shares[beyond, beyond] = 1.0
    return TokenMap(shares, 1.0 - shares.max(0), np.ones(tokens, np.float32))


def reweighted(
    mapping: TokenMap, tokenize: Tokenize, edit: str, factors: Mapping[str, float]
) -> TokenMap:
    """The same correspondence with some words of the edit prompt made stronger or weaker.

    Args:
        mapping: Of one pair of prompts.
        tokenize: As in `replacement`.
        edit: The edit prompt.
        factors: By word of the edit prompt; each place where it stands is scaled.

    Raises:
        UserError: a word is not in the prompt.
    """
    tokens = len(mapping.own)
    scale = np.array(mapping.scale)
    place, words = 1, edit.split()
    if unknown := [word for word in factors if word not in words]:
        raise UserError(
            f"{unknown[0]!r} is no word of the edit prompt {edit!r}: reweight one of its words"
        )
    for word in words:
        count = _token_count(tokenize, word, tokens)
        scale[place : place + count] *= factors.get(word, 1.0)
        place += count
    return mapping._replace(scale=scale)


def prompt_to_prompt(
    process: Process,
    network: Network,
    inverted: Float[Array, "n+1 b h w c"],
    source: Float[Array, "b n d"],
    edit: Float[Array, "b n d"],
    empty: Float[Array, "#b n d"],
    mapping: TokenMap,
    keep: Float[Array, "#b h w"],
    *,
    guidance_scale: Float[Array, "*b"] | float,
    cross_share: Float[Array, ""] | float = CROSS_SHARE,
    self_share: Float[Array, ""] | float = SELF_SHARE,
    progress: Progress | None = None,
) -> Float[Array, "b h w c"]:
    """Generate the source's picture and the edit's, and return the edit's latents.

    Args:
        process: The process of the inversion.
        network: The network.
        inverted: Latents of the picture by noise level, inverted under the source prompt.
        source: Embedded source prompts.
        edit: Embedded edit prompts.
        empty: The embedded empty prompt.
        mapping: How their tokens correspond, for the batch or by example.
        keep: Where the picture is put back after each step, at the latents' resolution; zeros for
            Prompt-to-Prompt as published.
        guidance_scale: As in `guided`: one less than the published scale.
        cross_share: Share of the steps in which cross-attention is replaced.
        self_share: Share of the steps in which self-attention is.
        progress: Where to report steps.
    """
    steps, batch = len(process.schedule), len(source)

    def control_at(t: Int[Array, " b"]) -> Control:
        done = steps_done(process.schedule, t)
        return replacing(
            mapping,
            cross=done < jnp.floor(cross_share * steps),
            own=done < jnp.floor(self_share * steps),
        )

    put_back = keep_from(inverted, keep)

    def after_step(step: Int[Array, ""], x: Float[Array, "2*b h w c"]) -> Array:
        return jnp.concatenate([x[:batch], put_back(step, x[batch:])])

    scale = jnp.broadcast_to(jnp.asarray(guidance_scale, jnp.float32), (batch,))
    contexts = jnp.concatenate([source, edit])
    pictures = ddim(
        process,
        guided(
            with_and_without(network, contexts, empty, control_at), jnp.concatenate([scale, scale])
        ),
        jnp.concatenate([inverted[-1]] * 2),
        clip=False,
        after_step=after_step,
        progress=progress,
    )
    return pictures[batch:]


def replacing(
    mapping: TokenMap, cross: Bool[Array, ""] | bool, own: Bool[Array, ""] | bool
) -> Control:
    """The attention control of one step.

    Args:
        mapping: How tokens correspond.
        cross: Whether cross-attention is replaced.
        own: Whether self-attention is.

    Returns:
        A control for batches of four equal parts: the conditional pass for source and edit, then
        the unconditional pass, which stays as it is.
    """

    def control(query: Array, key: Array, value: Array, place: Place) -> tuple[Array, None]:
        part = len(query) // 4
        source, edit = slice(0, part), slice(part, 2 * part)
        if place.kind == "self":
            if place.height * place.width <= MOST_PIXELS:
                query, key = (
                    x.at[edit].set(jnp.where(own, x[source], x[edit])) for x in (query, key)
                )
            return attention(query, key, value), None
        shares = jnp.where(cross, mapping.source * mapping.scale[..., None, :], 0.0)
        kept = jnp.where(cross, mapping.own * mapping.scale, 1.0)
        values = value[edit].astype(jnp.float32)
        shares = jnp.broadcast_to(shares, (part, *shares.shape[-2:]))
        moved = jnp.einsum("bij,bjhd->bihd", shares, values).astype(value.dtype)
        own_values = (values * jnp.reshape(kept, (-1, kept.shape[-1], 1, 1))).astype(value.dtype)
        attended = attention(query, key, value.at[edit].set(own_values))
        return attended.at[edit].add(attention(query[source], key[source], moved)), None

    return control


def _token_count(tokenize: Tokenize, word: str, tokens: int) -> int:
    """How many tokens a word has; white space always ends a token."""
    return _end(tokenize, tokenize([word], tokens)[0]) - 1


def _end(tokenize: Tokenize, row: Int[np.ndarray, " n"]) -> int:
    """Where a text's end token is; learnt words have larger indices."""
    return int((row == tokenize([""], 2)[0, 1]).argmax())
