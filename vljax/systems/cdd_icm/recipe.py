"""The fields of a CDD-ICM run: a small recipe on scenes, and the published settings."""

from typing import Any

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.models.clip import PUBLISHED
from vljax.training.optimizer import get_optimizer_config


def get_config() -> ConfigDict:
    """The fields of a CDD-ICM run, with a recipe that two CPU cores finish on scenes in minutes."""
    config = get_base_config("cdd_icm")
    config.about = (
        "CDD-ICM on the embedded scenes: a small recipe for two CPU cores, not the paper's."
    )
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            "image_size": 32,
            # 24 classes and five turns, as many as i-CLEVR's.
            "scenes": {
                "size": 6_000,
                "min_objects": 5,
                "max_objects": 5,
                "shapes": ("circle", "square", "triangle"),
                "sizes": ("small",),
                "backgrounds": ("light",),
            },
        }
    )
    config.model = {
        # d, the features of what is composed.
        "features": 128,
        # What composes picture and text: see `vljax.models.composition`.
        "composition": "gated",
        # How the composed vector enters the embedding of time: 'linear', 'plain' (needs features =
        # 4 · model_channels), 'off'.
        "condition": "linear",
        # What attention sees beside the picture: 'patches' of the reference, 'tokens' of the text.
        "context": ("patches", "tokens"),
        # Whether the denoiser sees the reference on its channels.
        "reference_channels": True,
        # Where the projections begin: 'clip' (its own, where sizes agree) or 'random'.
        "projections": "clip",
        # Whether ICM of stage 2 has a composer of its own, which follows what the pictures teach
        # the encoders, or as published trains the one that they are drawn under.
        "own_matcher": True,
        "clip": {
            "embed_dim": 128,
            "image_size": 32,
            "vision_layers": 3,
            "vision_width": 128,
            "patch_size": 8,
            "text_width": 128,
            "text_layers": 2,
            "context_length": 24,
            "vocabulary_size": 768,
            "head_channels": 32,
            "remat": "off",
            "dtype": "float32",
        },
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
        # Whether the noisy encoder is told the time.
        "noisy": {"timed": False},
    }
    # Rows of table 2: without ICM there is no stage 1, no δ, and nothing to guide by; without its
    # guidance no stage 3.
    config.with_icm = True
    config.with_icm_guidance = True
    # A detector and localiser of one's own, for data that GeNeVA's were not trained on: channels of
    # its features (0 for none), the data's classes, and coordinates, 3 of which are with depth.
    config.localizer = {"width": 0, "classes": 48, "coordinates": 2}
    # CLIP's merges file or a Hugging Face folder; scenes train a small one of their own.
    config.tokenizer = ""
    config.diffusion = {
        "schedule": "cosine",
        "num_steps": 1000,
        "prediction": "v",
        "variance": "learned_range",
    }
    # γ, the weight of the bound in nats (equation 11; 0 learns no variance), and δ, that of ICM in
    # stage 2 (equation 13).
    config.vlb_weight = 1.5
    config.icm_weight = 0.1
    # Where log 1/τ begins: near what CLIP learns here, for some hundred steps do not bring it
    # there. 1 as published.
    config.icm_logit_scale = 3.0
    # η, the factor on the rate of the backbones; 0 freezes them.
    config.backbone_rate = 0.1
    # Largest noise on references while stage 2 learns, as a standard deviation: against references
    # that are the model's own pictures. 0 as published.
    config.reference_noise = 0.0
    # λ, the share of examples whose condition is dropped, and what is: 'condition' alone as
    # published, or the text's 'tokens' too.
    config.dropped = {"share": 0.2, "what": ("condition", "tokens")}
    # Classifier-free guidance φ (equation 15; 1 is none; 3 as published, with which a model of some
    # minutes draws worse) and ICM guidance ψ (equation 14; 0 is none), whose gradient is at most so
    # long a share of the noise's own score.
    config.guidance = {"classifier_free": 1.5, "icm": 2.0, "max_ratio": 0.15}
    config.stages = {
        "clip": _get_stage(500, 3e-3, batch_size=64, weight_decay=0.1),
        "icm": _get_stage(150, 3e-3, batch_size=64, weight_decay=0.01),
        "cdd": {
            **_get_stage(2_200, 6e-3, batch_size=8, weight_decay=0.0),
            "ema_decay": 0.995,
        },
        "noisy_icm": _get_stage(200, 3e-3, batch_size=64, weight_decay=0.01),
        "localizer": _get_stage(1_000, 3e-3, batch_size=32, weight_decay=0.01),
    }
    parts = ("clip", "composer", "matcher", "diffusion", "noisy", "localizer")
    config.pretrained = dict.fromkeys(parts, "")
    # Split over `tensor` as in SDG: within a residual block and around attention, one pair of
    # column and row each; everything else as `fsdp`.
    config.sharding = (
        (r"diffusion.*(in_layers\.2\.|\.qkv\.|\.encoder_kv\.|emb_layers)", "column"),
        (r"diffusion.*(out_layers\.3\.weight|proj_out\.weight)", "row"),
        (".*", "fsdp"),
    )
    # How pictures are drawn where no flag says otherwise, and of how many dialogues in training.
    config.samples = {"count": 4, "sampler": "ddim", "steps": "25"}
    config.log.pictures_every = 1000
    config.checkpoint.every = 500
    return config


def _get_stage(
    num_steps: int, learning_rate: float, *, batch_size: int, weight_decay: float
) -> dict[str, Any]:
    """A stage of the small recipe."""
    return {
        "batch_size": batch_size,
        "num_steps": num_steps,
        "accumulate": 1,
        "ema_decay": 0.0,
        "optimizer": get_optimizer_config(
            name="muon",
            learning_rate=learning_rate,
            b2=0.99,
            schedule="cosine",
            warmup_steps=30,
            clip_norm=1.0,
            weight_decay=weight_decay,
        ),
    }


#: Turns of a training set; classes and coordinates of its objects.
_TURNS = {"iclevr": 30_000, "codraw": 34_000}
_OBJECTS = {"iclevr": (24, 2), "codraw": (58, 3)}


def get_published_config(data_name: str, data_dir: str) -> ConfigDict:
    """The settings of section 4.2, for i-CLEVR and CoDraw alike.

    What the paper leaves open is chosen so that it fits what it tells: 128 pixels, the data's own
    size; ADM with 128 channels, whose embedding has 4 · 128 = 512 = d features.

    Args:
        data_name: `"iclevr"` or `"codraw"`.
        data_dir: Folder of the HDF5 files.
    """
    config = get_config()
    del config.stages["clip"]
    config.data.update(
        {"name": data_name, "path": data_dir, "image_size": 128, "workers": 8, "scenes": {}}
    )
    config.localizer.classes, config.localizer.coordinates = _OBJECTS[data_name]
    config.model.features = 512
    config.icm_logit_scale, config.model.own_matcher = 1.0, False
    clip = {"context_length": 77, "remat": "keep_nothing", "dtype": "bfloat16"}
    config.model.clip = {**PUBLISHED["ViT-B/32"], **clip}
    config.model.diffusion.update(
        {
            "model_channels": 128,
            "channel_mult": (1.0, 1.0, 2.0, 3.0, 4.0),
            "num_res_blocks": 2,
            "attention_resolutions": (32, 16, 8),
            "num_head_channels": 64,
            "remat": "keep_nothing",
            "dtype": "bfloat16",
        }
    )
    config.diffusion.prediction = "epsilon"
    config.backbone_rate = 0.001
    config.dropped.what = ("condition",)
    config.guidance.update({"classifier_free": 3.0, "max_ratio": 1.0})
    # Validated every ten passes; the rate is halved, and after five halvings a stage ends.
    ten_passes = 10 * _TURNS[data_name] // 256
    for name in ("icm", "cdd", "noisy_icm"):
        config.stages[name] = {
            "batch_size": 256,
            "num_steps": 100 * ten_passes,
            "accumulate": 1,
            "ema_decay": 0.0,
            "optimizer": get_optimizer_config(
                learning_rate=1e-4,
                weight_decay=0.01,
                schedule="validation",
                decay_every=ten_passes,
                decay_factor=0.5,
                patience=5,
            ),
        }
    config.samples.steps = "250"
    config.log.pictures_every = 5000
    config.checkpoint.every = 5000
    return config
