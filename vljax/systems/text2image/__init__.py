"""text2image: pictures of texts, by eight families of generative models.

The lecture decks' methods side by side, each a family in `vljax.systems.text2image.families`:

- `latent`, diffusion in an autoencoder's latents (Stable Diffusion's folders load);
- `pixels`, diffusion of pixels under a text Transformer (GLIDE);
- `tokens`, an autoregressive Transformer over words and a picture's codes (DALL-E); `vqvae`, a
  PixelCNN over the codes (VQ-VAE); `pixelcnn`, one over the pixels themselves;
- `variational`, a text-conditional VAE; `unclip`, one under CLIP's embedding of a picture, which a
  prior predicts (unCLIP);
- `adversarial`, a text-conditional GAN (GAN-INT-CLS), with a second one on it where wished
  (StackGAN).

All are judged by one table: how good, how different, how true to the text, and how soon.
"""

from vljax.systems import System
from vljax.systems.text2image.evaluation import Judging, judge
from vljax.systems.text2image.model import Text2Image, make_model, make_tokenizer
from vljax.systems.text2image.published import get_personal_config, get_published_config
from vljax.systems.text2image.recipe import (
    FAMILIES,
    PERSONAL,
    get_config,
    with_personal,
    with_refiner,
    with_upsampler,
)
from vljax.systems.text2image.training import stages
from vljax.systems.text2image.use import Request, generate

SYSTEM = System(
    "text2image",
    get_config,
    make_model,
    stages,
    Request,
    generate,
    Judging,
    judge,
    make_tokenizer=make_tokenizer,
)

__all__ = [
    "FAMILIES",
    "PERSONAL",
    "SYSTEM",
    "Text2Image",
    "get_config",
    "get_personal_config",
    "get_published_config",
    "make_model",
    "stages",
    "with_personal",
    "with_refiner",
    "with_upsampler",
]
