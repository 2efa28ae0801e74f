"""The method of VOI: Algorithm 1 line by line, and what it is compared with.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 3.

| thesis | here |
|---|---|
| equation 3.1, p(y, z given x) of θ | `vljax.models.insertion_decoder.InsertionDecoder.scores` |
| equation 3.2, the bound that both networks raise | `order_loss` |
| equation 3.3, φ's gradient | `policy_loss`, `entropy_coefficient` |
| equation 3.4, q(z given y, x) of φ | `vljax.models.permutation_network`, `log_posterior` |
| equations 3.5 to 3.7, distances of orders | `vljax.metrics.order` |
| section 3.5, fixed orders; SAO | `fixed_orders`; `vljax.models.insertion_search.search_order` |

Orders are [k, b, n]: K of them for every target of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from vljax.models.insertion_decoder import Scores
from vljax.models.insertion_search import search_order
from vljax.ops.insertion import movable
from vljax.ops.permutations import GumbelMatching, PlackettLuce
from vljax.ops.similarity import cosine
from vljax.systems.voi.model import VOI, tied
from vljax.systems.voi.recipe import learns_order

# Of the published program: steps in which a batch serves the policy, how far its ratio may go.
PPO_EPOCHS, PPO_CLIP = 3, 0.1
# Sinkhorn iterations before the assignment, and belief propagations of the Bethe permanent.
SINKHORN_ITERS, BETHE_ITERS = 20, 30

Posterior = GumbelMatching | PlackettLuce


# Orders --------------------------------------------------------------------------------------


def fixed_orders(
    order: str,
    tokens: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    frequencies: Int[np.ndarray, " v"],
    key: Key[Array, ""] | None = None,
) -> Int[Array, "b n"]:
    """Orders that are not learnt (section 3.5).

    Args:
        order: `"l2r"`, `"r2l"`, `"random"`, or `"common"` and `"rare"`: by falling and by rising
            frequency of the words, equals from left to right.
        tokens: Framed targets.
        mask: Their valid entries.
        frequencies: Of the words.
        key: For `"random"`.
    """
    words, places = movable(mask), jnp.arange(tokens.shape[1])
    match order:
        case "l2r":
            return jnp.broadcast_to(places, tokens.shape).astype(jnp.int32)
        case "r2l":
            scores = jnp.broadcast_to(places, tokens.shape)
        case "random":
            assert key is not None
            return PlackettLuce(jnp.zeros(tokens.shape), words).sample(key)
        case "common":
            scores = jnp.asarray(frequencies, jnp.float32)[tokens]
        case "rare":
            scores = -jnp.asarray(frequencies, jnp.float32)[tokens]
        case _:
            raise ValueError(f"{order!r} is not fixed")
    return PlackettLuce(scores.astype(jnp.float32), words).mode()


def draw_orders(
    model: VOI, batch: Mapping[str, Array], key: Key[Array, ""], k: int
) -> tuple[Posterior, Int[Array, "k b n"]]:
    """Lines 4 to 7: φ's distribution, and k orders drawn from it."""
    assert model.permutation is not None
    posterior = model.permutation.distribution(batch)
    if isinstance(posterior, PlackettLuce):
        return posterior, posterior.sample(key, (k,))
    return posterior, posterior.sample(key, (k,), sinkhorn_iters=SINKHORN_ITERS)


def log_posterior(posterior: Posterior, orders: Int[Array, "k b n"]) -> Float[Array, "k b"]:
    """Line 9: log q, for Gumbel-Matching with the Bethe permanent."""
    if isinstance(posterior, PlackettLuce):
        return posterior.log_prob(orders)
    return posterior.log_prob(orders, BETHE_ITERS)


def training_orders(
    model: VOI,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    config: ConfigDict,
    stage: ConfigDict,
    frequencies: Int[np.ndarray, " v"],
) -> tuple[Posterior | None, Int[Array, "k b n"]]:
    """The orders in which θ learns to write: φ's with its distribution, searched, or fixed."""
    if stage.order == "voi":
        return draw_orders(model, batch, key, config.num_orders)
    if stage.order == "sao":
        decoder = jax.lax.stop_gradient(model.decoder)
        orders = search_order(decoder, batch, config.search_beams).order[:, :1]
        return None, jnp.moveaxis(orders, 1, 0)
    tokens, mask = batch["target"], batch["target_mask"]
    return None, fixed_orders(stage.order, tokens, mask, frequencies, key)[None]


# Losses --------------------------------------------------------------------------------------


def reward(scores: Scores) -> Float[Array, "k b"]:
    """Log p(y, z given x), what φ is rewarded with; it sends no gradient to θ."""
    return jax.lax.stop_gradient(jnp.moveaxis(scores.log_prob(), 1, 0))


def advantage(rewards: Float[Array, "k b"]) -> Float[Array, "k b"]:
    """Line 10: the reward less its baseline b(y, x), the mean over the K orders of a target."""
    return rewards - rewards.mean(0)


def policy_loss(
    log_q: Float[Array, "k b"],
    log_q_then: Float[Array, "k b"],
    advantage: Float[Array, "k b"],
    estimator: str,
) -> Float[Array, ""]:
    """Line 11: what φ descends to raise the reward (equation 3.3 without its entropy).

    Args:
        log_q: Of the orders, now.
        log_q_then: When they were drawn.
        advantage: Reward less baseline.
        estimator: `"reinforce"`, or `"ppo"` (Schulman et al. 2017, equation 7).
    """
    advantage = jax.lax.stop_gradient(advantage)
    if estimator == "reinforce":
        return -(log_q * advantage).mean()
    ratio = jnp.exp(log_q - jax.lax.stop_gradient(log_q_then))
    clipped = jnp.clip(ratio, 1 - PPO_CLIP, 1 + PPO_CLIP)
    return -jnp.minimum(ratio * advantage, clipped * advantage).mean()


def entropy_coefficient(ends: Sequence[float], share: float | Float[Array, ""]) -> Float[Array, ""]:
    """β, log-linear from the first to the second of `ends` as `share` goes from 0 to 1."""
    start, end = ends
    if not start:
        return jnp.zeros(())
    return jnp.asarray(start * (end / start) ** share, jnp.float32)


def alignment_loss(model: VOI) -> Float[Array, ""]:
    """Cosine distance of φ's words from θ's, which stay: of a text's table once for each side."""
    assert model.permutation is not None
    theirs = jax.lax.stop_gradient(model.decoder.source.embedding.weight[...])
    own = model.permutation.source.embedding.weight[...]
    distance = 1 - cosine(own, theirs).mean()
    return distance if model.decoder.source.regions is not None else 2 * distance


# PPO's memory --------------------------------------------------------------------------------


class Memory(NamedTuple):
    """What a stage remembers.

    Attributes:
        step: losses computed so far, on which β and the alternation depend.
        past: PPO: earlier batches with the orders drawn then, their log q and their advantages,
            each stacked, newest first; else empty.
    """

    step: Int[Array, ""]
    past: dict[str, Any]


def start_memory(stage: ConfigDict, num_orders: int, example: Mapping[str, Any]) -> Memory:
    """The memory before the first step."""
    past: dict[str, Any] = {}
    if learns_order(stage) and stage.estimator == "ppo":
        rows = stage.batch_size // stage.accumulate
        room = len(example["target"])
        shape = (PPO_EPOCHS - 1, rows)
        past = {
            "batch": {
                name: jnp.zeros((*shape, *np.shape(value)), np.asarray(value).dtype)
                for name, value in example.items()
            },
            "orders": jnp.zeros((PPO_EPOCHS - 1, num_orders, rows, room), jnp.int32),
            "log_q": jnp.zeros((PPO_EPOCHS - 1, num_orders, rows)),
            "advantage": jnp.zeros((PPO_EPOCHS - 1, num_orders, rows)),
        }
    return Memory(jnp.zeros((), jnp.int32), past)


def later_epochs(model: VOI, past: Mapping[str, Any]) -> list[Float[Array, ""]]:
    """PPO's later epochs: the loss of the policy as it is now on each batch remembered."""
    assert model.permutation is not None
    losses = []
    for old in range(PPO_EPOCHS - 1):
        then = jax.tree.map(lambda x, old=old: x[old], past)
        now = log_posterior(model.permutation.distribution(then["batch"]), then["orders"])
        losses.append(policy_loss(now, then["log_q"], then["advantage"], "ppo"))
    return losses


def remember(past: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The newest batch in the place of the oldest."""
    shifted = jax.tree.map(
        lambda n, p: jnp.concatenate([n[None].astype(p.dtype), p[:-1]]), new, past
    )
    return jax.lax.stop_gradient(shifted)


# Algorithm 1 ---------------------------------------------------------------------------------


def order_loss(
    config: ConfigDict, stage: ConfigDict, frequencies: Int[np.ndarray, " v"]
) -> Callable:
    """A stage's loss: Algorithm 1, or θ's alone under another order. Its memory is a `Memory`.

    One call of the decoder serves all K orders of all targets. PPO's epochs are steps: every batch
    takes part in its own step and in the two after it, with the policy that has moved on since. In
    steps that `alternate` gives to one network, the other's gradient is zero; an optimizer with
    momentum still moves it a little.
    """
    learns = learns_order(stage)
    last = max(stage.num_steps * stage.accumulate - 1, 1)

    def loss(model: VOI, batch: dict, key: Key[Array, ""], memory: Memory) -> Any:
        if stage.order == "voi" and stage.shared:
            model = tied(model)
        order_key, dropout_key = jax.random.split(key)
        posterior, orders = training_orders(model, batch, order_key, config, stage, frequencies)
        still = learns and stage.trains == "permutation"  # θ only rewards
        scores = model.decoder.scores(
            batch, jnp.moveaxis(orders, 0, 1), key=None if still else dropout_key
        )
        rewards = reward(scores)
        words = jnp.maximum(movable(batch["target_mask"]).sum(-1) + 1, 1)
        metrics = {"nats_per_word": -(rewards / words).mean()}
        decoder_loss = -scores.smoothed(config.label_smoothing).mean()  # line 8
        if not learns:
            return decoder_loss, (metrics, Memory(memory.step + 1, memory.past))
        assert posterior is not None

        log_q, gained, past = log_posterior(posterior, orders), advantage(rewards), memory.past
        policy = policy_loss(log_q, log_q, gained, stage.estimator)
        if past:
            policy = sum(later_epochs(model, past), policy) / PPO_EPOCHS
            past = remember(
                past,
                {"batch": dict(batch), "orders": orders, "log_q": log_q, "advantage": gained},
            )
        # The entropy, but for a constant, is −KL from the uniform distribution over orders.
        kl = posterior.kl_divergence().mean()
        beta = entropy_coefficient(stage.entropy, memory.step / last)
        permutation_loss = policy + beta * kl
        if stage.alignment:
            metrics["alignment"] = alignment_loss(model)
            permutation_loss += stage.alignment * metrics["alignment"]
        metrics |= {
            "decoder_loss": decoder_loss,
            "reward_spread": rewards.std(0).mean(),
            "kl": kl,
            "beta": beta,
        }
        both = _in_turn(
            stage, memory.step, jnp.zeros(()) if still else decoder_loss, permutation_loss
        )
        return both, (metrics, Memory(memory.step + 1, past))

    return loss


def _in_turn(
    stage: ConfigDict,
    step: Int[Array, ""],
    decoder_loss: Float[Array, ""],
    permutation_loss: Float[Array, ""],
) -> Float[Array, ""]:
    """Both networks' losses, or that of the one whose turn it is (`stages.NAME.alternate`)."""
    turns = sum(stage.alternate)
    if turns:
        first = step % turns < stage.alternate[0]
        decoder_loss = jnp.where(first, decoder_loss, 0)
        permutation_loss = jnp.where(first, 0, permutation_loss)
    return decoder_loss + permutation_loss
