"""A trial as its run sees it: what the run reports to the sweep, and whether it is pruned.

A run does not know that it is a trial. The command line asks `current_trial` and puts a
`TrialTracker` around the run's tracker, which tells the sweep the run's id and the validation
perplexity of each epoch and each split, and raises `Pruned` in the run if the sweep ends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from topicell.config import ExternalConfig, RunConfig
from topicell.sweep.trials import PERPLEXITY
from topicell.tracking.runs import Tracker

VALIDATION = "valid/perplexity"
"""The metric of an epoch by which trials are pruned."""


class Pruned(Exception):  # noqa: N818 it is no error
    """The trial was ended because others are better."""


@dataclass(frozen=True, slots=True)
class Began:
    """The run of a trial is recorded, under this id and in this folder."""

    number: int
    run_id: str
    folder: str


@dataclass(frozen=True, slots=True)
class Report:
    """Validation perplexity of an epoch; the worker waits for an answer."""

    number: int
    epoch: int
    value: float


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Perplexity of each replicate on a split; the worker waits for an answer."""

    number: int
    seed: str
    values: Sequence[float]


class CurrentTrial:
    """The trial that a worker process is running, connected to the sweep.

    Attributes
    ----------
    tags
        Tags for the run.
    epochs, values, error
        Result: epochs trained, values by metric and split, and the error that ended the run.
    """

    def __init__(self, connection: Connection, number: int, tags: Mapping[str, str]) -> None:
        self._connection = connection
        self.number = number
        self.tags = tags
        self.epochs = 0
        self.values: Mapping[str, Any] = {}
        self.error: Exception | None = None

    def began(self, run_id: str, folder: Path) -> None:
        """Send the id and the folder of the run."""
        self._send(Began(self.number, run_id, str(folder)))

    def report(self, epoch: int, value: float) -> bool:
        """Send the validation perplexity of an epoch; return whether the trial is pruned."""
        return self._send(Report(self.number, epoch, value), answered=True)

    def report_split(self, seed: str, values: Sequence[float]) -> bool:
        """Send the perplexities of a split; return whether the trial is pruned."""
        return self._send(SplitReport(self.number, seed, list(values)), answered=True)

    def trained(self, epochs: int) -> None:
        """Add epochs that were trained."""
        self.epochs += epochs

    def conclude(self, values: Mapping[str, Any]) -> None:
        """Set the values of every metric, by metric and split."""
        self.values = values

    def fail(self, error: Exception) -> None:
        """Set the error that ended the run, which can be `Pruned`."""
        self.error = error

    def _send(self, message: Began | Report | SplitReport, *, answered: bool = False) -> bool:
        try:
            self._connection.send(message)
            return answered and bool(self._connection.recv())
        except (EOFError, OSError) as error:
            # The sweep's process has ended.
            raise KeyboardInterrupt from error


_CURRENT: ContextVar[CurrentTrial | None] = ContextVar("trial", default=None)


def current_trial() -> CurrentTrial | None:
    """Return the trial that this process is running; None outside a sweep."""
    return _CURRENT.get()


def set_current_trial(trial: CurrentTrial) -> None:
    """Set the trial that this process is running."""
    _CURRENT.set(trial)


def is_reported(epoch: int) -> bool:
    """Return whether an epoch is reported: every one of the first 50, then every 2nd, 4th, 8th …

    The step doubles at epoch 50, 100, 200, and so on: a report takes milliseconds, more for a
    longer curve, and late epochs differ little.
    """
    return epoch % (1 << (epoch // 50).bit_length()) == 0


class TrialTracker:
    """A tracker that also reports to the sweep; other calls go to the run's own tracker."""

    def __init__(self, tracker: Tracker, trial: CurrentTrial) -> None:
        self.tracker = tracker
        self.trial = trial
        self.directory = tracker.directory
        self._pruned_at = ""
        self._n_splits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tracker, name)

    def start(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        """Start the record, with the tags of the trial, and report it."""
        self.tracker.start(config, dict(tags) | dict(self.trial.tags))
        self.trial.began(self.tracker.run_id, self.directory)

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Record metrics; report those of an epoch.

        Raises
        ------
        Pruned
            The sweep ends the trial.
        """
        self.tracker.log_metrics(values, epoch)
        if epoch is None:
            return
        self.trial.trained(1)
        reported = VALIDATION in values and is_reported(epoch)
        if reported and self.trial.report(epoch, values[VALIDATION]):
            self._prune(f"epoch {epoch}")

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Record and report the metrics of a split.

        Raises
        ------
        Pruned
            The sweep ends the trial before its next split.
        """
        self.tracker.log_split(seed, values)
        self._n_splits += 1
        if self._n_splits > 1 and "fit/epochs" in values:
            # The epochs of the first split were counted by `log_metrics`.
            self.trial.trained(int(values["fit/epochs"][0]))
        if PERPLEXITY in values and self.trial.report_split(seed, values[PERPLEXITY]):
            self._prune(f"split {self._n_splits}")

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """End the record; a pruned run did not fail."""
        if self._pruned_at:
            pruned = {"topicell.trial_state": "PRUNED", "topicell.pruned_at": self._pruned_at}
            self.tracker.finish("FINISHED", pruned)
            return
        state = "COMPLETE" if status == "FINISHED" else "FAIL"
        self.tracker.finish(status, dict(tags or {}) | {"topicell.trial_state": state})

    def _prune(self, where: str) -> None:
        self._pruned_at = where
        raise Pruned(f"pruned at {where}")
