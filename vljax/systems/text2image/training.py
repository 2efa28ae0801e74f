"""text2image's training stages: CLIP, then those of the family."""

from ml_collections import ConfigDict

from vljax.errors import UserError
from vljax.systems.text2image.families import FAMILIES, personal
from vljax.systems.text2image.families.family import make_stage
from vljax.systems.text2image.model import clip_of, needs_clip
from vljax.systems.text2image.recipe import check_family
from vljax.training.contrast import clip_loss
from vljax.training.stage import Stage


def stages(config: ConfigDict) -> list[Stage]:
    """`clip`, and the stages of the family that the config has.

    Of `latent`, where Stable Diffusion is given, only those that personalise it; none of `pixels`
    where all of GLIDE is.

    Raises:
        UserError: the data is not there, a field cannot be, a stage has no such name, or no CLIP is
            given where none is trained.
    """
    check_family(config.family)
    if not 0 <= (share := config.diffusion.caption_dropout) <= 1:
        raise UserError(f"diffusion.caption_dropout={share} is no share: give 0 to 1")
    glide = [path for part, path in config.pretrained.items() if part in ("glide", "upsampler")]
    if glide and all(glide):
        return []
    if config.pretrained.get("sd"):
        return personal.stages(config)
    listed = []
    if "clip" in config.stages:
        tower = config.model.clip or config.model.text_encoder
        part = r"clip\." if config.model.clip else r"sd\.text_encoder\."
        listed.append(
            make_stage(config, "clip", clip_loss(clip_of), [(part, 1.0)], tower.context_length)
        )
    elif needs_clip(config) and not config.pretrained.clip:
        raise UserError("no CLIP is trained: give one with --config.pretrained.clip=FILE")
    listed += FAMILIES[config.family].stages(config)
    if unknown := {*config.stages} - {stage.name for stage in listed}:
        raise UserError(
            f"stages.{min(unknown)}: the family {config.family!r} has "
            f"{', '.join(stage.name for stage in listed)}"
        )
    return listed
