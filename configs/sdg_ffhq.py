"""SDG on FFHQ (70,000 faces, 256 px): the diffusion model of table 4.1.

    python -m vljax.train --config configs/sdg_ffhq.py --workdir runs/sdg
    python -m vljax.train --config configs/sdg_ffhq.py:/data/ffhq --workdir runs/ffhq

The first trains a small model on the embedded scenes: some 15 minutes on two cores. Expected there:
the picture that a text asks for is first of 100 in 58 ± 4 % (144 pictures, unguided 0 %).
The second runs the published setting on the images in a folder. Expected by the paper: FID 14.4,
top-1 0.52 with image guidance; it has not been run here (500,000 steps of 64: days on eight GPUs).
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import sdg


@on_scenes_without_data(sdg.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` is a folder of images, in subfolders or not."""
    config = sdg.get_published_config("folder", data_dir)
    config.about = "SDG's diffusion model on FFHQ, as published: ADM, 128 channels, 256 px."
    config.model.diffusion.update(
        {"model_channels": 128, "num_res_blocks": 1, "attention_resolutions": (16,)}
    )
    config.stages.diffusion.update({"batch_size": 64, "num_steps": 500_000})
    config.stages.noisy_clip.num_steps = 14_000
    config.stages.noisy_clip.optimizer.decay_every = 3_000
    config.evaluation.instructions = "faces"
    return config
