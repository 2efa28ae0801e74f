"""SDG on LSUN (bedroom, cat or horse, 256 px): the diffusion models of table 4.2.

    python -m vljax.train --config configs/sdg_lsun.py:/data/bedroom_train_lmdb --workdir runs/lsun

runs the published setting on the LMDB in a folder, as distributed (`bedroom_train_lmdb`, `cat`,
`horse`). Expected by the paper, with image guidance at 200: FID 5.2 and top-1 0.45 (bedroom), 16.2
and 0.28 (cat), 11.2 and 0.30 (horse); it has not been run here (200,000 to 500,000 steps of 256:
days on a pod). `--config configs/sdg_lsun.py` alone is the small run of `sdg_ffhq.py`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.errors import UserError
from vljax.systems import sdg

# Training steps of the published models (Dhariwal & Nichol 2021, table 11).
NUM_STEPS = {"bedroom": 500_000, "cat": 200_000, "horse": 250_000}


@on_scenes_without_data(sdg.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` is an LSUN database whose name says which class it holds."""
    name = Path(data_dir).resolve().name
    subset = next((subset for subset in NUM_STEPS if subset in name), None)
    if subset is None:
        raise UserError(
            f"--config configs/sdg_lsun.py:{data_dir}: the folder's name should contain one of "
            f"{', '.join(NUM_STEPS)}"
        )
    config = sdg.get_published_config("lsun", data_dir)
    config.about = (
        f"SDG's diffusion model on LSUN {subset}, as published: ADM, 256 channels, 256 px."
    )
    config.model.diffusion.update(
        {
            "model_channels": 256,
            "num_res_blocks": 2,
            "attention_resolutions": (32, 16, 8),
            "dropout_rate": 0.1,
        }
    )
    config.stages.diffusion.update({"batch_size": 256, "num_steps": NUM_STEPS[subset]})
    config.stages.noisy_clip.num_steps = 100_000
    config.stages.noisy_clip.optimizer.decay_every = 30_000
    return config
