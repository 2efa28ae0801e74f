"""Concepts that a text tower learnt as words of its own: textual inversion's files, read and used.

Gal et al., *An Image is Worth One Word* (2022). A file is what diffusers calls `learned_embeds`,
safetensors or `.bin`: a tensor [d], or [n d] of several vectors, under the word that stands for the
concept, such as "<cat-toy>"; or the web interface's `.safetensors`, `emb_params` [n d], where the
file's name is the word.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vljax.data.text.tokenizers import Tokenizer
from vljax.errors import UserError
from vljax.models.stable_diffusion import StableDiffusion
from vljax.pretrained.checkpoint import in_dtype, read_tensors, write_tensors


class Concept(NamedTuple):
    """A word and what the text tower reads in its place.

    Attributes:
        word: As it stands in prompts.
        vectors: One or more token embeddings.
    """

    word: str
    vectors: Float[np.ndarray, "n d"]

    @property
    def noun(self) -> str:
        """What stands for it where it was not learnt: the word without its signs, "cat toy"."""
        return " ".join(re.findall(r"[^\W_]+", self.word)) or "thing"


def read_concepts(*paths: str | os.PathLike) -> list[Concept]:
    """The concepts in files.

    Raises:
        UserError: one is no such file.
    """
    return [concept for path in paths for concept in _read(Path(path))]


def _read(path: Path) -> list[Concept]:
    found = []
    for word, tensor in read_tensors(path).items():
        if tensor.ndim not in (1, 2) or not tensor.size:
            raise UserError(
                f"{path}: {word} has the shape {list(tensor.shape)}; give a file of textual "
                "inversion, whose vectors are [d] or [n, d]"
            )
        vectors = np.asarray(tensor, np.float32).reshape(-1, tensor.shape[-1])
        found.append(Concept(path.stem if word == "emb_params" else word, vectors))
    if not found:
        raise UserError(f"{path} holds no concept: give a file of textual inversion")
    return found


def write_concept(path: str | os.PathLike, concept: Concept, dtype: str = "float32") -> None:
    """Write a concept as diffusers' `learned_embeds.safetensors`.

    Args:
        path: The file.
        concept: What it shall hold.
        dtype: Of the vectors there.
    """
    vectors = concept.vectors[0] if len(concept.vectors) == 1 else concept.vectors
    write_tensors(in_dtype({concept.word: vectors}, dtype), Path(path))


def with_concepts(
    sd: StableDiffusion, tokenizer: Tokenizer, concepts: Sequence[Concept]
) -> tuple[StableDiffusion, Tokenizer]:
    """A Stable Diffusion whose prompts may hold concepts; nothing given is changed.

    Args:
        sd: Its text tower gets a row for each vector, so that another concept of as many vectors
            compiles nothing.
        tokenizer: The tower's; the one that comes back knows the words.
        concepts: As `read_concepts` gives them.

    Raises:
        UserError: vectors do not fit the tower, or a word is there already.
    """
    if not concepts:
        return sd, tokenizer
    before, width = sd.text_encoder.token_embedding.weight.shape
    rows: list[np.ndarray] = []
    for word, vectors in concepts:
        if vectors.shape[1] != width:
            raise UserError(
                f"--concept: the vectors of {word} have {vectors.shape[1]} numbers, this text "
                f"tower reads {width}; give a concept that it learnt"
            )
        first = before + sum(map(len, rows))
        tokenizer = tokenizer.with_word(word, first, len(vectors))
        rows.append(vectors)
    return sd.with_words(jnp.asarray(np.concatenate(rows))), tokenizer
