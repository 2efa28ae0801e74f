"""The fields of a text-to-picture run, and the small recipes on scenes, by family."""

import functools
from typing import Any

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.errors import UserError
from vljax.training.optimizer import get_stage_config

#: What draws: see `vljax.systems.text2image.families`.
FAMILIES = (
    *("latent", "pixels", "tokens", "vqvae", "pixelcnn", "variational", "unclip", "adversarial"),
)

_TOWER = {
    "text_width": 64,
    "text_layers": 2,
    "context_length": 25,
    "vocabulary_size": 702,
    "head_channels": 32,
}
_CLIP = {
    **_TOWER,
    "embed_dim": 64,
    "image_size": 32,
    "patch_size": 8,
    "vision_layers": 2,
    "vision_width": 64,
}

#: A stage of the small recipes.
stage_fields = functools.partial(get_stage_config, name="muon")


def get_config(family: str = "latent") -> ConfigDict:
    """The fields of a run, with a recipe that two CPU cores finish on scenes in minutes.

    Args:
        family: Of `FAMILIES`.

    Raises:
        UserError: there is no such family.
    """
    check_family(family)
    config = get_base_config("text2image")
    config.about = f"Pictures of texts on the embedded scenes, family {family}: a small recipe."
    config.family = family
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            "image_size": 32,
            "scenes": {"size": 100_000, "min_objects": 1, "max_objects": 1, "sizes": ("large",)},
        }
    )
    # CLIP's merges file or a Hugging Face folder; scenes train a small one of their own.
    config.tokenizer = ""
    # Arguments of the parts; which a family has, its file tells.
    config.model = {
        # Judges and ranks pictures; its texts condition `vqvae`, `pixelcnn`, `variational` and
        # `adversarial`, and its text tower is that of `latent`.
        "clip": _CLIP,
        "vae": {},
        "unet": {},
        "text_encoder": {},
        # Of `pixels`: enlarges what `unet` draws; its `image_size` is that of the pictures.
        "upsampler": {},
        "vqgan": {},
        "transformer": {},
        "pixelcnn": {},
        "unclip": {},
        "generator": {},
        "discriminator": {},
        # Of `adversarial`: draws what `generator` drew anew, larger (its `side`), and its critic.
        "refiner": {},
        "critic": {},
        # Of `latent`: what is learnt of one thing, see `with_personal`.
        "personal": {},
    }
    # Of what a few pictures teach `latent`: the word that stands for the thing in a prompt, the
    # noun that names what it is, and the texts; where the pictures are, and those of the noun
    # that keep it as it was, by what differs from `data`; and how much these count.
    config.personal = {
        "word": "",
        "noun": "",
        "templates": ("a photo of a {}",),
        "pictures": {},
        "prior": {},
        "prior_weight": 1.0,
    }
    config.diffusion = {
        "schedule": "scaled_linear",
        "num_steps": 1000,
        "prediction": "v",
        "variance": "fixed_small",
        # Of DDIM in latents: whether it ends in a clean picture, or at the first noise level as
        # diffusers' does.
        "clean_end": True,
        # The share of examples that are trained without their caption.
        "caption_dropout": 0.1,
    }
    # Of `pixels`: the factor on the learning rate of the text Transformer.
    config.text_rate = 1.0
    # Of the upsampler's own process (GLIDE, section 3.2).
    config.upsampling = {"schedule": "linear", "steps": "27"}
    # GLIDE's, `vocab.bpe.gz` with `encoder.json.gz` beside it, where its published networks read
    # the texts; the others read with `tokenizer`.
    config.glide_tokenizer = ""
    # Of an autoencoder's loss: the divergence of latents from their prior, against the squared
    # error, both per value of a picture. (`variational` has a bound, where it weighs 1.)
    config.autoencoder = {"kl_weight": 3e-4}
    # Of the codes' loss, see `vljax.models.adversarial.vqgan_loss`.
    config.codes = {"squared": 4.0}
    # Of `tokens`: how much words count beside the picture's codes (DALL-E: 1 to 7).
    config.text_weight = 0.125
    # Of `adversarial`: factors of the penalty on the discriminator's gradient at real pictures
    # (R1) and of the texts' divergence (StackGAN), whether real pictures under others' texts are
    # told apart from those under their own, and the share of pictures that are drawn of what lies
    # between two texts (GAN-INT-CLS).
    config.adversarial = {"r1": 1.0, "divergence": 1.0, "mismatch": True, "interpolated": 0.25}
    # How pictures are drawn where no flag says otherwise. The guidance scale is w of
    # cond + w·(cond − uncond); the usual form's s is w + 1.
    config.samples = {
        "count": 12,
        "sampler": "ddim",
        "steps": "leading50",
        "guidance_scale": 1.0,
        # Of `pixels`: the factor on the gradient of CLIP's cosine (GLIDE, section 2.3).
        "clip_scale": 0.0,
        "temperature": 1.0,
        "top_k": 0,
    }
    config.pretrained = {"clip": ""}
    config.log.pictures_every = 500
    config.checkpoint.every = 500
    stages: dict[str, Any] = {"clip": stage_fields(64, 400, learning_rate=3e-3)}
    _RECIPES[family](config, stages)
    config.stages = stages
    return config


def check_family(family: str) -> None:
    """Refuse the name of a family that is none.

    Raises:
        UserError: it is none.
    """
    if family not in FAMILIES:
        raise UserError(f"--config.family={family}: choose one of {', '.join(FAMILIES)}")


def _latent(config: ConfigDict, stages: dict[str, Any]) -> None:
    """Latent diffusion (Rombach et al. 2022): Shape-Guided Diffusion's small networks."""
    config.model.vae = {
        "latent_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_groups": 8,
        # As trained here the latents' deviation is about 1.3.
        "scaling_factor": 0.75,
        "remat": "off",
        "dtype": "float32",
    }
    config.model.unet = {
        "block_out_channels": (32, 64),
        "attention_levels": (True, True),
        "layers_per_block": 1,
        "context_features": 64,
        "num_heads": (2, 4),
        "linear_projection": False,
        "norm_groups": 32,
        "remat": "off",
        "dtype": "float32",
    }
    config.model.text_encoder = config.model.clip
    config.model.clip = {}
    config.pretrained.update({"sd": "", "inpaint": ""})
    stages["autoencoder"] = stage_fields(16, 1000, ema_decay=0.99, name="adamw", learning_rate=3e-3)
    stages["diffusion"] = stage_fields(16, 2500, ema_decay=0.995, learning_rate=6e-3, b2=0.99)


def _pixels(config: ConfigDict, stages: dict[str, Any]) -> None:
    """GLIDE (Nichol et al. 2022): diffusion of pixels under a text Transformer of its own."""
    config.model.unet = {
        "model_channels": 32,
        "channel_mult": (1.0, 1.0, 2.0),
        "num_res_blocks": 1,
        "attention_resolutions": (16, 8),
        "num_heads": 1,
        "num_head_channels": 32,
        "scale_shift_norm": True,
        "norm_groups": 32,
        "remat": "off",
        "dtype": "float32",
    }
    config.model.text_encoder = {
        "text_length": 25,
        "text_width": 64,
        "text_layers": 2,
        "text_heads": 2,
        "vocabulary_size": 702,
    }
    config.diffusion.schedule = "cosine"
    # Muon's steps are as long where the gradient says nothing yet: at the full rate the Transformer
    # tells all texts alike (their spread falls from 0.39 to 0.01 in 200 steps) before it is heard.
    config.text_rate = 0.05
    config.samples.update({"sampler": "ddpm", "steps": "50"})
    config.pretrained.glide = ""
    # Stage `upsampler` is there where the part is, see `with_upsampler`.
    stages["diffusion"] = stage_fields(8, 2500, ema_decay=0.995, learning_rate=6e-3, b2=0.99)


_CODES = {
    "num_codes": 512,
    "code_channels": 16,
    "latent_channels": 32,
    "block_out_channels": (16, 32, 64),
    "attention_levels": (False, False, True),
    "layers_per_block": 1,
    "norm_groups": 4,
    "beta": 0.25,
    "legacy": True,
    "remat": "off",
    "dtype": "float32",
}


def _code_stages() -> dict[str, Any]:
    return {
        "autoencoder": stage_fields(8, 800, learning_rate=1e-2),
        "vqgan": stage_fields(8, 800, ema_decay=0.99, learning_rate=3e-3),
    }


def with_upsampler(config: ConfigDict, side: int = 64) -> ConfigDict:
    """The small recipe of `pixels` with a second network that enlarges what the first one draws.

    Args:
        config: Changed in place, and returned.
        side: Of the pictures then; a multiple of the first network's.
    """
    config.about = f"{config.about[:-1]}, enlarged to {side} px by a second network."
    config.model.upsampler = {
        **config.model.unet.to_dict(),
        "image_size": side,
        "channel_mult": (1.0, 1.0, 1.0, 2.0),
        "attention_resolutions": (8,),
    }
    config.pretrained.upsampler = ""
    config.stages.upsampler = stage_fields(4, 1000, ema_decay=0.99, learning_rate=6e-3, b2=0.99)
    return config


#: Stages that personalise: textual inversion and DreamBooth.
PERSONAL = ("inversion", "dreambooth")


def with_personal(config: ConfigDict, stage: str) -> ConfigDict:
    """The small recipe of `latent` that goes on to learn one thing, a purple circle.

    Args:
        config: Changed in place, and returned.
        stage: Of `PERSONAL`.
    """
    name = {"inversion": "textual inversion", "dreambooth": "DreamBooth"}[stage]
    config.about = f"{config.about[:-1]}, then {name} of a purple circle."
    personalise(config, stage)
    circles = {**config.data.scenes.to_dict(), "shapes": ("circle",)}
    config.personal.update(
        {
            "word": "<mine>" if stage == "inversion" else "sks",
            "noun": "circle",
            "pictures": {"scenes": {**circles, "colours": ("purple",), "size": 5}},
            "prior": {"scenes": {**circles, "size": 200}},
        }
    )
    return config


def personalise(config: ConfigDict, stage: str) -> None:
    """Add a stage of `PERSONAL`, and the part that it trains."""
    inverts = stage == "inversion"
    both = {"vectors": 0, "unet": False} | config.model.personal.to_dict()
    config.model.personal = both | ({"vectors": 1} if inverts else {"unet": True})
    config.pretrained.personal = ""
    steady: dict[str, Any] = {"name": "adamw", "schedule": "constant", "warmup_steps": 0}
    config.stages[stage] = (
        stage_fields(8, 500, learning_rate=2e-2, **steady)
        if inverts
        else stage_fields(8, 200, learning_rate=3e-4, **steady)
    )


def _tokens(config: ConfigDict, stages: dict[str, Any]) -> None:
    """DALL-E (Ramesh et al. 2021): a Transformer over words and a picture's codes."""
    config.model.vqgan = _CODES
    config.model.transformer = {
        "features": 96,
        "layers": 3,
        "heads": 3,
        "head_channels": 32,
        "text_length": 25,
        "dropout_rate": 0.0,
        "remat": "off",
        "dtype": "float32",
    }
    config.pretrained.update({"vqgan": "", "transformer": ""})
    stages.update(_code_stages())
    stages["transformer"] = stage_fields(32, 1200, learning_rate=3e-3)


_MASKED = {"kernel": 5, "value_features": 8, "dtype": "float32"}


def _vqvae(config: ConfigDict, stages: dict[str, Any]) -> None:
    """VQ-VAE (van den Oord et al. 2017): a PixelCNN over a picture's codes."""
    config.model.vqgan = _CODES
    config.model.pixelcnn = {
        **_MASKED,
        **{"first_kernel": 5, "features": 64, "layers": 5, "head_features": 128},
        "value_features": 32,
    }
    config.pretrained.update({"vqgan": "", "prior": ""})
    stages.update(_code_stages())
    stages["prior"] = stage_fields(32, 1500, ema_decay=0.99, learning_rate=3e-3)


def _pixelcnn(config: ConfigDict, stages: dict[str, Any]) -> None:
    """Gated PixelCNN (van den Oord et al. 2016) over few levels a channel."""
    config.model.pixelcnn = {
        "levels": 8,
        **_MASKED,
        **{"first_kernel": 7, "features": 48, "layers": 5, "head_features": 96},
    }
    config.pretrained.pixelcnn = ""
    stages["pixelcnn"] = stage_fields(16, 1000, ema_decay=0.99, learning_rate=3e-3)


_PICTURES: dict[str, Any] = {"widths": (32, 64, 96), "norm_groups": 8}


def _variational(config: ConfigDict, stages: dict[str, Any]) -> None:
    """A text-conditional variational autoencoder (Kingma & Welling 2014; Sohn et al. 2015)."""
    config.model.vae = {"latents": 64, **_PICTURES}
    config.pretrained.vae = ""
    stages["variational"] = stage_fields(32, 2000, ema_decay=0.99, learning_rate=3e-3)


def _unclip(config: ConfigDict, stages: dict[str, Any]) -> None:
    """UnCLIP (Ramesh et al. 2022): a prior over CLIP's embeddings, and a VAE that draws of them."""
    _variational(config, stages)
    config.model.unclip = {
        "layers": 2,
        "heads": 4,
        "head_channels": 32,
        "remat": "off",
        "dtype": "float32",
    }
    config.diffusion.update({"schedule": "cosine", "prediction": "x0"})
    config.samples.update({"steps": "25", "guidance_scale": 0.0})
    config.pretrained.unclip = ""
    stages["prior"] = stage_fields(64, 1000, ema_decay=0.99, learning_rate=3e-3)


def _adversarial(config: ConfigDict, stages: dict[str, Any]) -> None:
    """A text-conditional GAN (Reed et al. 2016; Zhang et al. 2017)."""
    config.model.generator = {"latents": 64, "condition": 64, **_PICTURES}
    config.model.discriminator = {**_PICTURES}
    config.pretrained.update({"generator": "", "discriminator": ""})
    adam: dict[str, Any] = {
        "name": "adam",
        "b1": 0.0,
        "b2": 0.99,
        "schedule": "constant",
        "clip_norm": 0.0,
    }
    stages["adversarial"] = stage_fields(16, 2000, ema_decay=0.995, learning_rate=1e-3, **adam)


def with_refiner(config: ConfigDict, side: int = 64) -> ConfigDict:
    """The small recipe of `adversarial` with StackGAN's second stage.

    Args:
        config: Changed in place, and returned.
        side: Of the pictures then; a multiple of the first generator's.
    """
    config.about = f"{config.about[:-1]}, drawn anew at {side} px by a second generator."
    config.model.refiner = {"side": side, "condition": 64, "blocks": 2, **_PICTURES}
    config.model.critic = {"widths": (16, *_PICTURES["widths"]), "norm_groups": 8}
    config.pretrained.update({"refiner": "", "critic": ""})
    config.stages.refine = config.stages.adversarial.copy_and_resolve_references()
    config.stages.refine.update({"batch_size": 8, "num_steps": 1000})
    return config


_RECIPES = {
    "latent": _latent,
    "pixels": _pixels,
    "tokens": _tokens,
    "vqvae": _vqvae,
    "pixelcnn": _pixelcnn,
    "variational": _variational,
    "unclip": _unclip,
    "adversarial": _adversarial,
}
