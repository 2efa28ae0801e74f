"""What the processes of a run tell each other of a SIGTERM; what it does, see `test_resume`."""

from jax.experimental import multihost_utils

from vljax.training.preemption import Preemption


def test_processes_agree_on_numbers_that_rise_through_all_stages(monkeypatch):
    told = []
    agree = "reached_preemption_sync_point"
    monkeypatch.setattr(multihost_utils, agree, lambda number: bool(told.append(number)))
    for _ in range(2):
        preemption = Preemption()
        preemption.alone = False
        assert not any(preemption.noticed() for _ in range(3))
    assert told == list(range(told[0], told[0] + 6))
