"""The loop of a sweep: ask Optuna for a trial, give it to a worker, record how it ends."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from topicell.config import SweepConfig
from topicell.errors import InputError
from topicell.signals import held_interrupts
from topicell.sweep.study import Study
from topicell.sweep.tracker import Began, Report, SplitReport
from topicell.sweep.trials import PERPLEXITY
from topicell.sweep.workers import Died, Done, Event, Work, Workers
from topicell.tracking.parents import Parent

N_REFUSED = 2
"""If so many trials are refused or die before a run begins, all would: the sweep stops."""


class SweepError(RuntimeError):
    """Too many trials failed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A trial that a worker can run."""

    payload: bytes
    n_topics: int
    name: str
    settings: Mapping[str, object]


class Search:
    """A study, its workers and its parent run.

    Parameters
    ----------
    study
        Proposes the trials and stores how they end.
    compose
        Makes the job of a trial from its number and its parameters.
    prepare
        Called once in each worker; returns the function that runs a job.
    settings
        Settings of the sweep.
    parent
        The parent run in MLflow.
    say
        Prints a line, such as how a trial ended.
    """

    def __init__(
        self,
        study: Study,
        compose: Callable[[int, Mapping[str, Any]], Job],
        prepare: Callable[[], Work],
        settings: SweepConfig,
        parent: Parent,
        say: Callable[[str], None],
    ) -> None:
        self.study = study
        self.compose = compose
        self.prepare = prepare
        self.settings = settings
        self.parent = parent
        self.say = say
        self.jobs: dict[int, Job] = {}
        self.runs: dict[int, str] = {}
        before = study.trials()
        complete = [_perplexity(trial.values) for trial in before if trial.state == "COMPLETE"]
        self._best = min(complete, default=math.inf)
        self._n_ended = sum(trial.state in ("COMPLETE", "PRUNED") for trial in before)
        self._refused: dict[int, str] = {}
        self._n_died = 0
        self._n_failed = 0

    def run(self) -> None:
        """Run trials until the budget is used.

        Raises
        ------
        SweepError
            More trials failed than ``max_failure_rate`` allows, or no worker can begin a run.
        InputError
            The first trials were refused because of bad input.
        KeyboardInterrupt
            The sweep was interrupted; its trials are queued again.
        """
        self._end_abandoned()
        workers = Workers(self.prepare)
        try:
            # An interrupt waits for the end of a round: within Optuna it could leave a lock of the
            # storage behind.
            with held_interrupts() as held:
                while self._fill(workers):
                    held.pass_on()
                    for event in workers.events(timeout=1.0):
                        self._handle(event, workers)
                    held.pass_on()
            workers.close()
        except BaseException:
            self._stop(workers)
            raise

    def _end_abandoned(self) -> None:
        """End the runs of processes that have ended without it."""
        while self.study.abandoned:
            trial = self.study.abandoned.pop()
            self.parent.end_child(trial.run_id, trial.number, "KILLED", _tags(trial.error))

    def _fill(self, workers: Workers) -> bool:
        """Give each idle worker a trial; return whether any trial is running."""
        while len(workers.busy) < self.settings.n_jobs:
            trial = self.study.ask()
            if trial is None:
                break
            self._end_abandoned()
            try:
                job = self.compose(trial.number, trial.params)
            except ValueError as error:
                # The settings of the trial are invalid.
                self._end(Done(trial.number, "FAIL", error=str(error), bad_input=True))
                continue
            self.jobs[trial.number] = job
            self.study.note(trial.number, n_topics=job.n_topics)
            workers.give(trial.number, job.payload, self._trial_tags(trial.number))
        return bool(workers.busy)

    def _handle(self, event: Event, workers: Workers) -> None:
        match event:
            case Began():
                self._began(event)
            case Report():
                end = self.study.report(event.number, event.epoch, event.value)
                workers.answer(event.number, end=end)
            case SplitReport():
                end = self.study.report_split(event.number, event.seed, event.values)
                workers.answer(event.number, end=end)
            case Done():
                self._end(event)
            case Died(number=int(number)):
                error = f"its process {_how(event.exitcode)}"
                self._end_run(number, "FAILED", error)
                again = self._killed(number, error)
                self._n_died += 1
                if not self.runs and self._n_died >= N_REFUSED:
                    if not again:
                        self.study.repeat(number)
                    raise SweepError(f"worker processes die before they start a run: {error}")
                if not again:
                    self._failed(error)

    def _began(self, event: Began) -> None:
        self.runs[event.number] = event.run_id
        self.study.note(event.number, run_id=event.run_id, folder=event.folder)

    def _end(self, done: Done) -> None:
        """Record how a trial ended."""
        number, state, error = done.number, done.state, done.error
        value = _perplexity(done.values)
        if state == "COMPLETE" and not math.isfinite(value):
            state = "FAIL"
            missing = PERPLEXITY not in done.values
            error = "no validation cells to compare trials by" if missing else f"perplexity {value}"
        self.study.note(number, epochs=done.epochs)
        if state == "COMPLETE":
            self.study.complete(number, value, done.values)
            self._best = min(self._best, value)
            self._log({"sweep/perplexity": value})
            self._say(number, f"perplexity {value:.4g} (best so far {self._best:.4g})")
        elif state == "PRUNED":
            self.study.prune(number)
            self._log({})
            self._say(number, f"pruned after {done.epochs} epochs")
        elif state == "KILLED":
            # Someone interrupted the worker alone: `_stop` handles interrupts of the sweep.
            self._killed(number, "interrupted")
        else:
            self.study.fail(number, error)
            if number not in self.runs and number in self.jobs:
                job = self.jobs[number]
                tags = self._trial_tags(number) | _tags(error)
                self.parent.record_failure(number, job.name, job.settings, tags)
            self._say(number, f"failed: {error}")
            if done.bad_input:
                self._refused[number] = error
            self._failed(error)

    def _killed(self, number: int, error: str) -> bool:
        again = self.study.killed(number, error)
        self._say(number, f"{error}; {'it is repeated' if again else 'it is not repeated'}")
        return again

    def _failed(self, error: str) -> None:
        """Count a failed trial, and stop if there are too many.

        Raises
        ------
        InputError
            The first trials were all refused because of bad input.
        SweepError
            More failed than ``max_failure_rate`` allows.
        """
        self._n_failed += 1
        n_enough = min(N_REFUSED, self.settings.n_trials)
        if self._n_ended == 0 and len(self._refused) == self._n_failed >= n_enough:
            # Once the input is fixed, the same command tries them again.
            for number in self._refused:
                self.study.repeat(number)
            raise InputError(next(iter(self._refused.values())))
        allowed = self.settings.max_failure_rate
        if allowed is not None and self._n_failed > allowed * self.settings.n_trials:
            raise SweepError(
                f"{self._n_failed} of {self.settings.n_trials} trials failed, more than "
                f"sweep.max_failure_rate = {allowed:g} allows; the last: {error}"
            )

    def _stop(self, workers: Workers) -> None:
        """End the workers, and queue the trials again that did not end before."""
        try:
            for event in workers.interrupt():
                if isinstance(event, Began):
                    self._began(event)
                elif isinstance(event, Died) and event.number is not None:
                    self._end_run(event.number, "KILLED", "interrupted")
                elif isinstance(event, Done) and event.state != "KILLED":
                    with contextlib.suppress(InputError, SweepError):
                        self._end(event)
        finally:
            workers.close()
        for number in self.study.open_trials:
            self.study.interrupted(number)

    def _end_run(self, number: int, status: str, error: str) -> None:
        self.parent.end_child(self.runs.get(number, ""), number, status, _tags(error))

    def _trial_tags(self, number: int) -> dict[str, str]:
        return {"topicell.trial": str(number), "topicell.study": self.study.name}

    def _log(self, metrics: dict[str, float]) -> None:
        self._n_ended += 1
        if math.isfinite(self._best):
            metrics["sweep/best_perplexity"] = self._best
        self.parent.log_metrics(metrics, self._n_ended)

    def _say(self, number: int, what: str) -> None:
        job = self.jobs.get(number)
        topics = f"K = {job.n_topics:<3d}  " if job else ""
        self.say(f"trial {number:3d}  {topics}{what}")


def _perplexity(values: Mapping[str, Any]) -> float:
    """Return the objective, the mean over splits and replicates; NaN if there is none."""
    means = [np.mean(of_split) for of_split in values.get(PERPLEXITY, {}).values()]
    return float(np.mean(means)) if means else math.nan


def _tags(error: str) -> dict[str, str]:
    return {"topicell.trial_state": "FAIL", "topicell.error": error}


def _how(exitcode: int | None) -> str:
    """Return how a process ended, and how to fix it."""
    if exitcode is None or exitcode >= 0:
        return f"ended with code {exitcode}"
    if exitcode != -signal.SIGKILL:
        return f"was killed by signal {-exitcode}"
    return (
        f"was killed by signal {-exitcode}, which often means that memory is full: lower "
        "sweep.n_jobs, train.n_replicates or preprocess.n_variable_genes"
    )
