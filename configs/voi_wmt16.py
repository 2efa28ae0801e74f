"""VOI on WMT16 Romanian to English: table 3.1, last columns.

`--config configs/voi_wmt16.py:DIR` runs the published setting on the TensorFlow Datasets directory
DIR. The paper first trains the left-to-right model there (`--config.order=l2r`) and then VOI on
what it writes: `python -m vljax.generate --workdir L2R --distill --out DISTILLED`, then
`--config configs/voi_wmt16.py:DISTILLED`. `--config configs/voi_wmt16.py` alone trains on the
captions of embedded scenes.
"""

from pathlib import Path

from ml_collections import ConfigDict

from vljax.systems import voi

EXAMPLES = 609_324


def get_config(data_dir: str | None = None) -> ConfigDict:
    """The recipe; `data_dir` holds the data set, or its distilled texts."""
    if data_dir is None:
        return voi.get_config()
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
