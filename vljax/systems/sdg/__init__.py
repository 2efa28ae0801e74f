"""SDG: Semantic Diffusion Guidance of an unconditional diffusion model.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 4; Liu et
al., *More Control for Free! Image Synthesis with Semantic Diffusion Guidance* (2023). Three parts,
trained one after the other:

- `diffusion`, an unconditional ADM U-Net (section 4.3.1, equations 4.1 to 4.3);
- `clip`, which knows texts and clean pictures; published, or trained here on scenes' captions;
- `noisy_clip`, its image tower taught to see through noise, without captions (section 4.3.5).

Then texts and pictures guide the sampling (algorithm 2, equations 4.6 to 4.10). How well they do
is judged by tables 4.1 to 4.3.
"""

from vljax.systems.sdg.evaluation import add_evaluate_flags, evaluate
from vljax.systems.sdg.model import SDG, make_model
from vljax.systems.sdg.recipe import get_config, get_published_config
from vljax.systems.sdg.training import stages
from vljax.systems.sdg.use import add_generate_flags, generate

__all__ = [
    "SDG",
    "add_evaluate_flags",
    "add_generate_flags",
    "evaluate",
    "generate",
    "get_config",
    "get_published_config",
    "make_model",
    "stages",
]
