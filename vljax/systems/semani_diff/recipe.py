"""The fields of a SeMani-Diff run: the small recipe on scenes, and the published one."""

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.training.optimizer import get_stage_config


def get_config() -> ConfigDict:
    """The fields of a run, with a recipe that two CPU cores finish on scenes in minutes."""
    config = get_base_config("semani_diff")
    config.about = (
        "SeMani-Diff on the embedded scenes: a small latent inpainting model for two CPU cores, "
        "not the paper's."
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
            # Noisy latents, the mask, and the latents of what is around it.
            "in_channels": 9,
            "block_out_channels": (32, 64),
            # Where latents are 8 × 8; at 16 × 16 attention costs as much as all the rest.
            "attention_levels": (False, True),
            "layers_per_block": 1,
            "context_features": 64,
            "num_heads": (2, 4),
            "linear_projection": True,
            "norm_groups": 32,
            "remat": "off",
            "dtype": "float32",
        },
        "text_encoder": {**tower, "dtype": "float32"},
        # Which aligns words with entities; none for masks that people give.
        "clip": {
            **tower,
            "embed_dim": 64,
            "image_size": 32,
            "patch_size": 4,
            "vision_layers": 3,
            "vision_width": 64,
            "mask_prompts": 3,
            "dtype": "float32",
        },
    }
    config.diffusion = {
        "schedule": "scaled_linear",
        "num_steps": 1000,
        "prediction": "v",
        # Whether sampling ends in a clean picture, or at the first noise level as diffusers' does.
        "clean_end": True,
        # Section 3.3.2: the share of examples that are trained without text, and without a picture
        # (the mask is everything; then the text is a caption).
        "text_dropout": 0.1,
        "picture_dropout": 0.25,
    }
    # Of the autoencoder's loss: the divergence of the latents from the standard normal, against
    # the squared error, both per value of a picture.
    config.autoencoder = {"kl_weight": 3e-4}
    # How words choose entities, see vljax.models.alignment.
    config.alignment = {
        # 'crops' (section 3.3.3), 'tokens' (3.2.3) or 'patches' (figure 9).
        "by": "crops",
        # The least similarity of what fits, of each of them: chosen on training scenes, where
        # words of nothing that is there reach 0.31 to 0.48 by crops and the others 0.63 to 0.74.
        "thresholds": {"crops": 0.57, "tokens": 0.18, "patches": 0.18},
        # Of 'crops': sentences around the word, and a word for all else whose similarity is taken
        # off; empty for none.
        "templates": ("{}", "a {}", "a photo of a {}"),
        "others": "",
        # Of 'tokens' and 'patches': the sentence; of 'tokens' how masks come to tokens, 'bilinear'
        # or 'max'.
        "prompt": "a photo of a {}",
        "resize": "bilinear",
    }

    config.stages = {
        "clip": get_stage_config(48, 400, name="muon", learning_rate=3e-3),
        "autoencoder": get_stage_config(16, 600, ema_decay=0.99, learning_rate=3e-3),
        "inpaint": get_stage_config(
            16, 2200, ema_decay=0.995, name="muon", learning_rate=6e-3, b2=0.99
        ),
    }
    config.pretrained = {"sd": "", "clip": "", "base": ""}
    config.samples = {
        # 'ddim' or 'dpm_solver' (DPM-Solver++ 2M, of which 20 steps do).
        "sampler": "ddim",
        "steps": "leading50",
        # w of cond + w·(cond − uncond); on scenes more makes shapes no truer.
        "guidance_scale": 1.0,
        # Pixels by which a mask found grows before it is drawn in, and over which a pasted seam
        # fades; of pictures at the size at which they are drawn.
        "grow": 1.0,
        "feather": 1.0,
        "count": 8,
    }
    config.log.pictures_every = 1100
    config.checkpoint.every = 500
    return config


def get_published_config(data_dir: str) -> ConfigDict:
    """Stable Diffusion 2's inpainting at 512 pixels, and OVSeg's CLIP (section 3.3).

    The paper names neither file; these fit its 866 M parameters. Its guidance scale is lost: 7.5 in
    the usual form, uncond + s·(cond − uncond), is Stable Diffusion's own.
    """
    config = get_config()
    config.about = "SeMani-Diff as published: Stable Diffusion 2 inpainting, 512 px, 50 steps."
    config.data.update({"name": "coco", "path": data_dir, "split": "train2014", "image_size": 512})
    config.model = {
        "vae": {"remat": "off", "dtype": "float32"},
        "unet": {"remat": "off", "dtype": "bfloat16"},
        "text_encoder": {"text_width": 1024, "text_layers": 23, "dtype": "float32"},
        "clip": {
            "embed_dim": 768,
            "image_size": 224,
            "patch_size": 14,
            "vision_layers": 24,
            "vision_width": 1024,
            "text_width": 768,
            "text_layers": 12,
            "context_length": 77,
            "vocabulary_size": 49_408,
            "head_channels": 64,
            "mask_prompts": 3,
            "dtype": "float32",
        },
    }
    config.model.unet.update({"in_channels": 9, "context_features": 1024})
    config.diffusion.update({"prediction": "epsilon", "clean_end": False})
    # OVSeg's demonstration: more probable than "others", its 14 sentences (by default).
    config.alignment.update({"templates": (), "others": "others", "prompt": "a photo of a {}."})
    config.alignment.thresholds = {"crops": 0.0, "tokens": 0.163, "patches": 0.163}
    config.samples.update(
        {"steps": "leading50+1", "guidance_scale": 6.5, "grow": 0.0, "feather": 8.0}
    )
    config.stages = {}
    return config
