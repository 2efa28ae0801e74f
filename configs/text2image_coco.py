r"""text2image, family latent.

python -m vljax.train --config configs/text2image_coco.py --workdir runs/latent
python -m vljax.generate --workdir runs/latent --out drawn --prompt "a photo of a red star"
"""

from functools import partial

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


@on_scenes_without_data(partial(text2image.get_config, "latent"))
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at a published size; `data_dir` holds COCO 2014's photographs and captions."""
    return text2image.get_published_config("latent", data_dir)
