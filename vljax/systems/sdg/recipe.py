"""The fields of an SDG run: a small recipe on scenes, and the published settings."""

from typing import Any

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.models.clip import PUBLISHED
from vljax.training.optimizer import get_optimizer_config


def get_config() -> ConfigDict:
    """The fields of an SDG run, with a recipe that two CPU cores finish on scenes in minutes."""
    config = get_base_config("sdg")
    config.about = "SDG on the embedded scenes: a small recipe for two CPU cores, not the paper's."
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            # So many of the last examples are kept for evaluation.
            "held_out": 0,
            "image_size": 32,
            "flip": False,
            "scenes": {
                "size": 10_000,
                "min_objects": 1,
                "max_objects": 1,
                "sizes": ("large",),
            },
        }
    )
    config.model = {
        "diffusion": {
            "model_channels": 32,
            "channel_mult": (1.0, 1.0, 2.0, 2.0),
            "num_res_blocks": 1,
            "attention_resolutions": (8, 4),
            "num_heads": 1,
            "num_head_channels": 32,
            "dropout_rate": 0.0,
            "scale_shift_norm": True,
            "norm_groups": 32,
            "remat": "off",
            "dtype": "float32",
        },
        "clip": {
            "embed_dim": 64,
            "image_size": 64,
            "vision_layers": (1, 1, 1, 1),
            "vision_width": 16,
            "text_width": 64,
            "text_layers": 2,
            "context_length": 24,
            "vocabulary_size": 768,
            "head_channels": 32,
            "remat": "off",
            "dtype": "float32",
        },
        "noisy_clip": {"image_size": 64},
    }
    # Whether texts and pictures can guide; without, the diffusion model stands alone. On real
    # pictures it also takes a published CLIP (`pretrained.clip`).
    config.guided = True
    # CLIP's merges file or a Hugging Face folder; scenes train a small one of their own.
    config.tokenizer = ""
    config.diffusion = {
        "schedule": "cosine",
        "num_steps": 1000,
        "prediction": "v",
        "variance": "fixed_small",
        "loss": "simple",
        "timestep_sampler": "uniform",
    }
    config.stages = {
        "diffusion": {
            "batch_size": 8,
            "num_steps": 2500,
            "accumulate": 1,
            "ema_decay": 0.995,
            "optimizer": get_optimizer_config(
                name="muon",
                learning_rate=6e-3,
                b2=0.99,
                schedule="cosine",
                warmup_steps=50,
                clip_norm=1.0,
            ),
        },
        "clip": _get_clip_stage(600),
        # `time_rate` is the factor on the rate of what adapts the norms to the time: at full rate
        # activations at the noisiest times, which no loss holds back, grew without bound.
        "noisy_clip": {**_get_clip_stage(800), "time_rate": 0.1},
    }
    config.pretrained = {"diffusion": "", "clip": "", "noisy_clip": ""}
    # Split over `tensor`: within a residual block and around attention, one pair of column and
    # row each; everything else as `fsdp`.
    config.sharding = (
        (r"in_layers\.2\.|\.qkv\.|emb_layers", "column"),
        (r"out_layers\.3\.weight|proj_out\.weight", "row"),
        (".*", "fsdp"),
    )
    # How pictures are drawn where no flag says otherwise, and how many during training.
    config.samples = {"count": 16, "sampler": "ddpm", "steps": "50"}
    # Scales where none is given, and the longest gradient as a share of the noise's own score (0
    # for no limit): that of a small CLIP is now and then a hundred times the usual.
    config.guidance = {
        "text": 300.0,
        "image": 2000.0,
        "structure": 2000.0,
        "style": 2000.0,
        "max_ratio": 0.15,
    }
    # What `evaluate` asks for: so many texts ("scenes": captions; "faces": the 400 instructions; or
    # a file with a text a line) and reference pictures, so many pictures of each, at these scales.
    config.evaluation = {
        "instructions": "scenes",
        "guidances": 16,
        "images_each": 3,
        "text_scales": (0.0, 30.0, 300.0),
        "image_scales": (100.0, 2000.0),
        "ilvr_factors": (4, 8, 16),
        "real": 1000,
    }
    config.log.pictures_every = 1000
    config.checkpoint.every = 500
    return config


def _get_clip_stage(num_steps: int) -> dict[str, Any]:
    """What the stages of both CLIPs have in the small recipe."""
    return {
        "batch_size": 64,
        "num_steps": num_steps,
        "accumulate": 1,
        "ema_decay": 0.98,
        "optimizer": get_optimizer_config(
            name="muon",
            learning_rate=3e-3,
            schedule="cosine",
            warmup_steps=30,
            clip_norm=1.0,
            weight_decay=0.1,
        ),
    }


def get_published_config(data_name: str, data_dir: str) -> ConfigDict:
    """The settings that the published FFHQ and LSUN models share: ADM at 256 pixels.

    Dhariwal & Nichol 2021, tables 11 and 12.
    """
    config = get_config()
    config.data.update(
        {"name": data_name, "path": data_dir, "image_size": 256, "flip": True, "workers": 8}
    )
    config.model.diffusion.update(
        {
            "channel_mult": (1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
            "num_head_channels": 64,
            "remat": "keep_nothing",
            "dtype": "bfloat16",
        }
    )
    # The published CLIP, and its image tower at the diffusion model's size (section 4.4.1).
    clip = {"context_length": 77, "remat": "keep_nothing", "dtype": "bfloat16"}
    config.model.clip = {**PUBLISHED["RN50x16"], **clip}
    config.model.noisy_clip.image_size = 256
    config.stages.noisy_clip.update(
        {
            "batch_size": 256,
            "ema_decay": 0.0,
            "time_rate": 1.0,
            "optimizer": get_optimizer_config(
                learning_rate=1e-4, weight_decay=1e-3, schedule="step", decay_factor=0.1
            ),
        }
    )
    published = {"text": 160.0, "image": 100.0, "structure": 100.0, "style": 100.0}
    config.guidance.update({**published, "max_ratio": 0.0})
    config.evaluation.update(
        {
            "guidances": 400,
            "images_each": 25,
            "text_scales": (0.0, 120.0, 160.0, 320.0),
            "image_scales": (100.0, 200.0),
            "ilvr_factors": (32,),
            "real": 10_000,
        }
    )
    config.diffusion.update(
        {
            "schedule": "linear",
            "prediction": "epsilon",
            "variance": "learned_range",
            "loss": "hybrid",
        }
    )
    config.stages.diffusion.update(
        {"ema_decay": 0.9999, "optimizer": get_optimizer_config(learning_rate=1e-4)}
    )
    config.samples.steps = "100"
    config.log.pictures_every = 5000
    config.checkpoint.every = 5000
    return config
