r"""text2image, family pixels.

python -m vljax.train --config configs/text2image_pixels_coco.py --workdir runs/pixels
python -m vljax.generate --workdir runs/pixels --out drawn --prompt "a photo of a red star"

Expected on scenes, 96 pictures of one seed after 10 CPU minutes: of the largest objects 74 ± 4 %
have the colour asked for, 18 ± 4 the shape, 15 ± 4 both (by chance 13, 17 and 2). As published it
has not been run here.
"""

from functools import partial

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


@on_scenes_without_data(partial(text2image.get_config, "pixels"))
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at a published size; `data_dir` holds COCO 2014's photographs and captions."""
    return text2image.get_published_config("pixels", data_dir)
