"""VOI on COCO captions (2017): table 3.1, first columns.

`--config configs/voi_coco.py` alone trains a small model on the captions of embedded scenes, their
objects being the regions; `--config configs/voi_coco.py:DIR` runs the published setting on the
captions in DIR and a detector's regions of every picture (see `vljax.data.text.captions`).
"""

from ml_collections import ConfigDict

from vljax.systems import voi

# Captions of the training split.
EXAMPLES = 591_435


def get_config(data_dir: str | None = None) -> ConfigDict:
    """The recipe; `data_dir` is a folder of captions and regions."""
    if data_dir is None:
        return voi.get_config()
    config = voi.get_published_config("coco", data_dir)
    config.about = "VOI on COCO captions, as published: Transformer-Base, K = 4."
    config.data.update({"split": "train2017", "max_source": 100, "max_target": 45, "min_count": 5})
    epoch = EXAMPLES // 32
    config.stages.joint.update({"num_steps": 4 * epoch})
    config.stages.separate.update({"num_steps": 15 * epoch, "entropy": (0.5, 0.03)})
    config.stages.tune.update({"num_steps": 5 * epoch // 2})
    for stage in config.stages.values():
        stage.optimizer.b2 = 0.999
    config.stages.separate.optimizer.learning_rate = 5e-5
    config.stages.tune.optimizer.learning_rate = 5e-5
    return config
