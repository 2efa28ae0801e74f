"""VOI on Django (a description of a line of code, and the line): table 3.1, second columns.

    python -m vljax.train --config configs/voi_django.py:small:/data/django --workdir runs/django

trains at a size that a CPU finishes in an hour, on the pairs in a folder (`src_raw_train.txt`,
`tgt_raw_train.txt`, `src_raw_dev.txt`, `tgt_raw_dev.txt`). Expected, one seed: BLEU 38.5, left to
right (`--config.order=l2r`) 39.1. Without `small:` it is the published setting; expected by the
paper: BLEU 45.9, accuracy 34.5; it has not been run here. `--config configs/voi_django.py` alone is
the small run of `voi_coco.py`.
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import voi

EXAMPLES = 16_000


@on_scenes_without_data(voi.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` is the folder of pairs, `small:` before it for the small size."""
    small = data_dir.startswith("small:")
    config = voi.get_published_config("django", data_dir.removeprefix("small:"))
    config.about = "VOI on Django, as published: Transformer-Base, K = 4, PPO."
    config.data.update({"max_source": 70, "max_target": 50})
    epoch = EXAMPLES // 32
    config.stages.joint.update({"num_steps": 50 * epoch, "estimator": "ppo"})
    config.stages.separate.update(
        {"num_steps": 250 * epoch, "estimator": "ppo", "entropy": (0.5, 0.002)}
    )
    config.stages.tune.update({"num_steps": 50 * epoch // 2})
    for name in ("separate", "tune"):
        config.stages[name].optimizer.learning_rate = 3e-5
    if small:
        config.about = "VOI on Django at a reduced size: 2 layers of 128, a tenth of the steps."
        config.model.update(
            {"layers": 2, "features": 128, "hidden": 256, "heads": 4, "dtype": "float32"}
        )
        config.data.update({"min_count": 2, "max_source": 40, "max_target": 25, "workers": 0})
        for name, steps in (("joint", 1500), ("separate", 2000), ("tune", 500)):
            config.stages[name].num_steps = steps
            config.stages[name].optimizer.update({"learning_rate": 1e-3, "clip_norm": 1.0})
        config.stages.joint.optimizer.warmup_steps = 200
        config.stages.tune.batch_size = 32
        config.stages.separate.alignment = 1.0
        config.log.pictures_every = config.checkpoint.every = 500
    return config
