"""SDG on FFHQ (70,000 faces, 256 px): the diffusion model of table 4.1.

`--config configs/sdg_ffhq.py` alone trains a small model on the embedded scenes;
`--config configs/sdg_ffhq.py:DIR` runs the published setting on the faces in DIR.
"""

from ml_collections import ConfigDict

from vljax.systems import sdg


def get_config(data_dir: str | None = None) -> ConfigDict:
    """The recipe; `data_dir` is a folder of images, in subfolders or not."""
    if data_dir is None:
        return sdg.get_config()
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
