"""A neural module network that runs a question's program.

Johnson et al., *Inferring and Executing Programs for Visual Reasoning* (2017), section 3.2: every
kind of step is a small residual network from maps to a map, and the program says which runs on what
earlier steps left. Two things differ, so that few examples suffice: a step's argument (a colour, a
relation) scales and shifts inside one network of its kind instead of having a network of its own,
and every step sees the picture and the maxima of its inputs beside their maps, so that "left of"
needs no chain of 3×3 neighbourhoods to reach across.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key

from vljax.models.answerers.answer import Answer, classifier, logits, split, with_coordinates
from vljax.models.layers import Conv, Linear, apply, dropout, fan_in_uniform, next_key
from vljax.models.question import Program, Question, QuestionSizes


class Steps(nnx.Module):
    """The networks of all kinds of step, and the vectors of all arguments.

    A batch runs a different network in every example: their kernels are looked up and applied as
    one batched product, so that neither a branch nor a shape depends on the program.

    Args:
        ops: Kinds of step, without "no step".
        arguments: Arguments, without "nothing".
        width: Maps of a step.
        rngs: Where the initial weights come from.
    """

    def __init__(self, ops: int, arguments: int, width: int, *, rngs: nnx.Rngs) -> None:
        def kernels(inputs: int) -> nnx.Param:
            return nnx.Param(fan_in_uniform(rngs, (ops, inputs, width), inputs, False))

        # Two earlier maps and the picture; the maxima of the two maps; the 3×3 neighbourhood.
        self.maps, self.maxima, self.around = (kernels(inputs * width) for inputs in (3, 2, 9))
        self.bias = nnx.Param(jnp.zeros((ops, width)))
        self.argument = nnx.Param(
            0.3 * jax.random.normal(next_key(rngs), (arguments + 1, 2, width))
        )

    def __call__(
        self,
        op: Int[Array, " b"],
        argument: Int[Array, " b"],
        first: Float[Array, "b h w m"],
        second: Float[Array, "b h w m"],
        picture: Float[Array, "b h w m"],
    ) -> Float[Array, "b h w m"]:
        """What a step leaves; `op` counts from 0, `argument` 0 is nothing."""
        dtype = picture.dtype

        def of(parameter: nnx.Param, index: Int[Array, " b"]) -> Array:
            return parameter[...].astype(dtype)[index]

        inputs = jnp.concatenate([first, second, picture], axis=-1)
        h = jnp.einsum("bhwc,bcm->bhwm", inputs, of(self.maps, op))
        maxima = jnp.concatenate([first.max((1, 2)), second.max((1, 2))], axis=-1)
        h = h + jnp.einsum("bc,bcm->bm", maxima, of(self.maxima, op))[:, None, None]
        scale, shift = jnp.moveaxis(of(self.argument, argument), 1, 0)[:, :, None, None]
        h = jax.nn.relu(h * (1 + scale) + shift)
        z = jnp.einsum("bhwc,bcm->bhwm", _neighbours(h), of(self.around, op))
        return jax.nn.relu(first + z + of(self.bias, op)[:, None, None])


class ModuleNetwork(nnx.Module):
    """`question.program` decides what is computed; the words are not read.

    The head weighs the places of the last map, which is its attention, and classifies the mean so
    weighted, the plain mean (which can count) and the maximum.

    Args:
        channels: Of the picture's features.
        sizes: Of the question; unused.
        answers: Number of answers.
        ops: Kinds of step that programs have, without "no step".
        arguments: Arguments that they have, without "nothing".
        width: Maps of a step, 128 as published.
        hidden: Features of the classifier.
        rate: Of dropout before the classifier.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        sizes: QuestionSizes,
        answers: int,
        *,
        ops: int,
        arguments: int,
        width: int = 128,
        hidden: int = 1024,
        rate: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.rate = rate
        self.stem = nnx.List[Any]([])
        for inputs in (channels + 2, width):
            self.stem += [Conv(inputs, width, 3, rngs=rngs), jax.nn.relu]
        self.steps = Steps(ops, arguments, width, rngs=rngs)
        # A softmax takes no notice of a bias.
        self.score = Linear(width, 1, bias=False, rngs=rngs)
        self.classifier = classifier(3 * width, hidden, answers, rngs)

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        question: Question,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Answer:
        """Run the programs.

        Raises:
            ValueError: the question has no program.
        """
        if question.program is None:
            raise ValueError("a module network needs questions with a program")
        result = self.run(features, question.program)
        scores = self.score(result)[..., 0].astype(jnp.float32)
        attention = jax.nn.softmax(scores, axis=(1, 2))
        seen = jnp.einsum("bhw,bhwm->bm", attention.astype(result.dtype), result)
        mean = result.mean((1, 2), dtype=jnp.float32).astype(result.dtype)
        summary = jnp.concatenate([seen, mean, result.max((1, 2))], axis=-1)
        summary = dropout(summary, self.rate, split(key, 1)[0])
        return Answer(logits(apply(self.classifier, summary)), attention)

    def run(self, features: Float[Array, "b h w c"], program: Program) -> Float[Array, "b h w m"]:
        """The map that the last step of each program leaves.

        Inputs that name no earlier step (-1, or a step yet to come) are maps of zeros.
        """
        picture = apply(self.stem, with_coordinates(features))
        examples = jnp.arange(picture.shape[0])
        steps = program.ops.shape[1]
        # Place 0 holds zeros, place t + 1 what step t leaves; what is not yet written is zero too.
        results = jnp.zeros((steps + 1, *picture.shape), picture.dtype)

        def step(results: Array, t: Int[Array, ""]) -> tuple[Array, None]:
            op, argument = program.ops[:, t], program.arguments[:, t]
            first, second = (results[program.inputs[:, t, i] + 1, examples] for i in (0, 1))
            new = self.steps(jnp.maximum(op - 1, 0), argument, first, second, picture)
            new = jnp.where((op > 0)[:, None, None, None], new, results[t])
            return lax.dynamic_update_index_in_dim(results, new, t + 1, 0), None

        return lax.scan(step, results, jnp.arange(steps))[0][-1]


def _neighbours(x: Float[Array, "b h w c"]) -> Float[Array, "b h w n"]:
    """Each place's 3×3 neighbourhood side by side, zeros beyond the border."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1
    )
