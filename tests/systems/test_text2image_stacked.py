"""StackGAN's second stage: larger pictures of the first generator's, which rests meanwhile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.systems.test_text2image import PICTURES, tiny_config, with_random_weights
from vljax.errors import UserError
from vljax.models.parameters import named_parameters
from vljax.systems.text2image import SYSTEM, with_refiner
from vljax.systems.text2image.families import Wish, adversarial
from vljax.systems.text2image.model import make_model

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def recipe(side=64):
    config = with_refiner(tiny_config("adversarial"), side)
    config.model.refiner.update({"condition": 8, "blocks": 1, **PICTURES})
    config.model.critic.update(PICTURES)
    return config


@pytest.fixture(scope="module")
def opened():
    config = recipe()
    return config, with_random_weights(jax.eval_shape(lambda: make_model(config)))


def drawn(opened, text="a red star", first=0, by=adversarial.draw):
    config, model = opened
    wish = Wish((text,) * 2, (first, first + 1)).filled(config)
    return np.asarray(by(model, config, wish))


def test_a_text_is_drawn_larger_and_nothing_recompiles(opened, compilations):
    one = drawn(opened)
    assert (one.dtype, one.shape) == (np.uint8, (2, 64, 64, 3))
    assert drawn(opened, by=adversarial.draw_small).shape == (2, 32, 32, 3)
    compilations()
    assert not np.array_equal(drawn(opened, "a blue circle"), one)
    np.testing.assert_array_equal(drawn(opened, first=1)[0], one[1])  # its own seed only
    assert compilations() == 0


def test_the_second_generator_sees_the_small_picture(opened):
    config, model = opened
    texts, key = jnp.ones((1, config.model.clip.embed_dim)), jax.random.key(0)
    refine = jax.jit(lambda small: model.refiner(small, texts, key)[0])
    one, other = refine(jnp.zeros((1, 32, 32, 3))), refine(jnp.full((1, 32, 32, 3), 0.5))
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one).max() <= 1


def test_the_first_generator_rests(opened):
    config, model = opened
    first, second = SYSTEM.stages(config)[-2:]
    assert (first.name, second.name) == ("adversarial", "refine")
    rng = np.random.default_rng(0)
    examples = [second.transform(second.source[i], rng) for i in range(4)]
    assert examples[0]["image"].shape == (64, 64, 3)
    batch = {n: jnp.asarray(np.stack([e[n] for e in examples])) for n in examples[0]}
    gradient = jax.jit(jax.grad(lambda m: second.loss(m, batch, jax.random.key(0))[0]))(model)
    moved = {n.partition(".")[0] for n, g in named_parameters(gradient).items() if np.any(g)}
    assert moved == {"refiner", "critic"}


@pytest.mark.parametrize("side", [32, 48, 96])
def test_sides_that_do_not_fit_are_told(side):
    with pytest.raises(UserError, match=rf"model\.refiner\.side={side}: give .* a power of 2"):
        jax.eval_shape(lambda: make_model(recipe(side)))
