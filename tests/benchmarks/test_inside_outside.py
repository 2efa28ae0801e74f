"""Inside-Outside Attention against plain attention of this library, in one run."""

import jax
import pytest

from vljax.ops.attention import attention
from vljax.ops.inside_outside import inside_outside_attention, pixel_mask, token_mask

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize(
    ("length", "width", "bound"), [(4096, 40, 1.6), (1024, 80, 1.6), (256, 160, 1.75)]
)
def test_self_attention_at_the_sizes_of_stable_diffusion(milliseconds, length, width, bound):
    """Three products instead of two; where heads are wide, no exponential softens the ratio."""
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, (2, length, 8, width)) for key in keys[:3]]
    shape = jax.random.bernoulli(keys[3], 0.3, (2, length))
    plain = jax.jit(attention)
    masked = jax.jit(lambda *inputs: inside_outside_attention(*inputs, pixel_mask(shape)))
    ours, peer = milliseconds(
        7,
        lambda: jax.block_until_ready(masked(*inputs)),
        lambda: jax.block_until_ready(plain(*inputs)),
    )
    print(f"\n2×{length}×8×{width}: {ours:.1f} ms, plain {peer:.1f} ms, ratio {ours / peer:.2f}")
    assert ours <= bound * peer


def test_cross_attention_at_the_size_of_stable_diffusion(milliseconds):
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (2, 4096, 8, 40))
    key, value = (jax.random.normal(k, (2, 77, 8, 40)) for k in keys[1:3])
    shape = jax.random.bernoulli(keys[3], 0.3, (2, 4096))
    plain = jax.jit(attention)
    masked = jax.jit(lambda *inputs: inside_outside_attention(*inputs, token_mask(shape)))
    ours, peer = milliseconds(
        15,
        lambda: jax.block_until_ready(masked(query, key, value)),
        lambda: jax.block_until_ready(plain(query, key, value)),
    )
    print(f"\n2×4096×77×8×40: {ours:.1f} ms, plain {peer:.1f} ms, ratio {ours / peer:.2f}")
    assert ours <= 1.6 * peer
