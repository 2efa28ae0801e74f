"""PJ-X: answers a question about a picture, points at the evidence and says why.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 2; Park et
al., "Multimodal Explanations: Justifying Decisions and Pointing to the Evidence" (2018). Parts,
trained one after the other:

- `trunk`, pictures to a grid of features; published, or trained here on scenes, where a
  `recogniser` of what pictures show begins;
- `question` and `answerer`, the answering model;
- `explainer`, which points and writes, given an answer (equations 2.1 to 2.10);
- `without_attention` and `on_descriptions`, the explainers of table 2.2's ablations.

How well it does is judged by tables 2.2 to 2.4.
"""

from vljax.systems import System
from vljax.systems.pjx.evaluation import Judging, judge
from vljax.systems.pjx.model import PJX, make_model
from vljax.systems.pjx.recipe import get_config, get_published_config
from vljax.systems.pjx.training import stages
from vljax.systems.pjx.use import Request, generate

SYSTEM = System("pjx", get_config, make_model, stages, Request, generate, Judging, judge)

__all__ = ["PJX", "SYSTEM", "get_config", "get_published_config", "make_model", "stages"]
