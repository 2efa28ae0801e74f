"""SeMani-Trans: the entity that a word names is drawn anew from a text, code by code.

Wang et al., *Entity-Level Text-Guided Image Manipulation* (2023), section 3.2. Pictures are maps of
a VQGAN's codes. Alignment finds the codes of the entity (`method`); a Transformer over gray codes,
words and codes draws them anew, one after the other as published, or, trained for it, all in a few
passes that see the whole picture. Its stages (`training`) are those of the paper; where nothing is
published for the data, on scenes, the codes and CLIP are trained as well.
"""

from vljax.systems import System
from vljax.systems.semani_trans.evaluation import Judging, judge
from vljax.systems.semani_trans.model import SeManiTrans, make_model, make_tokenizer
from vljax.systems.semani_trans.recipe import get_config, get_published_config
from vljax.systems.semani_trans.training import stages
from vljax.systems.semani_trans.use import Request, generate

SYSTEM = System(
    "semani_trans",
    get_config,
    make_model,
    stages,
    Request,
    generate,
    Judging,
    judge,
    make_tokenizer,
)

__all__ = ["SYSTEM", "SeManiTrans", "get_config", "get_published_config", "make_model", "stages"]
