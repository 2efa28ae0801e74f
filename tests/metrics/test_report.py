"""Reports: what is joined, what is written."""

import json

import numpy as np
import pytest

from vljax.metrics.report import Report, Row, paper_rows


def test_reports_join_in_their_order():
    shown, own = np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 3), np.uint8)
    first = Report((Row("table 1", "ours", {"FID": 2.0}),), {"n": 1}, {"shown": shown})
    second = Report((Row("table 2", "ours", {}), Row("table 1", "theirs", {"top1": 0.5})))
    both = first + second + Report((), {"m": 2}, {"own": own})
    assert list(both.tables()) == ["table 1", "table 2"]
    assert [row["method"] for row in both.tables()["table 1"]] == ["ours", "theirs"]
    assert both.notes == {"n": 1, "m": 2}
    assert both.figures == {"shown": shown, "own": own}
    assert (first.rows, first.notes) == ((Row("table 1", "ours", {"FID": 2.0}),), {"n": 1})


def test_what_is_no_number_is_null_and_an_empty_cell():
    report = Report(
        (
            Row("table 1", "ours", {"FID": float("nan"), "top1": np.float32(0.123456)}),
            *paper_rows("table 1", "paper, table 1", ("FID", "top1"), ("ours", 2.0, None)),
        ),
        {"judged by": {"FID": "nothing"}},
    )
    assert json.loads(report.as_json()) == {
        "notes": {"judged by": {"FID": "nothing"}},
        "tables": {
            "table 1": [
                {"method": "ours", "source": "here", "FID": None, "top1": pytest.approx(0.123456)},
                {"method": "ours", "source": "paper, table 1", "FID": 2.0},
            ]
        },
    }
    assert report.as_markdown().splitlines() == [
        "table 1",
        "",
        "| method | source | FID | top1 |",
        "| --- | --- | --- | --- |",
        "| ours | here |  | 0.1235 |",
        "| ours | paper, table 1 | 2 |  |",
        "",
        "| note | value |",
        "| --- | --- |",
        "| judged by.FID | nothing |",
    ]
    with pytest.raises(ValueError, match="zip"):
        paper_rows("table 1", "paper, table 1", ("FID",), ("ours", 1.0, 2.0))
