"""How personalisation is judged: what was learnt of one thing, and what was forgotten for it.

Ruiz et al., *DreamBooth* (2023), sections 4.1 and 4.3: whether pictures look like the thing and fit
their text, and whether those of the noun alone still vary (their DIV) and stay unlike it (their
PRES). Of scenes the oracle tells how many show the thing itself.
"""

from collections import Counter
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import contact_sheet, resize_and_crop
from vljax.data.scenes import oracle
from vljax.data.source import readable
from vljax.metrics.batches import features_of
from vljax.metrics.diversity import Distance, diversity
from vljax.metrics.report import Report, Row
from vljax.metrics.text_fidelity import semantic_object_accuracy
from vljax.models.parameters import copied
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import normalise
from vljax.systems.text2image.families import Wish
from vljax.systems.text2image.families.personal import open_pictures, subject
from vljax.systems.text2image.model import Text2Image
from vljax.systems.text2image.use import Request, draw_best

TABLE = "one thing learnt"


def judge_likeness(
    model: Text2Image,
    config: ConfigDict,
    drawn: Wish,
    count: int,
    seed: int,
    *,
    embed: Any,
    text: Float[np.ndarray, " e"],
    distance: Distance,
    notes: dict[str, Any],
) -> Report:
    """The noun's pictures before and after, and those of the thing.

    Args:
        model: With the part `personal`.
        config: Its config.
        drawn: How pictures are drawn.
        count: Pictures a row.
        seed: Of the first.
        embed: CLIP's image tower, of uint8 pictures.
        text: CLIP's embedding of a text with the noun alone.
        distance: Between pictures, for diversity.
        notes: What judges, in words.
    """
    shown = open_pictures(config, "pictures")
    side = config.data.image_size
    read = readable(shown, config.data.on_corrupt)
    known = np.stack([resize_and_crop(example["image"], side) for _, example in read])
    there = normalise(jnp.asarray(features_of(embed, known, 32)))
    thing = _thing(known) if open_benchmark(config.data).oracle is not None else None
    template, noun = config.personal.templates[0], config.personal.noun
    ways = (
        (f"{noun}, before", template.replace("{}", noun), False),
        (f"{noun}, after", template.replace("{}", noun), True),
        (subject(config), template.replace("{}", subject(config)), True),
    )
    rows, pictures = [], []
    for method, prompt, learnt in ways:
        asked = Request(prompt=(prompt,), count=count, seed=seed)
        drawer = (model, config) if learnt else _unlearnt(model, config)
        made = draw_best(*drawer, drawn, prompt, asked, method)[0]
        seen = normalise(jnp.asarray(features_of(embed, made, 32)))
        values = {
            "likeness": float((seen @ there.T).mean()),
            "CLIP score": float((seen @ normalise(jnp.asarray(text))).mean()),
            "diversity": diversity([to_unit(jnp.asarray(made))], distance).mean,
        }
        if thing is not None:
            there_are = [[(one.shape, one.colour) for one in oracle.detect(p)] for p in made]
            found = semantic_object_accuracy([[thing]] * count, there_are)
            values["the thing itself"] = 100 * found["SOA-I"]
            values["standard error"] = 100 * found["standard error of SOA-I"]
        rows.append(Row(TABLE, method, values))
        pictures.append((method, made[:8]))
    sheet = contact_sheet([("its pictures", known[:8]), *pictures])
    told: dict[str, Any] = {
        "pictures a row": count,
        "likeness": "mean CLIP cosine with its pictures",
        **notes,
    }
    return Report(tuple(rows), told, {"figure_1_one_thing": sheet})


def _unlearnt(model: Text2Image, config: ConfigDict) -> tuple[Text2Image, ConfigDict]:
    """The model as it was, and its config."""
    before: Any = copied(model)
    before.personal = None
    plain = config.copy_and_resolve_references()
    plain.model.personal = {}
    return before, plain


def _thing(pictures: UInt8[np.ndarray, "n h w 3"]) -> tuple[str, str] | None:
    """The shape and colour that the oracle sees in most pictures; None where it sees none."""
    seen = Counter(
        (one.shape, one.colour) for picture in pictures for one in oracle.detect(picture)
    )
    return seen.most_common(1)[0][0] if seen else None
