"""text2image's recipes of published networks and sizes, by family."""

from typing import Any

from ml_collections import ConfigDict

from vljax.models import glide, vqgan
from vljax.models.clip import PUBLISHED
from vljax.systems.text2image.recipe import get_config, personalise, stage_fields


def get_published_config(family: str, data_dir: str) -> ConfigDict:
    """Published networks of a family, on COCO's captions.

    - `latent`: Stable Diffusion 1.5 at 512 px, whose folder `pretrained.sd` gives; nothing trains.
      CLIP ViT-B/32 ranks and judges its pictures where `pretrained.clip` gives it.
    - `pixels`: GLIDE's filtered model at 64 px, whose file `pretrained.glide` gives.
    - `tokens`: SeMani-Trans's Transformer and optimizer, without gray pictures, at 256 px over the
      codes of the published VQGAN, which `pretrained.vqgan` gives (16×16 of 1,024). DALL-E's own,
      of 12 billion parameters, was never published.
    - `vqvae`: a PixelCNN over the same codes.
    - `pixelcnn`, `variational`, `unclip`, `adversarial`: the small networks, at 64 px, on CLIP
      ViT-B/32's texts.

    Args:
        family: Of `FAMILIES`.
        data_dir: COCO's folder.
    """
    config = get_config(family)
    config.about = f"Pictures of COCO's captions, family {family}, at a published size."
    config.data.update({"name": "coco", "path": data_dir, "split": "train2014", "workers": 4})
    towers = {"context_length": 77, "vocabulary_size": 49_408, "head_channels": 64}
    if family == "latent":
        config.data.image_size = 512
        config.model.clip = {**PUBLISHED["ViT-B/32"], **towers}
        config.model.vae = {"remat": "off", "dtype": "float32"}
        config.model.unet = {"remat": "off", "dtype": "bfloat16", "context_features": 768}
        config.model.text_encoder = {"text_width": 768, "text_layers": 12, "dtype": "float32"}
        config.diffusion.update({"prediction": "epsilon", "clean_end": False})
        config.samples.update({"guidance_scale": 6.5, "steps": "leading50+1"})
        config.stages = {}
        return config
    config.data.image_size = 64
    config.model.clip = {**PUBLISHED["ViT-B/32"], **towers}
    del config.stages["clip"]
    if family == "pixels":
        for part, name in (("unet", "base"), ("upsampler", "upsample")):
            fields = {
                "norm_groups": 32,
                "remat": "off",
                "dtype": "bfloat16",
                **glide.PUBLISHED[name],
            }
            texts = {n: v for n, v in fields.items() if n.startswith(("text", "vocabulary"))}
            config.model.text_encoder = texts
            kept = {*fields} - {*texts, "out_channels", "in_channels"}
            config.model[part] = {n: fields[n] for n in kept}
        del config.model.unet["image_size"]
        config.pretrained.upsampler = ""
        config.text_rate = 1.0
        diffusion = {"prediction": "epsilon", "variance": "learned_range", "caption_dropout": 0.2}
        config.diffusion.update(diffusion)
        config.samples.guidance_scale = 2.0
        config.stages.upsampler = config.stages.diffusion.copy_and_resolve_references()
    if family in ("tokens", "vqvae"):
        _published_codes(config)
    return config


def get_personal_config(stage: str, data_dir: str) -> ConfigDict:
    """A published Stable Diffusion, which `pretrained.sd` gives, that learns one thing.

    Rates and lengths are those of the papers: 5,000 steps at 0.005 times the batch (Gal et al.,
    section 4.1), 1,000 at 5·10⁻⁶ (Ruiz et al., section 4).

    Args:
        stage: Of `PERSONAL`.
        data_dir: Holds three to five pictures of the thing.
    """
    config = get_published_config("latent", data_dir)
    config.data.update({"name": "folder", "held_out": 0})
    personalise(config, stage)
    config.about = f"Stable Diffusion learns one thing from a few pictures, by {stage}."
    config.personal.update({"word": "<mine>" if stage == "inversion" else "sks"})
    if stage == "inversion":
        kinds = ("", "close-up ", "cropped ", "bright ", "dark ", "good ")
        config.personal.templates = tuple(f"a {kind}photo of a {{}}" for kind in kinds)
    config.personal.prior = {"path": ""}
    stated = {"inversion": (5_000, 5e-3), "dreambooth": (1_000, 5e-6)}
    steps, rate = stated[stage]
    config.stages[stage].update({"batch_size": 1, "num_steps": steps})
    config.stages[stage].optimizer.learning_rate = rate
    return config


def _published_codes(config: ConfigDict) -> None:
    config.data.image_size = 256
    shared = {"beta": 0.25, "legacy": True, "remat": "off", "dtype": "float32"}
    config.model.vqgan = {**vqgan.PUBLISHED["imagenet_f16_1024"], **shared}
    for name in ("autoencoder", "vqgan"):
        del config.stages[name]
    adamw: dict[str, Any] = {"name": "adamw", "learning_rate": 5e-4, "b2": 0.96}
    adamw |= {"weight_decay": 1e-3, "clip_norm": 4.0, "warmup_steps": 1000}
    if config.family == "tokens":
        config.model.transformer.update({"features": 512, "layers": 24, "heads": 8})
        config.model.transformer.update({"head_channels": 64, "text_length": 76})
        config.model.transformer.update({"remat": "keep_products", "dtype": "bfloat16"})
        config.stages.transformer = stage_fields(96, 400_000, **adamw)
    else:
        config.model.pixelcnn.update({"features": 256, "layers": 12, "dtype": "bfloat16"})
        config.stages.prior = stage_fields(96, 400_000, ema_decay=0.999, **adamw)
