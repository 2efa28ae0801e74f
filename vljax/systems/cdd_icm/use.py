"""What a person asks of CDD-ICM: a picture drawn by instructions, one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import contact_sheet, image_grid, read_image, resize_and_crop
from vljax.diffusion.noise import example_keys
from vljax.diffusion.progress import progress_bar
from vljax.diffusion.samplers import SAMPLERS
from vljax.errors import UserError
from vljax.request import Picture, changed, option
from vljax.systems import Result
from vljax.systems.cdd_icm.method import Drawing, read_dialogues
from vljax.systems.cdd_icm.model import CDDICM, make_tokenizer


@dataclass(frozen=True)
class Request:
    """A dialogue: the picture after every turn.

    To go on, to take a turn back or to branch off, begin with the picture of any turn.
    """

    say: tuple[str, ...] = option(
        (),
        help='an instruction, such as "add a red circle at the center"; repeat for more turns',
        repeat=True,
    )
    image: Picture | None = option(None, help="the picture to begin with (default: a canvas)")
    turn: int = option(1, low=1, help="number of the first turn, to go on with a dialogue's noise")
    num_dialogues: int = option(4, low=1, help="without --say: held-out dialogues to draw")
    candidates: int = option(
        1, low=1, high=64, help="pictures drawn a turn, of which the best by ICM stays"
    )
    text_scale: float | None = option(
        None, help="classifier-free guidance, 1 for none (config.guidance)"
    )
    icm_scale: float | None = option(
        None, low=0.0, help="ICM guidance, 0 for none (config.guidance)"
    )
    keep: float = option(
        0.0,
        low=0.0,
        high=255.0,
        help="copy from the picture before what moved by at most so many levels of 255",
    )
    seed: int = option(0, seed=True, help="of the noise")
    sampler: str | None = option(None, choices=SAMPLERS, help="default: config.samples.sampler")
    steps: str | None = option(
        None, help="denoising steps: 250, ddim50, trailing25 … (default: config.samples.steps)"
    )
    eta: float = option(0.0, low=0.0, high=1.0, help="DDIM: share of DDPM's noise")


def generate(model: CDDICM, config: ConfigDict, request: Request) -> Iterator[Result]:
    """`turn_1.png`, `turn_2.png`, … as they are drawn; then `dialogue.png`, all of them.

    Without `--say`, `dialogue_0.png`, …: held-out dialogues, each under the true one.

    Raises:
        UserError: the request cannot be.
    """
    drawing = Drawing(
        config,
        request.sampler,
        request.steps,
        eta=request.eta,
        phi=request.text_scale,
        icm=request.icm_scale,
        candidates=request.candidates,
        keep=request.keep,
    )
    settings = {
        "sampler": drawing.sampler,
        "steps": drawing.steps,
        "text_scale": f"{drawing.phi:g}",
        "icm_scale": f"{drawing.psi:g}",
        "candidates": str(request.candidates),
        "keep": f"{request.keep:g}",
        "seed": str(request.seed),
    }
    if drawing.sampler == "ddim":
        settings["eta"] = f"{request.eta:g}"
    if request.say:
        yield from _said(model, config, request, drawing, settings)
        return
    if request.image is not None:
        raise UserError('--image is what instructions change: give --say "…" as well')
    given = read_dialogues(config, request.num_dialogues)
    drawn = drawing.dialogues(model, request.seed, given, min(len(given.lengths), 8))
    for i, texts in enumerate(given.instructions):
        told, length = "; ".join(texts), given.lengths[i]
        begin = given.canvas[i : i + 1]
        rows = [
            (label, np.concatenate([begin, pictures[i, :length]]))
            for label, pictures in ((told, given.pictures), ("drawn", drawn))
        ]
        yield Result(f"dialogue_{i}.png", contact_sheet(rows), told, settings)


def _said(
    model: CDDICM,
    config: ConfigDict,
    request: Request,
    drawing: Drawing,
    settings: dict[str, str],
) -> Iterator[Result]:
    """A dialogue as it is asked for, turn by turn."""
    if "num_dialogues" in changed(request):
        raise UserError("--num_dialogues: with --say one dialogue is drawn; leave one out")
    if any(not text.strip() for text in request.say):
        raise UserError("--say='': say what the turn changes")
    tokens = make_tokenizer(config)(request.say, config.model.clip.context_length)
    picture = begin = _begin(config, request)
    keys = example_keys(jax.random.key(request.seed), 1)
    drawn = [begin]
    for i, text in enumerate(request.say):
        number = request.turn + i
        with progress_bar(f"turn {number}: {text}") as bar:
            made = drawing.turn(model, keys, number, picture[None], tokens[i : i + 1], bar)
        picture = np.asarray(made.pictures[0])
        drawn.append(picture)
        scores = made.scores[0]
        told = {"turn": str(number), "say": text, "score": f"{scores.max():.4f}"}
        if len(scores) > 1:
            told["scores"] = ", ".join(f"{score:.4f}" for score in scores)
        yield Result(f"turn_{number}.png", picture, text, {**settings, **told})
    label = "; ".join(request.say)
    yield Result("dialogue.png", image_grid(np.stack(drawn), len(drawn)), label, settings)


def _begin(config: ConfigDict, request: Request) -> UInt8[np.ndarray, "s s 3"]:
    """The picture given, or the benchmark's canvas."""
    size = config.data.image_size
    if request.image is not None:
        return resize_and_crop(read_image(request.image), size)
    return resize_and_crop(open_benchmark(config.data).canvas(), size)
