"""Fusions: what joins a picture's features with a question's, with their learned projections.

One protocol serves them all: `join(x, y)` is the pooling, `finish(z)` what its paper does next
(the signed root with norm 1, a tanh or nothing), `fusion(x, y)` both. The picture is x, [*b c]; the
question y has the same number of axes, those of the places being 1.

    pool = fusion("mutan", 2048, 2048, 510, rngs=rngs)
    z = pool(features, question[:, None, None])
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vljax.errors import UserError
from vljax.models.layers import Linear, dropout, fan_in_uniform
from vljax.ops.fusion import (
    Over,
    block_tucker,
    compact_bilinear,
    factorised,
    signed_unit,
    sketch_hashes,
    tucker,
)


def xavier_linear(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> Linear:
    """A linear layer that starts as Caffe's: uniform on ±√(3 / in_features), its bias zero."""
    layer = Linear(in_features, out_features, rngs=rngs)
    layer.weight[...] = layer.weight[...] * 3**0.5
    layer.bias = nnx.Param(jnp.zeros(out_features))
    return layer


class Fusion(nnx.Module):
    """What all fusions have; the kinds below say how they join.

    Args:
        x_features: Channels of the picture's features.
        y_features: Features of the question's vector.
        features: Of the result.
        rngs: Where the initial weights come from.
    """

    def __init__(self, x_features: int, y_features: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.features = features

    def join(
        self, x: Float[Array, "*#b c"], y: Float[Array, "*#b d"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*b o"]:
        """The pooling alone; `key` drops out where the method does so inside."""
        raise NotImplementedError

    def finish(self, z: Float[Array, "b *n o"], over: Over = "place") -> Float[Array, "b *n o"]:
        """What follows the pooling: here the signed root and norm 1 over the map or each place."""
        return signed_unit(z, over)

    def __call__(
        self,
        x: Float[Array, "*#b c"],
        y: Float[Array, "*#b d"],
        over: Over = "place",
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*b o"]:
        return self.finish(self.join(x, y, key), over)


class Product(Fusion):
    """W x ∘ y (PJ-X, equation 2.1 and before); y is projected too where its size is another."""

    def __init__(self, x_features: int, y_features: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.features = features
        self.x = xavier_linear(x_features, features, rngs=rngs)
        self.y = None if y_features == features else xavier_linear(y_features, features, rngs=rngs)

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        return self.x(x) * (y if self.y is None else self.y(y))


class Sum(Fusion):
    """tanh(W x + U y + b): the attention of SAN (Yang et al. 2016, equation 15)."""

    def __init__(self, x_features: int, y_features: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.features = features
        self.x = Linear(x_features, features, bias=False, rngs=rngs)
        self.y = Linear(y_features, features, rngs=rngs)

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        return self.x(x) + self.y(y)

    def finish(self, z: Array, over: Over = "place") -> Array:
        return jnp.tanh(z)


class Concat(Fusion):
    """A linear layer, ReLU and another on [x, y] (MCB's baseline, table 1).

    The first is kept as its two halves, so that a question is projected once for all places.

    Args:
        x_features: Channels of the picture's features.
        y_features: Features of the question's vector.
        features: Of the result.
        hidden: Features between the two; those of the result if None.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        x_features: int,
        y_features: int,
        features: int,
        *,
        hidden: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.features = features
        hidden = hidden or features
        self.x = Linear(x_features, hidden, bias=False, rngs=rngs)
        self.y = Linear(y_features, hidden, rngs=rngs)
        self.out = Linear(hidden, features, rngs=rngs)

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        return self.out(jax.nn.relu(self.x(x) + self.y(y)))

    def finish(self, z: Array, over: Over = "place") -> Array:
        return z


class MCB(Fusion):
    """Compact bilinear pooling (Fukui et al. 2016): nothing is learned but what surrounds it.

    Args:
        x_features: Channels of the picture's features.
        y_features: Features of the question's vector.
        features: Of the result, the length of the sketches; 16,000 as published.
        seed: Of the hashes, which belong to trained weights as their config does.
        rngs: Unused.
    """

    def __init__(
        self,
        x_features: int,
        y_features: int,
        features: int,
        *,
        seed: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        self.features = features
        # Sizes and the seed, not the hashes: a network's integers would count as parameters.
        self.x_features, self.y_features, self.seed = x_features, y_features, seed

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        x_hashes = sketch_hashes(2 * self.seed, self.x_features, self.features)
        y_hashes = sketch_hashes(2 * self.seed + 1, self.y_features, self.features)
        return compact_bilinear(x, y, x_hashes, y_hashes, self.features).astype(x.dtype)


class MLB(Fusion):
    """P (tanh W x ∘ tanh U y) + b (Kim et al. 2017, equation 8).

    Args:
        x_features: Channels of the picture's features.
        y_features: Features of the question's vector.
        features: Of the result.
        hidden: Features of the product, 1,200 as published.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        x_features: int,
        y_features: int,
        features: int,
        *,
        hidden: int = 1200,
        rngs: nnx.Rngs,
    ) -> None:
        self.features = features
        self.x = Linear(x_features, hidden, rngs=rngs)
        self.y = Linear(y_features, hidden, rngs=rngs)
        self.out = Linear(hidden, features, rngs=rngs)

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        return self.out(factorised(jnp.tanh(self.x(x)), jnp.tanh(self.y(y)), 1))

    def finish(self, z: Array, over: Over = "place") -> Array:
        return z


class MFB(Fusion):
    """Factorised bilinear pooling (Yu et al. 2017, figure 2): dropout stands before the sum.

    Args:
        x_features: Channels of the picture's features.
        y_features: Features of the question's vector.
        features: Of the result, 1,000 as published.
        rank: Products that are summed for each of them.
        rate: Of dropout.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        x_features: int,
        y_features: int,
        features: int,
        *,
        rank: int = 5,
        rate: float = 0.1,
        rngs: nnx.Rngs,
    ) -> None:
        self.features, self.rank, self.rate = features, rank, rate
        self.x = Linear(x_features, features * rank, rngs=rngs)
        self.y = Linear(y_features, features * rank, rngs=rngs)

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        # To drop a factor is to drop the product, and x has every place of it.
        return factorised(dropout(self.x(x), self.rate, key), self.y(y), self.rank)


class Mutan(Fusion):
    """Tucker decomposition whose core has slices of low rank (Ben-younes et al. 2017, eq. 7).

    Args:
        x_features: Channels of the picture's features.
        y_features: Features of the question's vector.
        features: Of the result, 510 as published.
        hidden: Features of each side after its projection.
        rank: Of a slice.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        x_features: int,
        y_features: int,
        features: int,
        *,
        hidden: int = 310,
        rank: int = 5,
        rngs: nnx.Rngs,
    ) -> None:
        self.features = features
        self.x = Linear(x_features, hidden, rngs=rngs)
        self.y = Linear(y_features, hidden, rngs=rngs)
        self.left, self.right = (_core(rngs, (rank, hidden, features)) for _ in range(2))

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        left, right = (side[...].astype(x.dtype) for side in (self.left, self.right))
        return tucker(jnp.tanh(self.x(x)), jnp.tanh(self.y(y)), left, right)

    def finish(self, z: Array, over: Over = "place") -> Array:
        return z


class Block(Fusion):
    """Block-term decomposition (Ben-younes et al. 2019, equation 8): a core for every block.

    Each block has the signed root and norm 1 of its own, whatever `over` says.

    Args:
        x_features: Channels of the picture's features.
        y_features: Features of the question's vector.
        features: Of the result, a multiple of `blocks`.
        hidden: Features of each side after its projection, a multiple of `blocks`.
        blocks: Cores.
        rank: Of a slice of a core.
        rngs: Where the initial weights come from.

    Raises:
        UserError: `blocks` does not divide the two.
    """

    def __init__(
        self,
        x_features: int,
        y_features: int,
        features: int,
        *,
        hidden: int = 1600,
        blocks: int = 20,
        rank: int = 15,
        rngs: nnx.Rngs,
    ) -> None:
        if features % blocks or hidden % blocks:
            raise UserError(
                f"blocks={blocks} of a block fusion: choose a divisor of features={features} and "
                f"hidden={hidden}"
            )
        self.features, self.blocks = features, blocks
        self.x = Linear(x_features, hidden, rngs=rngs)
        self.y = Linear(y_features, hidden, rngs=rngs)
        shape = (blocks, rank, hidden // blocks, features // blocks)
        self.left, self.right = (_core(rngs, shape) for _ in range(2))

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        left, right = (side[...].astype(x.dtype) for side in (self.left, self.right))
        z = block_tucker(self._split(self.x(x)), self._split(self.y(y)), left, right)
        return z.reshape(*z.shape[:-2], self.features)

    def finish(self, z: Array, over: Over = "place") -> Array:
        return signed_unit(self._split(z)).reshape(z.shape)

    def _split(self, x: Float[Array, "*b n"]) -> Float[Array, "*b g m"]:
        return x.reshape(*x.shape[:-1], self.blocks, -1)


def _core(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(fan_in_uniform(rngs, shape, shape[-2], False))


class PictureAlone(Fusion):
    """The picture as it is: nothing is joined (PJ-X's published network for ACT-X asks nothing)."""

    def __init__(self, x_features: int, y_features: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.features = x_features

    def join(self, x: Array, y: Array, key: Key[Array, ""] | None = None) -> Array:
        return x

    def finish(self, z: Array, over: Over = "place") -> Array:
        return z


FUSIONS: dict[str, type[Fusion]] = {
    "product": Product,
    "concat": Concat,
    "sum": Sum,
    "mcb": MCB,
    "mlb": MLB,
    "mfb": MFB,
    "mutan": Mutan,
    "block": Block,
    "picture": PictureAlone,
}


def fusion(
    kind: str, x_features: int, y_features: int, features: int, *, rngs: nnx.Rngs, **fields: Any
) -> Fusion:
    """The fusion of that name.

    Args:
        kind: A key of `FUSIONS`.
        x_features: Channels of the picture's features.
        y_features: Features of the question's vector.
        features: Of the result.
        rngs: Where the initial weights come from.
        **fields: What that kind has besides (`rank`, `hidden`, `blocks`, `seed`).

    Raises:
        UserError: there is no such kind.
    """
    if kind not in FUSIONS:
        raise UserError(f"fusion={kind!r}: choose {', '.join(map(repr, FUSIONS))}")
    return FUSIONS[kind](x_features, y_features, features, rngs=rngs, **fields)
