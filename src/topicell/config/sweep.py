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
    """Which of Optuna's pruners stops poor trials, by validation perplexity at each epoch."""

    median = "median"
    """Stops a trial that is worse than the median of the earlier trials at the same epoch."""
    hyperband = "hyperband"
    patient = "patient"
    """The median rule, after a trial has not improved for `SweepConfig.patience` epochs."""
    none = "none"


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """A search over settings (``-m sweep=topics``) by Optuna."""

    enabled: bool = False
    """Whether this is a sweep; ``sweep=topics`` sets it."""
    params: dict[str, str] = field(default_factory=dict)
    """Settings that are searched, in Hydra's grammar of sweeps; the command line adds to them
    and overrides them: ``model.n_topics=range(2,31)``, ``choice(5,10,20)``,
    ``int(interval(2,30))``, ``tag(log,interval(1e-3,1))``."""
    study: str | None = None
    """Name of the study; null makes it from the data and a digest of everything that determines
    the trials, so that the same command finds the study again."""
    storage: str | None = None
    """``sqlite:///FILE``, ``journal:FILE`` or ``postgresql+psycopg://…``; null uses
    ``sqlite:///optuna.db`` in the current folder."""
    join: bool = False
    """Work on one study from several processes or machines; set this in each of them."""
    n_trials: int = setting(20, POSITIVE)
    """Trials of the study, over all sessions; a trial of a killed worker does not count twice."""
    timeout: float | None = setting(None, POSITIVE)
    """Seconds after which no further trial is started, over all sessions."""
    n_jobs: int = setting(2, POSITIVE)
    """Worker processes, each taking one trial after another."""
    sampler: Sampler = Sampler.tpe
    pruner: Pruner = Pruner.median
    n_startup_trials: int = setting(4, NOT_NEGATIVE)
    """Number of complete trials before a trial can be pruned by its epochs; the race over splits
    needs one."""
    pruning_warmup: float = setting(0.5, SHARE)
    """Share of the epochs of a fit in which no trial is pruned."""
    pruning_margin: float = setting(0.01, NOT_NEGATIVE)
    """A trial whose perplexity is within this share of the best at the same epoch is not pruned
    there, because the sweep searches the smallest K on a plateau, not only the best."""
    racing_errors: float = setting(2.0, NOT_NEGATIVE)
    """After each split, a trial is also pruned if it is worse than the best on the same splits
    by more than this number of standard errors (unless ``pruner=none``)."""
    patience: int = setting(3, POSITIVE)
    """Epochs without improvement before ``pruner=patient`` may stop a trial. Only reported
    epochs count: all of the first 50, then every second, every fourth, and so on."""
    max_failure_rate: float | None = setting(None, SHARE)
    """Stop the sweep if more than this share of `n_trials` failed; null continues."""
    support_floor: float = setting(0.5, Bounds(0, 1))
    """A number of topics is not chosen if a smaller share of its topics is found again by other
    replicates."""
    register: str | None = "topicell"
    """Name under which the chosen model is registered in MLflow, with the alias ``champion``;
    null registers nothing."""

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
    """Settings of ``topicell train``: a run, and with ``-m`` the search over runs."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    resume: str | None = None
    """Continue a run that did not finish: its MLflow id or its folder, or ``true`` for the last
    run with the same settings (a new run if there is none)."""
