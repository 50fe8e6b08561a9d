"""What Optuna keeps of a sweep: storage, samplers, pruners, the budget, and going on after a kill.

A trial is asked for and told here, in one process; the processes that run trials never see the
storage. What was proposed is a function of the trials so far and the seed, so a sweep that was
stopped goes on as it would have.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
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
from optuna.storages import JournalStorage, RDBStorage, fail_stale_trials
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from topicell.config import Pruner, Sampler, SweepConfig
from topicell.errors import InputError
from topicell.evaluation.estimates import difference
from topicell.redaction import without_password
from topicell.sweep.locks import Locks, locks_of
from topicell.sweep.trials import INTERRUPTED, KILLED, PERPLEXITY, Trial

log = logging.getLogger(__name__)

DEFAULT_STORAGE = "sqlite:///optuna.db"
HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
"""A trial without a heartbeat for so long belonged to a process that is gone."""
MOST_POINTS = 100_000
"""A space of more points is not enumerated."""
GIVEN_UP = optuna.exceptions.UpdateFinishedTrialError
RETRY_OF = "topicell:retry_of"
"""The failed trial whose parameters a trial repeats: that one is not counted."""
KILLED_BEFORE = "topicell:killed_before"
"""How often the parameters of a trial were taken by a worker that was killed."""
DEFINITION = "topicell:definition"
SECONDS = "topicell:seconds"
PARENT = "topicell:parent_run"
Space = Mapping[str, BaseDistribution]


class Study:
    """An Optuna study of one space, with an exact budget.

    Parameters
    ----------
    settings
        Name (which must be given here), storage, sampler, pruner and budget.
    space
        Distribution of each setting.
    definition
        All that decides what a trial gives: what the study was made with must agree.
    seed
        Of the proposals.

    Raises
    ------
    InputError
        The storage cannot be used, another process works on the study, or the study was made with
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
        self._points = _points(space) if is_finite(space) else None
        if settings.sampler is Sampler.grid and self._points is None:
            raise InputError(
                f"sweep.sampler = 'grid': the space has no end, or more than {MOST_POINTS} points; "
                "give range(…) or choice(…), or another sampler"
            )
        self._locks: Locks = locks_of(self.url, settings.study)
        with contextlib.ExitStack() as undo:
            undo.callback(self._locks.release)
            # Whoever joins meanwhile waits, and is not taken for gone.
            with self._locks.briefly():
                alone = self._locks.hold(shared=settings.join)
                self._stale: list[FrozenTrial] = []
                self._storage = open_storage(self.url, lambda _, trial: self._stale.append(trial))
                undo.callback(_close_storage, self._storage)
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name=settings.study,
                    pruner=make_pruner(settings),
                    direction="minimize",
                    load_if_exists=True,
                )
                self._require(definition)
                self.abandoned = self._recover(alone=alone)
            undo.pop_all()
        self._running: dict[int, optuna.Trial] = {}
        self._splits: dict[int, dict[str, Sequence[float]]] = {}
        self._started = time.monotonic()
        self._seconds_before = float(self._study.user_attrs.get(SECONDS, 0.0))
        self._beating = threading.Event()
        if isinstance(self._storage, RDBStorage):
            threading.Thread(target=self._beat, daemon=True).start()

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self._study.study_name)

    @property
    def seconds(self) -> float:
        """Wall-clock time spent, over all sessions."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def parent_run(self) -> str:
        """The MLflow run that the study's trials are nested under, or nothing."""
        return str(self._study.user_attrs.get(PARENT, ""))

    @parent_run.setter
    def parent_run(self, run_id: str) -> None:
        self._study.set_user_attr(PARENT, run_id)

    def exclusively(self) -> contextlib.AbstractContextManager[None]:
        """Keep others who joined from asking or concluding meanwhile."""
        return self._locks.briefly()

    def close(self) -> None:
        """Note the time spent, and let others work on the study."""
        self._beating.set()
        try:
            self._note_time()
        finally:
            _close_storage(self._storage)
            self._locks.release()

    def ask(self) -> optuna.Trial | None:
        """The next trial, or None if the budget is used or nothing is left to try."""
        with self._locks.briefly():
            if self.settings.join:
                numbers = self._fail_stale()
                self.abandoned += [t for t in self.trials() if t.number in numbers]
            trials = self._study.get_trials(deepcopy=False)
            if not any(trial.state is TrialState.WAITING for trial in trials):
                counted = len(_counted(trials))
                late = self.settings.timeout is not None and self.seconds >= self.settings.timeout
                if counted >= self.settings.n_trials or late:
                    return None
                params = self._propose(trials)
                if params is None:
                    return None
                self._study.enqueue_trial(params)
            elif self.settings.timeout is not None and self.seconds >= self.settings.timeout:
                return None
            with warnings.catch_warnings():
                # Heartbeats are for `study.optimize`, it says; here `_beat` records them.
                warnings.filterwarnings("ignore", message="Heartbeat of storage")
                trial = self._study.ask(self.space)
            self._record_heartbeat(trial)
        self._running[trial.number] = trial
        return trial

    def note(self, number: int, **notes: Any) -> None:
        """Note something of a trial that runs: ``n_topics``, ``run_id``, ``folder``, ``epochs``."""
        with contextlib.suppress(GIVEN_UP):
            for name, value in notes.items():
                self._running[number].set_user_attr(name, value)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Note the validation perplexity of an epoch; whether to end the trial."""
        trial = self._running[number]
        best, length = self._best_curve()
        spared = epoch + 1 < self.settings.pruning_warmup * length or epoch not in best
        if not math.isfinite(value):
            # It diverged, and is not for the curves that others are compared with.
            return not spared and self.settings.pruner is not Pruner.none
        with contextlib.suppress(GIVEN_UP):
            trial.report(value, epoch)
        if not trial.should_prune():
            return False
        return not spared and not value <= best[epoch] * (1 + self.settings.pruning_margin)

    def report_split(self, number: int, seed: str, values: Sequence[float]) -> bool:
        """Note the perplexities of a split; whether the trial lags the best on its splits.

        Trials race: one that is worse by more than ``racing_errors`` standard errors of the
        difference leaves, as in Maron & Moore (1994, Hoeffding races).
        """
        own = self._splits.setdefault(number, {})
        own[seed] = values
        done = self._complete()
        if self.settings.pruner is Pruner.none:
            return False
        rivals = [trial.user_attrs["values"][PERPLEXITY] for trial in done]
        shared = [rival for rival in rivals if own.keys() <= rival.keys()]
        if not shared or len(shared[0]) == len(own):
            # After the last split there is nothing to save.
            return False
        best = min(shared, key=lambda rival: np.mean([np.mean(rival[split]) for split in own]))
        lag = difference(own, best)
        return lag.mean > self.settings.racing_errors * lag.se

    def complete(self, number: int, value: float, values: Mapping[str, Any]) -> None:
        """A trial is done: its objective, and the values of every measure."""
        self.note(number, values=values)
        self._tell(number, TrialState.COMPLETE, value)

    def prune(self, number: int) -> None:
        """A trial was ended early."""
        self._tell(number, TrialState.PRUNED)

    def fail(self, number: int, error: str) -> None:
        """A trial failed of itself."""
        self.note(number, error=error)
        self._tell(number, TrialState.FAIL)

    def killed(self, number: int, error: str) -> bool:
        """The worker of a trial died; whether its parameters were queued again (once)."""
        trial = self._running[number]
        before = int(trial.user_attrs.get(KILLED_BEFORE, 0))
        self.fail(number, error)
        if before == 0:
            self._queue_again(number, trial.params, before + 1)
        return before == 0

    def repeat(self, number: int) -> None:
        """Queue the parameters of a failed trial again: its failure was not of its making."""
        (trial,) = (t for t in self._study.get_trials(deepcopy=False) if t.number == number)
        self._repeat(trial)

    def interrupted(self, number: int) -> None:
        """The sweep is stopped while a trial runs: it is run again when the sweep goes on."""
        trial = self._running[number]
        self.fail(number, INTERRUPTED)
        self._queue_again(number, trial.params, int(trial.user_attrs.get(KILLED_BEFORE, 0)))

    @property
    def open_trials(self) -> list[int]:
        """Trials that were asked for here and not told."""
        return list(self._running)

    @property
    def n_done(self) -> int:
        """Trials of the budget that ended."""
        trials = self._study.get_trials(deepcopy=False)
        return sum(trial.state.is_finished() for trial in _counted(trials))

    @property
    def n_others(self) -> int:
        """Trials that other processes are running."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum(trial.number not in self._running for trial in running)

    def trials(self) -> list[Trial]:
        """Every trial as plain data."""
        return [
            as_plain(trial)
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state is not TrialState.WAITING
        ]

    def importance(self) -> dict[str, float]:
        """Importance of each setting (PED-ANOVA); empty where it cannot be told."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        varied = {name for name in self.space if len({repr(t.params[name]) for t in done}) > 1}
        if len(done) < 2 or not varied:
            return {}
        if len(varied) == 1:
            return dict.fromkeys(varied, 1.0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return {
                    name: float(value)
                    for name, value in optuna.importance.get_param_importances(self._study).items()
                }
        except (RuntimeError, ValueError) as error:
            log.warning("the importance of the settings cannot be told (%s)", error)
            return {}

    def _require(self, definition: Mapping[str, Any]) -> None:
        """Refuse a study that was made with something else."""
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

    def _recover(self, *, alone: bool) -> list[Trial]:
        """Fail the trials of processes that are gone, and queue them again."""
        if alone:
            # Nobody else works on the study: whatever is said to be running was killed.
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self._storage.set_trial_user_attr(trial._trial_id, "error", KILLED)
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._repeat(trial)
                self._stale.append(trial)
            numbers = {trial.number for trial in self._stale}
            self._stale.clear()
        else:
            numbers = self._fail_stale()
        return [trial for trial in self.trials() if trial.number in numbers]

    def _fail_stale(self) -> set[int]:
        """Fail what other processes left behind, and queue it again; the numbers of these."""
        if isinstance(self._storage, RDBStorage):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                fail_stale_trials(self._study)
        numbers = set()
        while self._stale:
            trial = self._stale.pop()
            numbers.add(trial.number)
            self._repeat(trial)
        return numbers

    def _repeat(self, trial: FrozenTrial) -> None:
        self._queue_again(trial.number, trial.params, int(trial.user_attrs.get(KILLED_BEFORE, 0)))

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        # One that missed its heartbeats was given up by others, and is run again.
        self._splits.pop(number, None)
        self._study.tell(self._running.pop(number), value, state=state, skip_if_finished=True)

    def _queue_again(self, number: int, params: Mapping[str, Any], killed_before: int) -> None:
        self._study.enqueue_trial(
            dict(params), user_attrs={RETRY_OF: number, KILLED_BEFORE: killed_before}
        )

    def _propose(self, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """Parameters that were not tried yet; None if all were.

        The sampler works on a copy in memory: what it proposes and was tried before is told to the
        copy alone, and the study keeps real trials only.
        """
        tried = {_key(trial.params): trial for trial in _counted(trials)}
        if self._points is not None:
            left = [point for point in self._points if _key(point) not in tried]
            if not left:
                return None
            if self.settings.sampler is Sampler.grid:
                return left[0]
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
        return left[generator.integers(len(left))]

    def _complete(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _best_curve(self) -> tuple[dict[int, float], int]:
        """The lowest perplexity of the complete trials at each epoch; the most epochs."""
        best: dict[int, float] = {}
        curves = [trial.intermediate_values for trial in self._complete()]
        for curve in curves:
            for epoch, value in curve.items():
                best[epoch] = min(value, best.get(epoch, math.inf))
        return best, max(best, default=-1) + 1

    def _beat(self) -> None:
        while not self._beating.wait(HEARTBEAT_SECONDS):
            for trial in list(self._running.values()):
                # A storage that is busy hears the next one.
                with contextlib.suppress(Exception):
                    self._record_heartbeat(trial)

    def _record_heartbeat(self, trial: optuna.Trial) -> None:
        if isinstance(self._storage, RDBStorage):
            # Only `study.optimize` beats by itself; the storage knows trials by an id of its own.
            self._storage.record_heartbeat(trial._trial_id)

    def _note_time(self) -> None:
        # Of those who work together, the one who has been at it longest.
        noted = float(self._study.user_attrs.get(SECONDS, 0.0))
        self._study.set_user_attr(SECONDS, max(noted, self.seconds))


def study_name(data: str, definition: Mapping[str, Any]) -> str:
    """A name that the same search finds again: the data's, and a digest of the definition."""
    text = json.dumps(definition, sort_keys=True, default=str)
    return f"{data}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def open_storage(
    url: str, on_stale: Callable[[optuna.Study, FrozenTrial], None] | None = None
) -> RDBStorage | JournalStorage:
    """Optuna's storage at an address.

    Parameters
    ----------
    url
        The address.
    on_stale
        Told of each trial that is failed for want of heartbeats.

    Raises
    ------
    InputError
        There is no such kind of storage, its driver is not installed, or it cannot be reached.
    """
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        if url.startswith("journal:"):
            path = Path(url.removeprefix("journal:"))
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        sqlite = url.startswith("sqlite:///")
        if sqlite:
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # Heartbeats are experimental, it says.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(
                url,
                engine_kwargs=(
                    {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
                ),
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=STALE_SECONDS,
                heartbeat_stale_trial_callback=on_stale,
            )
    except ImportError as error:
        raise InputError(
            f"sweep.storage = {without_password(url)!r}: its driver is not installed ({error}); "
            "for postgresql+psycopg://… it is pip install 'psycopg[binary]'"
        ) from error
    except (ArgumentError, SQLAlchemyError, OSError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(
            f"sweep.storage = {without_password(url)!r} cannot be opened ({first}); give "
            "sqlite:///FILE, journal:FILE or postgresql+psycopg://USER@HOST/DATABASE"
        ) from error


def _close_storage(storage: RDBStorage | JournalStorage) -> None:
    """Give the connections back."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def make_sampler(kind: Sampler, seed: int, n_tried: int) -> BaseSampler:
    """Optuna's sampler; its draws depend on the seed and on how many trials there were.

    So a sweep that goes on proposes what it would have proposed without a stop.
    """
    if kind is Sampler.qmc:
        # One scrambled sequence for all trials.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.samplers.QMCSampler(
                qmc_type="sobol",
                scramble=True,
                seed=seed,
                warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            )
    drawn = int(np.random.SeedSequence([seed, n_tried]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind is Sampler.gp:
            return optuna.samplers.GPSampler(seed=drawn, deterministic_objective=False)
        if kind is Sampler.tpe:
            return optuna.samplers.TPESampler(seed=drawn, multivariate=True, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=drawn)


def make_pruner(settings: SweepConfig) -> optuna.pruners.BasePruner:
    """Optuna's pruner."""
    median = optuna.pruners.MedianPruner(n_startup_trials=settings.n_startup_trials)
    if settings.pruner is Pruner.median:
        return median
    if settings.pruner is Pruner.patient:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.pruners.PatientPruner(median, patience=settings.patience)
    if settings.pruner is Pruner.hyperband:
        return optuna.pruners.HyperbandPruner(min_resource=2)
    return optuna.pruners.NopPruner()


def is_finite(space: Space) -> bool:
    """Whether a space can be enumerated."""
    sizes = [_size(distribution) for distribution in space.values()]
    return None not in sizes and math.prod(size or 0 for size in sizes) <= MOST_POINTS


def as_plain(trial: FrozenTrial) -> Trial:
    """A trial as plain data."""
    noted = trial.user_attrs
    seconds = trial.duration.total_seconds() if trial.duration is not None else None
    ended = trial.datetime_complete
    return Trial(
        number=trial.number,
        state=trial.state.name,
        params=dict(trial.params),
        n_topics=int(noted.get("n_topics", 0)),
        values=noted.get("values", {}),
        curve={int(epoch): value for epoch, value in trial.intermediate_values.items()},
        epochs=int(noted.get("epochs", len(trial.intermediate_values))),
        seconds=seconds,
        ended=ended.isoformat(timespec="seconds") if ended else "",
        run_id=noted.get("run_id", ""),
        folder=noted.get("folder", ""),
        error=noted.get("error", KILLED if trial.state is TrialState.FAIL else ""),
    )


def _counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that use up the budget: all but those that were queued again."""
    repeated = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]


def _size(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is None:
        return 1 if distribution.single() else None
    return round((distribution.high - distribution.low) / distribution.step) + 1


def _points(space: Space) -> list[dict[str, Any]]:
    """Every point of a finite space, the last setting running fastest."""

    def values(distribution: BaseDistribution) -> Iterator[Any]:
        if isinstance(distribution, CategoricalDistribution):
            yield from distribution.choices
        elif isinstance(distribution, IntDistribution):
            yield from range(distribution.low, distribution.high + 1, distribution.step)
        else:
            assert isinstance(distribution, FloatDistribution)
            for i in range(_size(distribution) or 0):
                # Sums of floats leave the bounds by their last digit.
                yield min(distribution.low + i * (distribution.step or 0.0), distribution.high)

    axes = [list(values(distribution)) for distribution in space.values()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def _key(params: Mapping[str, Any]) -> str:
    # Floats on a grid differ in their last digits by how they were come by.
    return json.dumps(
        {n: round(v, 12) if isinstance(v, float) else v for n, v in sorted(params.items())},
        default=str,
    )
