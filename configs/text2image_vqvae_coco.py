"""A PixelCNN over a VQ-VAE's codes, on COCO's captions.

    python -m vljax.train --config configs/text2image_vqvae_coco.py --workdir runs/vqvae
    python -m vljax.generate --workdir runs/vqvae --out drawn --prompt "a photo of a red star"
    python -m vljax.train --config configs/text2image_vqvae_coco.py:/data/coco --workdir runs/coco

The first trains codes and prior on the embedded scenes, 12 minutes of one core. Expected there, one
seed, 192 pictures of all shapes and colours: the largest object is what was asked for in 29 % ± 3
(chance 2 %), in 36 % ± 3 where CLIP chooses among 8; 30 ms a picture. Codes take 1.05 ± 0.04 nats
each. The third trains a PixelCNN over the published VQGAN's codes of COCO 2014 at 256 px; add
`--config.pretrained.vqgan=last.ckpt` and `--config.pretrained.clip=FILE`. It has not been run here.
"""

from functools import partial

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


@on_scenes_without_data(partial(text2image.get_config, "vqvae"))
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at a published size; `data_dir` holds COCO 2014's photographs and captions."""
    return text2image.get_published_config("vqvae", data_dir)
