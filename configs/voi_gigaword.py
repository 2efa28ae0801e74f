"""VOI on English Gigaword (a sentence, and its headline): table 3.1, third columns.

    python -m vljax.train --config configs/voi_gigaword.py:/data/tfds --workdir runs/gigaword

runs the published setting on a TensorFlow Datasets directory, or on a folder that
`generate --distill` left. Expected by the paper: ROUGE-1, -2, -L of 36.6, 17.6, 34.0; it has not
been run here. `--config configs/voi_gigaword.py` alone is the small run of `voi_coco.py`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from vljax.config import on_scenes_without_data
from vljax.systems import voi

EXAMPLES = 3_803_897


@on_scenes_without_data(voi.get_config)
def get_config(data_dir: str) -> ConfigDict:
    """The recipe; `data_dir` holds the data set."""
    config = voi.get_published_config("gigaword", data_dir)
    config.about = "VOI on Gigaword, as published: Transformer-Base, K = 4, 32,000 pieces."
    config.data.update({"max_source": 100, "max_target": 30, "vocabulary_size": 32_000})
    voi.use_distilled(config, Path(data_dir))
    epoch = EXAMPLES // 50
    config.stages.joint.update({"batch_size": 50, "num_steps": 3 * epoch})
    config.stages.separate.update(
        {"batch_size": 50, "num_steps": 8 * epoch, "entropy": (0.5, 0.03)}
    )
    config.stages.tune.update({"batch_size": 128, "num_steps": 5 * EXAMPLES // 128})
    for name, rate in (("joint", 5e-5), ("separate", 5e-5), ("tune", 7e-5)):
        config.stages[name].optimizer.learning_rate = rate
    return config
