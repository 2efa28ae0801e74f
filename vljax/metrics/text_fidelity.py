"""Whether drawn pictures show what their texts name: objects found, and captions written back.

- Semantic object accuracy, SOA (Hinz et al., *Semantic Object Accuracy for Generative Text-to-Image
  Synthesis*, 2020): whether a detector finds the classes that a text names.
- Captioning back (Hong et al., *Inferring Semantic Layout for Hierarchical Text-to-Image
  Synthesis*, 2018): a captioner writes of the picture, and that is compared with the
  text by which it was drawn.

Detector and captioner are arguments; say which beside the numbers.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vljax.metrics.statistics import share_of
from vljax.metrics.text import text_scores


def semantic_object_accuracy(
    named: Sequence[Collection[Any]], found: Sequence[Collection[Any]]
) -> dict[str, float]:
    """SOA-C, the mean over classes, and SOA-I, over all pictures that a class is named for.

    Args:
        named: For each picture the classes that its text names.
        found: For each picture the classes that a detector finds in it, whatever else it finds.

    Returns:
        Both, 0 to 1, NaN where nothing is named; `standard error of SOA-I` by pictures, each of
        which counts by the classes named for it.

    Raises:
        ValueError: the two do not pair.
    """
    if len(named) != len(found):
        raise ValueError(f"{len(named)} texts, but detections in {len(found)} pictures")
    by_class: dict[Any, list[bool]] = defaultdict(list)
    for classes, there in zip(named, found, strict=True):
        for one in set(classes):
            by_class[one].append(one in set(there))
    if not by_class:
        return dict.fromkeys(("SOA-C", "SOA-I", "standard error of SOA-I"), float("nan"))
    of_class = [np.mean(hits) for hits in by_class.values()]
    counts = np.array([len(set(classes)) for classes in named], float)
    right = np.array([len({*c} & {*there}) for c, there in zip(named, found, strict=True)], float)
    share, error = share_of(right, counts)
    return {
        "SOA-C": float(np.mean(of_class)),
        "SOA-I": share,
        "standard error of SOA-I": error,
    }


def captioned_back(
    pictures: UInt8[np.ndarray, "n h w 3"],
    texts: Sequence[str],
    write: Callable[[UInt8[np.ndarray, "n h w 3"]], Sequence[str]],
    metrics: Sequence[str] = ("cider", "accuracy"),
) -> dict[str, float]:
    """Scores of captions of drawn pictures against the texts by which these were drawn.

    Args:
        pictures: The drawn ones.
        texts: By which each was drawn, split into words as the captions are.
        write: Captions pictures.
        metrics: Names of `vljax.metrics.text`; one whose program is not installed is left out.

    Raises:
        ValueError: texts, pictures and captions do not pair.
    """
    if len(texts) != len(pictures):
        raise ValueError(f"{len(texts)} texts, but {len(pictures)} pictures")
    return text_scores(write(pictures), [[text] for text in texts], metrics)[0]
