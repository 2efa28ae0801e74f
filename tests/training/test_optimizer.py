"""Schedules and optimizers against their closed forms and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vljax.errors import UserError
from vljax.training.optimizer import (
    ema_update,
    get_optimizer_config,
    learning_rate,
    learning_rate_factors,
    make_optimizer,
)


def rates(num_steps, **fields):
    schedule = learning_rate(get_optimizer_config(learning_rate=0.1, **fields), num_steps)
    return np.array([schedule(step) for step in range(num_steps)])


def test_schedules_follow_their_formulas():
    step = np.arange(100)
    np.testing.assert_allclose(rates(100), 0.1)
    np.testing.assert_allclose(
        rates(100, schedule="cosine"), 0.05 * (1 + np.cos(np.pi * step / 100)), atol=1e-7
    )
    np.testing.assert_allclose(rates(100, schedule="linear"), 0.1 * (1 - step / 100), rtol=1e-5)
    np.testing.assert_allclose(
        rates(100, schedule="step", decay_every=30), 0.1 * 0.1 ** (step // 30), rtol=1e-5
    )
    warm = rates(100, schedule="cosine", warmup_steps=20)
    np.testing.assert_allclose(warm[:20], 0.1 * step[:20] / 20, atol=1e-8)
    np.testing.assert_allclose(warm[20:], 0.05 * (1 + np.cos(np.pi * step[:80] / 80)), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": "sudden"}, "optimizer.schedule='sudden'"),
        ({"schedule": "step"}, "optimizer.decay_every=0"),
        ({"schedule": "plateau"}, "optimizer.patience=0"),
        ({"warmup_steps": 11}, "optimizer.warmup_steps=11"),
        ({"name": "lion"}, "optimizer.name='lion'"),
        ({"learning_rate": -1.0}, "optimizer.learning_rate=-1.0"),
    ],
)
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        make_optimizer(get_optimizer_config(**fields), 10, {"w": 1.0})


def run(optimizer, gradients, start, values=None):
    @jax.jit
    def step(parameters, state, gradient, value):
        updates, state = optimizer.update(gradient, state, parameters, value=value)
        return {n: p + updates[n] for n, p in parameters.items()}, state

    parameters, state = start, optimizer.init(start)
    for i, gradient in enumerate(gradients):
        value = values[i] if values else jnp.float32(0.0)
        parameters, state = step(parameters, state, gradient, value)
    return parameters


def test_adamw_with_clipping_and_factors_matches_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"a": rng.standard_normal(5), "b": rng.standard_normal((2, 3))}
    gradients = [{n: 3 * rng.standard_normal(p.shape) for n, p in start.items()} for _ in range(8)]
    config = get_optimizer_config(learning_rate=0.01, weight_decay=0.1, clip_norm=1.0)
    ours = run(
        make_optimizer(config, 8, {"a": 1.0, "b": 0.1}),
        [{n: jnp.float32(g) for n, g in gradient.items()} for gradient in gradients],
        {n: jnp.float32(p) for n, p in start.items()},
    )
    theirs = {n: torch.nn.Parameter(torch.tensor(p)) for n, p in start.items()}
    optimizer = torch.optim.AdamW(
        [{"params": theirs["a"]}, {"params": theirs["b"], "lr": 0.001}], lr=0.01, weight_decay=0.1
    )
    for gradient in gradients:
        for name, p in theirs.items():
            p.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        optimizer.step()
    for name, p in theirs.items():
        np.testing.assert_allclose(ours[name], p.detach(), atol=1e-5)


def test_plateau_lowers_the_rate_when_the_loss_stalls():
    config = get_optimizer_config(
        name="adam", learning_rate=1.0, schedule="plateau", patience=5, decay_factor=0.5
    )  # with a gradient of one, Adam's steps are as long as the rate
    optimizer = make_optimizer(config, 100, {"w": 1.0})
    ones = [{"w": jnp.ones(())}] * 40
    falling = run(optimizer, ones, {"w": jnp.zeros(())}, [jnp.float32(100 - i) for i in range(40)])
    stalled = run(optimizer, ones, {"w": jnp.zeros(())}, [jnp.float32(1.0)] * 40)
    np.testing.assert_allclose(falling["w"], -40.0, rtol=1e-5)
    assert -35.0 < stalled["w"] < -1.0


def test_first_matching_pattern_gives_the_factor_and_the_rest_is_frozen():
    names = ["clip.visual.w", "clip.text.w", "unet.w"]
    factors = learning_rate_factors(names, [(r"clip\.visual", 0.1), (r"clip\.", 1.0)])
    assert factors == {"clip.visual.w": 0.1, "clip.text.w": 1.0}
    with pytest.raises(UserError, match="matches no parameter"):
        learning_rate_factors(names, [("vae", 1.0)])


def test_moving_average():
    average = ema_update({"w": jnp.float32(1.0)}, {"w": jnp.float32(3.0)}, 0.75)
    assert average["w"] == 1.5


def test_muon_takes_the_steps_of_optax_with_kernels_of_one_shape_together():
    """To 1e-5 of the longest step, and with the same state: runs begun with optax's go on."""
    rng = np.random.default_rng(0)
    shapes = {
        "a.weight": (3, 3, 32, 48),
        "b.weight": (3, 3, 32, 48),
        "c.weight": (32, 64),
        "d.weight": (64, 32),
        "embedding.weight": (100, 64),
        "a.bias": (48,),
    }

    def draw():
        return {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}

    matrix = optax.contrib.MuonDimensionNumbers
    read = {n: matrix(tuple(range(len(s) - 1)), len(s) - 1) for n, s in shapes.items()}
    peer = optax.contrib.muon(
        optax.constant_schedule(0.1),
        weight_decay=0.1,
        adam_weight_decay=0.1,
        muon_weight_dimension_numbers=lambda parameters: {
            n: None if n in ("embedding.weight", "a.bias") else read[n] for n in parameters
        },
        consistent_rms=0.2,
        preconditioning="schatten",
        ns_steps=3,
    )
    config = get_optimizer_config(name="muon", learning_rate=0.1, weight_decay=0.1)
    optimizer = make_optimizer(config, 10, dict.fromkeys(shapes, 1.0))
    parameters = draw()
    step, peers_step = jax.jit(optimizer.update), jax.jit(peer.update)
    state, peers_state = optimizer.init(parameters), (peer.init(parameters),)
    assert jax.tree.structure(state) == jax.tree.structure(peers_state)
    for _ in range(2):
        gradients = draw()
        updates, state = step(gradients, state, parameters)
        expected, inner = peers_step(gradients, peers_state[0], parameters)
        peers_state = (inner,)
        for name, value in expected.items():
            np.testing.assert_allclose(updates[name], value, atol=1e-5 * np.abs(value).max())
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(peers_state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adam():
    """Jordan et al. 2024: a kernel's step has singular values near one, times 0.2·√(longest side).

    PyTorch's own Muon is the peer: its five iterations from the Frobenius norm come no nearer to
    the orthogonal factor than our three from the Schatten norm.
    """
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = {
        "conv.weight": (3, 3, 32, 48),
        "linear.weight": (40, 64),
        "first.weight": (3, 3, 3, 32),
        "token_embedding.weight": (100, 64),
        "conv.bias": (48,),
    }
    parameters = {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}
    gradients = {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}
    config = get_optimizer_config(name="muon", learning_rate=0.1)
    optimizer = make_optimizer(config, 10, dict.fromkeys(shapes, 1.0))
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(parameters), parameters)
    for name in ("conv.weight", "linear.weight"):
        matrix = np.asarray(updates[name]).reshape(-1, shapes[name][-1])
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.02 * np.sqrt(max(matrix.shape)))
        assert singular.min() > 0.6
        assert singular.max() < 1.3
        gradient = np.array(gradients[name]).reshape(matrix.shape)
        weight = torch.nn.Parameter(torch.zeros(matrix.shape))
        weight.grad = torch.tensor(gradient)
        torch.optim.Muon([weight], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
        peer = weight.detach().numpy()
        left, _, right = np.linalg.svd(-gradient, full_matrices=False)
        exact = 0.02 * np.sqrt(max(matrix.shape)) * left @ right
        far, peers_far = (np.linalg.norm(step - exact) for step in (matrix, peer))
        assert far <= peers_far
    for name in ("first.weight", "token_embedding.weight", "conv.bias"):
        # Adam's first step is as long everywhere (optax gives it Nesterov's momentum here).
        np.testing.assert_allclose(np.abs(updates[name]), 0.147, rtol=0.01)
