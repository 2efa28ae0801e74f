"""Tables 3.2 and 3.3 on real captions: a known order is found again (25 minutes); on one core."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CAPTIONS = ROOT.parent / "shared" / "data" / "coco_captions"
RECIPE = f"{ROOT / 'configs' / 'voi_order_recovery.py'}:{CAPTIONS}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CAPTIONS.is_dir(), reason=f"{CAPTIONS} is not there"),
]


@pytest.fixture(scope="module")
def recover(learn, tmp_path_factory):
    """Normalised Levenshtein distance of a fresh permutation network's orders to common-first."""
    root = tmp_path_factory.mktemp("recovery")
    known: dict[tuple, float] = {}

    def run(scheme="xl", distribution="gumbel_matching", k=4):
        if (cell := (scheme, distribution, k)) in known:
            return known[cell]
        workdir = root / "-".join(map(str, cell))
        flags = [
            f"--config.model.permutation.scheme={scheme}",
            f"--config.model.permutation.distribution={distribution}",
            f"--config.num_orders={k}",
        ]
        if known:  # every cell recovers the order of one decoder
            first = "-".join(map(str, next(iter(known))))
            flags.append(
                f"--config.pretrained.decoder={root / first / 'weights'}/decoder.safetensors"
            )
        few = ("--num_examples", "25", "--batch_size", "25", "--beams", "2", "--perturbed", "0")
        results = learn(RECIPE, workdir, train_flags=flags, evaluate_flags=few)
        assert results["orders"]["random"]["normalised_levenshtein"] > 0.7
        known[cell] = results["permutation_network_to_common"]
        print(f"{cell}: {known[cell]:.3f}")
        return known[cell]

    return run


def test_the_order_is_found_again(recover):
    assert recover() <= 0.3


def test_more_orders_are_better(recover):
    assert recover(k=4) < recover(k=2)


def test_transformer_xl_positions_are_better_than_sinusoids(recover):
    assert recover(scheme="xl") < recover(scheme="sinusoid")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_one_core_is_enough(tmp_path):
    """Steps are dispatched before the last has ended; a callback must not wait for their thread."""
    command = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from vljax import train; sys.exit(train.main(sys.argv[1:]))"
    )
    flags = [
        *("--config", RECIPE, "--workdir", str(tmp_path / "run")),
        "--config.stages.decoder.num_steps=50",
        "--config.stages.permutation.num_steps=200",
    ]
    run = subprocess.run([sys.executable, "-c", command, *flags], timeout=240, check=False)
    assert run.returncode == 0
