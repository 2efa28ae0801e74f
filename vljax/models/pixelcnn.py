"""Gated PixelCNN: a picture's values one after the other, each told by all before it.

Van den Oord et al., *Conditional Image Generation with PixelCNN Decoders* (2016), section 2; the
masks of van den Oord et al., *Pixel Recurrent Neural Networks* (2016), section 3.4. Rows go from
the top, pixels from the left, and a pixel's channels (red, green, blue) in their order. A vertical
stack sees all rows above, a horizontal one what is on the left and the pixel's channels before;
together they leave no blind spot. Values are levels of brightness or a picture's codes (van den
Oord et al., *Neural Discrete Representation Learning*, 2017, section 4.1), as classes either way.

    log p(x | h) = Σᵢ log p(xᵢ | x before i, h)

The likelihood is exact and takes one pass. Drawing takes a pass of the vertical stack a row, and of
one pixel of the horizontal stack a value, which remembers what it has read on the left.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key

from vljax.errors import UserError
from vljax.models import decoding
from vljax.models.layers import Embedding, Linear, fan_in_uniform
from vljax.ops.convolution import conv2d

Padding = tuple[tuple[int, int], tuple[int, int]]


class MaskedConv(nnx.Module):
    """A convolution whose last tap sees a pixel's own channels in their order; stride 1.

    Features are in `groups` equal parts, one a channel of the picture, inputs likewise. What comes
    out for a gate is two such rows of parts side by side.

    Args:
        in_features: Of the input.
        out_features: Of the output.
        kernel: Height and width.
        groups: Channels of the picture, whose order the last tap keeps; 0 where every tap may see
            all features.
        sees_itself: Whether a channel's features see that channel's (mask B) or only those before
            it (mask A).
        halves: 2 where the output is split for a gate.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: tuple[int, int],
        *,
        groups: int,
        sees_itself: bool = True,
        halves: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        self.groups, self.sees_itself, self.halves = groups, sees_itself, halves
        shape = (*kernel, in_features, out_features)
        fan_in = math.prod(shape[:3])
        self.weight = nnx.Param(
            fan_in_uniform(rngs, shape, fan_in, zero=False), published="o i h w -> h w i o"
        )
        self.bias = nnx.Param(fan_in_uniform(rngs, (out_features,), fan_in, zero=False))

    def __call__(
        self, x: Float[Array, "b h w i"], padding: Padding = ((0, 0), (0, 0))
    ) -> Float[Array, "b h2 w2 o"]:
        """The convolution of the input under `padding` ((top, bottom), (left, right))."""
        weight = self.weight[...].astype(x.dtype)
        if self.groups:
            weight = weight * self._mask(weight.shape).astype(x.dtype)
        return conv2d(x, weight, padding=padding) + self.bias[...].astype(x.dtype)

    def _mask(self, shape: tuple[int, ...]) -> Array:
        """1 for what may be seen; all but the last tap of the last row is."""
        inputs, outputs = shape[2:]
        of_input = np.arange(inputs) // (inputs // self.groups)
        half = outputs // self.halves
        of_output = (np.arange(outputs) % half) // (half // self.groups)
        if self.sees_itself:
            may = of_input[:, None] <= of_output
        else:
            may = of_input[:, None] < of_output
        mask = np.ones(shape, np.float32)
        mask[-1, -1] = may
        return jnp.asarray(mask)


class Layer(nnx.Module):
    """A layer of both stacks (figure 2).

    Args:
        in_features: Of what both stacks read.
        features: Of each stack.
        kernel: Side of the square whose upper half the stacks see, odd.
        groups: Channels of the picture.
        context_features: Length of the condition.
        first: Whether it reads the picture itself, so that nothing may see its own value (mask A)
            and there is no residual path.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel: int,
        groups: int,
        context_features: int,
        *,
        first: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.reach, self.first = kernel // 2, first
        both = 2 * features
        # Rows above, and after the first layer the row itself: what the stack knows there is of
        # rows above it.
        rows = self.reach if first else self.reach + 1
        self.vertical = MaskedConv(in_features, both, (rows, kernel), groups=0, rngs=rngs)
        self.horizontal = MaskedConv(
            in_features,
            both,
            (1, self.reach + 1),
            groups=groups,
            sees_itself=not first,
            halves=2,
            rngs=rngs,
        )
        self.down = Linear(both, both, rngs=rngs)
        self.told = Linear(context_features, 2 * both, bias=False, rngs=rngs)
        self.out = MaskedConv(features, features, (1, 1), groups=groups, rngs=rngs)

    def above(
        self, v: Float[Array, "b h w i"], context: Float[Array, "b e"]
    ) -> tuple[Float[Array, "b h w f"], Float[Array, "b h w 2*f"]]:
        """The vertical stack: its features, and what it tells the horizontal one."""
        side = (self.reach, self.reach)
        if self.first:
            # Of row i the rows i − reach … i − 1: the last row is above no other.
            v = self.vertical(v[:, :-1], ((self.reach, 0), side))
        else:
            v = self.vertical(v, ((self.reach, 0), side))
        upper, lower = jnp.split(self.told(context)[:, None, None].astype(v.dtype), 2, axis=-1)
        return _gated(v + upper), self.down(v) + lower

    def along(
        self, x: Float[Array, "b h w i"], told: Float[Array, "b h n 2*f"]
    ) -> Float[Array, "b h n f"]:
        """The horizontal stack, given what the vertical one tells: its last n columns.

        Without the columns on the left that it would see, they are zeros.
        """
        left = max(0, told.shape[2] + self.reach - x.shape[2])
        h = self.out(_gated(self.horizontal(x, ((0, 0), (left, 0))) + told))
        return h if self.first else x[:, :, -h.shape[2] :] + h


def _gated(x: Float[Array, "*b 2*f"]) -> Float[Array, "*b f"]:
    """Equation 2: tanh of one half times the logistic function of the other."""
    value, gate = jnp.split(x, 2, axis=-1)
    return jnp.tanh(value) * jax.nn.sigmoid(gate)


class PixelCNN(nnx.Module):
    """The network.

    Args:
        levels: Values that a channel of a pixel can have.
        channels: Of a pixel; 1 for codes.
        features: Width of each stack; divides by `channels`.
        layers: How many, the first among them.
        kernel: Side of the square whose upper half a layer sees, odd.
        first_kernel: Likewise of the first layer.
        value_features: Length of the vector that stands for a value.
        head_features: Width of the hidden layer before the logits; divides by `channels`.
        context_features: Length of the condition.
        dtype: Compute dtype.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a field cannot be.
    """

    def __init__(
        self,
        *,
        levels: int,
        channels: int = 3,
        features: int = 48,
        layers: int = 5,
        kernel: int = 5,
        first_kernel: int = 7,
        value_features: int = 8,
        head_features: int = 96,
        context_features: int = 64,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        for name, given in (("features", features), ("head_features", head_features)):
            if given % channels:
                raise UserError(
                    f"{name}={given} do not divide by the {channels} channels of a pixel: give a "
                    "multiple"
                )
        for name, given in (("kernel", kernel), ("first_kernel", first_kernel)):
            if given < 3 or given % 2 == 0:
                raise UserError(f"{name}={given}: give an odd number, 3 or more")
        if levels < 2:
            raise UserError(f"levels={levels}: give 2 or more")
        self.levels, self.channels, self.dtype = levels, channels, dtype
        self.values = Embedding(channels * levels, value_features, rngs=rngs)
        stack, width = [], channels * value_features
        for i in range(layers):
            side = kernel if i else first_kernel
            stack.append(
                Layer(width, features, side, channels, context_features, first=not i, rngs=rngs)
            )
            width = features
        self.layers = nnx.List(stack)
        self.head = nnx.List(
            [
                MaskedConv(features, head_features, (1, 1), groups=channels, rngs=rngs),
                MaskedConv(head_features, channels * levels, (1, 1), groups=channels, rngs=rngs),
            ]
        )

    def __call__(
        self, values: Int[Array, "b h w c"], context: Float[Array, "b e"]
    ) -> Float[Array, "b h w c k"]:
        """Logits of every value given those before it, float32."""
        return self.logits(self.embed(values), context)

    def nats(
        self, values: Int[Array, "b h w c"], context: Float[Array, "b e"]
    ) -> Float[Array, "b h w c"]:
        """−log p of every value given those before it, float32; they sum to that of the picture."""
        log_p = jax.nn.log_softmax(self(values, context))
        return -jnp.take_along_axis(log_p, values[..., None], axis=-1)[..., 0]

    def bits_per_dimension(
        self, values: Int[Array, "b h w c"], context: Float[Array, "b e"]
    ) -> Float[Array, " b"]:
        """−log₂ p of a picture over the number of its values: exact, no bound."""
        return self.nats(values, context).mean((1, 2, 3)) / math.log(2)

    def draw(
        self,
        context: Float[Array, "b e"],
        keys: Key[Array, " b"],
        size: tuple[int, int],
        *,
        temperature: float | Float[Array, ""] = 1.0,
        top_k: int | Int[Array, ""] = 0,
    ) -> Int[Array, "b h w c"]:
        """Pictures, value by value.

        Args:
            context: The conditions.
            keys: One a picture, which depends on its own only.
            size: Height and width; static.
            temperature: What log p is divided by; 0 takes the most probable value.
            top_k: Draw among so many values; 0 for all.
        """
        height, width = size
        count = width * self.channels

        def row(i: Array, values: Array) -> Array:
            above = [
                lax.dynamic_slice_in_dim(one, i, 1, axis=1)
                for one in self._above(self.embed(values), context)
            ]

            def value(n: Array, state: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
                line, read = state
                column, channel = n // self.channels, n % self.channels
                logits, read = self._at(column, read, above)
                now = jax.vmap(lambda key: jax.random.fold_in(key, i * count + n))(keys)
                log_p = jax.nn.log_softmax(logits[:, channel])
                drawn = decoding.draw(log_p, now, temperature, top_k)
                line = line.at[:, 0, column, channel].set(drawn)
                vectors = self.embed(lax.dynamic_slice_in_dim(line, column, 1, axis=2))
                reach = self.layers[0].reach
                read[0] = lax.dynamic_update_slice_in_dim(read[0], vectors, column + reach, axis=2)
                return line, read

            line = jnp.zeros((len(keys), 1, width, self.channels), jnp.int32)
            # What each layer reads of the row, so many zeros on its left as it reaches.
            shape = (len(keys), 1)
            widths = [self.embed(line).shape[-1]] + [above[0].shape[-1] // 2] * len(above)
            read = [
                jnp.zeros((*shape, width + layer.reach, features), self.dtype)
                for layer, features in zip(self.layers, widths, strict=False)
            ]
            line, _ = lax.fori_loop(0, count, value, (line, read))
            return lax.dynamic_update_slice_in_dim(values, line, i, axis=1)

        blank = jnp.zeros((len(keys), height, width, self.channels), jnp.int32)
        return lax.fori_loop(0, height, row, blank)

    def _at(
        self, column: Array, read: list[Array], above: list[Array]
    ) -> tuple[Float[Array, "b c k"], list[Array]]:
        """Logits of one pixel of a row, given what each layer has read on its left."""
        known: list[Array] = []
        h = read[0]
        for layer, room, told in zip(self.layers, read, above, strict=True):
            if known:
                room = lax.dynamic_update_slice_in_dim(room, h, column + layer.reach, axis=2)
            window = lax.dynamic_slice_in_dim(room, column, layer.reach + 1, axis=2)
            h = layer.along(window, lax.dynamic_slice_in_dim(told, column, 1, axis=2))
            known.append(room)
        return self._expected(h)[:, 0, 0], known

    def embed(self, values: Int[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """A vector for each channel's value, side by side."""
        vectors = self.values(values + self.levels * jnp.arange(self.channels))
        return vectors.reshape(*values.shape[:3], -1).astype(self.dtype)

    def logits(
        self, vectors: Float[Array, "b h w f"], context: Float[Array, "b e"]
    ) -> Float[Array, "b h w c k"]:
        """Logits of every value, from the vectors that `embed` has for those before it."""
        return self._along(vectors, self._above(vectors, context))

    def _above(
        self, vectors: Float[Array, "b h w f"], context: Float[Array, "b e"]
    ) -> list[Float[Array, "b h w f"]]:
        """What each layer's vertical stack tells the horizontal one: of rows above only."""
        v, found = vectors, []
        for layer in self.layers:
            v, told = layer.above(v, context.astype(self.dtype))
            found.append(told)
        return found

    def _along(
        self, vectors: Float[Array, "b h w f"], told: list[Float[Array, "b h w f"]]
    ) -> Float[Array, "b h w c k"]:
        """The horizontal stack over whole rows, and the logits."""
        h = vectors
        for layer, one in zip(self.layers, told, strict=True):
            h = layer.along(h, one)
        return self._expected(h)

    def _expected(self, h: Float[Array, "b h w f"]) -> Float[Array, "b h w c k"]:
        hidden, last = self.head
        logits = last(jax.nn.relu(hidden(jax.nn.relu(h)))).astype(jnp.float32)
        return logits.reshape(*h.shape[:3], self.channels, self.levels)


def to_few_levels(pixels: Int[Array, "*b"], levels: int) -> Int[Array, "*b"]:
    """8-bit values as the index of the one of `levels` equal ranges that they are in, int32."""
    return (pixels.astype(jnp.int32) * levels) // 256


def from_few_levels(values: Int[Array, "*b"], levels: int) -> Int[Array, "*b"]:
    """The 8-bit value in the middle of each range, int32."""
    return ((2 * values + 1) * 256) // (2 * levels)
