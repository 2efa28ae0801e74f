r"""VOI on WMT16 Romanian to English: table 3.1, last columns.

    python -m vljax.train --config configs/voi_wmt16.py:/data/tfds --workdir runs/l2r \
        --config.order=l2r
    python -m vljax.generate --workdir runs/l2r --distill --out distilled
    python -m vljax.train --config configs/voi_wmt16.py:distilled --workdir runs/wmt16

As in the paper the left-to-right model comes first, on a TensorFlow Datasets directory, and then
VOI on what it writes. Expected by the paper: BLEU 32.9, METEOR 54.6, TER 49.3; it has not been run
here. `--config configs/voi_wmt16.py` alone is the small run of `voi_coco.py`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import voi

EXAMPLES = 609_324


@on_scenes_without_data(voi.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` holds the data set, or its distilled texts."""
    config = voi.get_published_config("wmt16", data_dir)
    config.about = "VOI on WMT16 Ro-En, as published: Transformer-Base, K = 3, 32,000 pieces."
    config.data.update({"max_source": 100, "max_target": 100, "vocabulary_size": 32_000})
    voi.use_distilled(config, Path(data_dir))
    config.num_orders = 3
    epoch = EXAMPLES // 54
    config.stages.joint.update({"batch_size": 54, "num_steps": 20 * epoch, "entropy": (0.3, 0.3)})
    config.stages.separate.update(
        {"batch_size": 54, "num_steps": 65 * epoch, "entropy": (0.3, 0.0007), "alignment": 10.0}
    )
    config.stages.tune.update({"batch_size": 128, "num_steps": 5 * EXAMPLES // 128})
    for stage in config.stages.values():
        stage.optimizer.learning_rate = 5e-5
    return config
