"""The loop of a sweep whose workers cannot start."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from optuna.distributions import IntDistribution

from topicell.config import SweepConfig, TrackingConfig
from topicell.sweep.search import Job, Search, SweepError
from topicell.sweep.study import Study
from topicell.tracking.parents import Parent


def die():
    """Die as a worker that the system kills while it imports."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_sweep_without_working_workers_stops_and_uses_no_budget(tmp_path, n_jobs):
    settings = SweepConfig(study="s", storage=f"journal:{tmp_path / 'log'}", n_trials=4)
    settings.n_jobs = n_jobs
    space = {"model.n_topics": IntDistribution(2, 5)}
    lines = []

    def compose(number, params):
        return Job(b"", params["model.n_topics"], "", {})

    with contextlib.closing(Study(settings, space, {}, 0)) as study:
        parent = Parent(TrackingConfig(enabled=False))
        with pytest.raises(SweepError, match=r"die before they start a run: .* memory is full"):
            Search(study, compose, die, settings, parent, lines.append).run()
    assert len(lines) == 2
    with contextlib.closing(Study(settings, space, {}, 0)) as study:
        asked = []
        while (trial := study.ask()) is not None:
            asked.append(trial.params["model.n_topics"])
            study.complete(trial.number, 1.0, {})
    assert sorted(asked) == [2, 3, 4, 5]
