"""The captioner's recipe on scenes: attention lies on what is named, and makes captions truer."""

from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "configs" / "captioner_coco.py"

pytestmark = pytest.mark.slow


def test_attention_lies_on_what_is_named_and_helps(learn, tmp_path):
    tables = learn(RECIPE, tmp_path / "run")["tables"]
    looked = {row["method"]: row for row in tables["attention on an object"]}
    noun = looked["while its noun is written"]
    assert noun["mass on the object"] > noun["its area"] + 3 * noun["standard error of mass"]
    assert noun["mass on the object"] > noun["mass on each other object"]
    ours = {row["method"]: row for row in tables["captions"] if row["source"] == "here"}
    soft, none = ours["soft attention"], ours["without attention"]
    assert soft["CIDEr"] >= none["CIDEr"]
    assert soft["true pairs"] >= none["true pairs"]
    # Without attention a caption's likeliest beginnings may end worse than the greedy one's.
    assert ours["soft attention, beam of 3"]["log p"] >= soft["log p"]
    # Not so without attention, where the mean of the features tells too little.
    copied = ours["copied from the nearest training picture"]
    assert soft["true pairs"] > copied["true pairs"]
    assert ours["soft attention, beam of 3"]["CIDEr"] > copied["CIDEr"]
    some, all_ = (ours[f"soft attention, drawn, p = {share}"] for share in ("0.5", "1"))
    assert some["distinct"] < all_["distinct"]
    assert some["CIDEr"] > all_["CIDEr"]
