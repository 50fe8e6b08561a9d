"""What a run shows of itself while it is a trial of a sweep.

A run does not know that it is a trial. The command line asks `current_trial`, which a worker
process has set, and puts `Watched` around the run's tracker: from there the sweep learns the run's
id, sees the validation perplexity of each epoch, and may end the run by raising `Pruned` in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from topicell.config import ExternalConfig, RunConfig
from topicell.sweep.trials import PERPLEXITY
from topicell.tracking.runs import Tracker

VALIDATION = "valid/perplexity"
"""The metric of an epoch by which trials are pruned."""


class Pruned(Exception):  # noqa: N818 it is no error
    """The trial was ended because others are better."""


class CurrentTrial(Protocol):
    """The other end of a trial: what the sweep hears."""

    tags: Mapping[str, str]

    def began(self, run_id: str, folder: Path) -> None:
        """The run is recorded under this id, in this folder."""

    def report(self, epoch: int, value: float) -> bool:
        """Validation perplexity of an epoch; whether to end the trial."""

    def report_split(self, seed: str, values: Sequence[float]) -> bool:
        """Perplexity of each replicate on a split; whether to end the trial."""

    def trained(self, epochs: int) -> None:
        """So many more epochs were trained."""

    def conclude(self, values: Mapping[str, Any]) -> None:
        """The values of every measure, by metric and split."""

    def fail(self, error: Exception) -> None:
        """The run ended with this error; `Pruned` is one."""


_CURRENT: ContextVar[CurrentTrial | None] = ContextVar("trial", default=None)


def current_trial() -> CurrentTrial | None:
    """The trial that this process works on; None outside a sweep."""
    return _CURRENT.get()


@contextlib.contextmanager
def working_on(trial: CurrentTrial) -> Iterator[None]:
    """Make a trial the current one."""
    token = _CURRENT.set(trial)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def is_looked_at(epoch: int) -> bool:
    """Whether a sweep looks at an epoch: at all of the first 50, then the more rarely the later.

    Every second one to 100, every fourth to 200, and so on: a look costs the sweep milliseconds,
    the more the longer the curves are, and late epochs differ little.
    """
    stride = 1
    while epoch >= 50 * stride:
        stride *= 2
    return epoch % stride == 0


class Watched:
    """A tracker whose run a sweep watches."""

    def __init__(self, tracker: Tracker, trial: CurrentTrial) -> None:
        self.tracker = tracker
        self.trial = trial
        self.directory = tracker.directory
        self.measured = tracker.measured
        self.run_id = ""
        self.pruned_at = ""
        self._n_splits = 0

    def start(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        """Start the record, and say so."""
        self.tracker.start(config, dict(tags) | dict(self.trial.tags))
        self.run_id = self.tracker.run_id
        self.trial.began(self.run_id, self.directory)

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Record the input data."""
        self.tracker.log_dataset(name, source, digest)

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Record metrics; those of an epoch decide whether the run goes on.

        Raises
        ------
        Pruned
            It does not.
        """
        self.tracker.log_metrics(values, epoch)
        if epoch is None:
            return
        self.trial.trained(1)
        watched = VALIDATION in values and is_looked_at(epoch)
        if watched and self.trial.report(epoch, values[VALIDATION]):
            self._prune(f"epoch {epoch}")

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Record what was measured on a split, which decides whether the next one is fitted.

        Raises
        ------
        Pruned
            It is not.
        """
        self.tracker.log_split(seed, values)
        self._n_splits += 1
        if self._n_splits > 1 and "fit/epochs" in values:
            # Those of the first split were told one by one.
            self.trial.trained(int(values["fit/epochs"][0]))
        if PERPLEXITY in values and self.trial.report_split(seed, values[PERPLEXITY]):
            self._prune(f"split {self._n_splits}")

    def log_summary(self, text: str, picture: str) -> None:
        """Record what was found."""
        self.tracker.log_summary(text, picture)

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """End the record; a pruned run did not fail."""
        if self.pruned_at:
            self.tracker.finish(
                "FINISHED",
                {
                    "topicell.trial_state": "PRUNED",
                    "topicell.pruned_at": self.pruned_at,
                },
            )
            return
        state = "COMPLETE" if status == "FINISHED" else "FAIL"
        self.tracker.finish(status, dict(tags or {}) | {"topicell.trial_state": state})

    def _prune(self, where: str) -> None:
        self.pruned_at = where
        raise Pruned(f"pruned at {where}")
