"""VOI on English Gigaword (a sentence, and its headline): table 3.1, third columns.

`--config configs/voi_gigaword.py:DIR` runs the published setting on the TensorFlow Datasets
directory DIR, or on a folder that `generate --distill` left; `--config configs/voi_gigaword.py`
alone trains on the captions of embedded scenes.
"""

from pathlib import Path

from ml_collections import ConfigDict

from vljax.systems import voi

EXAMPLES = 3_803_897


def get_config(data_dir: str | None = None) -> ConfigDict:
    """The recipe; `data_dir` holds the data set."""
    if data_dir is None:
        return voi.get_config()
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
