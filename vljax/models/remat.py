"""What the blocks of a deep network keep of their forward pass for the backward pass.

Activations are most of the memory of training. A block may keep few of them and compute the others
again (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016). `config.model.*.remat`
says which are kept, from the fastest to the smallest:

- `"off"` (also False): all;
- `"keep_products"`: what products with weights give, those of linear layers and convolutions;
  norms, activations and attention are computed again, which is cheap on accelerators;
- `"keep_attention"`: what attention gives, which takes longest to compute again where sequences are
  long;
- `"keep_nothing"` (also True): nothing but what enters a block.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.ad_checkpoint import checkpoint_policies

from vljax.errors import UserError
from vljax.ops.attention import ATTENTION

Block = TypeVar("Block", bound=Callable)


def _products(primitive: Any, *arrays: Any, **parameters: Any) -> bool:
    """Products with weights; those of attention have batch dimensions."""
    return primitive.name == "conv_general_dilated" or bool(
        checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arrays, **parameters)
    )


_POLICIES: dict[str, Callable | None] = {
    "keep_products": _products,
    "keep_attention": checkpoint_policies.save_only_these_names(ATTENTION),
    "keep_nothing": None,
}


def rematerialised(block: Block, remat: bool | str) -> Block:
    """A function of arrays and modules that keeps only what `remat` says.

    Raises:
        UserError: there is no such policy.
    """
    # A flag's True and False come as words where the recipe has a word.
    policy = {"true": "keep_nothing", "false": "off"}.get(str(remat).lower(), remat)
    if policy == "off":
        return block
    if policy not in _POLICIES:
        raise UserError(f"remat={remat!r}: choose 'off', {', '.join(map(repr, _POLICIES))}")
    return jax.checkpoint(block, policy=_POLICIES[policy])  # type: ignore[return-value]
