"""Shape-Guided Diffusion's small recipe, trained to its end: what table 5.2 says (30 minutes)."""

from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "shape_guided_coco.py"

OURS = ("Ours", "Ours (w/o IOA)")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(learn, tmp_path_factory):
    """The rows made here by shape and method, and how well pictures are found again."""
    workdir = tmp_path_factory.mktemp("shape_guided")
    results = learn(CONFIG, workdir, evaluate_flags=("--num_images", "96"))
    rows = [row for row in results["tables"]["table 5.2"] if row["source"] == "here"]
    return {(row["shape"], row["method"]): row for row in rows}, results["notes"][
        "reconstruction PSNR"
    ]


@pytest.mark.parametrize(
    ("shape", "setting"), [("given", ""), ("inferred", ""), ("given", ", in the first half")]
)
def test_shapes_are_kept_and_texts_heeded(results, shape, setting):
    """Where the background is copied; the paper's shapes are better with attention than without.

    Here by 2 to 14 in mIoU over three seeds (inferred shapes 0 to 13), with a standard error of 3
    each: what is refused is attention that does harm. The first half alone is figure 5.7.
    """
    with_ioa, without = (results[0][shape, name + setting] for name in OURS)
    assert with_ioa["mIoU"] > max(50, without["mIoU"] - 5)
    assert with_ioa["KW-mIoU"] > max(45, without["KW-mIoU"] - 6)
    assert with_ioa["CLIP"] > without["CLIP"] - 0.05
    assert with_ioa["CLIP"] > results[0]["", "Real images"]["CLIP"] + 0.2


def test_nothing_need_be_copied(results):
    """Where no background is copied back, object and surroundings stay in place far better."""
    with_ioa, without = (results[0]["given", f"{name}, nothing copied"] for name in OURS)
    assert with_ioa["background PSNR"] > without["background PSNR"] + 3
    assert with_ioa["mIoU"] > without["mIoU"] + 12


def test_every_baseline_is_there(results):
    assert {method for shape, method in results[0] if shape == "given"} == {
        "Blended Diffusion",
        "SD-Inpaint",
        "SD-Inpaint, nothing copied",
        "SDEdit + Shape",
        "SDEdit, nothing copied",
        "P2P + Shape",
        "Ours (w/o IOA)",
        "Ours (w/o IOA), nothing copied",
        "Ours",
        "Ours, nothing copied",
        "Ours (w/o IOA), in the first half",
        "Ours, in the first half",
    }


def test_pictures_are_found_again(results):
    with_ioa, without = (results[1][name] for name in OURS)
    assert with_ioa > 25
    assert without > 25
