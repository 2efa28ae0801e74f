"""The rows of the thesis, tables 2.2 to 2.4, in percent."""

from vljax.metrics.report import Row, paper_rows

_TEXT = ("data", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
_MAPS = ("data", "EMD", "rank correlation")
_GUESSES = ("right guesses, VQA-X", "right guesses, ACT-X")


def chapter() -> tuple[Row, ...]:
    """What people and the paper's networks reached."""
    texts = (
        ("Generating Visual Explanations, true answer", "ACT-X", 12.9, 15.9, 39.0, 12.4, 12.0),
        ("on descriptions, true answer", "VQA-X", 6.1, 12.8, 26.4, 36.2, 12.1),
        ("on descriptions, true answer", "ACT-X", 6.9, 12.9, 28.3, 20.3, 7.3),
        ("w/o attention, true answer", "VQA-X", 18.0, 17.6, 42.4, 66.3, 14.3),
        ("w/o attention, true answer", "ACT-X", 16.9, 17.0, 42.0, 33.3, 10.6),
        ("ours, true answer", "VQA-X", 19.8, 18.6, 44.0, 73.4, 15.4),
        ("ours, true answer", "ACT-X", 24.5, 21.5, 46.9, 58.7, 16.0),
        ("on descriptions, own answer", "VQA-X", 5.9, 12.6, 26.3, 35.2, 11.9),
        ("on descriptions, own answer", "ACT-X", 5.2, 11.0, 26.5, 10.4, 4.6),
        ("w/o attention, own answer", "VQA-X", 18.0, 17.3, 42.1, 63.6, 13.8),
        ("w/o attention, own answer", "ACT-X", 11.9, 13.6, 37.9, 16.9, 5.7),
        ("ours, own answer", "VQA-X", 19.5, 18.2, 43.4, 71.3, 15.1),
        ("ours, own answer", "ACT-X", 15.3, 15.6, 40.0, 22.0, 7.2),
    )
    maps = (
        ("random point", "VQA-X", 6.71, 0.0017),
        ("random point", "ACT-X", 6.59, 0.0003),
        ("random point", "VQA-HAT", None, -0.0001),
        ("uniform", "VQA-X", 3.60, 0.0003),
        ("uniform", "ACT-X", 3.25, -0.0001),
        ("uniform", "VQA-HAT", None, -0.0007),
        ("HieCoAtt-Q", "VQA-HAT", None, 0.2640),
        ("answering model", "VQA-X", 2.77, 0.2211),
        ("answering model", "ACT-X", 4.78, 0.0104),
        ("answering model", "VQA-HAT", None, 0.2234),
        ("ours", "VQA-X", 2.64, 0.3423),
        ("ours", "ACT-X", 2.54, 0.3933),
        ("ours", "VQA-HAT", None, 0.3964),
    )
    guesses = (
        ("without explanation", 57.5, 51.5),
        ("on descriptions", 66.5, 72.5),
        ("w/o attention", 61.5, 76.5),
        ("ours", 70.0, 80.5),
    )
    return (
        *paper_rows("table 2.2", "paper, table 2.2", _TEXT, *texts),
        *paper_rows("table 2.3", "paper, table 2.3", _MAPS, *maps),
        *paper_rows("table 2.4", "paper, table 2.4 (people)", _GUESSES, *guesses),
    )
