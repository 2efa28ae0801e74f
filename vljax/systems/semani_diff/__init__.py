"""SeMani-Diff: change the entity of a picture that a word names to what a text says, by diffusion.

Wang et al., *Entity-Level Text-Guided Image Manipulation* (2023), section 3.3. Two phases: semantic
alignment finds the entity's mask (`vljax.models.alignment`), an inpainting diffusion model draws
the text there (`method`). The paper trains neither: it takes Stable Diffusion 2's inpainting model
(`--config.pretrained.sd=FOLDER`) and OVSeg's CLIP (`--config.pretrained.clip=FILE`). Without, the
parts are trained here on scenes:

- `clip`, whose embeddings of masked crops and of tokens align words with entities;
- `sd`: its autoencoder, then the inpainting U-Net with the text tower that it reads.

What is outside of the mask comes back bit for bit, by pasting it over the result under a feathered
seam; `--no_paste` leaves that out, as published.
"""

from vljax.systems import System
from vljax.systems.semani_diff.evaluation import Judging, judge
from vljax.systems.semani_diff.model import SemaniDiff, make_model, make_tokenizer
from vljax.systems.semani_diff.recipe import get_config, get_published_config
from vljax.systems.semani_diff.training import stages
from vljax.systems.semani_diff.use import Request, generate

SYSTEM = System(
    "semani_diff", get_config, make_model, stages, Request, generate, Judging, judge, make_tokenizer
)

__all__ = ["SYSTEM", "SemaniDiff", "get_config", "get_published_config", "make_model", "stages"]
