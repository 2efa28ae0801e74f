"""Stable Diffusion 1.5's U-Net, plain and with IOA, against `diffusers` in one run.

860 million random parameters in both libraries: about 12 GB of memory and some five minutes.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.diffusion.process import make_process
from vljax.diffusion.progress import progress_bar
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.control import inside_outside
from vljax.models.parameters import named_parameters
from vljax.systems import shape_guided
from vljax.systems.shape_guided.batch import Wish, make_batch
from vljax.systems.shape_guided.method import generate, invert
from vljax.systems.shape_guided.model import make_tokenizer

pytestmark = pytest.mark.benchmark

SIDE, BATCH = 64, 2


class InsideOutside:
    """Algorithm 3 in plain PyTorch: the map of every layer masked after its softmax."""

    def __init__(self, torch, shape):
        self.torch, self.shape = torch, shape

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        torch = self.torch
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        side = int(hidden_states.shape[1] ** 0.5)
        inside = torch.nn.functional.interpolate(self.shape[None, None], (side, side)).flatten()
        if encoder_hidden_states is None:
            mask = inside[:, None] == inside
        else:
            of_inside, of_outside = torch.zeros(2, 77)
            of_inside[1:39], of_outside[39:77] = 1, 1
            mask = torch.where(inside[:, None] > 0, of_inside, of_outside)
        maps = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1) * mask
        return attn.to_out[0]((maps @ value).transpose(1, 2).flatten(2))


def test_a_call_of_the_network(milliseconds, torch):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.UNet2DConditionModel(sample_size=SIDE, cross_attention_dim=768).eval()
    model = jax.jit(lambda: ConditionalUNet(context_features=768, rngs=nnx.Rngs(0)))()
    count = sum(value.size for value in named_parameters(model).values())
    assert count == sum(parameter.numel() for parameter in peer.parameters())

    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, SIDE, SIDE, 4), dtype=np.float32)
    context = rng.standard_normal((BATCH, 77, 768), dtype=np.float32)
    shape = np.zeros((SIDE, SIDE), np.float32)
    shape[16:48, 20:50] = 1
    x_, t_, context_ = jnp.asarray(x), jnp.full(BATCH, 500), jnp.asarray(context)
    theirs = (
        torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(),
        torch.full((BATCH,), 500),
        torch.from_numpy(context),
    )

    def masked(model, x, t, context, shape):
        return model(x, t, context, control=inside_outside(shape[None], rule="corner"))

    def compiled(name, run, *arguments):
        start = time.perf_counter()
        program = jax.jit(run).lower(*arguments).compile()
        seconds = time.perf_counter() - start
        memory = program.memory_analysis().temp_size_in_bytes / 2**30
        print(f"\n{name}: compiled in {seconds:.0f} s, {memory:.2f} GiB beside its parameters")
        return lambda: jax.block_until_ready(program(*arguments))

    plain = compiled("plain", lambda model, *a: model(*a), model, x_, t_, context_)
    ours = compiled("with IOA", masked, model, x_, t_, context_, jnp.asarray(shape))
    processors = {
        name: InsideOutside(torch, torch.from_numpy(shape)) for name in peer.attn_processors
    }
    fused = peer.attn_processors

    @torch.no_grad()
    def peer_with(processors):
        peer.set_attn_processor(dict(processors))
        return peer(*theirs).sample

    times = milliseconds(3, plain, lambda: peer_with(fused), ours, lambda: peer_with(processors))
    mine, torch_plain, mine_masked, torch_masked = times / 1e3
    print(
        f"SD-1.5 U-Net, {BATCH}×{SIDE}×{SIDE}: {mine:.2f} s, diffusers {torch_plain:.2f} s "
        f"(ratio {mine / torch_plain:.2f}); with IOA {mine_masked:.2f} s, diffusers "
        f"{torch_masked:.2f} s (ratio {mine_masked / torch_masked:.2f}; "
        f"{mine_masked / torch_plain:.2f} times diffusers without it)"
    )
    assert mine <= 1.3 * torch_plain
    assert mine_masked <= 0.8 * torch_masked


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_edit_is_two_programs(dtype):
    """50 steps of inversion and 50 of generation at 512 pixels: compilation and memory."""
    config = shape_guided.get_published_config("")
    config.model.unet.dtype = dtype
    model = jax.eval_shape(lambda: shape_guided.make_model(config))
    tokenizer = make_tokenizer(shape_guided.get_config())
    image = np.zeros((1, 512, 512, 3), np.uint8)
    wish = Wish("a red circle", "a blue circle")
    batch = make_batch(tokenizer, model.sd.tokens, image, np.ones((1, 512, 512), bool), [wish])
    process = make_process(config, config.samples.steps)
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model.sd)) / 2**30
    print(f"\nparameters: {weights:.2f} GiB")
    latents = jax.ShapeDtypeStruct((51, 1, 64, 64, 4), jnp.float32)
    with progress_bar("never run") as bar:
        programs = {
            "inversion": invert.lower(model.sd, process, batch, bar),
            "generation": generate.lower(model.sd, process, batch, latents, bar),
        }
    for name, program in programs.items():
        start = time.perf_counter()
        memory = program.compile().memory_analysis()
        seconds, used = time.perf_counter() - start, memory.temp_size_in_bytes / 2**30
        print(f"{name}: compiled in {seconds:.0f} s, {used:.2f} GiB beside its parameters")
        # No copy of the parameters. On CPU bfloat16 is emulated, with a float32 copy of them.
        assert dtype == "bfloat16" or used < 0.3 * weights
