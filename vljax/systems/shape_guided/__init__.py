"""Shape-Guided Diffusion: edit an object of a picture and keep its shape.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 5; Park et
al., "Shape-Guided Diffusion with Inside-Outside Attention" (2024). The method (`method`) needs no
training: it takes Stable Diffusion as published (`--config.pretrained.sd=FOLDER`). Without, its
parts are trained here on scenes:

- `clip`, pictures and captions in one space; its text tower is what the U-Net reads, and it judges
  how well an edit fits its prompt;
- `autoencoder`, pictures to latents and back;
- `diffusion`, the text-conditional U-Net in these latents;
- `inpaint`, the baseline's U-Net of nine channels, which sees mask and surroundings;
- `segmenter`, CLIPSeg, which infers shapes from prompts.

The method and its baselines (`baselines`) are judged by table 5.2.
"""

from vljax.systems import System
from vljax.systems.shape_guided.evaluation import Judging, judge
from vljax.systems.shape_guided.model import ShapeGuided, make_model, make_tokenizer
from vljax.systems.shape_guided.recipe import get_config, get_published_config
from vljax.systems.shape_guided.training import stages
from vljax.systems.shape_guided.use import Request, generate

SYSTEM = System(
    "shape_guided",
    get_config,
    make_model,
    stages,
    Request,
    generate,
    Judging,
    judge,
    make_tokenizer,
)

__all__ = ["SYSTEM", "ShapeGuided", "get_config", "get_published_config", "make_model", "stages"]
