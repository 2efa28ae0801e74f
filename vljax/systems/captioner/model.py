"""A captioner's parts: a trunk, and who writes with soft attention and without."""

from collections.abc import Mapping

from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.errors import UserError
from vljax.models.captioner import ATTENTIONS, Captioner, make_captioner
from vljax.models.trunk import Recogniser, make_trunk
from vljax.ops.pixels import to_unit
from vljax.systems.captioner.recipe import STAGES
from vljax.systems.captioner.words import open_words


class Captioners(nnx.Module):
    """The model.

    A part that a run does without is None: `trunk` where features are read, `recogniser` where the
    trunk is published, `soft` (Show, Attend and Tell) and `none` (Show and Tell) where no stage
    trains them and no file gives them.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        fields, self.dtype = config.model, config.model.dtype
        self.trunk, channels = make_trunk(fields.trunk, config.pretrained.trunk, rngs=rngs)
        labels = len(open_benchmark(config.data).labels)
        learns = "recognise" in config.stages
        self.recogniser = Recogniser(channels, labels, rngs=rngs) if learns else None
        sizes = {
            name: fields[name] for name in ("embedding", "hidden", "attention", "dropout_rate")
        }
        words = open_words(config).size
        for kind in ATTENTIONS:
            needed = STAGES[kind] in config.stages or config.pretrained[kind]
            made = make_captioner(kind, words, channels, rngs=rngs, **sizes) if needed else None
            setattr(self, kind, made)


def make_model(config: ConfigDict) -> Captioners:
    """The model at its random start."""
    return Captioners(config, rngs=nnx.Rngs(config.seed))


def part_of(model: Captioners, attention: str) -> Captioner:
    """Who writes with a kind of attention.

    Raises:
        UserError: the run has none.
    """
    found = getattr(model, attention)
    if found is None:
        other = next(kind for kind in ATTENTIONS if kind != attention)
        raise UserError(
            f"--attention={attention}: this run trained no such captioner; choose {other!r}, or "
            f"train one with the stage {STAGES[attention]!r}"
        )
    return found


def features_of(model: Captioners, batch: Mapping[str, Array]) -> Float[Array, "b h w c"]:
    """A batch's features, read or the trunk's."""
    if "features" in batch:
        return batch["features"].astype(model.dtype)
    return model.trunk(to_unit(batch["image"]).astype(model.dtype))
