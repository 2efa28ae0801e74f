"""What tests of several folders share."""

import jax
import pytest


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


@pytest.fixture(scope="module")
def quick_to_compile():
    """XLA without its optimizations: for programs that run once or twice, compiling is the cost.

    Ask for it with `pytest.mark.usefixtures`, not where the optimised program is what is tested.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def optimised(quick_to_compile):
    """XLA as usual, for a test among quick ones: sums in another order round otherwise."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
