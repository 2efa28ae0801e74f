"""Numerics without parameters: attention, convolution, assignment, transport, permanents."""

from vljax.ops.assignment import linear_sum_assignment
from vljax.ops.attention import attention
from vljax.ops.convolution import conv2d
from vljax.ops.fusion import (
    block_tucker,
    compact_bilinear,
    count_sketch,
    factorised,
    l2_normalise,
    signed_sqrt,
    signed_unit,
    sketch_hashes,
    tucker,
)
from vljax.ops.inside_outside import (
    SideMask,
    inside_outside_attention,
    inside_outside_weights,
    join_prompts,
    pixel_mask,
    resize_nearest,
    schedule_strength,
    token_mask,
)
from vljax.ops.interpolation import interpolate
from vljax.ops.permanent import bethe_permanent, log_bethe_permanent, log_permanent
from vljax.ops.permutations import GumbelMatching, GumbelSinkhorn, PlackettLuce, gumbel_kl
from vljax.ops.pixels import standardise, to_levels, to_pixels, to_unit
from vljax.ops.quantization import gumbel_one_hot, nearest, straight_through
from vljax.ops.similarity import (
    clip_scale,
    contrastive_loss,
    cosine,
    late_interaction,
    late_interaction_loss,
    normalise,
)
from vljax.ops.sinkhorn import sinkhorn

__all__ = [
    "GumbelMatching",
    "GumbelSinkhorn",
    "PlackettLuce",
    "SideMask",
    "attention",
    "bethe_permanent",
    "block_tucker",
    "clip_scale",
    "compact_bilinear",
    "contrastive_loss",
    "conv2d",
    "cosine",
    "count_sketch",
    "factorised",
    "gumbel_kl",
    "gumbel_one_hot",
    "inside_outside_attention",
    "inside_outside_weights",
    "interpolate",
    "join_prompts",
    "l2_normalise",
    "late_interaction",
    "late_interaction_loss",
    "linear_sum_assignment",
    "log_bethe_permanent",
    "log_permanent",
    "nearest",
    "normalise",
    "pixel_mask",
    "resize_nearest",
    "schedule_strength",
    "signed_sqrt",
    "signed_unit",
    "sinkhorn",
    "sketch_hashes",
    "standardise",
    "straight_through",
    "to_levels",
    "to_pixels",
    "to_unit",
    "token_mask",
    "tucker",
]
