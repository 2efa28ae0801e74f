"""How PJ-X is probed: areas of curves, sizes of batches, one search for words. No network runs."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.systems.test_pjx import RECIPE, SMALL
from vljax.doors import parse_config
from vljax.metrics.report import Row
from vljax.systems import pjx
from vljax.systems.pjx import evaluation, method, probing
from vljax.systems.pjx.certificate import Certificate
from vljax.systems.pjx.method import Explained


@pytest.fixture
def config():
    return parse_config((*RECIPE, *SMALL))[0]


def explained(count, side=10, answers=5, length=3):
    rng = np.random.default_rng(count)
    return Explained(
        rng.dirichlet(np.ones(answers), count),
        np.zeros(count, np.int32),
        None,
        rng.random((count, side, side)),
        np.ones((count, length), np.int32),
        np.zeros(count),
    )


def test_the_area_under_a_straight_line_is_a_half(monkeypatch):
    """An answer as probable as much is seen, whatever goes first."""
    monkeypatch.setattr(probing, "probability_when_seen", lambda *told: told[-1].mean((1, 2)))
    judged = probing.Judged([{}] * 2, [{}] * 2, [0] * 2, None)
    rows = [*probing._deletion(None, judged, explained(2), 2, 0)]
    assert {row.method for row in rows} == {"ours", "random"}
    for row in rows:
        assert row.values["area under deletion"] == pytest.approx(0.5)
        assert row.values["area under insertion"] == pytest.approx(0.5)


def test_probes_are_explained_by_the_search_and_in_the_batches_that_are_asked_for(
    config, monkeypatch
):
    asked = []

    def explain(model, batch, given, keys, **how):
        asked.append((len(given), len(batch["image"]), how["beams"]))
        return explained(len(given))

    monkeypatch.setattr(method, "explain", explain)
    monkeypatch.setattr(probing, "probability_when_seen", lambda *told: told[-1].mean((1, 2)))
    monkeypatch.setattr(evaluation, "certificates", lambda *_: Row("certificates", "ours", {}))
    monkeypatch.setattr("shutil.which", lambda name: None)  # METEOR would start Java
    model = jax.eval_shape(lambda: pjx.make_model(config))
    how = {"num_examples": 7, "batch_size": 4, "beams": 3, "probed": 6, "copied": 4}
    report = evaluation.judge(model, config, evaluation.Judging(**how))
    assert set(asked) == {(4, 4, 3)}
    tables = report.tables()
    assert [row["n"] for row in tables["faithfulness"]] == [6, 6]
    assert tables["counterfactuals"]


def test_no_batch_is_larger_than_there_are_examples(config, monkeypatch):
    sizes = []

    def certify(model, batch, given, seen):
        sizes.append(len(given))
        return Certificate(seen.true, seen.grounded, seen.names)

    def probabilities(model, batch):
        sizes.append(len(batch["image"]))
        return np.ones((len(batch["image"]), 5)) / 5

    monkeypatch.setattr(probing, "certify", certify)
    monkeypatch.setattr(evaluation, "probabilities", probabilities)
    words, benchmark = evaluation.open_words(config), evaluation.open_benchmark(config.data)
    judged, _ = probing.open_judged(config, words, benchmark, 3)
    row = probing.certificates(None, config, words, judged, explained(3), 100)
    assert row.values["n"] == 3
    model = SimpleNamespace(explainer=None)
    report = evaluation.judge(model, config, evaluation.Judging(num_examples=3, batch_size=100))
    assert report.rows[0].values["n"] == 3
    assert sizes == [3, 3]
