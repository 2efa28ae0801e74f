"""The fields of a Shape-Guided Diffusion run: the small recipe on scenes, and the published one."""

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.training.optimizer import get_stage_config


def get_config() -> ConfigDict:
    """The fields of a run, with a recipe that two CPU cores finish on scenes in minutes."""
    config = get_base_config("shape_guided")
    config.about = (
        "Shape-Guided Diffusion on the embedded scenes: a small latent diffusion model for two CPU "
        "cores, not the paper's."
    )
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            "image_size": 32,
            "scenes": {"size": 100_000, "min_objects": 1, "max_objects": 2, "sizes": ("large",)},
        }
    )
    tower = {
        "text_width": 64,
        "text_layers": 2,
        "context_length": 25,
        "vocabulary_size": 702,
        "head_channels": 32,
    }
    config.model = {
        "vae": {
            "latent_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_groups": 8,
            # As trained here the latents' deviation is about 1.3.
            "scaling_factor": 0.75,
            "remat": "off",
            "dtype": "float32",
        },
        "unet": {
            "block_out_channels": (32, 64),
            "attention_levels": (True, True),
            "layers_per_block": 1,
            "context_features": 64,
            "num_heads": (2, 4),
            "linear_projection": False,
            "norm_groups": 32,
            "remat": "off",
            "dtype": "float32",
        },
        "text_encoder": {
            **tower,
            "embed_dim": 64,
            "image_size": 32,
            "patch_size": 8,
            "vision_layers": 2,
            "vision_width": 64,
        },
        # Whether the baseline that inpaints is there.
        "inpaint": True,
        "segmenter": {
            **tower,
            "embed_dim": 64,
            "image_size": 32,
            "patch_size": 4,
            "vision_layers": 2,
            "vision_width": 64,
            "extract_layers": (0, 1),
            "reduce_dim": 32,
            "decoder_hidden": 128,
            "input_size": 32,
        },
    }
    config.diffusion = {
        "schedule": "scaled_linear",
        "num_steps": 1000,
        "prediction": "v",
        # The share of examples that are trained without their caption.
        "caption_dropout": 0.1,
        # The share whose attention loses keys, and the share whose attention to the caption does.
        "attention_dropout": 0.5,
    }
    # Of the autoencoder's loss: the divergence of the latents from the standard normal, against
    # the squared error, both per value of a picture.
    config.autoencoder = {"kl_weight": 3e-4}

    def denoiser(num_steps: int) -> dict:
        muon = {"name": "muon", "learning_rate": 6e-3, "b2": 0.99}
        return get_stage_config(16, num_steps, ema_decay=0.995, **muon)

    config.stages = {
        "clip": get_stage_config(64, 400, name="muon", learning_rate=3e-3),
        "autoencoder": get_stage_config(16, 1000, ema_decay=0.99, learning_rate=3e-3),
        "diffusion": denoiser(3000),
        "inpaint": denoiser(500),
        "segmenter": get_stage_config(32, 400, name="muon", learning_rate=3e-3),
    }
    config.pretrained = {"sd": "", "inpaint": ""}
    # How a picture is inverted and generated; the captions drawn during training likewise.
    # Guidance scales are w of cond + w·(cond − uncond). More than 1 makes so small a model heed the
    # text no better, and its objects fade into the background.
    config.samples = {
        "steps": "leading50",
        "guidance_scale": 1.0,
        "baseline_guidance_scale": 2.0,
        "count": 12,
    }
    config.log.pictures_every = 500
    config.checkpoint.every = 500
    return config


def get_published_config(data_dir: str) -> ConfigDict:
    """Stable Diffusion 1.5 at 512 pixels on MS-COCO ShapePrompts, as published (section 5.5)."""
    config = get_config()
    config.about = "Shape-Guided Diffusion as published: Stable Diffusion 1.5, 512 px, 50 steps."
    config.data.update({"name": "shape_prompts", "path": data_dir, "image_size": 512})
    # Of ShapePrompts, in the folder.
    config.data.annotations = "test.json"
    config.model = {
        "vae": {"remat": "off", "dtype": "float32"},
        "unet": {"remat": "off", "dtype": "bfloat16"},
        "text_encoder": {"text_width": 768, "text_layers": 12, "dtype": "float32"},
        "inpaint": False,
        "segmenter": {},
    }
    config.model.unet.context_features = 768
    config.diffusion.prediction = "epsilon"
    # The baselines' is 7.5 in the usual form, uncond + s·(cond − uncond).
    config.samples.update({"guidance_scale": 3.5, "baseline_guidance_scale": 6.5})
    config.stages = {}
    return config
