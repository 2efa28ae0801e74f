"""The fields of a SeMani-Trans run: a small recipe on scenes, and the published settings."""

import functools
from typing import Any

from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.models import vqgan
from vljax.models.clip import PUBLISHED
from vljax.training.optimizer import get_stage_config

# A stage of the small recipes.
_stage = functools.partial(get_stage_config, warmup_steps=30)


def get_config() -> ConfigDict:
    """The fields of a run, with a recipe that two CPU cores finish on scenes in minutes."""
    config = get_base_config("semani_trans")
    config.about = (
        "SeMani-Trans on the embedded scenes: a small recipe for two CPU cores, not the paper's."
    )
    config.data.update(
        {
            "name": "scenes",
            "path": "",
            "split": "train",
            # What is judged, where the data has a choice; empty for the usual.
            "eval_split": "",
            # Of a plain folder, from which codes alone are learnt: how many pictures to keep.
            "held_out": 0,
            "image_size": 32,
            # Least share of a photograph that a random square keeps, and whether squares are
            # mirrored half the time.
            "least_crop": 1.0,
            "flip": False,
            # Share of examples whose text names one entity only, where the data tells them.
            "entity_texts": 0.5,
            "scenes": {"size": 100_000, "min_objects": 1, "max_objects": 2, "sizes": ("large",)},
        }
    )
    config.model = {
        "vqgan": {
            "num_codes": 512,
            "code_channels": 16,
            "latent_channels": 32,
            "block_out_channels": (16, 32, 64),
            "attention_levels": (False, False, True),
            "layers_per_block": 1,
            "norm_groups": 4,
            "beta": 0.25,
            # Which term beta weighs: see `vljax.models.vqgan.Quantizer`.
            "legacy": True,
            "remat": "off",
            "dtype": "float32",
        },
        "transformer": {
            "features": 96,
            "layers": 3,
            "heads": 3,
            "head_channels": 32,
            "text_length": 20,
            "dropout_rate": 0.0,
            "remat": "off",
            "dtype": "float32",
        },
        # Guides the training (equation 7); its tokens tell what a word names.
        "clip": {
            "embed_dim": 64,
            "image_size": 32,
            "patch_size": 4,
            "vision_layers": 2,
            "vision_width": 64,
            "text_width": 64,
            "text_layers": 2,
            "context_length": 22,
            "vocabulary_size": 702,
            "head_channels": 32,
            "remat": "off",
            "dtype": "float32",
        },
        # A CLIP of its own for alignment, with a ViT whose patches are a picture's codes; empty
        # where `clip` serves.
        "aligner": {},
    }
    # Whether a second Transformer is there that fills in masked codes, all in a few passes.
    config.parallel = True
    # Whether the ablation of figure 8 is trained: the same steps without equation 7.
    config.ablations = True
    # CLIP's merges file or a Hugging Face folder; scenes train a small one of their own.
    config.tokenizer = ""
    # Of the losses (equations 9 and 10): the image's, text's and gray picture's weights, of which
    # those at hand are divided by their sum, and the semantic loss's, outside of the division; and
    # on how many rows of a batch the latter is computed (0 for all).
    config.loss = {"image": 7.0, "text": 1.0, "gray": 1.0, "semantic": 5.0, "semantic_rows": 16}
    # Of the codes' losses: weights of the squared error, which stands in for LPIPS, and of the
    # discriminator in the stage `adversarial`.
    config.codes = {"squared": 4.0, "gan_weight": 0.8}
    # The word's prompt, the least similarity of an entity, how its mask comes to the codes
    # ('bilinear' or 'max'), and the fewest codes of an entity.
    config.alignment = {
        "prompt": "a photo of a {}",
        "threshold": 0.32,
        "resize": "bilinear",
        "least": 1,
    }
    # How codes are drawn where no flag says otherwise: see `vljax.models.completion`.
    config.samples = {
        "count": 8,
        "temperature": 1.0,
        "top_k": 8,
        "passes": 8,
        "choice": 1.0,
        # Pixels by which a mask is grown before it comes to the codes.
        "grow": 1.5,
    }
    muon: dict[str, Any] = {"name": "muon", "learning_rate": 3e-3}
    config.stages = {
        "clip": _stage(32, 600, name="muon", learning_rate=6e-3),
        "autoencoder": _stage(8, 800, name="muon", learning_rate=1e-2),
        "vqgan": _stage(8, 800, ema_decay=0.99, **muon),
        "pretrain": _stage(32, 800, **muon),
        "plain": _stage(32, 230, **muon),
        "language": _stage(32, 80, **muon),
        "vision": _stage(32, 150, **muon),
        "parallel": _stage(32, 400, **muon),
    }
    config.pretrained = {"vqgan": "", "transformer": "", "parallel": "", "clip": "", "aligner": ""}
    config.pretrained.lpips = ""
    config.log.pictures_every = 500
    config.checkpoint.every = 500
    return config


# Pictures to train on, and steps of an epoch at batch 96.
_SIZES = {"cub": 8_855, "oxford102": 7_034, "coco": 82_783}
_BATCH = 96
_EPOCHS = 500


def get_published_config(data_name: str, data_dir: str) -> ConfigDict:
    """The published settings at 256 px, where the paper tells them; else its code's.

    The code's: width 512, weights of the losses, the learning rate (README: 5e-4), AdamW's betas
    (0.9, 0.96) and decay 1e-3, clipping at 4, patience. Ours: warm-up starts at 0, not at a tenth;
    embeddings, norms and biases decay as well; the rate has no floor. Published weights give the
    VQGAN and CLIP; stage 1 (CC12M) is not run, so stage 2 begins from nothing unless
    `--config.pretrained.transformer` gives a pretrained one, which stage `language` then trains on.

    Args:
        data_name: `"cub"`, `"oxford102"` or `"coco"`.
        data_dir: The data set's folder.
    """
    config = get_config()
    config.data.update({"name": data_name, "path": data_dir, "image_size": 256, "workers": 4})
    config.data.update({"split": "train2014" if data_name == "coco" else "train"})
    config.data.update({"least_crop": 0.75, "flip": True, "entity_texts": 0.0})
    shared = {"remat": "off", "dtype": "float32"}
    published = vqgan.PUBLISHED["imagenet_f16_1024"]
    config.model.vqgan = {**published, "beta": 0.25, "legacy": True, **shared}
    config.model.transformer = {
        "features": 512,
        "layers": 24,
        "heads": 8,
        "head_channels": 64,
        "text_length": 128,
        "dropout_rate": 0.1,
        "remat": "keep_products",
        "dtype": "bfloat16",
    }
    towers = {"context_length": 77, "vocabulary_size": 49_408, "head_channels": 64, **shared}
    config.model.clip = {**PUBLISHED["ViT-B/32"], **towers}
    config.model.aligner = {**PUBLISHED["ViT-L/14"], **towers}
    config.loss.semantic_rows = 0
    config.codes.squared = 0.0
    config.ablations = False
    config.parallel = True
    # FILIP's threshold is 0.163; another CLIP's cosines have another scale: choose it anew.
    config.alignment.update({"prompt": "a photo of a {}.", "threshold": 0.163, "least": 4})
    config.samples.update({"top_k": 10, "passes": 12, "grow": 0.0})
    steps = _EPOCHS * (_SIZES[data_name] // _BATCH)
    adamw: dict[str, Any] = {
        "learning_rate": 5e-4,
        "b2": 0.96,
        "weight_decay": 1e-3,
        "clip_norm": 4.0,
        "schedule": "plateau",
        "decay_factor": 0.5,
        "warmup_steps": 1000,
        "patience": 10 * (_SIZES[data_name] // _BATCH),
    }
    stage = _stage(_BATCH, steps, **adamw)
    config.stages = dict.fromkeys(("language", "vision", "parallel"), stage)
    config.log.pictures_every = 5000
    config.checkpoint.every = 5000
    return config
