"""The training of VOI: Algorithm 1, its variants, and θ alone under other orders."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from vljax.data.text import pad_text
from vljax.errors import UserError
from vljax.models.insertion_search import search_order
from vljax.ops.insertion import movable
from vljax.ops.permutations import GumbelMatching, PlackettLuce
from vljax.ops.similarity import cosine
from vljax.systems.voi.model import VOI, Remembered, fixed_orders, open_source, tied
from vljax.systems.voi.recipe import order_of, stage_names
from vljax.systems.voi.use import written_pictures
from vljax.training.stage import Stage

# Of the published program: steps in which a batch serves the policy, how far its ratio may go.
PPO_EPOCHS, PPO_CLIP = 3, 0.1
# Sinkhorn iterations before the assignment, and belief propagations of the Bethe permanent.
SINKHORN_ITERS, BETHE_ITERS = 20, 30

# Sources of so many examples are kept in memory.
REMEMBERED = 1000


def stages(config: ConfigDict) -> list[Stage]:
    """The training stages: as published `joint`, `separate` and `tune`.

    Raises:
        UserError: the data is not there, or a field cannot be.
    """
    source = open_source(config)
    transform = pad_text(config.data.max_source, config.data.max_target)
    frequencies = source.vocabulary.frequencies
    example = transform(source[0], np.random.default_rng(0))
    made = []
    for name in stage_names(config):
        stage = config.stages[name]
        _check_stage(config, name, stage)
        made.append(
            Stage(
                name=name,
                loss=order_loss(config, stage, frequencies),
                train=_trained(stage),
                source=Remembered(source) if len(source) <= REMEMBERED else source,
                transform=transform,
                config=stage,
                memory=functools.partial(start_memory, stage, config.num_orders, example),
                pictures=written_pictures(config),
            )
        )
    return made


def _check_stage(config: ConfigDict, name: str, stage: ConfigDict) -> None:
    order = order_of(stage)
    field = f"stages.{name}"
    if stage.trains not in ("both", "permutation", "decoder"):
        raise UserError(
            f"{field}.trains={stage.trains!r}: choose 'both', 'permutation' or 'decoder'"
        )
    if stage.estimator not in ("reinforce", "ppo"):
        raise UserError(f"{field}.estimator={stage.estimator!r}: choose 'reinforce' or 'ppo'")
    if min(stage.entropy) < 0 or (min(stage.entropy) == 0 < max(stage.entropy)):
        raise UserError(f"{field}.entropy={stage.entropy}: give two positive numbers, or (0, 0)")
    if order == "voi" and stage.trains != "decoder" and config.num_orders < 2:
        raise UserError(
            f"num_orders={config.num_orders}: the reward is compared with the mean of the orders "
            "drawn, give 2 or more"
        )
    if config.num_orders < 1:
        raise UserError(f"num_orders={config.num_orders}: give 1 or more")


def _trained(stage: ConfigDict) -> list[tuple[str, float]]:
    """Patterns of the parameters that a stage trains."""
    decoder = [(r"decoder\.", 1.0)]
    if stage.order != "voi" or stage.trains == "decoder":
        return decoder
    if stage.trains == "permutation":
        return [(r"permutation\.", 1.0)]
    shared = [(r"permutation\.source\.", 1.0)] if stage.shared else []
    return [*decoder, *shared, (r"permutation\.", stage.permutation_rate)]


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
    if stage.order == "voi" and stage.estimator == "ppo" and stage.trains != "decoder":
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


def draw_orders(
    model: VOI, batch: Mapping[str, Array], key: Key[Array, ""], k: int
) -> tuple[GumbelMatching | PlackettLuce, Int[Array, "k b n"]]:
    """Algorithm 1, lines 4 to 7: φ's distribution, and k orders drawn from it, [k, b, n]."""
    assert model.permutation is not None
    posterior = model.permutation.distribution(batch)
    if isinstance(posterior, PlackettLuce):
        return posterior, posterior.sample(key, (k,))
    return posterior, posterior.sample(key, (k,), sinkhorn_iters=SINKHORN_ITERS)


def log_posterior(
    posterior: GumbelMatching | PlackettLuce, orders: Int[Array, "k b n"]
) -> Float[Array, "k b"]:
    """Line 9: log q, for Gumbel-Matching with the Bethe permanent."""
    if isinstance(posterior, PlackettLuce):
        return posterior.log_prob(orders)
    return posterior.log_prob(orders, BETHE_ITERS)


def policy_loss(
    log_q: Float[Array, "k b"],
    log_q_then: Float[Array, "k b"],
    advantage: Float[Array, "k b"],
    estimator: str,
) -> Float[Array, ""]:
    """What φ descends to raise the reward (equation 3.3 without its entropy).

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


def alignment_loss(model: VOI) -> Float[Array, ""]:
    """Cosine distance of φ's words from θ's, which stay: of a text's table once for each side."""
    assert model.permutation is not None
    theirs = jax.lax.stop_gradient(model.decoder.source.embedding.weight[...])
    own = model.permutation.source.embedding.weight[...]
    distance = 1 - cosine(own, theirs).mean()
    return distance if model.decoder.source.regions is not None else 2 * distance


def order_loss(
    config: ConfigDict, stage: ConfigDict, frequencies: Int[np.ndarray, " v"]
) -> Callable:
    """A stage's loss: Algorithm 1, or θ's alone under another order. Its memory is a `Memory`.

    One call of the decoder serves all K orders of all targets. PPO's epochs are steps: every batch
    takes part in its own step and in the two after it, with the policy that has moved on since. In
    steps that `alternate` gives to one network, the other's gradient is zero; an optimizer with
    momentum still moves it a little.
    """
    learns = stage.order == "voi" and stage.trains != "decoder"
    total = max(stage.num_steps * stage.accumulate - 1, 1)

    def loss(model: VOI, batch: dict, key: Key[Array, ""], memory: Memory) -> Any:
        if stage.order == "voi" and stage.shared:
            model = tied(model)
        order_key, dropout_key = jax.random.split(key)
        tokens, mask = batch["target"], batch["target_mask"]
        posterior: GumbelMatching | PlackettLuce | None = None
        if stage.order == "voi":
            posterior, orders = draw_orders(model, batch, order_key, config.num_orders)
        elif stage.order == "sao":
            decoder = jax.lax.stop_gradient(model.decoder)
            orders = search_order(decoder, batch, config.search_beams).order[:, :1]
            orders = jnp.moveaxis(orders, 1, 0)
        else:
            orders = fixed_orders(stage.order, tokens, mask, frequencies, order_key)[None]
        key_or_none = None if stage.trains == "permutation" and learns else dropout_key
        scores = model.decoder.scores(batch, jnp.moveaxis(orders, 0, 1), key=key_or_none)
        reward = jax.lax.stop_gradient(jnp.moveaxis(scores.log_prob(), 1, 0))
        decoder_loss = -scores.smoothed(config.label_smoothing).mean()
        words = jnp.maximum(movable(mask).sum(-1) + 1, 1)
        metrics = {"nats_per_word": -(reward / words).mean()}
        if not learns:
            return decoder_loss, (metrics, Memory(memory.step + 1, memory.past))
        assert posterior is not None

        advantage = reward - reward.mean(0)
        log_q = log_posterior(posterior, orders)
        policy = policy_loss(log_q, log_q, advantage, stage.estimator)
        past = memory.past
        if past:
            assert model.permutation is not None
            for old in range(PPO_EPOCHS - 1):
                then = jax.tree.map(lambda x, old=old: x[old], past)
                now = log_posterior(model.permutation.distribution(then["batch"]), then["orders"])
                policy += policy_loss(now, then["log_q"], then["advantage"], "ppo")
            policy /= PPO_EPOCHS
            new = {"batch": dict(batch), "orders": orders, "log_q": log_q, "advantage": advantage}
            new = jax.tree.map(
                lambda n, p: jnp.concatenate([n[None].astype(p.dtype), p[:-1]]), new, past
            )
            past = jax.lax.stop_gradient(new)
        kl = posterior.kl_divergence().mean()
        beta = entropy_coefficient(stage.entropy, memory.step / total)
        permutation_loss = policy + beta * kl
        if stage.alignment:
            distance = alignment_loss(model)
            permutation_loss += stage.alignment * distance
            metrics["alignment"] = distance
        metrics |= {
            "decoder_loss": decoder_loss,
            "reward_spread": reward.std(0).mean(),
            "kl": kl,
            "beta": beta,
        }
        if stage.trains == "permutation":
            decoder_loss = jnp.zeros(())
        turns = sum(stage.alternate)
        if turns:
            first = memory.step % turns < stage.alternate[0]
            decoder_loss = jnp.where(first, decoder_loss, 0)
            permutation_loss = jnp.where(first, 0, permutation_loss)
        return decoder_loss + permutation_loss, (metrics, Memory(memory.step + 1, past))

    return loss


def entropy_coefficient(ends: Sequence[float], share: float | Float[Array, ""]) -> Float[Array, ""]:
    """β, log-linear from the first to the second of `ends` as `share` goes from 0 to 1."""
    start, end = ends
    if not start:
        return jnp.zeros(())
    return jnp.asarray(start * (end / start) ** share, jnp.float32)
