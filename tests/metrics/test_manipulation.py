"""SeMani's tables, and scenes judged by the oracle."""

import numpy as np
import pytest

from vljax.data.manipulations import scene_manipulations
from vljax.data.scenes import Scenes, render
from vljax.data.scenes.manipulations import MANIPULATION_KINDS
from vljax.metrics import manipulation
from vljax.metrics.manipulation import (
    PAPER,
    TABLE_1,
    TABLE_2,
    Jury,
    alignment_columns,
    l2_error,
    means,
    outside_kept,
    raster_place,
    scene_columns,
    scene_score,
    text_agreement,
)
from vljax.metrics.report import Report

SCENES = Scenes(size=16, image_size=64, sizes=("large",), max_objects=2, min_visible=0.9)


@pytest.fixture(scope="module")
def wishes():
    return list(scene_manipulations(SCENES, MANIPULATION_KINDS))


def test_the_papers_rows():
    tables = Report(PAPER).tables()
    assert len(tables[TABLE_1]) == 16
    assert len(tables[TABLE_2]) == 5
    best = max(
        (row for row in tables[TABLE_1] if row.get("data") == "CUB"), key=lambda r: r["R@10"]
    )
    assert best["method"] == "SeMani-Diff"


def test_the_picture_as_wished_is_right_and_the_unedited_one_is_not(wishes):
    wished = [scene_score(one.target, one.image, one.truth) for one in wishes]
    unedited = [scene_score(one.image, one.image, one.truth) for one in wishes]
    columns, before = scene_columns(wished), scene_columns(unedited)
    assert columns["as asked"].mean() > 90
    assert columns["F1 of others"].mean() > 90
    assert np.nanmean(columns["shape IoU"]) > 80
    assert before["as asked"].max() == 0
    assert (before["PSNR outside"] == 99).all()
    assert means(columns)["±"] >= 0


def test_a_background_has_no_shape_colour_or_overlap(wishes):
    grounds = [one for one in wishes if not one.truth.changed]
    columns = scene_columns(scene_score(one.target, one.image, one.truth) for one in wishes)
    told = means(columns)
    ground = np.array([not one.truth.changed for one in wishes])
    assert grounds
    for name in ("shape", "colour", "shape IoU"):
        assert np.isnan(columns[name][ground]).all()
        assert told[name] == pytest.approx(columns[name][~ground].mean())
    assert means({name: column[ground] for name, column in columns.items()}).keys() == {
        "as asked",
        "±",
        "F1 of others",
        "PSNR outside",
    }


def test_what_is_lost_is_seen(wishes):
    for one in wishes:
        told = scene_score(np.full_like(one.image, 128), one.image, one.truth)
        others = len(one.truth.after.objects) > len(one.truth.changed)
        assert told.others == float(not others)
        assert told.psnr < 30
        if one.truth.changed:
            assert told.right == told.shape_iou == 0


def test_two_colours_count_one_by_one(wishes):
    one = next(one for one in wishes if one.kind == "two colours")
    half = render(
        type(one.truth.after)(
            one.truth.before.background,
            tuple(
                (one.truth.after if i == one.truth.changed[0] else one.truth.before).objects[i]
                for i in range(len(one.truth.before.objects))
            ),
        ),
        64,
    )
    assert scene_score(half, one.image, one.truth).colour == 0.5


def test_agreement_with_texts_and_its_chance():
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(150, 32)).astype(np.float32)
    own = text_agreement(texts, texts)
    assert own == {"CLIP-score": pytest.approx(100), "R@10": 100, "chance": pytest.approx(10)}
    blind = text_agreement(rng.normal(size=(150, 32)).astype(np.float32), texts)
    assert abs(blind["R@10"] - 10) < 10
    few = text_agreement(texts[:5], texts[:5])
    assert few["chance"] == 100


def test_the_inception_score_is_of_parts_of_ten_pictures_by_weights_opened_once(monkeypatch):
    opened = []

    def logits(pictures):
        return np.eye(2, dtype=np.float32)[np.arange(len(pictures)) % 2] * 60

    monkeypatch.setattr(
        manipulation, "inception_logits", lambda path: opened.append(path) or logits
    )
    jury = Jury(["a star"] * 19, None, None, clip=None, inception="file", batch_size=4, seed=0)
    for _ in range(2):
        found = jury.columns(np.zeros((19, 4, 4, 3), np.uint8))
        assert found == {"IS": pytest.approx(2, rel=1e-2), "IS deviation": 0}
    assert opened == ["file"]


def test_pixels_and_places():
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    np.testing.assert_allclose(l2_error(black, white), [4])
    mask = np.zeros((1, 4, 4), bool)
    made = black.copy()
    made[0, 1, 1] = 9
    assert not outside_kept(made, black, mask)[0]
    mask[0, 1, 1] = True
    assert outside_kept(made, black, mask)[0]
    assert raster_place(mask[0]) == pytest.approx(5 / 15)
    columns = alignment_columns([mask[0], ~mask[0]], [mask[0], mask[0]])
    np.testing.assert_allclose(columns["choice"], [100, 0])
    np.testing.assert_allclose(columns["mask IoU"], [100, 0])
