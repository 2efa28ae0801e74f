"""LSTM and GRU: one `lax.scan` over a sequence, or one step at a time for decoding.

A sequence is read in three parts, and only the middle one is serial: the projections of all inputs
as one matrix product; the recurrence, whose step is one product with the hidden state; and, in the
backward pass, the gradient of the recurrent weight as one product over all steps and examples
(the scan's own derivative would add up a matrix of that size at every step).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from vljax.models.layers import fan_in_uniform
from vljax.ops.projection import project

Tensors = dict[str, np.ndarray]

# Hidden and cell state of an LSTM.
LSTMState = tuple[Float[Array, "b h"], Float[Array, "b h"]]

State = TypeVar("State", bound=tuple[Array, ...])


class Cell(NamedTuple):
    """The elementwise part of a step.

    Attributes:
        join: From the projected input and the product with the state to what the gates read: their
            sum, or the two where a gate treats them differently.
        advance: From that and a state to the next; a state begins with what is put out.
    """

    join: Callable[[Array, Array], tuple[Array, ...]]
    advance: Callable[[tuple[Array, ...], Any], Any]


class LSTM(nnx.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers 2000).

    i, f, o = σ(W x + U h + b), g = tanh(W x + U h + b); c ← f ∘ c + i ∘ g; h ← o ∘ tanh c. The four
    gates lie in Caffe's order i, f, o, g, with one bias; `published_names` brings PyTorch's order
    i, f, g, o and its two biases to that.

    Args:
        in_features: Of an input.
        features: Of the hidden state.
        rngs: Where the initial weights come from, uniform on ±1/√features.
    """

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.features = features
        self.weight_ih = _weight(rngs, in_features, features, gates=4)
        self.weight_hh = _weight(rngs, features, features, gates=4)
        self.bias = nnx.Param(fan_in_uniform(rngs, (4 * features,), features, False))

    def start(self, batch: int, dtype: Any = jnp.float32) -> LSTMState:
        """The state before the first input: zeros."""
        zeros = jnp.zeros((batch, self.features), dtype)
        return zeros, zeros.astype(jnp.float32)

    def step(self, x: Float[Array, "b i"], state: LSTMState) -> LSTMState:
        """The state after one more input; its first part is what is put out."""
        projected = project(x, self.weight_ih[...].astype(x.dtype))
        return _LSTM.advance(_LSTM.join(projected, self._recurrent(state[0])), state)

    def __call__(
        self,
        x: Float[Array, "b t i"],
        mask: Bool[Array, "b t"] | None = None,
        state: LSTMState | None = None,
    ) -> tuple[Float[Array, "b t h"], LSTMState]:
        """Read a sequence.

        Args:
            x: Inputs.
            mask: False where a step is padding, on either side: the state passes it unchanged, and
                the output there repeats the one before.
            state: Before the first input; zeros if None.

        Returns:
            The hidden state after every input, and the state after the last.
        """
        state = self.start(x.shape[0], x.dtype) if state is None else state
        return _read(
            _LSTM,
            project(jnp.swapaxes(x, 0, 1), self.weight_ih[...].astype(x.dtype)),
            self.weight_hh[...],
            self.bias[...],
            state,
            mask,
        )

    def _recurrent(self, h: Float[Array, "b h"]) -> Float[Array, "b n"]:
        return _recurrent(h, self.weight_hh[...], self.bias[...])

    @staticmethod
    def published_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
        """One layer's tensors of PyTorch (`weight_ih_l0`, ...) or Caffe's blobs, by our names.

        The blobs `0`, `1`, `2` are the weight of the input, the bias and the weight of the state.
        """
        renamed = {_without_layer(name): tensor for name, tensor in tensors.items()}
        renamed = {
            {"0": "weight_ih", "1": "bias", "2": "weight_hh"}.get(name, name): tensor
            for name, tensor in renamed.items()
        }
        biases = ("bias_ih", "bias_hh")
        if all(bias in renamed for bias in biases):
            renamed["bias"] = renamed.pop("bias_ih") + renamed.pop("bias_hh")
            for name in ("weight_ih", "weight_hh", "bias"):
                if name in renamed and renamed[name].shape[0] % 4 == 0:
                    i, f, g, o = np.split(renamed[name], 4)
                    renamed[name] = np.concatenate([i, f, o, g])
        return renamed


class GRU(nnx.Module):
    """Gated recurrent unit (Cho et al. 2014), in the form of PyTorch and cuDNN.

    r, z = σ(W x + b + U h + b'), n = tanh(W x + b + r ∘ (U h + b')); h ← (1 - z) ∘ n + z ∘ h. The
    gates lie in PyTorch's order r, z, n; the state is a tuple of one.

    Args:
        in_features: Of an input.
        features: Of the hidden state.
        rngs: Where the initial weights come from, uniform on ±1/√features.
    """

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.features = features
        self.weight_ih = _weight(rngs, in_features, features, gates=3)
        self.weight_hh = _weight(rngs, features, features, gates=3)
        self.bias_ih = nnx.Param(fan_in_uniform(rngs, (3 * features,), features, False))
        self.bias_hh = nnx.Param(fan_in_uniform(rngs, (3 * features,), features, False))

    def start(self, batch: int, dtype: Any = jnp.float32) -> tuple[Float[Array, "b h"]]:
        """The state before the first input: zeros."""
        return (jnp.zeros((batch, self.features), dtype),)

    def step(
        self, x: Float[Array, "b i"], state: tuple[Float[Array, "b h"]]
    ) -> tuple[Float[Array, "b h"]]:
        """The state after one more input; its only part is what is put out."""
        recurrent = _recurrent(state[0], self.weight_hh[...], self.bias_hh[...])
        return _GRU.advance(_GRU.join(self._projected(x), recurrent), state)

    def __call__(
        self,
        x: Float[Array, "b t i"],
        mask: Bool[Array, "b t"] | None = None,
        state: tuple[Float[Array, "b h"]] | None = None,
    ) -> tuple[Float[Array, "b t h"], tuple[Float[Array, "b h"]]]:
        """Read a sequence; see `LSTM.__call__`."""
        state = self.start(x.shape[0], x.dtype) if state is None else state
        projected = self._projected(jnp.swapaxes(x, 0, 1))
        return _read(_GRU, projected, self.weight_hh[...], self.bias_hh[...], state, mask)

    def _projected(self, x: Float[Array, "*b i"]) -> Float[Array, "*b n"]:
        weight, bias = self.weight_ih[...].astype(x.dtype), self.bias_ih[...].astype(x.dtype)
        return project(x, weight) + bias

    @staticmethod
    def published_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
        """PyTorch's tensors of one layer (`weight_ih_l0`, ...) by our names."""
        return {_without_layer(name): tensor for name, tensor in tensors.items()}


def _weight(rngs: nnx.Rngs, in_features: int, features: int, gates: int) -> nnx.Param:
    value = fan_in_uniform(rngs, (in_features, gates * features), features, False)
    return nnx.Param(value, published="o i -> i o")


def _without_layer(name: str) -> str:
    return name.removesuffix("_l0")


def _recurrent(
    h: Float[Array, "b h"], weight: Float[Array, "h n"], bias: Float[Array, " n"]
) -> Float[Array, "b n"]:
    return h @ weight.astype(h.dtype) + bias.astype(h.dtype)


def _advance_lstm(gates: tuple[Array, ...], state: LSTMState) -> LSTMState:
    total = gates[0].astype(jnp.float32)
    size = total.shape[-1] // 4
    i, f, o = jnp.split(jax.nn.sigmoid(total[..., : 3 * size]), 3, axis=-1)
    c = f * state[1] + i * jnp.tanh(total[..., 3 * size :])
    return (o * jnp.tanh(c)).astype(state[0].dtype), c


def _advance_gru(gates: tuple[Array, ...], state: tuple[Array]) -> tuple[Array]:
    x, h = (jnp.split(side.astype(jnp.float32), 3, axis=-1) for side in gates)
    r, z = (jax.nn.sigmoid(x[gate] + h[gate]) for gate in (0, 1))
    n = jnp.tanh(x[2] + r * h[2])
    return (((1 - z) * n + z * state[0].astype(jnp.float32)).astype(state[0].dtype),)


_LSTM = Cell(lambda projected, recurrent: (projected + recurrent,), _advance_lstm)
_GRU = Cell(lambda projected, recurrent: (projected, recurrent), _advance_gru)


def _read(
    cell: Cell,
    projected: Float[Array, "t b n"],
    weight: Float[Array, "h n"],
    bias: Float[Array, " n"],
    state: State,
    mask: Bool[Array, "b t"] | None,
) -> tuple[Float[Array, "b t h"], State]:
    """All steps; outputs are batch first, the projected inputs time first."""
    keep = None if mask is None else mask.T[..., None]
    states = _recur(cell, projected, weight, bias, state, keep)
    return jnp.swapaxes(states[0], 0, 1), jax.tree.map(lambda s: s[-1], states)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recur(
    cell: Cell,
    projected: Float[Array, "t b n"],
    weight: Float[Array, "h n"],
    bias: Float[Array, " n"],
    state: State,
    keep: Bool[Array, "t b 1"] | None,
) -> State:
    """The states after every step, each [t b h]."""
    return _forward(cell, projected, weight, bias, state, keep)[0]


def _kept(cell: Cell, gates: tuple[Array, ...], state: State, keep: Array | None) -> State:
    """The next state where the step is none of padding, else the state as it was."""
    new = cell.advance(gates, state)
    if keep is None:
        return new
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, state)


def _forward(
    cell: Cell, projected: Array, weight: Array, bias: Array, state: State, keep: Array | None
) -> tuple[State, tuple[Any, ...]]:
    def step(state: State, inputs: tuple[Array, Array | None]) -> tuple[State, tuple[State, Any]]:
        x, kept = inputs
        gates = cell.join(x, _recurrent(state[0], weight, bias))
        state = _kept(cell, gates, state, kept)
        return state, (state, gates)

    _, (states, gates) = lax.scan(step, state, (projected, keep))
    return states, (weight, bias, state, keep, states, gates)


def _backward(
    cell: Cell, residuals: tuple[Any, ...], gradients: State
) -> tuple[Array, Array, Array, State, None]:
    weight, bias, start, keep, states, gates = residuals
    before = jax.tree.map(lambda s, all_: jnp.concatenate([s[None], all_[:-1]]), start, states)

    def step(gradient: Any, inputs: tuple[Any, ...]) -> tuple[Any, tuple[Array, ...]]:
        here, gates, state, kept = inputs
        pull = jax.vjp(lambda gates, state: _kept(cell, gates, state, kept), gates, state)[1]
        to_gates, to_state = pull(jax.tree.map(jnp.add, gradient, here))
        # The product's gradient is the last one: of the sum, or its own.
        back = to_gates[-1] @ weight.T.astype(to_gates[-1].dtype)
        return (to_state[0] + back, *to_state[1:]), to_gates

    zeros = jax.tree.map(jnp.zeros_like, start)
    to_start, to_gates = lax.scan(step, zeros, (gradients, gates, before, keep), reverse=True)
    rows = to_gates[-1].reshape(-1, to_gates[-1].shape[-1])
    to_weight = before[0].reshape(-1, before[0].shape[-1]).T @ rows
    to_bias = rows.sum(0, dtype=jnp.float32).astype(bias.dtype)
    return to_gates[0], to_weight.astype(weight.dtype), to_bias, to_start, None


_recur.defvjp(_forward, _backward)
