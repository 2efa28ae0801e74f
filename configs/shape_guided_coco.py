"""Shape-Guided Diffusion on MS-COCO ShapePrompts (512 px): table 5.2.

`--config configs/shape_guided_coco.py` alone trains a small latent diffusion model on the embedded
scenes; `--config configs/shape_guided_coco.py:DIR --config.pretrained.sd=FOLDER` edits photographs
with Stable Diffusion 1.5 as `diffusers` writes it, and judges it on the ShapePrompts in DIR.
"""

from ml_collections import ConfigDict

from vljax.systems import shape_guided


def get_config(data_dir: str | None = None) -> ConfigDict:
    """The recipe; `data_dir` holds ShapePrompts' `test.json` and COCO's photographs."""
    if data_dir is None:
        return shape_guided.get_config()
    return shape_guided.get_published_config(data_dir)
