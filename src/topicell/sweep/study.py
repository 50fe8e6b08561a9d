"""An Optuna study with an exact budget that continues after every interruption.

Only the sweep's own process reads and writes the storage; the processes that run trials do not.
A proposal depends on the earlier trials and on the seed alone, so a sweep that was stopped
continues as it would have without the stop.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from topicell.config import Pruner, Sampler, SweepConfig
from topicell.errors import InputError
from topicell.evaluation.estimates import difference
from topicell.redaction import without_password
from topicell.sweep.storage import close_storage, open_locks, open_storage
from topicell.sweep.trials import INTERRUPTED, KILLED, PERPLEXITY, Trial

DEFAULT_STORAGE = "sqlite:///optuna.db"
MAX_POINTS = 100_000
"""A space of more points is not enumerated."""
RETRY_OF = "topicell:retry_of"
"""Attribute of a trial: the number of the trial that it repeats, which is not counted."""
KILLED_BEFORE = "topicell:killed_before"
"""Attribute of a trial: how many workers were killed while they ran its parameters."""
DEFINITION = "topicell:definition"
SECONDS = "topicell:seconds"
PARENT = "topicell:parent_run"
"""Attributes of a study."""
Space = Mapping[str, BaseDistribution]


class Study:
    """The trials of one search.

    Parameters
    ----------
    settings
        Name (required here), storage, sampler, pruner and budget.
    space
        Distribution of each setting.
    definition
        Everything else that determines the result of a trial; a stored study must have the same.
    seed
        Seed of the proposals.

    Raises
    ------
    InputError
        The storage cannot be used, another process works on the study, or the stored study has
        another definition.
    """

    def __init__(
        self, settings: SweepConfig, space: Space, definition: Mapping[str, Any], seed: int
    ) -> None:
        assert settings.study is not None
        self.settings = settings
        self.space = dict(space)
        self.seed = seed
        self.url = settings.storage or DEFAULT_STORAGE
        self.address = without_password(self.url)
        self.abandoned: list[Trial] = []
        """Trials of processes that ended before them; their runs are still to be ended."""
        self._points = points_of(space)
        if settings.sampler is Sampler.grid and self._points is None:
            raise InputError(
                "sweep.sampler = 'grid': the search space is infinite, or has more than "
                f"{MAX_POINTS} points; give range(…) or choice(…), or another sampler"
            )
        self._running: dict[int, optuna.Trial] = {}
        self._splits: dict[int, dict[str, Sequence[float]]] = {}
        self._stale: list[FrozenTrial] = []
        self._locks = open_locks(self.url, settings.study)
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._locks.release)
            # A process that joins now waits until the abandoned trials are known.
            with self._locks.decision():
                alone = self._locks.hold(shared=settings.join)
                self._storage = open_storage(self.url, lambda _, trial: self._stale.append(trial))
                on_error.callback(close_storage, self._storage)
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name=settings.study,
                    pruner=make_pruner(settings),
                    direction="minimize",
                    load_if_exists=True,
                )
                self._require(definition)
                self._repeat_abandoned(alone=alone)
            on_error.pop_all()
        self._started = time.monotonic()
        self._seconds_before = float(self._study.user_attrs.get(SECONDS, 0.0))
        self._closed = threading.Event()
        if isinstance(self._storage, RDBStorage):
            threading.Thread(target=self._record_heartbeats, daemon=True).start()

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self._study.study_name)

    @property
    def seconds(self) -> float:
        """Wall-clock time over all sessions."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def parent_run(self) -> str:
        """The MLflow run under which the runs of the trials are nested, if there is one."""
        return str(self._study.user_attrs.get(PARENT, ""))

    @parent_run.setter
    def parent_run(self, run_id: str) -> None:
        self._study.set_user_attr(PARENT, run_id)

    def exclusively(self) -> contextlib.AbstractContextManager[None]:
        """Stop processes that share the study from taking a trial or concluding meanwhile."""
        return self._locks.decision()

    def close(self) -> None:
        """Record the time, and release the study."""
        self._closed.set()
        try:
            # If processes share the study, the longest time counts.
            recorded = float(self._study.user_attrs.get(SECONDS, 0.0))
            self._study.set_user_attr(SECONDS, max(recorded, self.seconds))
        finally:
            close_storage(self._storage)
            self._locks.release()

    def ask(self) -> optuna.Trial | None:
        """Return the next trial; None if the budget or the time is used, or nothing is untried."""
        with self._locks.decision():
            if self.settings.join:
                self._repeat_abandoned(alone=False)
            if self.settings.timeout is not None and self.seconds >= self.settings.timeout:
                return None
            trials = self._study.get_trials(deepcopy=False)
            if not any(trial.state is TrialState.WAITING for trial in trials):
                if len(_counted(trials)) >= self.settings.n_trials:
                    return None
                params = self._propose(trials)
                if params is None:
                    return None
                self._study.enqueue_trial(params)
            with warnings.catch_warnings():
                # Optuna says that only `study.optimize` records heartbeats.
                warnings.filterwarnings("ignore", message="Heartbeat of storage")
                trial = self._study.ask(self.space)
            self._record_heartbeat(trial)
        self._running[trial.number] = trial
        return trial

    def note(self, number: int, **attributes: Any) -> None:
        """Store attributes of a running trial: ``n_topics``, ``run_id``, ``folder``, ``epochs``."""
        # A process that shares the study may have failed the trial for want of heartbeats.
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, value in attributes.items():
                self._running[number].set_user_attr(name, value)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Store the validation perplexity of an epoch; return whether to prune the trial.

        Optuna's pruner decides, but no trial is pruned in the first ``pruning_warmup`` of the
        longest complete fit, or within ``pruning_margin`` of the best trial at the same epoch.
        """
        trial = self._running[number]
        curves = [done.intermediate_values for done in self._complete()]
        at_epoch = [curve[epoch] for curve in curves if epoch in curve]
        n_epochs = max((last + 1 for curve in curves for last in curve), default=0)
        protected = not at_epoch or epoch + 1 < self.settings.pruning_warmup * n_epochs
        if not math.isfinite(value):
            # The fit diverged; other trials must not be compared with it.
            return not protected and self.settings.pruner is not Pruner.none
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.report(value, epoch)
        if not trial.should_prune() or protected:
            return False
        return value > min(at_epoch) * (1 + self.settings.pruning_margin)

    def report_split(self, number: int, seed: str, values: Sequence[float]) -> bool:
        """Keep the perplexities of a split; return whether to prune the trial.

        A trial leaves the race if it is worse than the best one on the same splits by more than
        ``racing_errors`` standard errors of the difference (Maron & Moore 1994, Hoeffding races).
        """
        own = self._splits.setdefault(number, {})
        own[seed] = values
        if self.settings.pruner is Pruner.none:
            return False
        others = [trial.user_attrs["values"][PERPLEXITY] for trial in self._complete()]
        rivals = [other for other in others if own.keys() <= other.keys()]
        if not rivals or len(rivals[0]) == len(own):
            # After the last split there is nothing to save.
            return False
        best = min(rivals, key=lambda rival: np.mean([np.mean(rival[split]) for split in own]))
        loss = difference(own, best)
        return loss.mean > self.settings.racing_errors * loss.se

    def complete(self, number: int, value: float, values: Mapping[str, Any]) -> None:
        """End a trial with its objective and the values of every metric."""
        self.note(number, values=values)
        self._tell(number, TrialState.COMPLETE, value)

    def prune(self, number: int) -> None:
        """End a trial that was pruned."""
        self._tell(number, TrialState.PRUNED)

    def fail(self, number: int, error: str) -> None:
        """End a trial that failed."""
        self.note(number, error=error)
        self._tell(number, TrialState.FAIL)

    def killed(self, number: int, error: str) -> bool:
        """End a trial whose worker was killed; return whether it is tried again, which is once."""
        trial = self._running[number]
        self.fail(number, error)
        first = int(trial.user_attrs.get(KILLED_BEFORE, 0)) == 0
        if first:
            self._repeat(trial, n_killed=1)
        return first

    def interrupted(self, number: int) -> None:
        """End a trial whose sweep is interrupted; the next session tries it again."""
        trial = self._running[number]
        self.fail(number, INTERRUPTED)
        self._repeat(trial)

    def repeat(self, number: int) -> None:
        """Queue the parameters of an ended trial again, at no cost to the budget."""
        self._repeat(self._study.get_trials(deepcopy=False)[number])

    @property
    def open_trials(self) -> list[int]:
        """Trials of this process that have not ended."""
        return list(self._running)

    @property
    def n_done(self) -> int:
        """The number of trials of the budget that ended."""
        trials = self._study.get_trials(deepcopy=False)
        return sum(trial.state.is_finished() for trial in _counted(trials))

    @property
    def n_others(self) -> int:
        """The number of trials that other processes are running."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum(trial.number not in self._running for trial in running)

    def trials(self) -> list[Trial]:
        """Return every trial that has begun, as plain data."""
        trials = self._study.get_trials(deepcopy=False)
        return [as_plain(trial) for trial in trials if trial.state is not TrialState.WAITING]

    def importance(self) -> dict[str, float]:
        """Return the importance of each setting (PED-ANOVA); empty if no setting varied."""
        done = self._complete()
        varied = {name for name in self.space if len({repr(t.params[name]) for t in done}) > 1}
        if len(varied) < 2:
            return dict.fromkeys(varied, 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(self._study)
        return {name: float(value) for name, value in found.items()}

    def _require(self, definition: Mapping[str, Any]) -> None:
        """Store the definition, or refuse a study that was made with another one."""
        text = json.dumps(definition, sort_keys=True, default=str)
        stored = self._study.user_attrs.get(DEFINITION)
        if stored is None:
            foreign = self._study.direction is not optuna.study.StudyDirection.MINIMIZE
            if foreign or self._study.get_trials(deepcopy=False):
                raise InputError(
                    f"sweep.study = {self.name!r} in {self.address} was not made by topicell; "
                    "choose another name"
                )
            self._study.set_user_attr(DEFINITION, text)
        elif stored != text:
            before, now = json.loads(stored), json.loads(text)
            changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
            what = "; ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in changed[:4])
            raise InputError(
                f"sweep.study = {self.name!r} in {self.address} was made with other settings "
                f"({what}); choose another name, or leave sweep.study out"
            )

    def _repeat_abandoned(self, *, alone: bool) -> None:
        """Fail the trials of processes that have ended, and queue them again."""
        if alone:
            # No other process works on the study: each running trial was killed.
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self._storage.set_trial_user_attr(trial._trial_id, "error", KILLED)
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._stale.append(trial)
        elif isinstance(self._storage, RDBStorage):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                fail_stale_trials(self._study)
        if self._stale:
            numbers = {trial.number for trial in self._stale}
            while self._stale:
                self._repeat(self._stale.pop(0))
            self.abandoned += [trial for trial in self.trials() if trial.number in numbers]

    def _repeat(self, trial: FrozenTrial | optuna.Trial, n_killed: int = 0) -> None:
        n_killed += trial.user_attrs.get(KILLED_BEFORE, 0)
        attributes = {RETRY_OF: trial.number, KILLED_BEFORE: n_killed}
        self._study.enqueue_trial(dict(trial.params), user_attrs=attributes)

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        self._splits.pop(number, None)
        self._study.tell(self._running.pop(number), value, state=state, skip_if_finished=True)

    def _propose(self, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """Return parameters that were not tried yet; None if all were.

        The sampler works on a copy in memory. If it proposes a point that was tried, it is told
        the result again, in the copy alone.
        """
        tried = {_key(trial.params): trial for trial in _counted(trials)}
        untried = [point for point in self._points or () if _key(point) not in tried]
        if self._points is not None and not untried:
            return None
        if self.settings.sampler is Sampler.grid:
            return untried[0]
        copy = optuna.create_study(
            sampler=make_sampler(self.settings.sampler, self.seed, len(tried)),
            direction="minimize",
        )
        copy.add_trials([t for t in trials if t.state is not TrialState.WAITING])
        for _ in range(len(tried) + 50):
            candidate = copy.ask(self.space)
            twin = tried.get(_key(candidate.params))
            if twin is None:
                return dict(candidate.params)
            if twin.state is TrialState.COMPLETE:
                copy.tell(candidate, twin.value)
            else:
                copy.tell(candidate, state=TrialState.FAIL)
        if self._points is None:
            return dict(candidate.params)
        generator = np.random.default_rng([self.seed, len(tried)])
        return untried[generator.integers(len(untried))]

    def _complete(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _record_heartbeats(self) -> None:
        assert isinstance(self._storage, RDBStorage)
        while not self._closed.wait(self._storage.get_heartbeat_interval()):
            for trial in list(self._running.values()):
                # A storage that is busy receives the next heartbeat.
                with contextlib.suppress(optuna.exceptions.StorageInternalError):
                    self._record_heartbeat(trial)

    def _record_heartbeat(self, trial: optuna.Trial) -> None:
        if isinstance(self._storage, RDBStorage):
            self._storage.record_heartbeat(trial._trial_id)


def study_name(data: str, definition: Mapping[str, Any]) -> str:
    """Return a name that the same search finds again: of the data and of its definition."""
    text = json.dumps(definition, sort_keys=True, default=str)
    return f"{data}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def make_sampler(kind: Sampler, seed: int, n_tried: int) -> BaseSampler:
    """Return Optuna's sampler, seeded with the seed of the sweep and the number of trials so far.

    So a sweep that continues proposes what it would have proposed without a stop.
    """
    drawn = int(np.random.SeedSequence([seed, n_tried]).generate_state(1)[0])
    with warnings.catch_warnings():
        # Most of them are experimental.
        warnings.simplefilter("ignore")
        match kind:
            case Sampler.qmc:
                # One scrambled sequence for all trials.
                return optuna.samplers.QMCSampler(
                    qmc_type="sobol",
                    scramble=True,
                    seed=seed,
                    warn_asynchronous_seeding=False,
                    warn_independent_sampling=False,
                )
            case Sampler.gp:
                return optuna.samplers.GPSampler(seed=drawn, deterministic_objective=False)
            case Sampler.tpe:
                return optuna.samplers.TPESampler(seed=drawn, multivariate=True, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=drawn)


def make_pruner(settings: SweepConfig) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner."""
    median = optuna.pruners.MedianPruner(n_startup_trials=settings.n_startup_trials)
    match settings.pruner:
        case Pruner.median:
            return median
        case Pruner.patient:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.pruners.PatientPruner(median, patience=settings.patience)
        case Pruner.hyperband:
            return optuna.pruners.HyperbandPruner(min_resource=2)
    return optuna.pruners.NopPruner()


def as_plain(trial: FrozenTrial) -> Trial:
    """Return a trial as plain data."""
    attributes = trial.user_attrs
    ended = trial.datetime_complete
    return Trial(
        number=trial.number,
        state=trial.state.name,
        params=dict(trial.params),
        n_topics=int(attributes.get("n_topics", 0)),
        values=attributes.get("values", {}),
        curve={int(epoch): value for epoch, value in trial.intermediate_values.items()},
        epochs=int(attributes.get("epochs", len(trial.intermediate_values))),
        seconds=None if trial.duration is None else trial.duration.total_seconds(),
        ended=ended.isoformat(timespec="seconds") if ended else "",
        run_id=attributes.get("run_id", ""),
        folder=attributes.get("folder", ""),
        error=attributes.get("error", KILLED if trial.state is TrialState.FAIL else ""),
    )


def points_of(space: Space) -> list[dict[str, Any]] | None:
    """Return every point of a finite space, the last setting changing fastest; None if endless."""
    axes = [_values_of(distribution) for distribution in space.values()]
    if math.prod(map(len, axes)) > MAX_POINTS or not all(axes):
        return None
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def _values_of(distribution: BaseDistribution) -> Sequence[Any]:
    """Return the values of a distribution; none if it is continuous."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is None:
        return [low] if distribution.single() else []
    # A sum of floats can exceed the upper bound in its last digit.
    return [min(low + i * step, high) for i in range(round((high - low) / step) + 1)]


def _counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that use the budget: all but those that were queued again."""
    repeated = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]


def _key(params: Mapping[str, Any]) -> str:
    """Return a text that is the same for the same point; floats of a grid differ in last digits."""
    return json.dumps(
        {n: round(v, 12) if isinstance(v, float) else v for n, v in sorted(params.items())},
        default=str,
    )
