"""The fields of a captioner's run: a small recipe on scenes, and the published settings."""

from typing import Any

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.training.optimizer import get_stage_config

#: The stage in which who writes with a kind of attention learns.
STAGES = {"soft": "caption", "none": "caption_without_attention"}


def get_config() -> ConfigDict:
    """The fields of a captioner's run, with a recipe that two CPU cores finish on scenes."""
    config = get_base_config("captioner")
    config.about = "Captions of the embedded scenes: a small recipe for two CPU cores."
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            # What is judged; by default COCO's 'val2014'.
            "eval_split": "",
            "image_size": 32,
            # Most words of a caption.
            "max_words": 28,
            # Folder of features made once (`.npz`, key `x`); a published trunk fills it where it
            # lacks some. Empty to read pictures.
            "features": "",
            # A file of words (`vljax.data.text.open_vocabulary`); empty to take those of the
            # training captions, the most frequent ones, `vocabulary_size` with the marks.
            "vocabulary": "",
            "vocabulary_size": 10_000,
            "scenes": {"size": 20_000, "min_objects": 1, "max_objects": 3, "sizes": ("large",)},
        }
    )
    config.model = {
        "dtype": "float32",
        # 'convolutions', trained here; 'resnet50', 'resnet101', 'resnet152' or 'clip', given by
        # pretrained.trunk and never trained; 'none' where features are only read.
        "trunk": {"kind": "convolutions", "width": 64, "channels": 0},
        "embedding": 64,
        "hidden": 128,
        "attention": 64,
        "dropout_rate": 0.0,
    }
    # λ, how much the doubly stochastic penalty counts; 1 as published. Photographs are worth
    # looking at everywhere, most of a scene is ground.
    config.penalty = 0.01
    config.stages = {
        # What a picture shows, to begin with: a trunk that starts from nothing has no photographs
        # behind it.
        "recognise": get_stage_config(64, 1_500, learning_rate=3e-3, clip_norm=5.0),
        "caption": get_stage_config(64, 1_200, learning_rate=3e-3, clip_norm=5.0),
        "caption_without_attention": get_stage_config(64, 1_200, learning_rate=3e-3, clip_norm=5.0),
    }
    config.pretrained = {"trunk": "", "recogniser": "", "soft": "", "none": ""}
    config.samples = {"count": 4}
    config.log.pictures_every = 1000
    config.checkpoint.every = 500
    return config


def get_published_config(data_dir: str) -> ConfigDict:
    """The settings of Show, Attend and Tell's authors for soft attention on COCO.

    Their features are a VGG's, 14 × 14 × 512; here ResNet-152's in the folder `features` of the
    data, 14 × 14 × 2048, such as those published with PJ-X. They stop after ten validations
    without a better BLEU; here training has a length, of 20 epochs.

    Args:
        data_dir: COCO's folder: its captions or Karpathy's file of splits, and `features`.
    """
    config = get_config()
    config.data.update({"name": "coco", "path": data_dir, "features": f"{data_dir}/features"})
    config.data.update({"image_size": 448, "max_words": 50, "workers": 4, "split": "train2014"})
    config.model.trunk.update({"kind": "none", "channels": 2048})
    config.model.update({"embedding": 512, "hidden": 1800, "attention": 512, "dropout_rate": 0.5})
    config.model.dtype = "bfloat16"
    config.penalty = 1.0
    adam: dict[str, Any] = {
        "name": "adam",
        "schedule": "constant",
        "warmup_steps": 0,
        "clip_norm": 0.0,
    }
    config.stages = {"caption": get_stage_config(64, 130_000, learning_rate=2e-4, **adam)}
    config.log.pictures_every = 0
    config.checkpoint.every = 5000
    return config
