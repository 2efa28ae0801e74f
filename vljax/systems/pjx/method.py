"""What PJ-X does with pictures and questions: reads them, answers, points, writes why.

The networks' equations (2.1 to 2.10) are in `vljax.models.explainer`, the answering model's in
`vljax.models.answerers.attention`; here is how the two act on a batch, and how it is shown.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import Benchmark, open_benchmark
from vljax.data.pictures.images import contact_sheet, stretched
from vljax.data.pictures.maps import over_picture
from vljax.data.source import Source, readable, stacked
from vljax.data.text.published import question_ids
from vljax.data.text.vqa import Questions
from vljax.diffusion.noise import example_keys
from vljax.diffusion.progress import in_steps
from vljax.models import decoding
from vljax.models.explainer import Explainer
from vljax.ops.parts import filled_batches, joined
from vljax.pretrained.features import keep_features
from vljax.systems.pjx.model import PJX, answer, features_of
from vljax.systems.pjx.words import PROGRAM_LENGTH, STEP_TABLE, Words, named, open_words
from vljax.training.mesh import gather

Arrays = dict[str, np.ndarray]


def open_examples(
    config: ConfigDict, more: Sequence[str] = (), *, held_out: bool = False, data: str = ""
) -> Source:
    """The examples of a run: picture or features, what is asked, the answer, and `more`.

    Args:
        config: The run's.
        more: Further fields of the examples.
        held_out: Those to judge by.
        data: Another data set of the same folder instead of `data.name`.

    Raises:
        UserError: the data is not there.
    """
    benchmark = open_benchmark(named(config.data, data))
    if config.data.features and config.model.trunk.kind != "none":
        compute_once(config, benchmark, held_out)
    reads = config.data.features or config.model.trunk.kind == "none"
    fields = ["features" if reads else "image", "answer", *more]
    if config.task == "activity":
        return benchmark.shown(tuple(fields), held_out=held_out)
    fields.append("question")
    if config.model.answerer.kind == "modules" and (
        config.model.answerer.programs == "true" or not held_out
    ):
        fields.append("program")
    return benchmark.questions(tuple(dict.fromkeys(fields)), held_out=held_out)


def compute_once(config: ConfigDict, benchmark: Benchmark, held_out: bool) -> None:
    """Fill the folder `data.features` with what the published trunk makes of the photographs.

    Raises:
        UserError: the trunk is none that is published, its weights or a photograph cannot be read.
    """

    def photographs() -> Mapping[str, Path]:
        source = benchmark.questions(("image",), held_out=held_out)
        assert isinstance(source, Questions)
        assert source.pictures is not None
        return source.pictures

    keep_features(
        config.data.features,
        photographs,
        config.model.trunk,
        config.pretrained.trunk,
        config.data.image_size,
    )


def read_example(config: ConfigDict, words: Words, example: Mapping[str, Any]) -> Arrays:
    """An example's picture (stretched to the model's size) or features, and its question."""
    arrays: Arrays = {}
    if "features" in example:
        arrays["features"] = np.ascontiguousarray(example["features"].transpose(1, 2, 0))
    else:
        arrays["image"] = stretched(example["image"], config.data.image_size)
    if config.task == "question":
        ids, mask = question_ids(words.questions, example["question"], config.data.max_question)
        arrays |= {"question": ids, "question_mask": mask}
    if "program" in example:
        arrays["program"] = STEP_TABLE.encode(example["program"], PROGRAM_LENGTH)
    return arrays


class Explained(NamedTuple):
    """Answers with their reasons; arrays of JAX or, on the host, of numpy.

    Attributes:
        probabilities: Of every answer, float32 [b n].
        answer: The answer that is explained, int32 [b]: the most probable one, or the one given.
        looked: Where the answering model looked, float32 [b h w]; None where it has no map.
        points: Where the evidence is, α^pointX, float32 [b h w].
        tokens: The justification's words, int32 [b t].
        log_prob: Of the justification, float32 [b], in nats.
    """

    probabilities: Any
    answer: Any
    looked: Any
    points: Any
    tokens: Any
    log_prob: Any


@jax.jit
def probabilities(model: PJX, batch: Mapping[str, Array]) -> Float[Array, "b n"]:
    """How probable every answer is."""
    said, _ = answer(model, features_of(model, batch), batch)
    return jax.nn.softmax(said.logits)


@functools.partial(jax.jit, static_argnames=("part", "beams", "length", "end", "own"))
def explain(
    model: PJX,
    batch: Mapping[str, Array],
    given: Int[Array, " b"],
    keys: Key[Array, " b"],
    *,
    length: int,
    end: int,
    own: str = "index",
    part: str = "explainer",
    beams: int = 1,
    temperature: float | Float[Array, ""] = 0.0,
    top_p: float | Float[Array, ""] = 1.0,
) -> Explained:
    """Answer, point and justify.

    Args:
        model: The model.
        batch: See `vljax.systems.pjx.model.answer`.
        given: The answer to explain, or −1 for the model's own (predicted-answer conditioning).
        keys: One a row, for drawing words.
        length: Most words; static.
        end: The word that ends a justification, and begins it; static.
        own: What stands for the model's own answer: `"index"`, the most probable one alone, or
            `"distribution"`, all by their probability; static.
        part: Which explainer; static.
        beams: Width of the search where no words are drawn; static.
        temperature: Of drawing words; 0 takes the most probable one.
        top_p: Draw from this share.
    """
    said, encoded = answer(model, features_of(model, batch), batch)
    shares = jax.nn.softmax(said.logits)
    chosen = jnp.where(given < 0, shares.argmax(-1), given).astype(jnp.int32)
    explainer: Explainer = getattr(model, part)
    meant = chosen
    if own == "distribution":
        one = jax.nn.one_hot(chosen, shares.shape[1])
        meant = jnp.where((given < 0)[:, None], shares, one)
    cause, points = explainer.explain(encoded, meant)
    if beams > 1:
        cache, first = explainer.start(cause), jnp.full(len(chosen), end)
        found = decoding.beam_search(explainer.step, cache, first, length, beams, end=end, pad=end)
        tokens, log_prob = found.tokens[:, 0], found.log_prob[:, 0]
    else:
        drawn = explainer.write(cause, keys, length, end, temperature=temperature, top_p=top_p)
        tokens, log_prob = drawn.tokens, drawn.log_prob
    return Explained(shares, chosen, said.attention, points, tokens, log_prob)


def explain_batch(
    model: PJX,
    config: ConfigDict,
    words: Words,
    arrays: Sequence[Arrays],
    given: Sequence[int],
    *,
    seed: int = 0,
    first: int = 0,
    **how: Any,
) -> Explained:
    """`explain` of a list of examples; on the host."""
    keys = example_keys(jax.random.key(seed), len(arrays), first)
    end = words.justifications.end
    assert end is not None
    found = explain(
        model,
        stacked(arrays),
        np.asarray(given, np.int32),
        keys,
        length=config.data.max_words,
        end=end,
        own=config.own_answer,
        **how,
    )
    return jax.tree.map(np.asarray, found)


def explain_all(
    model: PJX,
    config: ConfigDict,
    words: Words,
    arrays: Sequence[Arrays],
    given: Sequence[int],
    *,
    batch_size: int,
    seed: int = 0,
    **how: Any,
) -> Explained:
    """`explain_batch` of any number of examples, in batches of one size."""
    parts = []
    batches = filled_batches(len(arrays), min(batch_size, len(arrays)))
    for places in in_steps("explaining", batches):
        some, told = [arrays[i] for i in places], [given[i] for i in places]
        fixed = {"seed": seed, "first": places[0]}
        parts.append(explain_batch(model, config, words, some, told, **fixed, **how))
    return joined(parts, len(arrays))


@jax.jit
def probability_when_seen(
    model: PJX,
    batch: Mapping[str, Array],
    answers: Int[Array, " b"],
    seen: Bool[Array, "b h w"],
) -> Float[Array, " b"]:
    """How probable given answers are when only some places of the features are seen.

    Unseen places hold the mean of the picture's places.
    """
    features = features_of(model, batch)
    mean = features.mean((1, 2), keepdims=True)
    said, _ = answer(model, jnp.where(seen[..., None], features, mean), batch)
    return jnp.take_along_axis(jax.nn.softmax(said.logits), answers[:, None], axis=1)[:, 0]


def explained_pictures(config: ConfigDict) -> Callable[[PJX], dict[str, np.ndarray]]:
    """Draws a few held-out pictures with their maps; answers and justifications above them."""
    source, words, count = None, open_words(config), config.samples.count
    if config.model.trunk.kind != "none" and not config.data.features:
        source = open_examples(config, held_out=True)

    def draw(model: PJX) -> dict[str, np.ndarray]:
        if source is None:
            return {}
        examples = [one for _, one in readable(source, config.data.on_corrupt, count)]
        arrays = [read_example(config, words, one) for one in examples]
        here = jax.tree.map(gather, model)
        found = explain_batch(here, config, words, arrays, [-1] * len(arrays))
        rows = []
        for i, example in enumerate(examples):
            image = arrays[i]["image"]
            told = words.answers.entries[found.answer[i]]
            why = words.justifications.decode(found.tokens[i])
            label = f"{example.get('question', '')} {told}: {why}".strip()
            rows.append((label, np.stack([image, over_picture(found.points[i], image)])))
        return {"explained": contact_sheet(rows, min_side=112)}

    return draw
