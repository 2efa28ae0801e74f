"""SDG on LSUN (bedroom, cat or horse, 256 px): the diffusion models of table 4.2.

`--config configs/sdg_lsun.py` alone trains a small model on the embedded scenes;
`--config configs/sdg_lsun.py:DIR` runs the published setting on the LMDB in DIR, as distributed
(`bedroom_train_lmdb`, `cat`, `horse`).
"""

from pathlib import Path

from ml_collections import ConfigDict

from vljax.errors import UserError
from vljax.systems import sdg

# Training steps of the published models (Dhariwal & Nichol 2021, table 11).
NUM_STEPS = {"bedroom": 500_000, "cat": 200_000, "horse": 250_000}


def get_config(data_dir: str | None = None) -> ConfigDict:
    """The recipe; `data_dir` is an LSUN database whose name says which class it holds."""
    if data_dir is None:
        return sdg.get_config()
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
