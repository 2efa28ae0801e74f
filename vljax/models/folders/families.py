"""The table of families: our networks, the names of their architectures, readers and writers."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from vljax.errors import UserError
from vljax.models.arguments import arguments_of
from vljax.models.autoencoder import AutoencoderKL
from vljax.models.clip import CLIP, TextTransformer
from vljax.models.clipseg import CLIPSeg
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.folders.autoencoder import autoencoder_arguments, autoencoder_files
from vljax.models.folders.clip import clip_arguments, clip_files
from vljax.models.folders.clipseg import clipseg_arguments, clipseg_files
from vljax.models.folders.configs import Files, Folder, read_json
from vljax.models.folders.prior import prior_arguments, prior_files
from vljax.models.folders.resnet import classifier_arguments, resnet_files
from vljax.models.folders.text import text_tower_arguments, text_tower_files
from vljax.models.folders.unet import unet_arguments, unet_files
from vljax.models.folders.vqgan import vqgan_arguments, vqgan_files
from vljax.models.prior import PriorTransformer
from vljax.models.resnet import ResNet
from vljax.models.vqgan import VQGAN


@dataclasses.dataclass(frozen=True)
class Family:
    """A published architecture.

    Attributes:
        network: Our class.
        kind: What its `config.json` calls it: `_class_name` of diffusers, `model_type` of
            transformers.
        library: Whose layout it is.
        read: From a folder to the arguments of our class.
        files: From those arguments to what the folder's JSON files say.
    """

    network: type[nnx.Module]
    kind: str
    library: str
    read: Callable[[Folder], dict[str, Any]]
    files: Callable[[Mapping[str, Any]], Files]

    @property
    def weights(self) -> str:
        """The name of the file of weights, without its ending."""
        return "diffusion_pytorch_model" if self.library == "diffusers" else "model"


FAMILIES = (
    Family(ConditionalUNet, "UNet2DConditionModel", "diffusers", unet_arguments, unet_files),
    Family(AutoencoderKL, "AutoencoderKL", "diffusers", autoencoder_arguments, autoencoder_files),
    Family(VQGAN, "VQModel", "diffusers", vqgan_arguments, vqgan_files),
    Family(PriorTransformer, "PriorTransformer", "diffusers", prior_arguments, prior_files),
    Family(
        TextTransformer, "clip_text_model", "transformers", text_tower_arguments, text_tower_files
    ),
    Family(CLIP, "clip", "transformers", clip_arguments, clip_files),
    Family(CLIPSeg, "clipseg", "transformers", clipseg_arguments, clipseg_files),
    Family(ResNet, "resnet", "transformers", classifier_arguments, resnet_files),
)


def family_in(folder: Folder) -> Family:
    """The family of the network in a folder.

    Raises:
        UserError: there is no readable `config.json`, or it describes a network of none.
    """
    path = Path(folder) / "config.json"
    config = read_json(path)
    kind = config.get("_class_name") or config.get("model_type")
    for family in FAMILIES:
        if family.kind == kind:
            return family
    known = ", ".join(family.kind for family in FAMILIES)
    raise UserError(f"{path} describes a {kind!r}, but vljax builds {known}: give one of these")


def family_of(network: Any) -> tuple[Family, Files] | None:
    """The family of a network of ours and what its folder says; None where no layout holds it."""
    for family in FAMILIES:
        if type(network) is family.network:
            try:
                return family, family.files(arguments_of(network))
            except UserError:
                return None
    return None
