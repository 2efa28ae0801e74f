"""Figure 3.5: VOI with four orders against the searched order, by length of target."""

from pathlib import Path

import numpy as np
import pytest

from vljax.doors import parse_config
from vljax.systems import voi
from vljax.systems.voi.evaluation import LENGTHS, runtime

CONFIG = Path(__file__).parents[2] / "configs" / "voi_coco.py"


@pytest.mark.benchmark
def test_the_speed_up_over_the_search_grows_with_length():
    config, _ = parse_config(
        [
            f"--config={CONFIG}",
            "--config.model.layers=1",
            "--config.model.features=64",
            "--config.model.hidden=64",
        ]
    )
    report = runtime(voi.make_model(config), config, LENGTHS)
    for row in report.rows:
        print(row.method, {name: f"{value:.4g}" for name, value in row.values.items()})
    found = report.notes["figure 3.5"]
    print({name: f"{value:.4g}" for name, value in found.items()})
    assert report.figures["figure_3_5"].std() > 1
    assert all(np.isfinite(value) for value in found.values())
    assert found["search_speed_up"] > 1
    assert found["search_speed_up_slope"] > 0
