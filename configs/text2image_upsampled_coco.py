r"""text2image, family pixels, whose pictures a second network enlarges.

python -m vljax.train --config configs/text2image_upsampled_coco.py --workdir runs/upsampled
python -m vljax.generate --workdir runs/upsampled --out drawn --prompt "a photo of a red star"
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


def get_small_config() -> ConfigDict:
    """The recipe on scenes: 32 px, then 64."""
    return text2image.with_upsampler(text2image.get_config("pixels"))


@on_scenes_without_data(get_small_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at a published size; `data_dir` holds COCO 2014's photographs and captions."""
    return text2image.get_published_config("pixels", data_dir)
