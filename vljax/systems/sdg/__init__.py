"""SDG: Semantic Diffusion Guidance of an unconditional diffusion model.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 4; Liu et
al., *More Control for Free! Image Synthesis with Semantic Diffusion Guidance* (2023). Three parts,
trained one after the other:

- `diffusion`, an unconditional ADM U-Net (section 4.3.1, equations 4.1 to 4.3);
- `clip`, which knows texts and clean pictures; published, or trained here on captions;
- `noisy_clip`, its image tower taught to see through noise, without captions (section 4.3.5).

Then texts and pictures guide the sampling (algorithm 2, equations 4.6 to 4.10: `method`). How well
they do is judged by tables 4.1 to 4.3 (`evaluation`).
"""

from vljax.systems import System
from vljax.systems.sdg.evaluation import Judging, judge
from vljax.systems.sdg.model import SDG, make_model, make_tokenizer
from vljax.systems.sdg.recipe import get_config, get_published_config
from vljax.systems.sdg.training import stages
from vljax.systems.sdg.use import Request, generate

SYSTEM = System(
    "sdg", get_config, make_model, stages, Request, generate, Judging, judge, make_tokenizer
)

__all__ = ["SDG", "SYSTEM", "get_config", "get_published_config", "make_model", "stages"]
