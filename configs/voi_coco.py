"""VOI on COCO captions (2017): table 3.1, first columns.

    python -m vljax.train --config configs/voi_coco.py --workdir runs/voi
    python -m vljax.train --config configs/voi_coco.py:/data/coco --workdir runs/voi_coco

The first trains a small model on the captions of embedded scenes, their objects being the regions:
some 8 minutes on one core. Expected there: content words come before function words, 0.39 apart in
mean index (the example `voi_captions`; an earlier training 0.24), BLEU 80. The second runs the
published setting on the captions in a folder and a detector's regions of every picture (see
`vljax.data.text.captions`). Expected by the paper: BLEU 31.0, METEOR 25.7, ROUGE 56.0, CIDEr 100.6;
it has not been run here.
"""

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import voi

# Captions of the training split.
EXAMPLES = 591_435


@on_scenes_without_data(voi.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` is a folder of captions and regions."""
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
