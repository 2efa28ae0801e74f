"""Attention against torch's fused kernel and against its definition, in one run."""

import jax
import numpy as np
import pytest

from vljax.ops.attention import attention, attention_reference

pytestmark = pytest.mark.benchmark


def arrays(batch, length, heads, width):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (batch, length, heads, width)) for key in keys]


@pytest.mark.parametrize("derivative", [False, True])
def test_against_torch_at_the_size_of_stable_diffusion(milliseconds, torch, derivative):
    ours = arrays(2, 4096, 8, 40)
    theirs = [torch.tensor(np.asarray(x)).permute(0, 2, 1, 3).contiguous() for x in ours]

    def torch_call():
        if not derivative:
            with torch.no_grad():
                torch.nn.functional.scaled_dot_product_attention(*theirs)
            return
        leaves = [x.detach().requires_grad_() for x in theirs]
        torch.nn.functional.scaled_dot_product_attention(*leaves).sum().backward()

    f = attention
    if derivative:
        f = jax.grad(lambda *a: attention(*a).sum(), argnums=(0, 1, 2))
    compiled = jax.jit(f).lower(*ours).compile()
    mine, peer = milliseconds(9, lambda: jax.block_until_ready(compiled(*ours)), torch_call)
    print(
        f"\nattention 2×4096×8×40{', with gradient' * derivative}: {mine:.0f} ms, "
        f"torch {peer:.0f} ms, ratio {mine / peer:.2f}"
    )
    # The aim is 1.3 forward; seen are 1.2 to 1.45.
    assert mine <= (1.6 if not derivative else 2.0) * peer


@pytest.mark.parametrize("derivative", [False, True])
@pytest.mark.parametrize("size", [(32, 64, 4, 32), (16, 256, 4, 32), (4, 1024, 8, 40)])
def test_short_lengths_against_the_definition(milliseconds, size, derivative):
    inputs = arrays(*size)

    def call(f):
        g = jax.grad(lambda *a: f(*a).sum(), argnums=(0, 1, 2)) if derivative else f
        compiled = jax.jit(g).lower(*inputs).compile()
        return lambda: jax.block_until_ready(compiled(*inputs))

    mine, peer = milliseconds(25, call(attention), call(attention_reference))
    print(
        f"\nattention {'×'.join(map(str, size))}{', with gradient' * derivative}: {mine:.2f} ms, "
        f"plain products {peer:.2f} ms, ratio {mine / peer:.2f}"
    )
    assert mine <= 1.25 * peer
