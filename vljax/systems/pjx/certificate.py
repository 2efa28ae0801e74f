"""What can be certified of an explanation on scenes, and training for it.

A scene is known exactly, so that a machine tells whether an explanation holds, in three ways: what
it says is true, and of what shows the answer; the map points at what it names (Zhang et al., "Top-
down Neural Attention by Excitation Backprop", 2016: the pointing game); and what it names decides:
rendered anew without that, the picture gets another answer of the same model.

Rennie et al., "Self-critical Sequence Training for Image Captioning" (2017), equations 7 and 8:
words are drawn, and their probability rises by as much as their reward exceeds that of the words
that are taken greedily. Scenes are read on the host, in the middle of the step.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.scenes import Scene, masks, render
from vljax.data.scenes.counterfactuals import without
from vljax.data.scenes.explanations import explain as reasons_of
from vljax.data.scenes.truth import read
from vljax.data.text.published import PublishedWords
from vljax.errors import UserError
from vljax.metrics.pointing import pointing_game
from vljax.models.explainer import explanation_loss
from vljax.systems.pjx.model import PJX, answer, features_of
from vljax.systems.pjx.words import Words


class Certificate(NamedTuple):
    """Of each explanation, 1 for what holds, 0 for what does not, float32 [b].

    Attributes:
        true: It holds of the scene, and speaks of what shows the answer.
        grounded: The highest place of the map lies on an object that it names; of several places
            that are highest alike, the share that do.
        decisive: Without the objects that it names the model gives another answer.
    """

    true: Any
    grounded: Any
    decisive: Any

    @property
    def reward(self) -> Any:
        """Nothing for what is not true, then a third for each."""
        return self.true * (1 + self.grounded + self.decisive) / 3

    @property
    def certified(self) -> Any:
        """Whether all hold."""
        return self.true * self.grounded * self.decisive


class Checked(NamedTuple):
    """What the scene alone tells of explanations: as `Certificate`, and pictures to ask again.

    Attributes:
        true: See `Certificate`.
        grounded: See `Certificate`; 1 where no object is named.
        names: Whether it names an object, and another one would be left, float32 [b].
        image: The scene without the objects that it names.
    """

    true: Any
    grounded: Any
    names: Any
    image: Any


def check(
    scene: Scene, question: str, text: str, points: Float[np.ndarray, "h w"], side: int
) -> Checked:
    """One explanation against its scene.

    A text that names no object is of what shows the answer only where the ground is asked for, or
    where it denies and the answer is no.
    """
    seen, reasons = read(text, scene), reasons_of(scene, question)
    named = {*seen.named}
    of_answer = named == {*reasons.about}
    if not named:
        of_answer = seen.background if not reasons.about else reasons.answer == "no"
    on = 1.0
    if named:
        on = float(pointing_game(points, np.any(masks(scene, side)[sorted(named)], axis=0)))
    tested = bool(named) and len(named) < len(scene.objects)
    image = render(without(scene, named) if tested else scene, side)
    return Checked(float(seen.true and of_answer), on, float(tested), image)


def together(each: Iterable[Checked]) -> Checked:
    """Those of a batch as arrays."""
    true, grounded, names, image = zip(*each, strict=True)
    return Checked(
        np.array(true, np.float32),
        np.array(grounded, np.float32),
        np.array(names, np.float32),
        np.stack(image),
    )


def checker(config: ConfigDict, vocabulary: PublishedWords, *, held_out: bool = False) -> Callable:
    """`check(index, tokens, points) -> Checked` of a batch of the benchmark's scenes, on the host.

    Raises:
        UserError: the data is no scenes, whose truth is known.
    """
    benchmark = open_benchmark(config.data)
    scenes, side = benchmark.scenes(held_out=held_out), config.data.image_size
    if scenes is None or config.task != "question":
        raise UserError(
            "stages.certify: only questions about scenes have an answer that can be checked; leave "
            "it out"
        )
    questions = benchmark.questions(("question",), held_out=held_out)

    @functools.lru_cache(maxsize=1024)  # drawn and greedy words are of the same scenes
    def known(i: int) -> tuple[Scene, str]:
        return scenes.scene(i), questions[i]["question"]

    def checked(*told: Any) -> Checked:
        # No operation of JAX within a step of JAX: on one core it would wait for itself.
        index, tokens, points = map(np.asarray, told)
        return together(
            check(*known(int(i)), vocabulary.decode(words), map_, side)
            for i, words, map_ in zip(index, tokens, points, strict=True)
        )

    return checked


def certify(
    model: PJX, batch: Mapping[str, Array], given: Int[Array, " b"], seen: Checked
) -> Certificate:
    """With the model's answers to the pictures that lack what was named.

    Args:
        model: The model.
        batch: See `vljax.systems.pjx.model.answer`.
        given: The answers that are explained.
        seen: What the scenes tell.
    """
    again = {**batch, "image": seen.image}
    said, _ = answer(model, features_of(model, again), again)
    other = (said.logits.argmax(-1) != given).astype(jnp.float32)
    return Certificate(seen.true, seen.grounded, jnp.where(seen.names > 0, other, 1.0))


def certified_loss(config: ConfigDict, words: Words) -> Callable:
    """The loss of the stage `certify`: reward of words drawn over that of greedy ones.

    Beside it stands the cross-entropy of people's words, by `config.word_weight`.

    Raises:
        UserError: as `checker`.
    """
    checked, length = checker(config, words.justifications), config.data.max_words
    end = words.justifications.end
    assert end is not None

    def loss(model: PJX, batch: Mapping[str, Array], key: Key[Array, ""]) -> Any:
        _, encoded = answer(model, features_of(model, batch), batch)
        encoded, given = jax.lax.stop_gradient(encoded), jnp.maximum(batch["answer"], 0)
        explainer = model.explainer
        assert explainer is not None
        cause, points = explainer.explain(encoded, given)
        draw_key, explain_key = jax.random.split(key)
        keys = jax.random.split(draw_key, len(given))

        def write(temperature: float) -> Int[Array, "b t"]:
            told = jax.lax.stop_gradient(cause)
            return explainer.write(told, keys, length, end, temperature=temperature).tokens

        drawn, greedy = write(1.0), write(0.0)
        rewards = []
        for tokens in (drawn, greedy):
            told = (batch["scene"], tokens, points)
            seen = jax.pure_callback(checked, _like(batch), *jax.lax.stop_gradient(told))
            rewards.append(certify(model, batch, given, seen))
        gain = jax.lax.stop_gradient(rewards[0].reward - rewards[1].reward)
        log_p = explainer(cause, jnp.pad(drawn[:, :-1], ((0, 0), (1, 0)), constant_values=end))
        picked = jnp.take_along_axis(log_p, drawn[..., None], axis=-1)[..., 0]
        ended = jnp.cumsum(drawn == end, axis=1) - (drawn == end)
        word_loss = explanation_loss(explainer, encoded, batch, explain_key)
        total = -(gain * (picked * (ended == 0)).sum(1)).mean() + config.word_weight * word_loss
        return total, {
            "word_loss": word_loss,
            "reward": rewards[0].reward.mean(),
            "greedy_reward": rewards[1].reward.mean(),
            "certified": rewards[1].certified.mean(),
        }

    return loss


def _like(batch: Mapping[str, Array]) -> Checked:
    image = batch["image"]
    one = jax.ShapeDtypeStruct(image.shape[:1], jnp.float32)
    return Checked(one, one, one, jax.ShapeDtypeStruct(image.shape, image.dtype))
