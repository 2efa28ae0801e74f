"""The training loop: one jitted step, checkpoints, resume, pictures."""

import functools
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key
from ml_collections import ConfigDict

from vljax.data import pipeline
from vljax.data.source import OnCorrupt
from vljax.errors import RunError
from vljax.models.parameters import named_parameters, with_parameters
from vljax.training import mesh as meshes
from vljax.training.checkpoint import Checkpoints, abstract
from vljax.training.optimizer import ema_update, learning_rate_factors, make_optimizer
from vljax.training.preemption import Preemption
from vljax.training.stage import Stage
from vljax.training.validation import SCHEDULE, Validation, decide
from vljax.training.validation import check as check_validation
from vljax.training.weights import parts_of
from vljax.training.workdir import Workdir

Parameters = dict[str, Array]


class TrainState(NamedTuple):
    """What a step changes. Dictionaries are keyed by parameter name."""

    step: Int[Array, ""]
    parameters: Parameters
    average: Parameters
    optimizer: optax.OptState
    memory: Any


def abstract_batch(
    stage: Stage, seed: int, on_corrupt: OnCorrupt
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a stage's batches, from one example that can be read."""
    one = pipeline.batches(
        stage.source,
        batch_size=1,
        seed=seed,
        transform=stage.transform,
        num_batches=1,
        prefetch=0,
        on_corrupt=on_corrupt,
    )
    with one:
        example = next(one)
    return {
        name: jax.ShapeDtypeStruct((stage.config.batch_size, *value.shape[1:]), value.dtype)
        for name, value in example.items()
        if name not in ("index", "substituted")
    }


@dataclass(frozen=True)
class Program:
    """A stage made ready for a mesh: its step, and how its state is made and split.

    Attributes:
        traced: The step, traced and not yet compiled.
        init: `init(parameters) -> state`, jitted; takes the trained parameters.
        shapes: The state's shapes and dtypes.
        shardings: The state's shardings.
        trained: Names of the trained parameters.
        validation: What validates the stage, or None.
    """

    traced: jax.stages.Traced
    init: Callable
    shapes: TrainState
    shardings: TrainState
    trained: list[str]
    validation: Validation | None = None

    @functools.cached_property
    def step(self) -> Callable:
        """`step(state, frozen, batch, seed) -> (state, metrics)`; `state` is donated.

        It is compiled when it is first asked for.
        """
        return self.traced.lower().compile()


def make_program(stage: Stage, skeleton: Any, run: ConfigDict, mesh: Mesh) -> Program:
    """Build a stage's step, and trace it on shapes; nothing compiles yet.

    Args:
        stage: What to train.
        skeleton: The model's structure (from `jax.eval_shape`).
        run: The run's config: `sharding`, `seed`, `data`.
        mesh: The devices.

    Raises:
        UserError: the stage's config cannot be, or its batch does not fit the mesh.
    """
    config, rules = stage.config, run.sharding
    field = f"stages.{stage.name}.batch_size"
    meshes.check_batch_size(config.batch_size, config.accumulate, mesh, field)
    shapes = {
        name: jax.ShapeDtypeStruct(v.shape, v.dtype)
        for name, v in named_parameters(skeleton).items()
    }
    validated = config.optimizer.schedule == SCHEDULE
    if validated:
        check_validation(stage)
    factors = learning_rate_factors(shapes, stage.train)
    optimizer = make_optimizer(config.optimizer, config.num_steps, factors)

    def init(parameters: Parameters) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            # A copy: the average and the parameters are donated separately.
            average=jax.tree.map(jnp.copy, parameters) if config.ema_decay else {},
            optimizer=optimizer.init(parameters),
            memory=stage.memory() if stage.memory else (),
        )

    def loss(
        trained: Parameters, frozen: Parameters, batch: dict, key: Key[Array, ""], memory: Any
    ) -> tuple[Array, tuple[dict, Any]]:
        model = with_parameters(skeleton, frozen | trained)
        if stage.memory:
            value, (metrics, memory) = stage.loss(model, batch, key, memory)
        else:
            (value, metrics), memory = stage.loss(model, batch, key), ()
        # What a stage owes: a mean over a batch in 16 bits would stand still near its end.
        chex.assert_type(value, jnp.float32)
        chex.assert_rank([value, *metrics.values()], 0)
        return value, (metrics, memory)

    def gradient(
        trained: Parameters, frozen: Parameters, batch: dict, key: Key[Array, ""], memory: Any
    ) -> tuple[tuple[Array, tuple[dict, Any]], Parameters]:
        """Over the whole batch, or averaged over its parts one after the other."""
        differentiate = jax.value_and_grad(loss, has_aux=True)
        if config.accumulate == 1:
            return differentiate(trained, frozen, batch, key, memory)
        # Every part takes each n-th row, so that it stays spread over the devices.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, config.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(carry: tuple, part: dict) -> tuple[tuple, None]:
            total, memory, index = carry
            (value, (metrics, memory)), grads = differentiate(
                trained, frozen, part, jax.random.fold_in(key, index), memory
            )
            total = jax.tree.map(
                lambda t, new: t + new / config.accumulate, total, (value, metrics, grads)
            )
            return (total, memory, index + 1), None

        first = jax.tree.map(lambda x: x[0], parts)
        like = jax.eval_shape(differentiate, trained, frozen, first, key, memory)
        (value, (metrics, _)), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        ((value, metrics, grads), memory, _), _ = jax.lax.scan(
            add, ((value, metrics, grads), memory, 0), parts
        )
        return (value, (metrics, memory)), grads

    def step(
        state: TrainState, frozen: Parameters, batch: dict, seed: Int[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, (metrics, memory)), grads = gradient(
            state.parameters, frozen, batch, key, state.memory
        )
        updates, optimizer_state = optimizer.update(
            grads, state.optimizer, state.parameters, value=value
        )
        parameters = optax.apply_updates(state.parameters, updates)
        average = ema_update(state.average, parameters, config.ema_decay)
        metrics = {"loss": value, "gradient_norm": optax.global_norm(grads), **metrics}
        return (
            TrainState(state.step + 1, parameters, average, optimizer_state, memory),
            {name: metric.astype(jnp.float32) for name, metric in metrics.items()},
        )

    split = meshes.parameter_shardings(shapes, rules, mesh)
    state_shapes = jax.eval_shape(init, {name: shapes[name] for name in factors})
    shardings = meshes.state_shardings(state_shapes, {name: split[name] for name in factors}, mesh)
    frozen = {name: shapes[name] for name in shapes if name not in factors}
    batch = abstract_batch(stage, run.seed, run.data.on_corrupt)
    validation = None
    if validated:

        def validation_loss(
            trained: Parameters, frozen: Parameters, batch: dict, index: Array, memory: Any
        ) -> Array:
            return loss(trained, frozen, batch, jax.random.key(index), memory)[0]

        def decided(state: TrainState, value: Array) -> TrainState:
            factor = config.optimizer.decay_factor
            parameters, optimizer = decide(state.parameters, state.optimizer, value, factor)
            return state._replace(parameters=parameters, optimizer=optimizer)

        validation = Validation(
            stage,
            run,
            mesh,
            jax.jit(validation_loss),
            jax.jit(decided, donate_argnums=0, out_shardings=shardings),
        )
    return Program(
        traced=jax.jit(
            step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh))
        ).trace(
            abstract(state_shapes, shardings),
            abstract(frozen, {name: split[name] for name in frozen}),
            abstract(batch, dict.fromkeys(batch, meshes.batch_sharding(mesh))),
            jax.ShapeDtypeStruct((), np.uint32),
        ),
        init=jax.jit(init, out_shardings=shardings),
        shapes=state_shapes,
        shardings=shardings,
        trained=list(factors),
        validation=validation,
    )


def _started(
    stage: Stage,
    program: Program,
    skeleton: Any,
    parameters: Parameters,
    config: ConfigDict,
    mesh: Mesh,
    resumed: bool,
) -> Parameters:
    """All parameters as the stage begins: the parts that it trains are made by `stage.start`.

    A checkpoint holds what the stage trains; a resumed stage makes anew what else there is in its
    parts (a norm's statistics), by the same program, and nothing where there is none.
    """
    start, parts = stage.start, parts_of(program.trained)
    held = set(program.trained) if resumed else set()
    if start is None or all(n in held for n in parameters if n.partition(".")[0] in parts):
        return parameters

    def begin(parameters: Parameters) -> Parameters:
        begun = named_parameters(start(with_parameters(skeleton, parameters)))
        # Copies: what the stage trains is donated, and its origin may be a part that stays.
        return {n: jnp.copy(value) for n, value in begun.items() if n.partition(".")[0] in parts}

    shapes = jax.eval_shape(begin, parameters)
    shardings = meshes.parameter_shardings(shapes, config.sharding, mesh)
    return parameters | jax.jit(begin, out_shardings=shardings)(parameters)


def train(
    stage: Stage,
    program: Program,
    skeleton: Any,
    parameters: Parameters,
    *,
    mesh: Mesh,
    config: ConfigDict,
    workdir: Workdir,
    preemption: Preemption,
) -> Parameters | None:
    """Run a stage to its end, from its newest checkpoint where there is one.

    Args:
        stage: What to train.
        program: The stage made ready for the mesh.
        skeleton: The model's structure (from `jax.eval_shape`).
        parameters: All parameters of the model, on the devices.
        mesh: The devices.
        config: The run's config: `seed`, `checkpoint`, `log`, `data`, `profile`.
        workdir: Where everything goes.
        preemption: Entered; tells after every step whether to save and stop.

    Returns:
        All parameters, the trained ones averaged where the stage asks for it; or None when
        SIGTERM ended the run early, after a checkpoint.

    Raises:
        UserError: a checkpoint does not fit the stage, or the data cannot be read.
        RunError: the loss is no longer finite, or a checkpoint cannot be written.
    """
    num_steps, batch_size = stage.config.num_steps, stage.config.batch_size
    checkpoints = Checkpoints(workdir.path / "checkpoints" / stage.name, config.checkpoint.keep)
    stream = {"seed": config.seed, "batch_size": batch_size}
    resumed = checkpoints.latest() is not None
    parameters = _started(stage, program, skeleton, parameters, config, mesh, resumed)
    frozen = {n: p for n, p in parameters.items() if n not in program.shapes.parameters}
    if not resumed:
        start = 0
        state = program.init({name: parameters[name] for name in program.trained})
    else:
        start, state, record = checkpoints.restore(abstract(program.shapes, program.shardings))
        pipeline.check_state(record, stage.source, **stream)
        workdir.say(f"{stage.name}: resuming from step {start} of {num_steps}")
    workdir.forget_after(stage.name, start)

    batches = pipeline.batches(
        stage.source,
        transform=stage.transform,
        start=start,
        rows=meshes.process_rows(mesh, batch_size),
        num_workers=config.data.workers,
        on_corrupt=config.data.on_corrupt,
        **stream,
    )
    # A number on the host: the key is made from it inside the program, alike on every process.
    seed = np.uint32(zlib.crc32(f"{config.seed} {stage.name}".encode()))
    meter = Meter(stage, workdir, start, config.log.every)

    def save(step: int) -> None:
        meter.flush()  # a state is only kept once its loss is known to be finite
        checkpoints.save(step, state, pipeline.state(stage.source, step, **stream))

    def averaged() -> Parameters:
        return parameters | (state.average or state.parameters)

    def draw(step: int) -> None:
        if stage.pictures:
            model = with_parameters(skeleton, averaged())
            for name, image in stage.pictures(model).items():
                workdir.picture(stage.name, step, name, image)

    validation = program.validation
    ended = validation is not None and validation.ended(state)
    try:
        with meter, Profile(config.profile, workdir) as profile:
            for step in range(start, start if ended else num_steps):
                profile.look(step - start)
                waited = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - waited
                index, substituted = batch.pop("index"), batch.pop("substituted")
                state, metrics = program.step(
                    state, frozen, meshes.to_devices(batch, mesh, batch_size), seed
                )
                meter.add(step + 1, metrics, index, int(substituted.sum()), waited)
                if validation is not None and validation.due(step + 1):
                    state, told = validation(state, frozen)
                    workdir.log(stage.name, step + 1, told)
                    ended = validation.ended(state)
                if preemption.noticed():
                    save(step + 1)
                    checkpoints.wait()
                    workdir.say(f"{stage.name}: stopped by SIGTERM, saved at step {step + 1}")
                    return None
                last = ended or step + 1 == num_steps
                if (step + 1) % config.checkpoint.every == 0 or last:
                    save(step + 1)
                due = config.log.pictures_every and (step + 1) % config.log.pictures_every == 0
                if due or last:
                    draw(step + 1)
                if last:
                    break
            checkpoints.wait()
    finally:
        batches.close()
        checkpoints.close()
    return averaged()


class Meter:
    """Fetches metrics one step late, so that the device never waits; logs; watches the loss."""

    def __init__(self, stage: Stage, workdir: Workdir, start: int, every: int) -> None:
        self.stage, self.workdir, self.every = stage, workdir, every
        self.pending: tuple | None = None
        self.since, self.steps, self.waited = time.perf_counter(), 0, 0.0
        self.skipped, self.speed = 0, 0.0
        self.bar = workdir.progress(stage.name, stage.config.num_steps, start)

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.flush()
        self.bar.stop()

    def add(
        self, step: int, metrics: dict[str, Array], index: np.ndarray, skipped: int, waited: float
    ) -> None:
        """Take the metrics of a step just dispatched, and look at those of the step before."""
        self.skipped += skipped
        previous, self.pending = self.pending, (step, metrics, index, waited)
        self._look_at(previous)

    def flush(self) -> None:
        """Look at the newest metrics now."""
        previous, self.pending = self.pending, None
        self._look_at(previous)

    def _look_at(self, entry: tuple | None) -> None:
        if entry is None:
            return
        step, metrics, index, waited = entry
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(values[name]):
                shown = ", ".join(map(str, index[:32])) + (" …" if len(index) > 32 else "")
                shown += "" if jax.process_count() == 1 else " (of this process)"
                raise RunError(
                    f"{name} is {values[name]} at step {step} of stage {self.stage.name}, on the "
                    f"examples {shown}; nothing was saved after the last checkpoint: look at "
                    "these examples, or begin in a new --workdir with a lower "
                    f"--config.stages.{self.stage.name}.optimizer.learning_rate"
                )
        self.steps += 1
        self.waited += waited
        status = f"loss {values['loss']:.4f}"
        if step == 1 or step % self.every == 0 or step == self.stage.config.num_steps:
            seconds = time.perf_counter() - self.since
            values["examples_per_second"] = self.steps * self.stage.config.batch_size / seconds
            values["waiting_for_data"] = self.waited / seconds
            if self.skipped:
                values["unreadable_examples"] = self.skipped
            self.workdir.log(self.stage.name, step, values)
            self.since, self.steps, self.waited = time.perf_counter(), 0, 0.0
            self.speed = values["examples_per_second"]
            if not self.workdir.console.is_terminal:  # a log file: lines instead of the bar
                total = self.stage.config.num_steps
                self.workdir.say(
                    f"{self.stage.name} {step}/{total} {status} {self.speed:.1f} examples/s"
                )
        self.bar.update(
            self.bar.task_ids[0], completed=step, status=f"{status}  {self.speed:.1f} examples/s"
        )


class Profile:
    """Traces a few steps of a stage with the JAX profiler, when asked to: of the first long enough.

    A stage that ends before them is traced to its end.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir) -> None:
        self.first, self.last = config.start, config.start + config.steps
        self.workdir, self.running = workdir, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def look(self, done: int) -> None:
        """Start or stop, so many steps after the stage began or went on."""
        if done == self.first < self.last and not self.workdir.profiled:
            jax.profiler.start_trace(str(self.workdir.path / "profile"))
            self.running = self.workdir.profiled = True
        if done == self.last:
            self._stop()

    def _stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running, folder = False, self.workdir.path / "profile"
            self.workdir.say(f"profile: {folder} (open it with TensorBoard or Perfetto)")
