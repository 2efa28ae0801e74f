r"""Shape-Guided Diffusion on MS-COCO ShapePrompts (512 px): table 5.2.

    python -m vljax.train --config configs/shape_guided_coco.py --workdir runs/shapes
    python -m vljax.evaluate --config configs/shape_guided_coco.py:/data/shape_prompts --out table \
        --config.pretrained.sd=stable-diffusion-v1-5

The first trains a small latent diffusion model on the embedded scenes: some 20 minutes on one core.
Expected there, 96 edits of each of three seeds: mIoU 70.5 with Inside-Outside Attention, 63.3
without. The second needs no training: Stable Diffusion 1.5 as `diffusers` writes it edits the
photographs of a ShapePrompts folder. Expected by the paper: mIoU 63.6 and 55.3; not run here.
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import shape_guided


@on_scenes_without_data(shape_guided.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` holds ShapePrompts' `test.json` and COCO's photographs."""
    return shape_guided.get_published_config(data_dir)
