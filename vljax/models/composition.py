"""What composes a picture with what a text would change in it: two vectors to one, f(u, v).

u stands for the reference picture, v for the text, both of d features; f(u, v) should lie where the
picture that is asked for does. `Gated` is CDD-ICM's; the others stand beside it for comparison.

Sources: Wang, *A Diffusion-based Method for Multi-turn Compositional Image Generation* (2023),
equation 1; Wang et al., "Multi-Granularity Hierarchical Attention Fusion Networks" (SLQA+, 2018),
section 3.3; Vo et al., "Composing Text and Image for Image Retrieval" (TIRG, 2019), section 4.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vljax.errors import UserError
from vljax.models.clip_towers import gelu
from vljax.models.layers import LayerNorm, Linear

Vector = Float[Array, "b d"]


class Composition(Protocol):
    """`compose(u, v) -> f`, all [b d]."""

    def __call__(self, u: Vector, v: Vector) -> Vector:
        """The vector of the picture that is asked for."""
        ...


class Gated(nnx.Module):
    """f = g ∘ h + (1 − g) ∘ u, with g and h read off [u; v; u ∘ v; u − v] (equation 1).

    Args:
        features: d.
        scalar: One gate for the whole vector and tanh for gelu, as in SLQA+ from which it is.
        rngs: Where the initial weights come from.
    """

    def __init__(self, features: int, *, scalar: bool = False, rngs: nnx.Rngs) -> None:
        self.gate = Linear(4 * features, 1 if scalar else features, rngs=rngs)
        self.change = Linear(4 * features, features, rngs=rngs)
        self.activation = jnp.tanh if scalar else gelu

    def __call__(self, u: Vector, v: Vector) -> Vector:
        q = jnp.concatenate([u, v, u * v, u - v], axis=-1)
        g = jax.nn.sigmoid(self.gate(q))
        return g * self.activation(self.change(q)) + (1 - g) * u


class Concatenation(nnx.Module):
    """Two linear layers over [u; v], TIRG's own comparison."""

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        self.first = Linear(2 * features, features, rngs=rngs)
        self.second = Linear(features, features, rngs=rngs)

    def __call__(self, u: Vector, v: Vector) -> Vector:
        return self.second(gelu(self.first(jnp.concatenate([u, v], axis=-1))))


class Tirg(nnx.Module):
    """f = a · σ(gate(u, v)) ∘ u + b · residual(u, v): the picture stays, and a residue is added.

    a and b are learnt from 1 and 10. Where TIRG has batch norms this has layer norms: statistics
    of a batch would let examples see each other.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        both = 2 * features
        self.gate_norm, self.residual_norm = LayerNorm(both), LayerNorm(both)
        self.gate = Linear(both, features, rngs=rngs)
        self.residual = Linear(both, both, rngs=rngs)
        self.residual_out = Linear(both, features, rngs=rngs)
        self.weights = nnx.Param(jnp.array([1.0, 10.0]))

    def __call__(self, u: Vector, v: Vector) -> Vector:
        both = jnp.concatenate([u, v], axis=-1)
        gate = self.gate(jax.nn.relu(self.gate_norm(both)))
        residue = self.residual(jax.nn.relu(self.residual_norm(both)))
        a, b = self.weights[...].astype(u.dtype)
        return a * jax.nn.sigmoid(gate) * u + b * self.residual_out(jax.nn.relu(residue))


class One(nnx.Module):
    """Only the picture, or only the text."""

    def __init__(self, text: bool) -> None:
        self.text = text

    def __call__(self, u: Vector, v: Vector) -> Vector:
        return v if self.text else u


COMPOSITIONS = ("gated", "scalar_gate", "concatenation", "tirg", "picture", "text")


def make_composition(kind: str, features: int, *, rngs: nnx.Rngs) -> Composition:
    """The composition of a name.

    Args:
        kind: One of `COMPOSITIONS`.
        features: d.
        rngs: Where the initial weights come from.

    Raises:
        UserError: there is none of that name.
    """
    match kind:
        case "gated" | "scalar_gate":
            return Gated(features, scalar=kind == "scalar_gate", rngs=rngs)
        case "concatenation":
            return Concatenation(features, rngs=rngs)
        case "tirg":
            return Tirg(features, rngs=rngs)
        case "picture" | "text":
            return One(kind == "text")
    raise UserError(f"composition={kind!r}: choose one of {', '.join(COMPOSITIONS)}")
