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
