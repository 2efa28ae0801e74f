"""The judgement of VOI: tables 3.1 to 3.3, figures 3.5 to 3.7, the paper's numbers beside ours."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.source import Span
from vljax.data.text import Text
from vljax.errors import UserError, of_extra
from vljax.marks import END, PAD, START, UNKNOWN
from vljax.metrics import order as order_metrics
from vljax.metrics.report import Report, Row, paper_rows
from vljax.metrics.text import PROGRAMS, text_scores
from vljax.models.insertion_search import search_order
from vljax.request import option
from vljax.systems.voi.method import draw_orders, fixed_orders, order_loss, start_memory
from vljax.systems.voi.model import VOI, texts
from vljax.systems.voi.recipe import get_stage_config
from vljax.systems.voi.writing import (
    Line,
    batches,
    first_example,
    lines,
    order_picture,
    write_all,
)

# Table 3.1, METEOR and CIDEr in percent: the columns of each data set, then orders.
PAPER_TABLE_31: dict[str, tuple[tuple[str, ...], dict[str, tuple[float, ...]]]] = {
    "coco": (
        ("coco_bleu", "meteor", "coco_rougeL", "cider"),
        {
            "sao": (29.3, 24.9, 54.5, 92.9),
            "random": (28.9, 24.2, 55.2, 92.8),
            "l2r": (30.5, 25.3, 54.5, 95.6),
            "common": (28.0, 24.8, 55.5, 90.3),
            "rare": (28.1, 24.5, 52.9, 91.4),
            "voi": (31.0, 25.7, 56.0, 100.6),
        },
    ),
    "django": (
        ("bleu", "accuracy"),
        {
            "sao": (42.6, 32.9),
            "random": (21.6, 26.9),
            "l2r": (40.5, 33.7),
            "common": (37.1, 29.8),
            "rare": (31.1, 27.9),
            "voi": (45.9, 34.5),
        },
    ),
    "gigaword": (
        ("rouge1", "rouge2", "rougeL"),
        {
            "random": (30.1, 11.6, 27.6),
            "l2r": (35.6, 17.2, 33.2),
            "common": (33.9, 15.0, 31.1),
            "rare": (34.1, 15.2, 31.3),
            "voi": (36.6, 17.6, 34.0),
        },
    ),
    "wmt16": (
        ("bleu_13a", "meteor", "ter"),
        {
            "sao": (32.5, 53.0, 49.0),
            "random": (20.3, 43.5, 62.0),
            "l2r": (32.7, 54.4, 50.2),
            "common": (28.2, 50.8, 53.1),
            "rare": (26.4, 48.5, 55.1),
            "voi": (32.9, 54.6, 49.3),
        },
    ),
}
# Tables 3.2 (K = 4) and 3.3 (Gumbel-Matching, Transformer-XL): normalised Levenshtein distance.
PAPER_TABLE_32 = {
    "gumbel_matching": {"sinusoid": 0.40, "sinusoid_attention": 0.42, "relative": 0.38, "xl": 0.25},
    "plackett_luce": {"sinusoid": 0.62, "sinusoid_attention": 0.58, "relative": 0.53, "xl": 0.57},
}
PAPER_TABLE_33 = {2: 0.31, 3: 0.28, 4: 0.25, 10: 0.21, 20: 0.21}
# Figure 3.6 compares with these.
COMPARED = ("l2r", "r2l", "random", "common", "rare")
# Figure 3.5: lengths of targets in words.
LENGTHS = tuple(range(10, 81, 10))


@dataclasses.dataclass(frozen=True)
class Judging:
    """How to judge."""

    num_examples: int = option(256, low=1, help="examples to judge")
    batch_size: int = option(32, low=1, help="how many at a time")
    beams: int = option(4, low=1, help="width of the beam search")
    length_penalty: float = option(0.0, help="of the beam search")
    tagger: str = option(
        "",
        choices=("", "scenes", "spacy", "nltk"),
        help="of parts of speech, for figure 3.7; on scenes their own",
    )
    perturbed: int = option(8, low=0, help="examples whose features are removed one by one")
    runtime: bool = option(False, help="measure figure 3.5 as well (some minutes)")


def judge(model: VOI, config: ConfigDict, judging: Judging) -> Report:
    """The rows of tables 3.1 to 3.3 that this run has, and the figures with their rows.

    Raises:
        UserError: nothing is held out for evaluation, figure 3.5 is asked of a run without a
            permutation network, or the extra `tables` is not installed.
    """
    of_extra("tables", "matplotlib", "the evaluation with its figures")  # before hours of writing
    if judging.runtime and model.permutation is None:
        raise UserError("--runtime needs the permutation network: train with --config.order=voi")
    source = texts(config, held_out=True)
    told: list[Line] = []
    written, places = [], list[int]()
    for some, batch in write_all(
        model,
        config,
        source,
        judging.num_examples,
        judging.batch_size,
        judging.beams,
        judging.length_penalty,
    ):
        told += lines(some, source.vocabulary)
        written.append((some.tokens[:, 0], some.order[:, 0]))
        places += batch.places.tolist()
    tokens, orders = (np.concatenate(one) for one in zip(*written, strict=True))
    references = [source.references(index) for index in places]

    report = Report((), {"examples": len(told)}, {"orders": order_picture(told[:16])})
    report += table_31(config, told, references) + compared_orders(tokens, orders, source)
    if tagger := judging.tagger or open_benchmark(config.data).tagger:
        report += parts_of_speech(told, tagger)
    if judging.perturbed:
        report += perturbation(model, config, source, judging.perturbed)
    if model.permutation is not None:
        report += recovered(model, config, judging)
    if judging.runtime:
        report += runtime(model, config, LENGTHS)
    return report


def table_31(
    config: ConfigDict, told: Sequence[Line], references: Sequence[Sequence[str]]
) -> Report:
    """Table 3.1's columns for this data set: the paper's rows, and this run's order.

    A column whose program is not installed is left out; the notes tell what it needs.
    """
    name = "table 3.1"
    columns, paper = PAPER_TABLE_31.get(config.data.name, ((), {}))
    rows = paper_rows(
        name, f"paper, {name}", columns, *((order, *values) for order, values in paper.items())
    )
    wanted = open_benchmark(config.data).text_metrics
    scores, missing = text_scores([line.text for line in told], references, wanted)
    notes: dict[str, Any] = {"scored by": {one: PROGRAMS[one] for one in scores}}
    if missing:
        notes["not installed"] = missing
    return Report((*rows, Row(name, config.order, scores)), notes)


def compared_orders(tokens: np.ndarray, orders: np.ndarray, source: Text) -> Report:
    """How near the orders written are to fixed ones, overall and by length (figure 3.6)."""
    tokens, orders = _ended(tokens, orders)
    mask = tokens != PAD
    lengths = (tokens > END).sum(-1)
    ours = orders[:, 1:-1] - 1
    rows = []
    curves: dict[str, dict[str, Mapping[int, tuple[float, int]]]] = {
        "order rank correlation": {},
        "normalised Levenshtein distance": {},
    }
    long = lengths > 1
    if not long.any():
        return Report(())
    for name in COMPARED:
        fixed = fixed_orders(
            name,
            jnp.asarray(tokens),
            jnp.asarray(mask),
            source.vocabulary.frequencies,
            jax.random.key(0),
        )
        theirs = np.asarray(fixed)[:, 1:-1] - 1
        pairs = (ours[long], theirs[long], lengths[long])
        distance = order_metrics.normalised_levenshtein(*pairs)
        our_steps, their_steps = (
            order_metrics.generation_steps(order, lengths[long]) for order in pairs[:2]
        )
        correlation = order_metrics.order_rank_correlation(our_steps, their_steps, lengths[long])
        values = {
            "normalised_levenshtein": float(distance.mean()),
            "order_rank_correlation": float(correlation.mean()),
        }
        rows.append(Row("figure 3.6", name, values))
        for curve, by in zip(curves.values(), (correlation, distance), strict=True):
            curve[name] = order_metrics.by_length(by, pairs[2])

    def draw(axes: Any) -> None:
        for axis, (title, curve) in zip(axes, curves.items(), strict=True):
            for name, points in curve.items():
                axis.plot(list(points), [mean for mean, _ in points.values()], "o-", label=name)
            axis.set(xlabel="length in words", ylabel=title)
        axes[0].legend(title="compared with")

    return Report(tuple(rows), figures={"figure_3_6": _figure(2, draw)})


def _ended(tokens: np.ndarray, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the room cut gets the end mark that it lacks, in a room larger by one."""
    cut = ~(tokens == END).any(-1)
    if not cut.any():
        return tokens, orders
    more = np.where(cut, END, PAD)[:, None]
    last = np.full_like(more, tokens.shape[1])
    return np.concatenate([tokens, more], axis=1), np.concatenate([orders, last], axis=1)


def parts_of_speech(told: Sequence[Line], tagger: str) -> Report:
    """When each part of speech is written, and whether content comes first (figure 3.7)."""
    tag = order_metrics.open_tagger(tagger)
    words, orders = [line.words for line in told], [line.order for line in told]
    found = order_metrics.part_of_speech_statistics(words, orders, tag)
    before = order_metrics.precedence(words, orders, tag)

    def draw(axes: Any) -> None:
        (axis,) = axes
        axis.barh(
            [part.name for part in found],
            [part.mean for part in found],
            xerr=np.nan_to_num([part.standard_error for part in found]),
        )
        axis.invert_yaxis()
        axis.set(xlabel="normalised generation index (early to late)")

    rows = [
        Row(
            "figure 3.7",
            part.name,
            {
                "generation index": part.mean,
                "standard error": part.standard_error,
                "words": part.count,
            },
        )
        for part in found
    ]
    notes = {
        "content_before_function": before.difference,
        "p_value": before.p_value,
        "texts": before.count,
    }
    return Report(tuple(rows), {"figure 3.7": notes}, {"figure_3_7": _figure(1, draw)})


def perturbation(model: VOI, config: ConfigDict, source: Text, count: int) -> Report:
    """How far the order of a fixed text moves when one feature of its source is removed (3.6.3)."""
    inferred = jax.jit(lambda decoder, batch: search_order(decoder, batch).order[:, 0])
    feature = "regions" if source.feature_size else "source"
    found: list[float] = []
    for batch, _, valid in batches(config, Span(source, 0, min(count, len(source))), 1):
        if not valid.all():
            continue
        length = int(batch["target_mask"].sum()) - 2

        def infer(features: np.ndarray, mask: np.ndarray, batch: dict = batch) -> np.ndarray:
            rows = {name: np.repeat(value, len(mask), axis=0) for name, value in batch.items()}
            rows |= {feature: features, f"{feature}_mask": mask}
            return np.asarray(inferred(model.decoder, rows))[:, 1:-1] - 1

        distances = order_metrics.removal_distances(
            infer, batch[feature][0], batch[f"{feature}_mask"][0], length
        )
        found += [float(d) for d in distances[~np.isnan(distances)]]
    if not found:  # empty sources
        return Report(())
    values = {
        "mean": float(np.mean(found)),
        "largest": float(np.max(found)),
        "features": len(found),
    }
    return Report((Row("section 3.6.3, one feature removed", config.order, values),))


def recovered(model: VOI, config: ConfigDict, judging: Judging) -> Report:
    """How far φ's most probable orders of training targets are from common-first.

    Where θ was trained to write common-first, these are cells of tables 3.2 and 3.3.
    """
    source = texts(config)

    @jax.jit
    def modes(model: VOI, batch: dict) -> tuple[jax.Array, jax.Array]:
        assert model.permutation is not None
        tokens, mask = batch["target"], batch["target_mask"]
        common = fixed_orders("common", tokens, mask, source.vocabulary.frequencies)
        return model.permutation.distribution(batch).mode(), common

    found: list[np.ndarray] = []
    span = Span(source, 0, min(judging.num_examples, len(source)))
    for batch, _, valid in batches(config, span, judging.batch_size):
        mode, common = (np.asarray(order)[valid, 1:-1] - 1 for order in modes(model, batch))
        lengths = batch["target_mask"][valid].sum(-1) - 2
        found.append(order_metrics.normalised_levenshtein(mode, common, lengths))
    distance = float(np.concatenate(found).mean())
    notes = {"permutation_network_to_common": distance}
    if "permutation" not in config.stages:
        return Report((), notes)

    def rows(table: str, cells: Mapping[str, float], here: str) -> list[Row]:
        column = "normalised_levenshtein"
        paper = paper_rows(table, f"paper, {table}", (column,), *cells.items())
        return [*paper, Row(table, here, {column: distance})]

    own, k = config.model.permutation, f"K = {config.num_orders}"
    by_network = {
        f"{distribution}, {scheme}, K = 4": value
        for distribution, schemes in PAPER_TABLE_32.items()
        for scheme, value in schemes.items()
    }
    by_orders = {f"gumbel_matching, xl, K = {k}": value for k, value in PAPER_TABLE_33.items()}
    here = f"{own.distribution}, {own.scheme}, {k}"
    return Report(
        (*rows("table 3.2", by_network, here), *rows("table 3.3", by_orders, here)), notes
    )


def runtime(
    model: VOI,
    config: ConfigDict,
    lengths: Sequence[int],
    *,
    batch_size: int = 8,
    repeats: int = 3,
) -> Report:
    """Figure 3.5: seconds per training step and per order search, VOI (K = 4) against SAO.

    Args:
        model: A model with a permutation network; only its sizes matter.
        config: Of the run.
        lengths: Lengths of targets.
        batch_size: Of the training step; the search has one target, as in the paper.
        repeats: Measurements, of which the fastest counts.
    """
    source = texts(config)
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {
        f"{what}_{who}": [] for what in ("step", "search") for who in ("voi", "sao")
    }
    example = first_example(config, source)
    for length in lengths:
        rows = {name: np.stack([value] * batch_size) for name, value in example.items()}
        words = generator.integers(UNKNOWN, source.vocabulary.size, (batch_size, length + 2))
        words[:, 0], words[:, -1] = START, END
        rows |= {"target": words.astype(np.int32), "target_mask": np.ones(words.shape, bool)}
        one = {name: value[:1] for name, value in rows.items()}
        for order in ("voi", "sao"):
            stage = get_stage_config(config, order=order, batch_size=batch_size)
            loss = order_loss(config, stage, source.vocabulary.frequencies)
            memory = start_memory(stage, config.num_orders, {k: v[0] for k, v in rows.items()})
            step = jax.jit(
                jax.grad(lambda m, b, k, loss=loss, memory=memory: loss(m, b, k, memory)[0])
            )
            seconds[f"step_{order}"].append(_fastest(step, repeats, model, rows))
        find: dict[str, Callable] = {
            "voi": lambda m, b, k: draw_orders(m, b, k, 1)[1],
            "sao": lambda m, b, k: search_order(m.decoder, b, config.search_beams).order,
        }
        for order, function in find.items():
            seconds[f"search_{order}"].append(_fastest(jax.jit(function), repeats, model, one))

    notes: dict[str, float] = {}
    for what in ("step", "search"):
        speed_up = np.divide(seconds[f"{what}_sao"], seconds[f"{what}_voi"])
        slope, offset = np.polyfit(lengths, speed_up, 1)
        rest = speed_up - (slope * np.asarray(lengths) + offset)
        spread = ((speed_up - speed_up.mean()) ** 2).sum()
        notes |= {
            f"{what}_speed_up": float(speed_up[-1]),
            f"{what}_speed_up_slope": float(slope),
            f"{what}_r_squared": float(1 - (rest**2).sum() / max(spread, 1e-12)),
        }

    def draw(axes: Any) -> None:
        for axis, what in zip(axes, ("step", "search"), strict=True):
            for order in ("voi", "sao"):
                axis.plot(lengths, seconds[f"{what}_{order}"], "o-", label=order.upper())
            axis.set(xlabel="length in words", ylabel=f"seconds per {what}")
            axis.legend()

    told = [
        Row(
            "figure 3.5, seconds", f"{n} words", {name: value[i] for name, value in seconds.items()}
        )
        for i, n in enumerate(lengths)
    ]
    return Report(tuple(told), {"figure 3.5": notes}, {"figure_3_5": _figure(2, draw)})


def _fastest(function: Callable, repeats: int, model: VOI, batch: dict) -> float:
    jax.block_until_ready(function(model, batch, jax.random.key(0)))
    found = []
    for repeat in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(model, batch, jax.random.key(repeat)))
        found.append(time.perf_counter() - start)
    return min(found)


def _figure(panels: int, draw: Callable[[Any], None]) -> UInt8[np.ndarray, "h w 3"]:
    # Here, because it takes a second to import and training does without.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * panels, 3.6), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    draw(list(np.atleast_1d(figure.subplots(1, panels))))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
