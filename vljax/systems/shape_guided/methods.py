"""The methods as objects: what each is called, heeds and needs, and the one way to run any."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from vljax.diffusion.process import make_process
from vljax.diffusion.progress import progress_bar
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.ops.inside_outside import StrengthSchedule
from vljax.request import changed
from vljax.systems.shape_guided.baselines import (
    SDEDIT_STRENGTH,
    edit_by_blended_diffusion,
    edit_by_inpainting,
    edit_by_prompt_to_prompt,
    edit_by_sdedit,
)
from vljax.systems.shape_guided.batch import Batch
from vljax.systems.shape_guided.method import (
    Attention,
    attention_maps,
    generate,
    inside_outside_attention,
    invert,
    plain_attention,
)
from vljax.systems.shape_guided.model import ShapeGuided


@dataclass(frozen=True)
class Settings:
    """How an edit is made; of these, another choice is another program.

    Attributes:
        steps: Of inversion and generation, see `parse_timesteps`.
        self_schedule: How the mask on self-attention fades.
        published_levels: Whether the trajectory is that of the published code, which takes the
            picture for the first noise level and copies the level that a step has left.
    """

    steps: str = "leading50"
    self_schedule: StrengthSchedule = "constant"
    published_levels: bool = False


class Edited(NamedTuple):
    """What a method gives back: pictures, and of our methods their latents by noise level."""

    pictures: UInt8[np.ndarray, "b H W 3"]
    latents: Float[Array, "n+1 b h w c"] | None = None


@dataclass(frozen=True)
class Method:
    """A way to edit.

    Attributes:
        name: As `--method` calls it.
        label: As table 5.2 calls it.
        program: Compiled: networks, process, batch, the inverted latents where the method inverts,
            and progress make the pictures; with our methods also the latents.
        heeds: The fields of a request that it heeds, of those that not every method does.
        sides: Of how many sides of the shape it knows the prompt.
        attention: Who does the attention while the picture is inverted; None where it is not.
        ours: Whether it is algorithm 4, with its guidance scale, settings and latents.
        strength: The share of the steps that it takes, from the clean end.
        networks: Which the program takes; one that is not there is None.
        needs: What else it needs than Stable Diffusion, and the flag that gives it.
    """

    name: str
    label: str
    program: Callable[..., Any]
    heeds: frozenset[str]
    sides: int = 1
    attention: Attention | None = None
    ours: bool = False
    strength: float = 1.0
    networks: Callable[[ShapeGuided, CLIP | None], tuple[Any, ...]] = lambda model, _: (model.sd,)
    needs: tuple[str, str] = ("", "")

    def default_scale(self, config: ConfigDict) -> float:
        """Its guidance scale where none is given."""
        samples = config.samples
        return samples.guidance_scale if self.ours else samples.baseline_guidance_scale

    def check(self, request: Any) -> None:
        """Refuse what it would not heed.

        Raises:
            UserError: a field of the request says something that does nothing here.
        """
        for field in changed(request):
            heeding = [one.name for one in METHODS.values() if field in one.heeds]
            if not heeding or self.name in heeding:
                continue
            raise UserError(
                f"--{field} does nothing with --method {self.name}: leave it out, or choose "
                f"{' or '.join(heeding)}"
            )

    def lacks(self, model: ShapeGuided, clip: CLIP | None) -> bool:
        """Whether a network that it needs is not there."""
        return any(network is None for network in self.networks(model, clip))

    def invert(
        self, model: ShapeGuided, config: ConfigDict, batch: Batch, settings: Settings
    ) -> Float[Array, "n+1 b h w c"] | None:
        """The latents of the pictures by noise level; None where the method inverts nothing."""
        if self.attention is None:
            return None
        process = make_process(config, settings.steps, clean_end=not settings.published_levels)
        evaluate_at = "current" if settings.published_levels else "next"
        with progress_bar("inversion") as bar:
            return invert(
                model.sd, process, batch, bar, attention=self.attention, evaluate_at=evaluate_at
            )

    def edit(
        self,
        model: ShapeGuided,
        config: ConfigDict,
        batch: Batch,
        settings: Settings,
        inverted: Float[Array, "n+1 b h w c"] | None = None,
        clip: CLIP | None = None,
    ) -> Edited:
        """The edited pictures.

        Args:
            model: The model.
            config: `diffusion`.
            batch: What to edit.
            settings: How.
            inverted: What `invert` gave for this batch; made if left out, where it is needed.
            clip: For Blended Diffusion.

        Raises:
            UserError: a part is not there that the method needs.
        """
        if self.lacks(model, clip):
            raise UserError(f"--method={self.name}: {self.needs[0]}: give {self.needs[1]}")
        if inverted is None:
            inverted = self.invert(model, config, batch, settings)
        start = () if inverted is None else (inverted,)
        process = make_process(config, settings.steps, self.strength)
        with progress_bar(self.name.replace("_", " ")) as bar:
            given = (*self.networks(model, clip), process, batch, *start, bar)
            if not self.ours:
                return Edited(np.asarray(self.program(*given)))
            pictures, latents = self.program(
                *given,
                attention=self.attention,
                self_schedule=settings.self_schedule,
                copied="left" if settings.published_levels else "reached",
            )
            return Edited(np.asarray(pictures), latents)

    def attention_maps(
        self,
        model: ShapeGuided,
        config: ConfigDict,
        batch: Batch,
        settings: Settings,
        latents: Float[Array, "n+1 b h w c"],
    ) -> Float[np.ndarray, "b n h w"]:
        """Where the tokens of the edit prompts attend along a generation (figure 5.4)."""
        maps = attention_maps(
            model.sd,
            make_process(config, settings.steps),
            batch,
            latents,
            attention=self.attention,
            self_schedule=settings.self_schedule,
        )
        return np.asarray(maps)


_OURS = frozenset(
    {"guidance_scale", "noise_mixing", "shape_until", "published_levels", "attention_maps"}
)

METHODS = {
    method.name: method
    for method in (
        Method(
            "shape_guided",
            "Ours",
            generate,
            heeds=_OURS | {"token_scale", "self_schedule"},
            sides=2,
            attention=inside_outside_attention,
            ours=True,
        ),
        Method(
            "without_ioa",
            "Ours (w/o IOA)",
            generate,
            heeds=_OURS,
            attention=plain_attention,
            ours=True,
        ),
        Method(
            "prompt_to_prompt",
            "P2P",
            edit_by_prompt_to_prompt,
            heeds=frozenset({"guidance_scale", "reweight"}),
            attention=plain_attention,
        ),
        Method(
            "sdedit",
            "SDEdit",
            edit_by_sdedit,
            heeds=frozenset({"guidance_scale"}),
            strength=SDEDIT_STRENGTH,
        ),
        Method(
            "inpaint",
            "SD-Inpaint",
            edit_by_inpainting,
            heeds=frozenset({"guidance_scale"}),
            networks=lambda model, _: (model.sd, model.inpaint),
            needs=("the model cannot inpaint", "--config.pretrained.inpaint=FOLDER/unet"),
        ),
        Method(
            "blended",
            "Blended Diffusion",
            edit_by_blended_diffusion,
            heeds=frozenset({"clip"}),
            strength=SDEDIT_STRENGTH,
            networks=lambda model, clip: (model.sd, clip),
            needs=(
                "it needs CLIP's image tower, which a Stable Diffusion folder does not hold",
                "--clip=FOLDER",
            ),
        ),
    )
}
"""Ours, ours without Inside-Outside Attention, and the baselines of table 5.2, by name."""
