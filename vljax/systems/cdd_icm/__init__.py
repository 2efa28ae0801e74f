"""CDD-ICM: a picture that grows turn by turn in a dialogue.

Wang, *A Diffusion-based Method for Multi-turn Compositional Image Generation* (arXiv 2304.02192,
2023). At each turn a reference picture and an instruction are composed to a condition, under which
a diffusion model draws the next picture, the next turn's reference. No code was published. Parts:

- `clip`, the backbone of both encoders; published, or trained here on captions and instructions;
- `composer`, new projections, the gated fusion (equation 1) and ICM's temperature;
- `diffusion`, an ADM U-Net under the condition (section 2.4);
- `noisy`, an image encoder that sees through noise, for ICM guidance (section 2.5);
- `localizer`, where asked for: it judges data that no published detector knows.

Three stages train them (section 2.6): `icm` aligns what is composed with the picture asked for,
`cdd` learns to draw and goes on aligning, `noisy_icm` aligns noisy pictures. Tables 1 and 2 judge.
"""

from vljax.systems import System
from vljax.systems.cdd_icm.evaluation import Judging, judge
from vljax.systems.cdd_icm.model import CDDICM, make_model, make_tokenizer
from vljax.systems.cdd_icm.recipe import get_config, get_published_config
from vljax.systems.cdd_icm.training import stages
from vljax.systems.cdd_icm.use import Request, generate

SYSTEM = System(
    "cdd_icm", get_config, make_model, stages, Request, generate, Judging, judge, make_tokenizer
)

__all__ = ["CDDICM", "SYSTEM", "get_config", "get_published_config", "make_model", "stages"]
