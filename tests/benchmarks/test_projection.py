"""The gradient of a linear layer over texts: one matrix product, XLA over both axes, torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.ops.projection import project

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("shape", [(128, 26, 128, 512), (16, 256, 64, 256)])
def test_one_product_is_faster_than_one_over_both_axes(shape, milliseconds, torch):
    *lead, inputs, outputs = shape
    generator = np.random.default_rng(0)
    x, weight, up = (
        generator.normal(size=size).astype(np.float32)
        for size in ((*lead, inputs), (inputs, outputs), (*lead, outputs))
    )

    def gradients(product):
        compiled = jax.jit(lambda x, w, up: jax.vjp(product, x, w)[1](up))
        arguments = [jnp.asarray(a) for a in (x, weight, up)]
        return lambda: jax.block_until_ready(compiled(*arguments))

    ours, xlas = gradients(project), gradients(jnp.matmul)
    for mine, other in zip(ours(), xlas(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-3)
    theirs = [torch.from_numpy(a).requires_grad_() for a in (x, weight)]
    above = torch.from_numpy(up)

    def torchs():
        return torch.autograd.grad(theirs[0] @ theirs[1], theirs, above)

    mine, plain, peer = milliseconds(20, ours, xlas, torchs)
    print(f"\n{shape}: {mine:.2f} ms, XLA {plain:.2f} ms, torch {peer:.2f} ms")
    assert mine <= plain
    assert mine <= 1.5 * peer
