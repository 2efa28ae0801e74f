"""A recipe, trained and judged through its doors."""

import json

import pytest

from vljax import evaluate, train


@pytest.fixture(scope="session")
def learn():
    """`learn(recipe, workdir)`: the results of training and evaluation, also printed as a table."""

    def run(recipe, workdir, *, train_flags=(), evaluate_flags=()):
        assert train.main(("--config", str(recipe), *train_flags, "--workdir", str(workdir))) == 0
        assert evaluate.main(("--workdir", str(workdir), *evaluate_flags)) == 0
        print((workdir / "evaluation" / "results.md").read_text())
        return json.loads((workdir / "evaluation" / "results.json").read_text())

    return run
