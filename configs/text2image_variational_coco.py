r"""text2image, family variational.

python -m vljax.train --config configs/text2image_variational_coco.py --workdir runs/variational
python -m vljax.generate --workdir runs/variational --out drawn --prompt "a photo of a red star"

The first trains on the embedded scenes, 11 minutes of one core. Expected there, one seed, 192
pictures of all shapes and colours: the largest object is what was asked for in 30 % ± 3 (chance
2 %), in 37 % ± 3 where CLIP chooses among 8; 5.0 bits a value, 6 ms a picture.
"""

from functools import partial

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


@on_scenes_without_data(partial(text2image.get_config, "variational"))
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at a published size; `data_dir` holds COCO 2014's photographs and captions."""
    return text2image.get_published_config("variational", data_dir)
