"""VOI: discovering the order in which to write a sequence, by variational inference.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 3; Li et al.,
"Discovering Non-monotonic Autoregressive Orderings with Variational Inference" (ICLR 2021). The
permutation network φ reads a source and its whole target and gives a distribution over orders; the
insertion decoder θ learns to write the target in orders drawn from it, and rewards φ for orders in
which that succeeds (Algorithm 1, in `method`). Fixed orders train θ alone.
"""

from vljax.systems import System
from vljax.systems.voi.evaluation import Judging, judge
from vljax.systems.voi.model import VOI, make_model
from vljax.systems.voi.recipe import (
    get_config,
    get_published_config,
    get_stage_config,
    use_distilled,
)
from vljax.systems.voi.training import stages
from vljax.systems.voi.use import Request, generate

SYSTEM = System("voi", get_config, make_model, stages, Request, generate, Judging, judge)

__all__ = [
    "SYSTEM",
    "VOI",
    "get_config",
    "get_published_config",
    "get_stage_config",
    "make_model",
    "stages",
    "use_distilled",
]
