"""The rows of the thesis, tables 2.2 to 2.4, in percent."""

from collections.abc import Iterator
from typing import Any

from vljax.metrics.report import Row

# Table 2.2: B, M, R, C, S of VQA-X, then of ACT-X.
_COLUMNS = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
_TABLE_22 = (
    ("Generating Visual Explanations, true answer", None, (12.9, 15.9, 39.0, 12.4, 12.0)),
    ("on descriptions, true answer", (6.1, 12.8, 26.4, 36.2, 12.1), (6.9, 12.9, 28.3, 20.3, 7.3)),
    ("w/o attention, true answer", (18.0, 17.6, 42.4, 66.3, 14.3), (16.9, 17.0, 42.0, 33.3, 10.6)),
    ("ours, true answer", (19.8, 18.6, 44.0, 73.4, 15.4), (24.5, 21.5, 46.9, 58.7, 16.0)),
    ("on descriptions, own answer", (5.9, 12.6, 26.3, 35.2, 11.9), (5.2, 11.0, 26.5, 10.4, 4.6)),
    ("w/o attention, own answer", (18.0, 17.3, 42.1, 63.6, 13.8), (11.9, 13.6, 37.9, 16.9, 5.7)),
    ("ours, own answer", (19.5, 18.2, 43.4, 71.3, 15.1), (15.3, 15.6, 40.0, 22.0, 7.2)),
)
# Table 2.3: EMD of VQA-X and ACT-X, rank correlation of VQA-X, ACT-X and VQA-HAT.
_TABLE_23 = (
    ("random point", (6.71, 6.59, 0.0017, 0.0003, -0.0001)),
    ("uniform", (3.60, 3.25, 0.0003, -0.0001, -0.0007)),
    ("HieCoAtt-Q", (None, None, None, None, 0.2640)),
    ("answering model", (2.77, 4.78, 0.2211, 0.0104, 0.2234)),
    ("ours", (2.64, 2.54, 0.3423, 0.3933, 0.3964)),
)
# Table 2.4: how often people guess whether the model was right, VQA-X and ACT-X.
_TABLE_24 = (
    ("without explanation", (57.5, 51.5)),
    ("on descriptions", (66.5, 72.5)),
    ("w/o attention", (61.5, 76.5)),
    ("ours", (70.0, 80.5)),
)


def paper_rows() -> Iterator[Row]:
    """The rows of tables 2.2 to 2.4."""
    for method, vqa, act in _TABLE_22:
        for data, values in (("VQA-X", vqa), ("ACT-X", act)):
            if values:
                scores: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
                yield Row("table 2.2", method, {"data": data, **scores}, "paper, table 2.2")
    for method, maps in _TABLE_23:
        for k, data in enumerate(("VQA-X", "ACT-X", "VQA-HAT")):
            emd, rank = maps[k] if k < 2 else None, maps[2 + k]
            if emd is not None or rank is not None:
                told = {"data": data, "EMD": emd, "rank correlation": rank}
                yield Row("table 2.3", method, told, "paper, table 2.3")
    for method, guesses in _TABLE_24:
        told = {f"right guesses, {d}": v for d, v in zip(("VQA-X", "ACT-X"), guesses, strict=True)}
        yield Row("table 2.4", method, told, "paper, table 2.4 (people)")
