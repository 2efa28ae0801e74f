"""The papers' rows on COCO, in percent."""

from vljax.metrics.report import Row, paper_rows

_COLUMNS = ("data", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "CIDEr")


def coco() -> tuple[Row, ...]:
    """What the papers' networks, and one that they compare with, reached on COCO."""
    attend = (
        ("soft attention", "COCO", 70.7, 49.2, 34.4, 24.3, 23.90, None),
        ("hard attention", "COCO", 71.8, 50.4, 35.7, 25.0, 23.04, None),
        ("log-bilinear (Kiros et al. 2014)", "COCO", 70.8, 48.9, 34.4, 24.3, 20.03, None),
    )
    tell = (("without attention", "COCO", None, None, None, 27.7, 23.7, 85.5),)
    return (
        *paper_rows("captions", "Show, Attend and Tell, table 1", _COLUMNS, *attend),
        *paper_rows("captions", "Show and Tell, table 1", _COLUMNS, *tell),
    )
