"""unCLIP's prior on scenes: it predicts pictures' embeddings better than their texts' do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vljax.models.parameters import named_parameters, with_parameters
from vljax.systems.text2image import SYSTEM, get_config
from vljax.systems.text2image.families import unclip
from vljax.systems.text2image.families.family import open_captions
from vljax.systems.text2image.model import make_model


def learn(model, stage, steps, rate, batch_size):
    """Plain Adam on what a stage trains."""
    part = stage.train[0][0].removesuffix(r"\.") + "."
    trained = {n: v for n, v in named_parameters(model).items() if n.startswith(part)}
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    rng, state = np.random.default_rng(0), optimizer.init(trained)

    @jax.jit
    def step(model, trained, state, batch, key):
        def loss(trained):
            return stage.loss(with_parameters(model, trained), batch, key)[0]

        value, gradient = jax.value_and_grad(loss)(trained)
        change, state = optimizer.update(gradient, state)
        return optax.apply_updates(trained, change), state, value

    for i in range(steps):
        examples = [
            stage.transform(stage.source[i * batch_size + j], rng) for j in range(batch_size)
        ]
        batch = {n: jnp.asarray(np.stack([e[n] for e in examples])) for n in examples[0]}
        trained, state, value = step(model, trained, state, batch, jax.random.key(i))
    return with_parameters(model, trained), float(value)


@pytest.mark.slow
def test_the_prior_is_nearer_to_pictures_than_texts_are():
    """Of 200 held-out pictures under their own captions; some minutes of training."""
    config = get_config("unclip")
    stages = {stage.name: stage for stage in SYSTEM.stages(config)}
    model = jax.jit(lambda: make_model(config))()
    model, _ = learn(model, stages["clip"], 400, 1e-3, 64)
    model, _ = learn(stages["prior"].start(model), stages["prior"], 400, 1e-3, 64)
    source = open_captions(config, held_out=True)
    images = np.stack([source[i]["image"] for i in range(200)])
    texts = [source[i]["captions"][0] for i in range(200)]
    predicted, told = unclip.agreement(model, config, images, texts)
    apart = predicted - told
    error = apart.std() / len(apart) ** 0.5
    print(f"predicted {predicted.mean():.3f}, text {told.mean():.3f}, apart ± {error:.3f}")
    assert apart.mean() > 2 * error
