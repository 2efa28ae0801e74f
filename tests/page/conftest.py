"""Rooms to test the page with: a tiny diffusion model of random weights."""

from pathlib import Path

import jax
import numpy as np
import pytest

from vljax.doors import parse_config
from vljax.models.parameters import named_parameters, with_parameters
from vljax.page.rooms import Room
from vljax.systems import load_system

ROOT = Path(__file__).parents[2]
TINY = (
    *("--config", str(ROOT / "configs" / "sdg_ffhq.py")),
    "--config.compilation_cache=",
    "--config.guided=False",
    "--config.data.image_size=16",
    "--config.model.diffusion.model_channels=8",
    "--config.model.diffusion.norm_groups=4",
    "--config.model.diffusion.num_head_channels=8",
    "--config.model.diffusion.channel_mult=(1.0,)",
    "--config.model.diffusion.attention_resolutions=()",
    "--config.samples.steps=4",
)


def random_room(*argv):
    """A room of what a command line says, with random weights."""
    config = parse_config(argv)[0]
    system = load_system(config.system)
    skeleton = jax.eval_shape(lambda: system.make_model(config))
    rng = np.random.default_rng(0)
    drawn = {
        name: np.float32(0.1 * rng.normal(size=leaf.shape))
        for name, leaf in named_parameters(skeleton).items()
    }
    model = jax.tree.map(jax.numpy.asarray, with_parameters(skeleton, drawn))
    return Room(config.system, "tiny", system, config, model)


@pytest.fixture(scope="session")
def room():
    """A room that draws pictures of noise in a moment."""
    return random_room(*TINY)
