"""A CLIP that judges pictures by texts, with the tokenizer that belongs to it."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from vljax.data.text.tokenizers import Tokenizer, open_tokenizer
from vljax.errors import UserError
from vljax.models.clip import CLIP, PUBLISHED
from vljax.pretrained import checkpoint, networks


def judging_clip(path: str | os.PathLike, tokenizer: Tokenizer) -> tuple[CLIP, Tokenizer]:
    """The CLIP that `--clip` gives, and what reads texts for it.

    Args:
        path: A folder of a CLIP with its tokenizer, as `transformers` writes it, or a file of
            OpenAI's RN50, in which there is none.
        tokenizer: The run's, which reads for a file.

    Raises:
        UserError: there is no CLIP, or a file's knows other tokens than the run.
    """
    if Path(path).is_dir():
        clip = networks.load(path)
        if not isinstance(clip, CLIP):
            raise UserError(f"--clip={path} holds no CLIP: give a folder of one")
        return clip, open_tokenizer(path)
    skeleton = jax.eval_shape(lambda: CLIP(**PUBLISHED["RN50"], rngs=nnx.Rngs(0)))
    known = len(skeleton.token_embedding.weight)
    if known != tokenizer.vocabulary_size:
        raise UserError(
            f"--clip={path}: a CLIP RN50 knows {known} tokens, but the run's own tokenizer has "
            f"{tokenizer.vocabulary_size}: give a folder of a CLIP that holds its tokenizer, or "
            "leave --clip out"
        )
    return jax.tree.map(jnp.asarray, checkpoint.load(skeleton, path)), tokenizer
