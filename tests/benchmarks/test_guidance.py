"""What guidance adds to a sampling step: one pass of the tower, forward and back."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vljax.diffusion import guidance as guiding
from vljax.diffusion.noise import example_keys, start_noise
from vljax.diffusion.process import Process
from vljax.diffusion.samplers import ddpm
from vljax.diffusion.schedules import named_schedule, respace
from vljax.systems import sdg

pytestmark = pytest.mark.benchmark

BATCH, STEPS = 8, 10


def test_a_guided_step(milliseconds):
    config = sdg.get_config()
    model = jax.jit(lambda: sdg.SDG(config, rngs=nnx.Rngs(0)))()
    process = Process(respace(named_schedule("cosine", 1000), range(0, 1000, 1000 // STEPS)), "v")
    keys = example_keys(jax.random.key(0), BATCH)
    x = start_noise(keys, (config.data.image_size, config.data.image_size, 3))
    text, t = jax.random.normal(jax.random.key(1), (64,)), jnp.full(BATCH, 500)

    def guidance(model):
        def encode(x, t):
            return model.noisy_clip.encode_image(x, t, features=True)

        return guiding.score_guidance(
            guiding.semantic_score(encode, [(10.0, guiding.language(text))])
        )

    def sample(model, guided):
        bent = guidance(model) if guided else None
        return ddpm(process, model.diffusion, x, keys, clip=True, guidance=bent)

    plain = jax.jit(lambda model: sample(model, False)).lower(model).compile()
    guided = jax.jit(lambda model: sample(model, True)).lower(model).compile()
    tower = jax.jit(lambda model: guidance(model)(x, t)).lower(model).compile()

    def run(program):
        return lambda: jax.block_until_ready(program(model))

    free, bent, alone = milliseconds(7, run(plain), run(guided), run(tower))
    free, bent = free / STEPS, bent / STEPS
    print(
        f"\n{BATCH} pictures, a step: {free:.0f} ms free, {bent:.0f} ms guided; tower forward and "
        f"back {alone:.0f} ms; guided / free {bent / free:.2f}, "
        f"guided / (free + tower) {bent / (free + alone):.2f}"
    )
    assert bent <= 1.3 * (free + alone)
