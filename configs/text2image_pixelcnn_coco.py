"""A gated PixelCNN over pixels of few levels, on COCO's captions.

    python -m vljax.train --config configs/text2image_pixelcnn_coco.py --workdir runs/pixelcnn
    python -m vljax.generate --workdir runs/pixelcnn --out drawn --prompt "a photo of a red star"
    python -m vljax.train --config configs/text2image_pixelcnn_coco.py:/data/coco --workdir runs/c

The first trains on the embedded scenes, at eight levels a channel: 20 minutes of one core are
estimated; of its 1,000 steps only the first 40 have been run here (1.93 to 1.57 nats a value). The
third runs the same small network at 64 px on COCO 2014; it has not been run here.
"""

from functools import partial

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


@on_scenes_without_data(partial(text2image.get_config, "pixelcnn"))
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at a published size; `data_dir` holds COCO 2014's photographs and captions."""
    return text2image.get_published_config("pixelcnn", data_dir)
