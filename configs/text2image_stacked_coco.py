r"""text2image, family adversarial, whose pictures a second generator draws anew (StackGAN).

python -m vljax.train --config configs/text2image_stacked_coco.py --workdir runs/stacked
python -m vljax.generate --workdir runs/stacked --out drawn --prompt "a photo of a red star"

Neither has been trained to numbers here. On COCO the second generator's stage is as short as on
scenes: give `--config.stages.refine.num_steps`.
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


def get_small_config() -> ConfigDict:
    """The recipe on scenes: 32 px, then 64."""
    return text2image.with_refiner(text2image.get_config("adversarial"))


@on_scenes_without_data(get_small_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at 64 px, then 256; `data_dir` holds COCO 2014's photographs and captions."""
    config = text2image.get_published_config("adversarial", data_dir)
    return text2image.with_refiner(config, 256)
