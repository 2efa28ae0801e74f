"""Captioner: says what a picture shows, and looks where it speaks of.

Vinyals et al., "Show and Tell: A Neural Image Caption Generator" (2015); Xu et al., "Show, Attend
and Tell: Neural Image Caption Generation with Visual Attention" (2015). Parts:

- `trunk`, pictures to a grid of features; published, or trained here on scenes, where a
  `recogniser` of what pictures show begins;
- `soft`, who writes with soft attention over the grid (Show, Attend and Tell);
- `none`, who reads the picture once (Show and Tell), for comparison.

How well they do is judged by the papers' tables on COCO; on scenes also by what is true.
"""

from vljax.systems import System
from vljax.systems.captioner.evaluation import Judging, judge
from vljax.systems.captioner.model import Captioners, make_model
from vljax.systems.captioner.recipe import get_config, get_published_config
from vljax.systems.captioner.training import stages
from vljax.systems.captioner.use import Request, generate

SYSTEM = System("captioner", get_config, make_model, stages, Request, generate, Judging, judge)

__all__ = ["SYSTEM", "Captioners", "get_config", "get_published_config", "make_model", "stages"]
