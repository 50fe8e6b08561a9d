"""Settings of ``topicell train``: a run, and the search over settings by Optuna."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from topicell.config.checks import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Bounds,
    check_fields,
    require,
    setting,
)
from topicell.config.run import RunConfig


class Sampler(Enum):
    """Which of Optuna's samplers proposes the next trial."""

    tpe = "tpe"
    """Tree-structured Parzen estimator, multivariate."""
    gp = "gp"
    """Gaussian process with expected improvement."""
    random = "random"
    grid = "grid"
    """Every point of the space, in order; for finite spaces."""
    qmc = "qmc"
    """Quasi-Monte Carlo: Sobol' points."""


class Pruner(Enum):
    """Which of Optuna's pruners ends hopeless trials, by validation perplexity at each epoch."""

    median = "median"
    """Ends a trial that is worse than the median of the earlier ones at the same epoch."""
    hyperband = "hyperband"
    patient = "patient"
    """The median rule, once a trial has not gained for `SweepConfig.patience` epochs."""
    none = "none"


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """A search over settings (``-m sweep=topics``) by Optuna."""

    enabled: bool = False
    params: dict[str, str] = field(default_factory=dict)
    """Settings that are moved, in Hydra's grammar of sweeps; the command line adds to them and
    goes before: ``model.n_topics=range(2,31)``, ``choice(5,10,20)``, ``int(interval(2,30))``,
    ``tag(log,interval(1e-3,1))``."""
    study: str | None = None
    """The study's name; null names it by the data and a digest of all that decides its trials, so
    that the same command finds it again."""
    storage: str | None = None
    """``sqlite:///FILE``, ``journal:FILE`` or ``postgresql+psycopg://…``; null takes
    ``sqlite:///optuna.db`` in the current folder."""
    join: bool = False
    """Work on one study from several processes or machines; each has to be started with it."""
    n_trials: int = setting(20, POSITIVE)
    """Trials of the study, over all sessions; a trial of a killed worker does not count twice."""
    timeout: float | None = setting(None, POSITIVE)
    """Seconds after which no further trial is started, over all sessions."""
    n_jobs: int = setting(2, POSITIVE)
    """Worker processes, each taking one trial after another."""
    sampler: Sampler = Sampler.tpe
    pruner: Pruner = Pruner.median
    n_startup_trials: int = setting(4, NOT_NEGATIVE)
    """Trials that must be complete before one is pruned by its epochs; to race, one is enough."""
    pruning_warmup: float = setting(0.5, SHARE)
    """Share of the epochs of a fit in which no trial is pruned."""
    pruning_margin: float = setting(0.01, NOT_NEGATIVE)
    """A trial whose perplexity is within this share of the best one's at the same epoch is not
    pruned there: the smallest number of topics on a plateau is to be found, not only the best."""
    racing_errors: float = setting(2.0, NOT_NEGATIVE)
    """After each split, a trial that is worse than the best on the same splits by more than so
    many standard errors is pruned as well (unless ``pruner=none``)."""
    patience: int = setting(3, POSITIVE)
    """Epochs without a gain before ``pruner=patient`` may end a trial, of those that the sweep
    looks at: all of the first 50, then every second, every fourth, and so on."""
    max_failure_rate: float | None = setting(None, SHARE)
    """End the sweep when more than this share of `n_trials` has failed; null goes on."""
    stability_floor: float = setting(0.7, Bounds(0, 1))
    """Numbers of topics of a lower mean stability are not chosen."""
    register: str | None = "topicell"
    """Registered model of MLflow that receives the chosen one, under the alias ``champion``; null
    registers nothing."""

    def __post_init__(self) -> None:
        check_fields("sweep", self)
        for name in ("study", "register"):
            value = getattr(self, name)
            require(
                value is None or (value not in ("", ".", "..") and not set(value) & set("/:\\")),
                f"sweep.{name}",
                value,
                "must be a name without / and :",
            )


@dataclass(kw_only=True, slots=True)
class TrainCommand(RunConfig):
    """What ``topicell train`` is told: a run, and with ``-m`` how runs are searched."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    resume: str | None = None
    """Go on with a run that did not end: ``true`` for the last one of the same settings (or begin
    one, if there is none), else its MLflow id or its folder."""
