"""What is certified of explanations on scenes, and the training that asks for it."""

import jax
import numpy as np
import optax
import pytest

from tests.systems.test_pjx import RECIPE, SMALL
from vljax.data.scenes import Background, Scene, SceneObject
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.parameters import copied
from vljax.systems import pjx
from vljax.systems.pjx import certificate
from vljax.systems.pjx.words import open_words

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SCENE = Scene(
    Background("light", (220.0, 220.0, 220.0), (0.0, 0.0)),
    (
        SceneObject("circle", "red", "large", 0.25, 0.25, 0.15),
        SceneObject("square", "blue", "large", 0.75, 0.75, 0.15),
    ),
)
CIRCLE = np.zeros((8, 8))
CIRCLE[2, 2] = 1


@pytest.mark.parametrize(
    ("question", "text", "true", "grounded", "names"),
    [
        ("what color is the circle?", "because the circle is red", 1, 1, 1),
        ("what color is the circle?", "because the circle is blue", 0, 1, 1),
        ("what color is the square?", "because the square is blue", 1, 0, 1),
        # True, but not of what shows the answer.
        ("what color is the square?", "because the circle is red", 0, 1, 1),
        ("what color is the square?", "because there is no star", 0, 1, 0),
        ("is there a red star?", "because there is no star", 1, 1, 0),
        ("is the background light or dark?", "because the background is light", 1, 1, 0),
        ("is the background light or dark?", "because the background is dark", 0, 1, 0),
        ("how many objects are there?", "because there is a red circle and a blue square", 1, 1, 0),
    ],
)
def test_a_scene_tells_what_holds(question, text, true, grounded, names):
    seen = certificate.check(SCENE, question, text, CIRCLE, 32)
    assert (seen.true, seen.grounded, seen.names) == (true, grounded, names)


def test_what_is_named_is_taken_out_of_the_picture():
    seen = certificate.check(
        SCENE, "what color is the circle?", "because the circle is red", CIRCLE, 32
    )
    red = (seen.image[..., 0] > 150) & (seen.image[..., 1] < 100)
    blue = (seen.image[..., 2] > 150) & (seen.image[..., 0] < 100)
    assert not red.any()
    assert blue.any()


def rewarding(monkeypatch, first, *flags):
    """Model, loss and a batch: the reward is for sentences that begin with a word."""
    config = parse_config((*RECIPE, *SMALL, "--config.data.max_words=2", *flags))[0]
    words, model = open_words(config), pjx.make_model(config)
    wanted, rows = words.justifications.id(first), 16

    def check(index, tokens, points):
        right = np.asarray(tokens)[:, 0] == wanted
        image = np.zeros((rows, 24, 24, 3), np.uint8)
        return certificate.Checked(right.astype(np.float32), *np.ones((2, rows), np.float32), image)

    monkeypatch.setattr(certificate, "checker", lambda *_: check)
    loss = certificate.certified_loss(config, words)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (rows, 24, 24, 3), np.uint8),
        "question": np.ones((rows, 15), np.int32),
        "question_mask": np.ones((rows, 15), bool),
        "answer": np.zeros(rows, np.int32),
        "scene": np.arange(rows, dtype=np.int32),
        "read": np.zeros((rows, 2), np.int32),
        "written": np.zeros((rows, 2), np.int32),
    }
    return model, loss, batch


def test_words_that_are_rewarded_become_likelier(monkeypatch):
    """Whatever the reward is; nobody's words count."""
    model, loss, batch = rewarding(monkeypatch, "there", "--config.word_weight=0.0")
    explainer, rest = model.explainer, model

    def of(part, key):
        whole = copied(rest)
        whole.explainer = part
        return loss(whole, batch, key)

    step = jax.jit(jax.value_and_grad(of, has_aux=True))
    optimizer, rewards = optax.adam(0.08), []
    state = optimizer.init(explainer)
    for i in range(30):
        (_, metrics), gradient = step(explainer, jax.random.key(i))
        rewards.append(float(metrics["reward"]))
        updates, state = optimizer.update(gradient, state)
        explainer = optax.apply_updates(explainer, updates)
    assert np.mean(rewards[:5]) < 0.3
    assert np.mean(rewards[-5:]) > 0.8


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_peoples_words_are_read_with_dropout(monkeypatch, rate):
    """As in the stage `explain`."""
    flag = f"--config.model.explainer.dropout_rate={rate}"
    model, loss, batch = rewarding(monkeypatch, "there", flag)
    step = jax.jit(lambda key: loss(model, batch, key)[1]["word_loss"])
    first, other = step(jax.random.key(0)), step(jax.random.key(1))
    assert (first != other) == (rate > 0)


def test_only_scenes_can_be_certified():
    config = parse_config((*RECIPE, *SMALL, "--config.task=activity"))[0]
    with pytest.raises(UserError, match=r"stages\.certify: only questions about scenes"):
        certificate.checker(config, None)
