"""The judgement of VOI: tables 3.1 to 3.3, figures 3.5 to 3.7, the paper's numbers beside ours."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vljax.data.datasets import Span
from vljax.data.pictures.images import write_png
from vljax.data.text import Text
from vljax.errors import UserError
from vljax.metrics import order as order_metrics
from vljax.metrics.text import text_scores
from vljax.models.insertion_search import search_order
from vljax.systems.voi.model import VOI, fixed_orders, open_source
from vljax.systems.voi.recipe import get_stage_config
from vljax.systems.voi.training import draw_orders, order_loss, start_memory
from vljax.systems.voi.use import Line, batches, check_flags, lines, order_picture, write_all

# Table 3.1, METEOR and CIDEr in percent; None where not reported.
PAPER_TABLE_31: dict[str, dict[str, tuple[float | None, ...]]] = {
    "coco": {
        "sao": (29.3, 24.9, 54.5, 92.9),
        "random": (28.9, 24.2, 55.2, 92.8),
        "l2r": (30.5, 25.3, 54.5, 95.6),
        "common": (28.0, 24.8, 55.5, 90.3),
        "rare": (28.1, 24.5, 52.9, 91.4),
        "voi": (31.0, 25.7, 56.0, 100.6),
    },
    "django": {
        "sao": (42.6, 32.9),
        "random": (21.6, 26.9),
        "l2r": (40.5, 33.7),
        "common": (37.1, 29.8),
        "rare": (31.1, 27.9),
        "voi": (45.9, 34.5),
    },
    "gigaword": {
        "random": (30.1, 11.6, 27.6),
        "l2r": (35.6, 17.2, 33.2),
        "common": (33.9, 15.0, 31.1),
        "rare": (34.1, 15.2, 31.3),
        "voi": (36.6, 17.6, 34.0),
    },
    "wmt16": {
        "sao": (32.5, 53.0, 49.0),
        "random": (20.3, 43.5, 62.0),
        "l2r": (32.7, 54.4, 50.2),
        "common": (28.2, 50.8, 53.1),
        "rare": (26.4, 48.5, 55.1),
        "voi": (32.9, 54.6, 49.3),
    },
}
METRICS = {
    "scenes": ("coco_bleu", "meteor", "coco_rougeL", "cider"),
    "coco": ("coco_bleu", "meteor", "coco_rougeL", "cider"),
    "django": ("bleu", "accuracy"),
    "gigaword": ("rouge1", "rouge2", "rougeL"),
    "wmt16": ("bleu_13a", "meteor", "ter"),
}
# Tables 3.2 (K = 4) and 3.3 (Gumbel-Matching, Transformer-XL): normalised Levenshtein distance.
PAPER_TABLE_32 = {
    "gumbel_matching": {"sinusoid": 0.40, "sinusoid_attention": 0.42, "relative": 0.38, "xl": 0.25},
    "plackett_luce": {"sinusoid": 0.62, "sinusoid_attention": 0.58, "relative": 0.53, "xl": 0.57},
}
PAPER_TABLE_33 = {2: 0.31, 3: 0.28, 4: 0.25, 10: 0.21, 20: 0.21}
# Figure 3.6 compares with these.
COMPARED = ("l2r", "r2l", "random", "common", "rare")


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m vljax.evaluate` for this system."""
    parser.add_argument("--num_examples", type=int, default=256, help="examples to judge")
    parser.add_argument("--batch_size", type=int, default=32, help="how many at a time")
    parser.add_argument("--beams", type=int, default=4, help="width of the beam search")
    parser.add_argument("--length_penalty", type=float, default=0.0, help="of the beam search")
    parser.add_argument(
        "--tagger",
        choices=("", "scenes", "spacy", "nltk"),
        default="",
        help="of parts of speech, for figure 3.7; on scenes their own",
    )
    parser.add_argument(
        "--perturbed", type=int, default=8, help="examples whose features are removed one by one"
    )
    parser.add_argument(
        "--runtime", action="store_true", help="measure figure 3.5 as well (some minutes)"
    )


def evaluate(model: VOI, config: ConfigDict, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The rows of tables 3.1 to 3.3 that this run has, and the figures as PNG.

    Returns:
        The results by name, as they stand in `results.json`.

    Raises:
        UserError: a flag cannot be, or nothing is held out for evaluation.
    """
    check_flags(args)
    source = open_source(config, held_out=True)
    out.mkdir(parents=True, exist_ok=True)
    told: list[Line] = []
    orders: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    for written, _ in write_all(
        model,
        config,
        source,
        args.num_examples,
        args.batch_size,
        args.beams,
        args.length_penalty,
    ):
        told += lines(written, source.vocabulary)
        orders.append(np.asarray(written.order[:, 0]))
        tokens.append(np.asarray(written.tokens[:, 0]))
    write_png(out / "orders.png", order_picture(told[:16]), {})
    results: dict[str, Any] = {"examples": len(told)}
    results |= table_31(config, told, [source.references(i) for i in range(len(told))])
    results["orders"] = compared_orders(
        np.concatenate(tokens), np.concatenate(orders), source, out / "figure_3_6.png"
    )
    tagger = args.tagger or ("scenes" if config.data.name == "scenes" else "")
    if tagger:
        results["parts_of_speech"] = parts_of_speech(told, tagger, out / "figure_3_7.png")
    if args.perturbed:
        results["perturbation"] = perturbation(model, config, source, args.perturbed)
    if model.permutation is not None:
        results |= recovered(model, config, args)
    if args.runtime:
        results["figure_3_5"] = runtime(model, config, out / "figure_3_5.png")
    return results


def table_31(
    config: ConfigDict, told: Sequence[Line], references: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Table 3.1's columns for this data set: the paper's rows, and this run's order."""
    names = METRICS[config.data.name]
    scores, missing = text_scores([line.text for line in told], references, names)
    table: dict[str, Any] = {
        f"paper_{order}": dict(zip(names, row, strict=True))
        for order, row in PAPER_TABLE_31.get(config.data.name, {}).items()
    }
    table[f"ours_{config.order}"] = {name: scores.get(name) for name in names}
    return {"table_3_1": table, **({"missing": missing} if missing else {})}


def compared_orders(
    tokens: np.ndarray, orders: np.ndarray, source: Text, file: Path
) -> dict[str, dict[str, float]]:
    """How near the orders written are to fixed ones, overall and by length (figure 3.6)."""
    mask = tokens != 0
    lengths = (tokens > 2).sum(-1)
    ours = orders[:, 1:-1] - 1
    results: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, Mapping[int, tuple[float, int]]]] = {
        "order rank correlation": {},
        "normalised Levenshtein distance": {},
    }
    long = lengths > 1
    if not long.any():
        return results
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
        results[name] = {
            "normalised_levenshtein": float(distance.mean()),
            "order_rank_correlation": float(correlation.mean()),
        }
        for curve, values in zip(curves.values(), (correlation, distance), strict=True):
            curve[name] = order_metrics.by_length(values, pairs[2])

    def draw(axes: Any) -> None:
        for axis, (title, curve) in zip(axes, curves.items(), strict=True):
            for name, points in curve.items():
                axis.plot(list(points), [mean for mean, _ in points.values()], "o-", label=name)
            axis.set(xlabel="length in words", ylabel=title)
        axes[0].legend(title="compared with")

    _figure(file, 2, draw)
    return results


def parts_of_speech(told: Sequence[Line], tagger: str, file: Path) -> dict[str, Any]:
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

    _figure(file, 1, draw)
    return {
        **{part.name: part.mean for part in found},
        "content_before_function": before.difference,
        "p_value": before.p_value,
        "texts": before.count,
    }


def perturbation(model: VOI, config: ConfigDict, source: Text, count: int) -> dict[str, float]:
    """How far the order of a fixed text moves when one feature of its source is removed (3.6.3)."""
    inferred = jax.jit(lambda decoder, batch: search_order(decoder, batch).order[:, 0])
    feature = "regions" if source.feature_size else "source"
    found: list[float] = []
    for batch, _ in batches(config, Span(source, 0, min(count, len(source))), 1):
        length = int(batch["target_mask"].sum()) - 2

        def infer(features: np.ndarray, mask: np.ndarray, batch: dict = batch) -> np.ndarray:
            rows = {name: np.repeat(value, len(mask), axis=0) for name, value in batch.items()}
            rows |= {feature: features, f"{feature}_mask": mask}
            return np.asarray(inferred(model.decoder, rows))[:, 1:-1] - 1

        distances = order_metrics.removal_distances(
            infer, batch[feature][0], batch[f"{feature}_mask"][0], length
        )
        found += [float(d) for d in distances[~np.isnan(distances)]]
    return {"mean": float(np.mean(found)), "largest": float(np.max(found)), "features": len(found)}


def recovered(model: VOI, config: ConfigDict, args: argparse.Namespace) -> dict[str, Any]:
    """How far φ's most probable orders of training targets are from common-first.

    Where θ was trained to write common-first, these are cells of tables 3.2 and 3.3.
    """
    source = open_source(config)

    @jax.jit
    def modes(model: VOI, batch: dict) -> tuple[jax.Array, jax.Array]:
        assert model.permutation is not None
        tokens, mask = batch["target"], batch["target_mask"]
        common = fixed_orders("common", tokens, mask, source.vocabulary.frequencies)
        return model.permutation.distribution(batch).mode(), common

    found: list[np.ndarray] = []
    span = Span(source, 0, min(args.num_examples, len(source)))
    for batch, valid in batches(config, span, args.batch_size):
        mode, common = (np.asarray(order)[:valid, 1:-1] - 1 for order in modes(model, batch))
        lengths = batch["target_mask"][:valid].sum(-1) - 2
        found.append(order_metrics.normalised_levenshtein(mode, common, lengths))
    distance = float(np.concatenate(found).mean())
    own = config.model.permutation
    cell = f"{own.distribution}, {own.scheme}, K = {config.num_orders}"
    told: dict[str, Any] = {"permutation_network_to_common": distance}
    if "permutation" in config.stages:
        told["table_3_2"] = {"paper": PAPER_TABLE_32, "ours": {cell: distance}}
        paper = {f"K = {k}": value for k, value in PAPER_TABLE_33.items()}
        told["table_3_3"] = {"paper": paper, "ours": {cell: distance}}
    return told


def runtime(
    model: VOI,
    config: ConfigDict,
    file: Path,
    lengths: Sequence[int] = tuple(range(10, 81, 10)),
    *,
    batch_size: int = 8,
    repeats: int = 3,
) -> dict[str, Any]:
    """Figure 3.5: seconds per training step and per order search, VOI (K = 4) against SAO.

    Args:
        model: A model with a permutation network; only its sizes matter.
        config: Of the run.
        file: Where the figure goes.
        lengths: Lengths of targets.
        batch_size: Of the training step; the search has one target, as in the paper.
        repeats: Measurements, of which the fastest counts.

    Raises:
        UserError: the run has no permutation network.
    """
    if model.permutation is None:
        raise UserError("--runtime needs the permutation network: train with --config.order=voi")
    source = open_source(config)
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {
        f"{what}_{who}": [] for what in ("step", "search") for who in ("voi", "sao")
    }
    (example, _), *_ = batches(config, Span(source, 0, 1), 1)
    for length in lengths:
        rows = {name: np.repeat(value, batch_size, axis=0) for name, value in example.items()}
        words = generator.integers(3, source.vocabulary.size, (batch_size, length + 2))
        words[:, 0], words[:, -1] = 1, 2
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

    results: dict[str, Any] = {name: values[-1] for name, values in seconds.items()}
    for what in ("step", "search"):
        speed_up = np.divide(seconds[f"{what}_sao"], seconds[f"{what}_voi"])
        slope, offset = np.polyfit(lengths, speed_up, 1)
        rest = speed_up - (slope * np.asarray(lengths) + offset)
        spread = ((speed_up - speed_up.mean()) ** 2).sum()
        results |= {
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

    _figure(file, 2, draw)
    return results


def _fastest(function: Callable, repeats: int, model: VOI, batch: dict) -> float:
    jax.block_until_ready(function(model, batch, jax.random.key(0)))
    found = []
    for repeat in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(model, batch, jax.random.key(repeat)))
        found.append(time.perf_counter() - start)
    return min(found)


def _figure(file: Path, panels: int, draw: Callable[[Any], None]) -> None:
    # Here, because it takes a second to import and training does without.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * panels, 3.6), layout="constrained")
    draw(list(np.atleast_1d(figure.subplots(1, panels))))
    figure.savefig(file, dpi=120)
