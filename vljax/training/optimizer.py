"""Optimizers and learning-rate schedules, from a config.

```
optimizer.name           'adamw' | 'adam' | 'muon'
optimizer.learning_rate  peak
optimizer.b1, b2, eps, weight_decay
optimizer.clip_norm      global gradient norm to clip at, 0 for off
optimizer.schedule       'constant' | 'cosine' | 'linear' | 'step' | 'plateau' | 'validation'
optimizer.warmup_steps   linear rise from 0
optimizer.decay_every    'step': multiply by decay_factor after every so many steps;
                         'validation': validate after every so many steps
optimizer.decay_factor   'step', 'plateau', 'validation'
optimizer.patience       'plateau': steps without a better loss (averaged over 100 steps);
                         'validation': restorations after which the stage ends
```

'plateau' is for SeMani-Trans, whose published training halves the rate when the loss stalls.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vljax.errors import UserError
from vljax.training.validation import selecting


def get_optimizer_config(**overrides: float | str) -> ConfigDict:
    """The fields above with their defaults: AdamW at a constant rate."""
    config = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-4,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "schedule": "constant",
            "warmup_steps": 0,
            "decay_every": 0,
            "decay_factor": 0.1,
            "patience": 0,
        }
    )
    config.update(overrides)
    return config


def get_stage_config(
    batch_size: int, num_steps: int, *, ema_decay: float = 0.0, **optimizer: Any
) -> dict[str, Any]:
    """A stage's fields (`vljax.training.stage.Stage.config`), for a small recipe.

    Args:
        batch_size: Examples a step, over all devices.
        num_steps: Its length.
        ema_decay: Of the averaged weights; 0 for none.
        **optimizer: Fields of `get_optimizer_config`; where nothing is said the rate warms up over
            50 steps and falls as a cosine, and gradients are at most 1 long.
    """
    usual = {"schedule": "cosine", "warmup_steps": 50, "clip_norm": 1.0}
    return {
        "batch_size": batch_size,
        "num_steps": num_steps,
        "accumulate": 1,
        "ema_decay": ema_decay,
        "optimizer": get_optimizer_config(**{**usual, **optimizer}),
    }


def learning_rate(config: ConfigDict, num_steps: int) -> optax.Schedule:
    """The rate by step: a linear warm-up, then the schedule over the steps that remain.

    Raises:
        UserError: an unknown schedule, or one without the fields it needs.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup > num_steps:
        raise UserError(
            f"optimizer.warmup_steps={warmup}: num_steps={num_steps} are fewer; lower it"
        )
    rest = max(num_steps - warmup, 1)
    match config.schedule:
        case "constant" | "plateau" | "validation":  # the latter two scale the updates
            after = optax.constant_schedule(peak)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest)
        case "linear":
            after = optax.linear_schedule(peak, 0.0, rest)
        case "step":
            if config.decay_every < 1:
                raise UserError(
                    f"optimizer.decay_every={config.decay_every}: schedule 'step' needs how many "
                    "steps lie between two decays, 1 or more"
                )
            after = optax.exponential_decay(
                peak, config.decay_every, config.decay_factor, staircase=True
            )
        case unknown:
            raise UserError(
                f"optimizer.schedule={unknown!r}: choose 'constant', 'cosine', 'linear', 'step', "
                "'plateau' or 'validation'"
            )
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(
    config: ConfigDict, num_steps: int, factors: dict[str, float]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a stage, over parameters by name.

    Args:
        config: See the module's docstring.
        num_steps: Length of the stage.
        factors: The factor on the learning rate of each trained parameter.

    Raises:
        UserError: an unknown name, or a value that cannot be.
    """
    for name in ("learning_rate", "clip_norm", "weight_decay"):
        if config[name] < 0:
            raise UserError(f"optimizer.{name}={config[name]}: give a number that is not negative")
    rate = learning_rate(config, num_steps)
    adam = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    match config.name:
        case "adamw":
            update = optax.adamw(rate, weight_decay=config.weight_decay, **adam)
        case "adam":
            update = optax.adam(rate, **adam)
        case "muon":
            update = _muon(rate, config.weight_decay, config.b1, config.b2)
        case unknown:
            raise UserError(f"optimizer.name={unknown!r}: choose 'adamw', 'adam' or 'muon'")
    chain = [update]
    if config.clip_norm:
        chain.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.schedule == "plateau":
        if config.patience < 1:
            raise UserError(
                f"optimizer.patience={config.patience}: schedule 'plateau' needs how many steps "
                "without a better loss it waits for, 1 or more"
            )
        # A single batch's loss is noise; compare averages of 100 steps.
        window = min(100, config.patience)
        chain.append(
            optax.contrib.reduce_on_plateau(
                factor=config.decay_factor,
                patience=max(config.patience // window, 1),
                accumulation_size=window,
            )
        )
    if config.schedule == "validation":
        chain.append(selecting())
    if any(factor != 1.0 for factor in factors.values()):
        chain.append(
            optax.stateless(lambda updates, _: {n: u * factors[n] for n, u in updates.items()})
        )
    return optax.with_extra_args_support(optax.chain(*chain))


def _muon(
    rate: optax.Schedule, weight_decay: float, b1: float, b2: float
) -> optax.GradientTransformation:
    """Muon for the kernels between hidden layers, Adam with Nesterov's momentum for the rest.

    `optax.contrib.muon` does the same with one orthogonalisation a kernel; a step is traced and
    compiled sooner with one a shape. The state is that of `optax.contrib.muon`.
    """
    read = optax.contrib.MuonDimensionNumbers(-2, -1)
    matrix = optax.chain(
        # In no iterations, and without a norm before them: Nesterov's momentum alone.
        optax.contrib.scale_by_muon(
            ns_steps=0,
            preconditioning="schatten",
            weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: read, updates),
        ),
        optax.stateless(lambda updates, _: _orthogonalised(updates)),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    adam = optax.adamw(rate, b1, b2, weight_decay=weight_decay, nesterov=True)
    return optax.partition(
        {"muon": matrix, "adam": adam},
        lambda parameters: {
            name: "muon" if _is_matrix(name, value.shape) else "adam"
            for name, value in parameters.items()
        },
    )


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a kernel between hidden layers (Jordan et al. 2024).

    Not embeddings and what reads them, nor the first and last layers, whose one side is as narrow
    as a picture's channels.
    """
    if len(shape) < 2 or "emb" in name:
        return False
    return min(math.prod(shape[:-1]), shape[-1]) >= 32


def _orthogonalised(updates: dict[str, Any]) -> dict[str, Any]:
    """Each kernel as its nearest orthogonal matrix, input features by output features.

    It is made as large as Adam's steps (Liu et al. 2025, equation 4), so that one rate serves
    both. Kernels of one shape are orthogonalised together.
    """
    matrices = {
        name: value.reshape(-1, value.shape[-1])
        for name, value in updates.items()
        if isinstance(value, jax.Array)  # optax leaves placeholders where Adam is at work
    }
    names_by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, matrix in matrices.items():
        names_by_shape.setdefault(matrix.shape, []).append(name)
    done = dict(updates)
    for shape, names in names_by_shape.items():
        size = 0.2 * jnp.sqrt(jnp.float32(max(shape)))
        steps = size * newton_schulz(jnp.stack([matrices[name] for name in names]))
        done |= {n: step.reshape(updates[n].shape) for n, step in zip(names, steps, strict=True)}
    return done


def newton_schulz(x: Float[Array, "g m n"]) -> Float[Array, "g m n"]:
    """Matrices with nearly their singular vectors, and singular values near one.

    Three iterations of Jordan et al. 2024 on X / ‖X Xᵀ‖^½: in that norm, closer to the largest
    singular value than Frobenius', they do for these shapes what five do from afar (Boissin et al.
    2025).
    """
    if x.shape[-2] > x.shape[-1]:
        return newton_schulz(x.mT).mT
    for iteration in range(3):
        product = x @ x.mT
        if iteration == 0:
            norm = jnp.linalg.norm(product, axis=(-2, -1), keepdims=True)
            scale = jax.lax.rsqrt(jnp.maximum(norm, 1e-8))
            x, product = scale * x, scale**2 * product
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return x


def learning_rate_factors(
    names: Iterable[str], train: Sequence[tuple[str, float]]
) -> dict[str, float]:
    """The trained parameters among `names`, each with its learning-rate factor.

    Raises:
        UserError: a pattern matches no parameter.
    """
    names = list(names)
    for pattern, _ in train:
        if not any(re.match(pattern, name) for name in names):
            raise UserError(
                f"the training pattern {pattern!r} matches no parameter; names look like "
                f"{names[0]!r}"
            )
    factors = {}
    for name in names:
        for pattern, factor in train:
            if re.match(pattern, name):
                factors[name] = factor
                break
    return factors


def ema_update(
    average: dict[str, jax.Array], parameters: dict[str, jax.Array], decay: float
) -> dict[str, jax.Array]:
    """The exponential moving average one step on."""
    return {n: decay * a + (1.0 - decay) * parameters[n] for n, a in average.items()}
