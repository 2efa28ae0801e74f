"""The rows of the paper's tables, as data; F1 is computed in two ways in table 1.

GeNeVA-GAN, SSCR and CDD-ICM give the harmonic mean of a row's precision and recall, TIRG and
LatteGAN the mean over pictures: only rows of one column compare.
"""

from vljax.metrics.report import Row, paper_rows

TABLE_1 = "table 1: all turns; RSIM of last turns"
TABLE_2 = "table 2: ablations"

_COLUMNS = ("data", "precision", "recall", "F1 (of means)", "F1 (mean)", "RSIM")


def _table_1() -> tuple[Row, ...]:
    lines = (
        ("GeNeVA-GAN", "CoDraw", 66.64, 52.66, 58.83, None, 35.41),
        ("SSCR", "CoDraw", 58.17, 56.61, 57.38, None, 39.11),
        ("TIRG", "CoDraw", 76.56, 73.40, None, 72.40, 46.64),
        ("LatteGAN", "CoDraw", 81.50, 78.37, None, 77.51, 54.16),
        ("CDD-ICM", "CoDraw", 90.61, 87.55, 89.05, None, 57.39),
        ("GeNeVA-GAN", "i-CLEVR", 92.39, 84.72, 88.39, None, 74.02),
        ("SSCR", "i-CLEVR", 73.75, 46.39, 56.96, None, 34.54),
        ("TIRG", "i-CLEVR", 94.30, 92.96, None, 93.71, 77.55),
        ("LatteGAN", "i-CLEVR", 97.72, 96.93, None, 97.26, 83.21),
        ("CDD-ICM", "i-CLEVR", 99.99, 99.94, 99.96, None, 85.66),
    )
    return paper_rows(TABLE_1, "paper, table 1", _COLUMNS, *lines)


def _table_2() -> tuple[Row, ...]:
    lines = (
        ("CDD-ICM", "CoDraw", 89.05, 57.39),
        ("w/o ICM", "CoDraw", 75.86, 50.58),
        ("w/o ICM guidance", "CoDraw", 87.69, 56.94),
        ("w/o classifier-free guidance", "CoDraw", 86.34, 56.11),
        ("CLIP frozen", "CoDraw", 80.63, 54.89),
        ("CLIP fully trained", "CoDraw", 58.52, 39.97),
        ("w/o iterative setting", "CoDraw", 92.51, 75.93),
        ("CDD-ICM", "i-CLEVR", 99.96, 85.66),
        ("w/o ICM", "i-CLEVR", 89.92, 74.49),
        ("w/o ICM guidance", "i-CLEVR", 96.27, 81.32),
        ("w/o classifier-free guidance", "i-CLEVR", 94.91, 80.28),
        ("CLIP frozen", "i-CLEVR", 87.24, 72.44),
        ("CLIP fully trained", "i-CLEVR", 65.83, 44.76),
        ("w/o iterative setting", "i-CLEVR", 100.00, 96.20),
    )
    return paper_rows(TABLE_2, "paper, table 2", ("data", "F1 (of means)", "RSIM"), *lines)


PAPER = (*_table_1(), *_table_2())
