r"""text2image, family latent, then textual inversion: one thing learnt from a few pictures.

python -m vljax.train --config configs/text2image_inversion_folder.py --workdir runs/inversion
python -m vljax.generate --workdir runs/inversion --out drawn --prompt "a photo of a <mine>"

Alone it learns a purple circle, after the family's own stages (12 minutes) or at once from a
trained model, `--config.pretrained.sd=vljax/examples/shape_guided/weights/example.safetensors`:
then 1 minute, and 1 to evaluate. Expected, 48 pictures of one seed from there: 35 ± 7 % show it,
before 21 ± 6. As published it has not been run here.
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import text2image


def get_small_config() -> ConfigDict:
    """The recipe on scenes: the family's own, then five pictures of a purple circle."""
    return text2image.with_personal(text2image.get_config("latent"), "inversion")


@on_scenes_without_data(get_small_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe at a published size; `data_dir` holds three to five photographs of the thing."""
    return text2image.get_personal_config("inversion", data_dir)
