"""The loop of a sweep: ask Optuna, give to a worker, hear, tell; at the end, the verdict."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topicell.config import SweepConfig
from topicell.errors import InputError
from topicell.signals import held_interrupts
from topicell.sweep.selection import MEASURES, Verdict, outcomes, points, select
from topicell.sweep.study import Study
from topicell.sweep.trials import PERPLEXITY, Sweep
from topicell.sweep.workers import Began, Died, Done, Event, Report, SplitReport, Work, Workers
from topicell.tracking.parents import Parent

log = logging.getLogger(__name__)

REFUSED = 2
"""So many trials refused for bad input before any other end: the input is bad, not the point."""


class SweepError(RuntimeError):
    """Too many trials failed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A trial, ready to be worked on."""

    payload: bytes
    n_topics: int
    name: str
    settings: Mapping[str, object]


class Search:
    """A study, its workers, and its parent run.

    Parameters
    ----------
    study
        Where trials are asked for and told.
    compose
        The job of a trial, from its number and parameters.
    prepare
        What a worker calls once; gives what does jobs.
    settings
        Of the sweep.
    parent
        The parent run.
    say
        Told in a line how each trial ended.
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
        self._best = math.inf
        self._n_told = 0
        self._refused: dict[int, str] = {}
        self._n_deaths = 0
        self._n_failed = 0

    def run(self) -> None:
        """Use up the budget.

        Raises
        ------
        SweepError
            More trials failed than ``max_failure_rate`` allows.
        InputError
            The first trials were refused for bad input.
        KeyboardInterrupt
            After all workers ended and their trials were queued again.
        """
        self._end_abandoned()
        for trial in self.study.trials():
            if trial.state == "COMPLETE":
                self._best = min(self._best, _perplexity(trial.values))
            self._n_told += trial.state in ("COMPLETE", "PRUNED")
        workers = Workers(self.prepare)
        try:
            # An interrupt amid Optuna's work would leave a lock of its storage behind, or half of
            # what is told: it waits for the end of a round.
            with held_interrupts() as interrupt:
                self._fill(workers)
                while workers.busy:
                    interrupt.pass_on()
                    for event in workers.events(timeout=1.0):
                        self._hear(event, workers)
                    interrupt.pass_on()
                    self._fill(workers)
            workers.close()
        except BaseException:
            self._stop(workers)
            raise

    def _end_abandoned(self) -> None:
        """End the runs of processes that are gone."""
        while self.study.abandoned:
            trial = self.study.abandoned.pop()
            self.parent.end_child(trial.run_id, trial.number, "KILLED", _tags("FAIL", trial.error))

    def _fill(self, workers: Workers) -> bool:
        """Give every idle worker a trial; whether any works."""
        while len(workers.busy) < self.settings.n_jobs:
            trial = self.study.ask()
            if trial is None:
                break
            self._end_abandoned()
            try:
                job = self.compose(trial.number, trial.params)
            except ValueError as error:
                # A point that no run can be made of: bad as that of a run that refuses it.
                self._told(Done(trial.number, "FAIL", error=str(error), bad_input=True))
                continue
            self.jobs[trial.number] = job
            self.study.note(trial.number, n_topics=job.n_topics)
            workers.give(trial.number, job.payload, self._marks(trial.number))
        return bool(workers.busy)

    def _hear(self, event: Event, workers: Workers) -> None:
        if isinstance(event, Began):
            self._began(event)
        elif isinstance(event, Report):
            end = self.study.report(event.number, event.epoch, event.value)
            workers.answer(event.number, end=end)
        elif isinstance(event, SplitReport):
            end = self.study.report_split(event.number, event.seed, event.values)
            workers.answer(event.number, end=end)
        elif isinstance(event, Done):
            self._told(event)
        elif event.number is not None:
            error = f"its process {_how(event.exitcode)}"
            run_id = self.runs.get(event.number, "")
            self.parent.end_child(run_id, event.number, "FAILED", _tags("FAIL", error))
            again = self.study.killed(event.number, error)
            self._say(event.number, f"{error}; {'it is tried again' if again else 'given up'}")
            self._n_deaths += 1
            if not self.runs and self._n_deaths >= REFUSED:
                self.study.repeat(event.number)
                raise SweepError(f"worker processes die before they begin a run: {error}")
            if not again:
                self._failed(error)

    def _began(self, event: Began) -> None:
        self.runs[event.number] = event.run_id
        self.study.note(event.number, run_id=event.run_id, folder=event.folder)

    def _marks(self, number: int) -> dict[str, str]:
        """Tags that every run of the sweep carries."""
        return {"topicell.trial": str(number), "topicell.study": self.study.name}

    def _told(self, done: Done) -> None:
        number = done.number
        self.study.note(number, epochs=done.epochs)
        if done.state == "COMPLETE" and PERPLEXITY not in done.values:
            done = Done(number, "FAIL", error="no validation cells to compare trials by")
        if done.state == "COMPLETE":
            value = _perplexity(done.values)
            if not math.isfinite(value):
                self._told(Done(number, "FAIL", epochs=done.epochs, error=f"perplexity {value}"))
                return
            self.study.complete(number, value, done.values)
            self._best = min(self._best, value)
            self._n_told += 1
            self.parent.log_metrics(
                {"sweep/perplexity": value, "sweep/best_perplexity": self._best}, self._n_told
            )
            self._say(number, f"perplexity {value:.4g} (best so far {self._best:.4g})")
        elif done.state == "PRUNED":
            self.study.prune(number)
            self._n_told += 1
            if math.isfinite(self._best):
                self.parent.log_metrics({"sweep/best_perplexity": self._best}, self._n_told)
            self._say(number, f"pruned after {done.epochs} epochs")
        elif done.state == "KILLED":
            # Not by us: `_stop` tells of those. As if its process had been killed.
            again = self.study.killed(number, "interrupted")
            self._say(number, f"was interrupted; {'it is tried again' if again else 'given up'}")
        else:
            self.study.fail(number, done.error)
            if number not in self.runs and number in self.jobs:
                job = self.jobs[number]
                tags = self._marks(number) | _tags("FAIL", done.error)
                self.parent.record_failure(number, job.name, job.settings, tags)
            self._say(number, f"failed: {done.error}")
            if done.bad_input:
                self._refused[number] = done.error
            self._failed(done.error)

    def _failed(self, error: str) -> None:
        self._n_failed += 1
        n_enough = min(REFUSED, self.settings.n_trials)
        if self._n_told == 0 and len(self._refused) == self._n_failed >= n_enough:
            # Not used up: with the input mended, the same command tries them.
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
        """End the workers; what they worked on is queued again."""
        try:
            self._hear_out(workers)
        finally:
            workers.close()
        # Those that were asked for but given to nobody.
        for number in self.study.open_trials:
            self.study.interrupted(number)

    def _hear_out(self, workers: Workers) -> None:
        for event in workers.interrupt():
            number = event.number
            if isinstance(event, Began):
                self._began(event)
            elif isinstance(event, Died) and number is not None:
                run_id = self.runs.get(number, "")
                self.parent.end_child(run_id, number, "KILLED", _tags("FAIL", "interrupted"))
                self.study.interrupted(number)
            elif isinstance(event, Done) and event.state == "KILLED":
                self.study.interrupted(event.number)
            elif isinstance(event, Done):
                # Its end came before the interrupt.
                with contextlib.suppress(InputError, SweepError):
                    self._told(event)

    def _say(self, number: int, what: str) -> None:
        job = self.jobs.get(number)
        topics = f"K = {job.n_topics:<3d}  " if job else ""
        self.say(f"trial {number:3d}  {topics}{what}")


def conclude(
    study: Study,
    settings: SweepConfig,
    parent: Parent,
    folder: Path,
    described: Mapping[str, Any],
) -> tuple[Sweep, Verdict]:
    """Write ``sweep.json`` and the report, and put the verdict on the parent run.

    Parameters
    ----------
    study
        With all its trials.
    settings, parent
        Of the sweep.
    folder
        Where to write.
    described
        What the sweep is, as fields of `Sweep`.
    """
    sweep = Sweep(
        name=study.name,
        trials=study.trials(),
        importance=study.importance(),
        seconds=study.seconds,
        stability_floor=settings.stability_floor,
        parent_id=parent.run_id,
        experiment_id=parent.experiment,
        tracking=parent.store,
        **described,
    )
    return sweep, judge(sweep, parent, folder)


def judge(sweep: Sweep, parent: Parent, folder: Path) -> Verdict:
    """The verdict, the report, and both on the parent run."""
    from topicell.sweep import page

    verdict = select(sweep.trials, bounds=sweep.bounds, stability_floor=sweep.stability_floor)
    folder.mkdir(parents=True, exist_ok=True)
    sweep.write(folder, as_plain(verdict, sweep))
    parent.keep(("sweep.json",))
    for point in points(sweep.trials):
        metrics = {}
        for name in MEASURES:
            found = point.estimate(name)
            if found is not None:
                metrics[f"by_n_topics/{name}"] = found.mean
                if not math.isnan(found.se):
                    metrics[f"by_n_topics/{name}_se"] = found.se
        # The step is K: MLflow draws the curve over numbers of topics.
        parent.log_metrics(metrics, step=point.n_topics)
    parent.log_metrics({f"importance/{name}": value for name, value in sweep.importance.items()})
    if verdict.n_topics is not None:
        parent.log_metrics({"sweep/n_topics": verdict.n_topics})
    tags = {
        "topicell.verdict": verdict.kind.value,
        "topicell.n_topics": "" if verdict.n_topics is None else str(verdict.n_topics),
        "mlflow.note.content": "\n\n".join(
            [f"**{verdict.sentence}**", *verdict.cautions, _states(sweep)]
        ),
    }
    parent.set_tags(tags)
    page.write(sweep, verdict, folder)
    parent.keep(("report.html", "figures"))
    return verdict


def as_plain(verdict: Verdict, sweep: Sweep) -> dict[str, Any]:
    """The verdict as ``sweep.json`` has it, with the failed trials by number of topics."""
    return {
        "kind": verdict.kind.value,
        "n_topics": verdict.n_topics,
        "best": verdict.best,
        "trial": verdict.trial,
        "sentence": verdict.sentence,
        "cautions": list(verdict.cautions),
        "failed": {k: sum(failed) for k, failed in outcomes(sweep.trials).items() if any(failed)},
    }


def _states(sweep: Sweep) -> str:
    counts: dict[str, int] = {}
    for trial in sweep.trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    return "Trials: " + ", ".join(f"{n} {state.lower()}" for state, n in sorted(counts.items()))


def _perplexity(values: Mapping[str, Any]) -> float:
    """The objective: mean over splits and replicates."""
    by_split = values[PERPLEXITY]
    return float(np.mean([np.mean(of_split) for of_split in by_split.values()]))


def _tags(state: str, error: str) -> dict[str, str]:
    return {"topicell.trial_state": state, "topicell.error": error}


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        why = f"was killed by signal {-exitcode}"
        if exitcode == -signal.SIGKILL:
            why += (
                ", as the system does when memory is full: lower sweep.n_jobs, "
                "train.n_replicates or preprocess.n_variable_genes"
            )
        return why
    return f"ended with code {exitcode}"
