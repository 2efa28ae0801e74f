"""A turn of CDD-ICM against plain ADM of the same width, step for step, in one run.

Keys and values of the context are made once a turn; what they, the reference's channels and the
encoders cost beside an unconditional network, and what guidance costs, is asserted.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from vljax.diffusion.noise import example_keys, start_noise
from vljax.diffusion.samplers import ddim
from vljax.doors import parse_config
from vljax.models.unet import UNet
from vljax.ops.pixels import to_pixels
from vljax.systems import cdd_icm
from vljax.systems.cdd_icm.method import Drawing

pytestmark = pytest.mark.benchmark

CONFIG = Path(__file__).parents[2] / "configs" / "cdd_icm_iclevr.py"
# The chosen full size but for the backbone, in float32: bfloat16 is emulated on CPUs.
FULL = (
    "--config.data.image_size=128",
    "--config.model.features=512",
    "--config.model.diffusion.model_channels=128",
    "--config.model.diffusion.channel_mult=(1.0,1.0,2.0,3.0,4.0)",
    "--config.model.diffusion.num_res_blocks=2",
    "--config.model.diffusion.attention_resolutions=(32,16,8)",
    "--config.model.diffusion.num_head_channels=64",
    "--config.model.diffusion.norm_groups=32",
)


@pytest.mark.parametrize(
    ("changes", "batch", "steps", "rounds"),
    [((), 8, "25", 5), (FULL, 1, "4", 2)],
    ids=["small", "full"],
)
def test_a_turn_beside_plain_adm(milliseconds, compilations, changes, batch, steps, rounds):
    config = parse_config(("--config", str(CONFIG), *changes))[0]
    model = jax.jit(lambda: cdd_icm.make_model(config))()
    size = config.data.image_size
    plain = jax.jit(
        lambda: UNet(image_size=size, out_channels=6, rngs=nnx.Rngs(0), **config.model.diffusion)
    )()
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    length = config.model.clip.context_length
    tokens = rng.integers(1, 700, (batch, length)).astype(np.int32)
    keys = example_keys(jax.random.key(0), batch)

    @jax.jit
    def adm(unet, keys):
        x_T = start_noise(keys, (size, size, 3))
        return to_pixels(ddim(process, unet, x_T, keys=keys, clip=True))

    def turn(**scales):
        drawing = Drawing(config, "ddim", steps, **scales)
        return lambda seed=0: jax.block_until_ready(
            drawing.turn(model, keys, 1 + seed, reference, tokens)
        )

    process = Drawing(config, "ddim", steps).process
    calls = {
        "plain ADM": lambda: jax.block_until_ready(adm(plain, keys)),
        "a turn": turn(phi=1.0, icm=0.0),
        "φ": turn(phi=3.0, icm=0.0),
        "φ and ICM": turn(phi=3.0),
    }
    times = dict(zip(calls, milliseconds(rounds, *calls.values()), strict=True))
    compilations()
    for scales in ({"phi": 1.5, "icm": 0.0}, {"phi": 5.0, "icm": 0.7}):
        tokens, reference = np.roll(tokens, 1), reference[..., ::-1].copy()
        turn(**scales)(seed=3)
    assert compilations() == 0
    told = ", ".join(f"{name} {ms / int(steps):.0f} ms a step" for name, ms in times.items())
    alone, one, guided, both = times.values()
    print(
        f"\n{batch} pictures of {size} px: {told}; a turn is {one / alone:.2f} of plain ADM, "
        f"guidance {guided / one:.2f} of a turn, with ICM's {both / one:.2f}"
    )
    assert one <= 1.15 * alone
    assert guided <= 2.2 * one
