"""The families of generative models, a file each, and what the rest of the system asks of one."""

from vljax.systems.text2image.families import (
    adversarial,
    latent,
    pixelcnn,
    pixels,
    tokens,
    unclip,
    variational,
    vqvae,
)
from vljax.systems.text2image.families.family import Family, Wish

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (latent, pixels, tokens, vqvae, pixelcnn, variational, unclip, adversarial)
}

__all__ = ["FAMILIES", "Family", "Wish"]
