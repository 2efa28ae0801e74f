"""What tests of several folders share."""

import contextlib
import functools
import gc

import jax
import pytest
from jax._src import compiler  # the only way to options for every program

_AS_USUAL = compiler.get_compile_options


def pytest_collection_finish():
    """What is imported stays: garbage is looked for among what tests make, and less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture
def compilations():
    """Counts programs compiled since the last look."""
    names = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def count():
        found = len(names)
        names.clear()
        return found

    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


@functools.cache
def _few_passes():
    """Options of XLA for CPUs that make compiling cheap: those that this version of it has.

    Its fusion emitters build MLIR for every fusion, which is most of what compiling costs.
    """
    if jax.default_backend() != "cpu":
        return {}
    lowered, known = jax.jit(lambda x: x + 1).lower(0.0), {}
    for name, value in (
        ("xla_cpu_use_fusion_emitters", False),
        ("xla_cpu_parallel_codegen_split_count", 1),
    ):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            lowered.compile(compiler_options={name: value})
            known[name] = value
    return known


@contextlib.contextmanager
def _optimising(wanted):
    """XLA's optimizations on or off, and with them the emitters that take longest to compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    compile_options, few = compiler.get_compile_options, _few_passes()

    def with_few_passes(*args, env_options_overrides=None, **kwargs):
        options = few | dict(env_options_overrides or {})
        return _AS_USUAL(*args, env_options_overrides=options, **kwargs)

    jax.config.update("jax_disable_most_optimizations", not wanted)
    compiler.get_compile_options = _AS_USUAL if wanted else with_few_passes
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    compiler.get_compile_options = compile_options


@pytest.fixture(scope="module")
def quick_to_compile():
    """XLA without its optimizations: for programs that run once or twice, compiling is the cost.

    Ask for it with `pytest.mark.usefixtures`, not where the optimised program is what is tested.
    """
    with _optimising(False):
        yield


@pytest.fixture
def optimised(quick_to_compile):
    """XLA as usual, for a test among quick ones: sums in another order round otherwise."""
    with _optimising(True):
        yield
