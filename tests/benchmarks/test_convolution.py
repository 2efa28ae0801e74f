"""Convolution with few pixels and many channels against XLA's own and torch's, in one run."""

import jax
import numpy as np
import pytest
from jax import lax

from vljax.ops.convolution import conv2d

pytestmark = pytest.mark.benchmark

# Batch, side, channels in, channels out: the deep end of Stable Diffusion's U-Net.
SIZES = [(2, 16, 1280, 1280), (2, 8, 1280, 1280), (2, 8, 2560, 1280)]


def xla(x, weight):
    return lax.conv_general_dilated(
        x, weight, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def ours(x, weight):
    return conv2d(x, weight, padding=1)


@pytest.mark.parametrize("size", SIZES)
def test_with_both_gradients(milliseconds, torch, size):
    batch, side, inputs, outputs = size
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, side, side, inputs))
    weight = jax.random.normal(keys[1], (3, 3, inputs, outputs)) / (9 * inputs) ** 0.5
    cotangent = jax.random.normal(keys[2], (batch, side, side, outputs))

    def call(convolve):
        def both(x, weight, cotangent):
            out, pull = jax.vjp(convolve, x, weight)
            return out, pull(cotangent)

        compiled = jax.jit(both).lower(x, weight, cotangent).compile()
        return lambda: jax.block_until_ready(compiled(x, weight, cotangent))

    torch_x = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).requires_grad_()
    torch_weight = torch.tensor(np.asarray(weight)).permute(3, 2, 0, 1).contiguous()
    torch_weight.requires_grad_()
    torch_cotangent = torch.tensor(np.asarray(cotangent)).permute(0, 3, 1, 2)

    def torch_call():
        out = torch.nn.functional.conv2d(torch_x, torch_weight, padding=1)
        torch.autograd.grad(out, (torch_x, torch_weight), torch_cotangent)

    mine, plain, peer = milliseconds(7, call(ours), call(xla), torch_call)
    print(
        f"\n3×3 convolution {batch}×{side}×{side}, {inputs}→{outputs}, with both gradients: "
        f"{mine:.1f} ms, XLA's own {plain:.1f} ms ({mine / plain:.2f}), "
        f"torch {peer:.1f} ms ({mine / peer:.2f})"
    )
    # Seen are 0.44 to 0.65.
    assert mine <= 0.9 * plain
