"""Table 2.3 of PJ-X: maps against the evidence, which scenes know and people marked elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vljax.data.pictures.maps import (
    find_hat,
    find_pointing,
    mean_map,
    named_pointing,
    read_hat,
    read_pointing,
)
from vljax.data.source import readable
from vljax.data.text.vqa import Questions
from vljax.errors import UserError
from vljax.metrics import pointing
from vljax.metrics.report import Row
from vljax.metrics.statistics import standard_error
from vljax.systems.pjx.method import Explained, open_examples, read_example
from vljax.systems.pjx.probing import Judged
from vljax.systems.pjx.words import Words

TABLE = "table 2.3"


def marked(judged: Judged, folder: str) -> tuple[Judged, str]:
    """The examples with `evidence` where people marked it, and what was found, in words.

    Args:
        judged: Examples of photographs.
        folder: PJ-X's pointing maps (`visual`).

    Raises:
        UserError: there is no map of any of them, or one cannot be read.
    """
    files = find_pointing(folder)
    examples, told, count = [], "", 0
    for example in judged.examples:
        names = named_pointing(example.get("id", ""), example.get("image_name", ""))
        path = next((files[name] for name in names if name in files), None)
        if path is not None:
            found = read_pointing(path)
            told, count = told or f"the first holds {found.told}", count + 1
            example = example | {"evidence": mean_map([*found.maps])}
        examples.append(example)
    if not count:
        raise UserError(
            f"--maps={folder}: none of its {len(files)} maps, such as {min(files)}.npz, belongs to "
            f"the {len(examples)} examples: check the folder, or raise --num_examples"
        )
    return judged._replace(examples=examples), f"{count} of {len(examples)} examples; {told}"


def looked_at(config: ConfigDict, words: Words, folder: str, count: int) -> Judged:
    """Questions of VQA v1 of which VQA-HAT has maps, as examples with `evidence`.

    The questions, answers and photographs or features are those in the run's folder.

    Args:
        config: Of the run.
        words: Its vocabularies; questions whose answer it lacks are left out.
        folder: VQA-HAT's maps.
        count: Most examples.

    Raises:
        UserError: the files are not there, or have no question in common.
    """
    files = find_hat(folder)
    source = open_examples(config, held_out=True, data="vqa_v1")
    assert isinstance(source, Questions)
    places = [
        i
        for i, one in enumerate(source.asked)
        if one.id in files and (one.answer in words.answers or words.answers.unknown is not None)
    ]
    if not places:
        raise UserError(
            f"--hat={folder}: none of its maps belongs to a question of VQA v1's "
            f"{len(source)} in data.path={config.data.path!r}: check both folders"
        )
    examples = [
        example | {"evidence": mean_map([read_hat(path) for path in files[example["id"]]])}
        for _, example in readable(source, config.data.on_corrupt, count, places=places)
    ]
    arrays = [read_example(config, words, example) for example in examples]
    truth = [words.answers.id(example["answer"]) for example in examples]
    return Judged(examples, arrays, truth, None)


def pointing_rows(
    judged: Judged, ours: Explained, data: str, seed: int
) -> tuple[list[Row], dict[str, Any]]:
    """Our rows of table 2.3, and the same by kind of question, with notes.

    Where the background is the evidence most of the picture is, and pointing there proves nothing:
    such questions have a row of their own and are left out of the table.

    Args:
        judged: Examples; those without `evidence` are passed over.
        ours: Their explanations given the true answers.
        data: What the rows say that they are of.
        seed: Breaks ties of ranks, and draws the random points.
    """
    height, width = ours.points.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    off_centre = (rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2
    centre = np.exp(-off_centre / (2 * (height / 4) ** 2))
    found: list[tuple[str, str, dict[str, float]]] = []
    rng = np.random.default_rng(seed)
    empty = 0
    for i, example in enumerate(judged.examples):
        if "evidence" not in example:
            continue
        truth = pointing.to_grid(example["evidence"], height)
        if truth is None:
            empty += 1
            continue
        kind = example.get("question_kind", "")
        point = np.zeros((height, width))
        point.flat[rng.integers(point.size)] = 1
        expected = pointing.random_point_distance(truth)
        drawn = _against(point, truth, example["evidence"], rng, expected)
        found.append(("random point", kind, drawn))
        maps = {"uniform": np.ones((height, width)), "centre": centre}
        if ours.looked is not None:
            maps["answering model"] = ours.looked[i]
        maps |= {"ours": ours.points[i], "the evidence itself": truth}
        for name, one in maps.items():
            share = np.float64(one) / one.sum(dtype=np.float64)
            found.append((name, kind, _against(share, truth, example["evidence"], rng)))
    notes = {"examples with an empty evidence mask, left out of pointing": empty} if empty else {}
    kinds = sorted({kind for _, kind, _ in found} - {""})
    told = []
    for table, wanted in (
        (TABLE, {*kinds} - {"background"} if kinds else {""}),
        *((f"pointing, {kind}", {kind}) for kind in kinds),
    ):
        for name in dict.fromkeys(name for name, _, _ in found):
            values = [v for n, kind, v in found if n == name and kind in wanted]
            if values:
                told.append(Row(table, name, {"data": data, **_means(values)}))
    return told, notes


def _against(
    one: pointing.Map,
    truth: pointing.Map,
    evidence: np.ndarray,
    rng: np.random.Generator,
    distance: float | None = None,
) -> dict[str, float]:
    """How well a map points, by all measures; its EMD where it is not known already."""
    distance = pointing.earth_movers_distance(one, truth) if distance is None else distance
    told = {
        "EMD": distance,
        "rank correlation": pointing.rank_correlation(one, truth, rng),
        "rank correlation, mean ranks": pointing.rank_correlation(one, truth),
        "IoU": pointing.top_iou(one, truth),
        "AUC": pointing.area_under_curve(one, truth),
    }
    if evidence.dtype == bool:  # a mask, not a heat map of people's
        mass = pointing.mass_on(one, evidence)
        told |= {
            "pointing game": 100.0 * pointing.pointing_game(one, evidence),
            "mass on the evidence": 100 * mass,
            "mass / area": mass / float(evidence.mean()),
        }
    return told


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    told: dict[str, float] = {}
    for name in values[0]:
        column = np.array([one[name] for one in values])
        known = column[np.isfinite(column)]
        told[name] = float(known.mean()) if known.size else float("nan")
        if name == "EMD":
            told["standard error of EMD"] = standard_error(known)
    return {**told, "n": len(values)}
