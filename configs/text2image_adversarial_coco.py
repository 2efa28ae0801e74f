r"""text2image, family adversarial.

python -m vljax.train --config configs/text2image_adversarial_coco.py --workdir runs/adversarial
python -m vljax.generate --workdir runs/adversarial --out drawn --prompt "a photo of a red star"

The first trains on the embedded scenes, 12 minutes of one core. Expected there, one seed, 192
pictures of all shapes and colours: of the largest objects 61 % ± 4 have the colour asked for, 16 %
± 3 the shape, 11 % ± 2 both (by chance 13, 17 and 2), in 3 ms a picture: blots of the right colour.
As published it has not been run here.
"""

from functools import partial

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


@on_scenes_without_data(partial(text2image.get_config, "adversarial"))
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at a published size; `data_dir` holds COCO 2014's photographs and captions."""
    return text2image.get_published_config("adversarial", data_dir)
