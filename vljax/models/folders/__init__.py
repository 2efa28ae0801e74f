"""Folders that `diffusers` and `transformers` write, and ours in their form; a file a family.

A reader takes a folder and gives the arguments of our network of that architecture, so that its
weights, which lie beside, fit (`vljax.pretrained` loads them); it refuses what we do not build.
The writer beside it is its inverse: from arguments to what the folder's JSON files say.
`families` has the table of all.
"""

from vljax.models.folders.autoencoder import autoencoder_arguments
from vljax.models.folders.clip import clip_arguments
from vljax.models.folders.clipseg import clipseg_arguments
from vljax.models.folders.pipeline import (
    as_published,
    drawing_arguments,
    predicts,
    stable_diffusion_arguments,
    unet_beside,
)
from vljax.models.folders.prior import prior_arguments
from vljax.models.folders.resnet import resnet_arguments
from vljax.models.folders.text import text_tower_arguments
from vljax.models.folders.unet import unet_arguments
from vljax.models.folders.vqgan import vqgan_arguments

__all__ = [
    "as_published",
    "autoencoder_arguments",
    "clip_arguments",
    "clipseg_arguments",
    "drawing_arguments",
    "predicts",
    "prior_arguments",
    "resnet_arguments",
    "stable_diffusion_arguments",
    "text_tower_arguments",
    "unet_arguments",
    "unet_beside",
    "vqgan_arguments",
]
