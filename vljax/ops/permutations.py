"""Distributions over permutations: Gumbel-Matching, Gumbel-Sinkhorn and Plackett-Luce.

A permutation is an int32 vector p with p[i] the column of row i: in VOI, the absolute position of
what is generated at step i (thesis, section 3.3). `jax.nn.one_hot(p, n)` is its matrix. Positions
outside `mask` (padding, and the start and end of a sequence) stay in place with probability one.

The classes are pytrees: their logits, temperatures and masks are traced.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.ops.assignment import linear_sum_assignment
from vljax.ops.permanent import log_bethe_permanent
from vljax.ops.sinkhorn import mask_logits, sinkhorn

# Below this the exponential of the KL term goes on as its tangent. (The published program clips
# there, which turns the gradient against the prior.)
LOWEST_EXPONENT = -20.0


def gumbel_kl(
    logits: Float[Array, "..."],
    temperature: float | Float[Array, ""] = 1.0,
    prior_temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "..."]:
    """KL((logits + ε) / temperature ‖ ε / prior_temperature) of every entry, ε Gumbel noise.

    Mena et al. (2018), appendix B.3. With r = prior_temperature / temperature it is
    −log r − 1 + γ (r − 1) + r x + Γ(1 + r) exp(−r x), γ being Euler's constant.

    Args:
        logits: any shape.
        temperature: of the posterior, positive; traced.
        prior_temperature: of the prior, positive; traced.
    """
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    r = jnp.asarray(prior_temperature, x.dtype) / jnp.asarray(temperature, x.dtype)
    exponent = -r * x
    low = jnp.minimum(exponent, -LOWEST_EXPONENT)
    exponential = jnp.exp(low) * (1 + exponent - low)
    growth = jnp.exp(lax.lgamma(1 + r))
    return -jnp.log(r) - 1 + np.euler_gamma * (r - 1) + r * x + growth * exponential


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GumbelSinkhorn:
    """Doubly stochastic matrices S((X + ε) / τ), S being Sinkhorn's limit (Mena et al., 2018).

    Attributes:
        logits: X.
        mask: True where a position takes part, or None for all.
        temperature: τ; as it goes to zero the samples become Gumbel-Matching's.
    """

    logits: Float[Array, "*b n n"]
    mask: Bool[Array, "*#b n"] | None = None
    temperature: float | Float[Array, ""] = 1.0

    def perturbed(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Array:
        """X + ε for `shape` samples, masked; [*shape, *b, n, n]."""
        logits = mask_logits(self.logits, self.mask)
        return logits + jax.random.gumbel(key, (*shape, *logits.shape), logits.dtype) * _movable(
            self.mask, logits.dtype
        )

    def sample(
        self, key: Key[Array, ""], shape: tuple[int, ...] = (), num_iters: int = 20
    ) -> Float[Array, "*sb n n"]:
        """Draws `shape` matrices per problem, differentiable in the logits and τ."""
        return sinkhorn(self.perturbed(key, shape), num_iters, self.temperature)

    def kl_divergence(
        self, prior_temperature: float | Float[Array, ""] = 1.0
    ) -> Float[Array, "*b"]:
        """Upper bound of the KL to the same distribution with X = 0 and `prior_temperature`.

        It is the KL between the Gumbel matrices before S, over entries that may move; S can only
        bring the two closer. It is not invariant to adding a constant to a row of X, as the
        distribution is. A forbidden (−inf) entry that could move makes it infinite.
        """
        if self.mask is None:
            return gumbel_kl(self.logits, self.temperature, prior_temperature).sum((-2, -1))
        block = self.mask[..., :, None] & self.mask[..., None, :]
        kl = gumbel_kl(jnp.where(block, self.logits, 0), self.temperature, prior_temperature)
        return jnp.where(block, kl, 0).sum((-2, -1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GumbelMatching:
    """Permutations P, sampled by perturbing X and matching, scored by exp⟨X, P⟩ / perm(exp X).

    The two are not the same distribution. A sample is argmax_P ⟨X + ε, P⟩ with noise on each of
    the n² entries (perturb-and-MAP), and only noise on each of the n! permutations would give the
    Gibbs probabilities exp⟨X, P⟩ / perm(exp X). They agree for X = 0 (or any sum of a row and a
    column vector), where both are uniform; for n = 2 the log-odds of the two permutations move by
    the sum of two logistic variables rather than by one. The thesis (equation 3.4), after Mena et
    al. (2018), names both Gumbel-Matching and uses the second as the policy's log-probability, so
    the policy gradient is of the Gibbs distribution at perturb-and-MAP samples.

    Attributes:
        logits: X.
        mask: True where a position takes part, or None for all.
    """

    logits: Float[Array, "*b n n"]
    mask: Bool[Array, "*#b n"] | None = None

    def sample(
        self,
        key: Key[Array, ""],
        shape: tuple[int, ...] = (),
        *,
        sinkhorn_iters: int = 0,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Int[Array, "*sb n"]:
        """Draws `shape` permutations per problem.

        Args:
            key: PRNG key.
            shape: leading axes of the result.
            sinkhorn_iters: 0 matches X + ε, the zero-temperature limit. A positive number
                matches instead the relaxed S((X + ε) / τ) after so many iterations, as in
                Algorithm 1 (20 as published): this maximises the sum, not the product, of the
                entries, another distribution again for n > 2.
            temperature: τ of the relaxed sample.
        """
        relaxed = GumbelSinkhorn(self.logits, self.mask, temperature)
        if sinkhorn_iters:
            score = relaxed.sample(key, shape, sinkhorn_iters)
        else:
            score = relaxed.perturbed(key, shape)
        return linear_sum_assignment(-lax.stop_gradient(score), self.mask)

    def mode(self) -> Int[Array, "*b n"]:
        """The most probable permutation, argmax_P ⟨X, P⟩."""
        return linear_sum_assignment(-self.logits, self.mask)

    def log_potential(self, permutation: Int[Array, "*sb n"]) -> Float[Array, "*sb"]:
        """⟨X, P⟩ over positions that may move: the unnormalised log-probability."""
        return _gather(self.logits, permutation, self.mask)

    def log_prob(
        self, permutation: Int[Array, "*sb n"], num_iters: int = 30
    ) -> Float[Array, "*sb"]:
        """⟨X, P⟩ − log perm(exp X), the Gibbs log-probability.

        The permanent is Bethe's, by `num_iters` belief propagations: too small by at most (√2)ⁿ, so
        this is too large by at most n/2 · log 2. Its gradient in X is P − B, B being the Bethe
        marginals.
        """
        # The row maxima cancel; taken off first they leave float32 the digits that matter.
        x = mask_logits(self.logits, self.mask)
        top = lax.stop_gradient(x.max(-1, keepdims=True))
        centred = GumbelMatching(x - jnp.where(jnp.isfinite(top), top, 0), self.mask)
        normalizer = log_bethe_permanent(centred.logits, num_iters, self.mask)
        return centred.log_potential(permutation) - normalizer

    def kl_divergence(self) -> Float[Array, "*b"]:
        """Upper bound of the KL of the samples from uniform permutations, in closed form.

        As `GumbelSinkhorn.kl_divergence` at temperatures of one (matching is scale-free). The
        samples of X = 0 are uniform, so log n! less this is a lower bound of their entropy.
        """
        return GumbelSinkhorn(self.logits, self.mask).kl_divergence()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlackettLuce:
    """Orders drawn one by one without replacement, each with probability ∝ exp(score).

    Plackett (1975); sampling by sorting scores plus Gumbel noise is exact (Yellott, 1977). Of the
    positions that may move, the first receives the first item drawn.

    Attributes:
        logits: the items' scores.
        mask: True where a position takes part, or None for all.
    """

    logits: Float[Array, "*b n"]
    mask: Bool[Array, "*#b n"] | None = None

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Int[Array, "*sb n"]:
        """Draws `shape` permutations per problem."""
        scores = self._scores()
        noise = jax.random.gumbel(key, (*shape, *scores.shape), scores.dtype)
        return self._sort(lax.stop_gradient(scores) + noise)

    def mode(self) -> Int[Array, "*b n"]:
        """The most probable permutation: by falling score."""
        return self._sort(self._scores())

    def log_prob(self, permutation: Int[Array, "*sb n"]) -> Float[Array, "*sb"]:
        """Σ_t score[p_t] − log Σ_{s ≥ t} exp(score[p_s]), exact and normalised."""
        scores = self._scores()
        scores = jnp.broadcast_to(scores, permutation.shape)
        drawn = jnp.take_along_axis(scores, permutation, axis=-1)
        if self.mask is not None:
            drawn = jnp.where(self.mask, drawn, -1e30)
        left = lax.cumlogsumexp(drawn, axis=drawn.ndim - 1, reverse=True)
        terms = drawn - left
        return (terms if self.mask is None else jnp.where(self.mask, terms, 0)).sum(-1)

    def kl_divergence(self) -> Float[Array, "*b"]:
        """Upper bound of the KL from uniform orders: Σ `gumbel_kl` of the scores."""
        if self.mask is None:
            return gumbel_kl(self.logits).sum(-1)
        kl = gumbel_kl(jnp.where(self.mask, self.logits, 0))
        return jnp.where(self.mask, kl, 0).sum(-1)

    def _scores(self) -> Array:
        return self.logits.astype(jnp.promote_types(self.logits.dtype, jnp.float32))

    def _sort(self, keys: Array) -> Array:
        if self.mask is None:
            return jnp.argsort(-keys, axis=-1).astype(jnp.int32)
        mask = jnp.broadcast_to(self.mask, keys.shape)
        order = jnp.argsort(jnp.where(mask, -keys, jnp.inf), axis=-1)
        rank = jnp.cumsum(mask, axis=-1) - 1
        item = jnp.take_along_axis(order, jnp.maximum(rank, 0), axis=-1)
        return jnp.where(mask, item, jnp.arange(keys.shape[-1])).astype(jnp.int32)


def _movable(mask: Array | None, dtype: jnp.dtype) -> Array:
    if mask is None:
        return jnp.ones((), dtype)
    return (mask[..., :, None] & mask[..., None, :]).astype(dtype)


def _gather(logits: Array, permutation: Array, mask: Array | None) -> Array:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logits = jnp.broadcast_to(logits, (*permutation.shape, logits.shape[-1]))
    chosen = jnp.take_along_axis(logits, permutation[..., None], axis=-1)[..., 0]
    return (chosen if mask is None else jnp.where(mask, chosen, 0)).sum(-1)
