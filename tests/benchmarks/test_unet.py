"""ADM's U-Net against the same network in PyTorch (`diffusers`), in one run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vljax.models.parameters import named_parameters, with_parameters
from vljax.models.unet import UNet

pytestmark = pytest.mark.benchmark

SIZE, CHANNELS = 32, (64, 64, 128)


def networks(UNet2DModel):
    ours = UNet(
        image_size=SIZE,
        model_channels=64,
        channel_mult=(1, 1, 2),
        out_channels=3,
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_head_channels=32,
        rngs=nnx.Rngs(0),
    )
    theirs = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        attention_head_dim=32,
        down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        attn_norm_num_groups=32,
    )
    count = sum(value.size for value in named_parameters(ours).values())
    assert count == sum(p.numel() for p in theirs.parameters())
    return ours, theirs


@pytest.mark.parametrize("batch", [4, 32])
def test_forward_and_training_step(milliseconds, torch, batch):
    ours, theirs = networks(pytest.importorskip("diffusers").UNet2DModel)
    x = np.random.default_rng(0).standard_normal((batch, SIZE, SIZE, 3), dtype=np.float32)
    t = jnp.full(batch, 500.0)
    torch_x = torch.tensor(x).permute(0, 3, 1, 2).contiguous()
    torch_t = torch.full((batch,), 500.0)

    forward = jax.jit(lambda model, x: model(x, t)).lower(ours, x).compile()
    device_x = jnp.asarray(x)

    def torch_forward():
        with torch.no_grad():
            theirs(torch_x, torch_t)

    optimizer = optax.adamw(1e-4)

    @jax.jit
    def step(parameters, state):
        def loss(parameters):
            return (with_parameters(ours, parameters)(device_x, t) ** 2).mean()

        updates, state = optimizer.update(jax.grad(loss)(parameters), state, parameters)
        return optax.apply_updates(parameters, updates), state

    parameters = named_parameters(ours)
    state = optimizer.init(parameters)
    torch_optimizer = torch.optim.AdamW(theirs.parameters(), 1e-4)

    def torch_step():
        torch_optimizer.zero_grad()
        (theirs(torch_x, torch_t).sample ** 2).mean().backward()
        torch_optimizer.step()

    mine, peer = milliseconds(
        7, lambda: jax.block_until_ready(forward(ours, device_x)), torch_forward
    )
    mine_step, peer_step = milliseconds(
        5, lambda: jax.block_until_ready(step(parameters, state)), torch_step
    )
    print(
        f"\nU-Net {batch}×{SIZE}×{SIZE}, channels {CHANNELS}: forward {mine:.0f} ms, "
        f"torch {peer:.0f} ms (ratio {mine / peer:.2f}); training step {mine_step:.0f} ms, "
        f"torch {peer_step:.0f} ms (ratio {mine_step / peer_step:.2f})"
    )
    # XLA's 3×3 convolutions are what is slower; see test_convolution.py.
    assert mine <= 1.8 * peer
    assert mine_step <= 2.2 * peer_step
