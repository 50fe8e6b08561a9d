"""One run, from configuration to report. Read this module first.

configuration → data → model → scores → outputs; every result is in the returned `Result`, in the
run folder, and in the tracker.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from topicell.agreement import Agreement
from topicell.config import ExternalConfig, RunConfig
from topicell.counts import Counts
from topicell.data.cells import PreparedCells
from topicell.data.preprocessing import prepared, settings_of_data, split
from topicell.data.reading import data_digest, load_or_open, source_digest
from topicell.data.workers import require_distributed
from topicell.errors import InputError, failure
from topicell.model.checkpoints import Checkpoints
from topicell.model.engines import cpu_threads
from topicell.model.fit import EpochMetrics, TopicFit
from topicell.model.loading import load_fit
from topicell.model.ranks import Ranks
from topicell.model.registry import fit_model, require_model, require_together
from topicell.model.seeds import RUN, EarlierTopics
from topicell.outputs import Measurements, Result, conclude
from topicell.preflight import check_run
from topicell.progress import step
from topicell.scoring import Estimates, Measured, measure, split_seeds, warn_of_infinite
from topicell.signals import interrupted
from topicell.tracking.provenance import provenance
from topicell.tracking.record import CHECKPOINTS
from topicell.tracking.runs import Tracker
from topicell.tracking.stored import fetch_run


def run(
    config: RunConfig,
    tracker: Tracker,
    ranks: Ranks | None = None,
    agreement: Agreement | None = None,
) -> Result:
    """Prepare the data, fit, compute scores, write the report, and record all with the tracker.

    Parameters
    ----------
    config
        Every setting.
    tracker
        Where the run is recorded; its folder receives the artifacts.
    ranks
        The processes that fit together; the others call `follow`.
    agreement
        The topics of other runs with which this run starts, for `topicell.consensus`.

    Raises
    ------
    InputError
        The data or a setting is invalid; nothing was recorded.
    """
    ranks = ranks or Ranks()
    require_model(config.model, config.train)
    require_together(config.model, config.train, ranks)
    require_distributed(config.preprocess.dask)
    earlier = earlier_fit(config)
    cells = cells_of(config)
    prior = earlier_topics(config)
    if earlier is not None:
        with named_setting("model.align_to"):
            earlier.require_alignable(config.model.n_topics, cells.counts)
    if ranks.size > 1:
        ranks.first("prepared")  # the others find the cells in the cache
        require_same_cells(cells, ranks)
    device = check_run(config, cells, prior)
    with (
        recorded(config, tracker, cells, {"device": device}) as last_tags,
        # Use the same number of threads for all estimates, because the last digits of sums depend
        # on it.
        cpu_threads(config.train.threads),
    ):
        # Tell the other processes which split comes next, when they are ready.
        ranks.first(config.seed)
        checkpoints = checkpoints_of(config, tracker, config.seed)
        fit = fit_parts(config, cells.parts, config.seed, checkpoints, tracker, ranks, prior)
        # Stop the time here, because the metrics do not belong to the fit.
        known = {"speed/fit_seconds": checkpoints.seconds}
        alignment_K = None if earlier is None else fit.align_to(earlier, cells.counts)
        if agreement is not None:
            alignment_K = fit.order_as(agreement.theta_NC, agreement.cells)
        with step("topic proportions of the cells"):
            estimates = estimates_of(fit, cells, config, config.seed)
        # A resumed run has already scored some splits.
        measured = dict(tracker.measured)
        own = str(config.seed)
        if own not in measured:
            with step("measures"):
                measured[own] = measure_split(estimates, cells, cells.parts, config, config.seed)
            tracker.log_split(own, measured[own])
        for seed, of_split in further_splits(cells, config, tracker, ranks, prior):
            measured[seed] = of_split
            tracker.log_split(seed, of_split)
        ranks.first(None)  # there is no further split
        measurements = Measurements(measured, known, alignment_K, agreement)
        result = conclude(estimates, measurements, cells, config, tracker)
        warn_of_infinite(result.scores)
        last_tags.update(result.tags)
    return result


def follow(config: RunConfig, ranks: Ranks) -> None:
    """Help the first process of a run, which calls `run`, with its fits."""
    require_model(config.model, config.train)
    require_together(config.model, config.train, ranks)
    ranks.first(None)  # the cells are prepared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first process gives them
        cells = cells_of(config)
        require_same_cells(cells, ranks)
        prior = earlier_topics(config)
        check_run(config, cells, prior)
        with cpu_threads(config.train.threads):
            # A resumed run has already scored some splits.
            seed = ranks.first(None)
            while seed is not None:
                parts = cells.divided(split(cells.adata, config.preprocess.split, seed=seed))
                none = Checkpoints(Path(), None)
                fit_parts(config, parts, seed, none, ranks=ranks, prior=prior)
                seed = ranks.first(None)


def earlier_fit(config: RunConfig) -> TopicFit | None:
    """Return the fit of the run whose topic numbers are kept; None if there is none."""
    if config.model.align_to is None:
        return None
    with named_setting("model.align_to"), tempfile.TemporaryDirectory() as scratch:
        folder, _ = fetch_run(config.model.align_to, config.tracking, Path(scratch), ("model",))
        return load_fit(folder / "model")


def earlier_topics(config: RunConfig) -> EarlierTopics | None:
    """Return the topics of the run that ``model.topic_gene_prior`` names; None if it names none."""
    setting = config.model.topic_gene_prior
    if not isinstance(setting, str) or not setting.startswith(RUN):
        return None
    with (
        named_setting(f"model.topic_gene_prior = {setting!r}"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        name = setting.removeprefix(RUN)
        folder, _ = fetch_run(name, config.tracking, Path(scratch), ("model",))
        fit = load_fit(folder / "model")
        return EarlierTopics(fit.beta()[fit.selected], fit.genes, fit.gene_ids)


@contextlib.contextmanager
def named_setting(name: str) -> Iterator[None]:
    """Name the setting in the error of a bad value."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def cells_of(config: RunConfig) -> PreparedCells:
    """Return the prepared cells of a run."""
    data = settings_of_data(config.data, config.preprocess)
    with step("data"), as_set(config):
        adata = prepared(
            lambda: load_or_open(data, shared=config.preprocess.dask is not None),
            source_digest(data),
            config.preprocess,
            seed=config.seed,
        )
    model, measured = config.model, config.preprocess.batch_key
    return PreparedCells(adata, model.batch_key, measured, model.prevalence)


@contextlib.contextmanager
def as_set(config: RunConfig) -> Iterator[None]:
    """Name ``model.batch_key`` in errors of ``preprocess.batch_key`` if that has its value."""
    try:
        yield
    except InputError as error:
        key = config.model.batch_key
        if key is None or key != config.preprocess.batch_key:
            raise
        text = str(error).replace("preprocess.batch_key", "model.batch_key")
        raise InputError(text) from error


def require_same_cells(cells: PreparedCells, ranks: Ranks) -> None:
    """Check that all processes have the same cells and genes.

    Raises
    ------
    InputError
        They have not.
    """
    names = [cells.adata.obs_names, cells.adata.var_names]
    digest = hashlib.sha256("\0".join(name for axis in names for name in axis).encode())
    found = ranks.everyone((*cells.adata.shape, digest.hexdigest()))
    if len(set(found)) > 1:
        sizes = ", ".join(f"{n_cells} cells × {n_genes} genes" for n_cells, n_genes, _ in found)
        raise InputError(
            f"the processes have different cells or genes ({sizes}); data.path and the cache "
            "(XDG_CACHE_HOME) must be the same on all machines"
        )


def checkpoints_of(config: RunConfig, tracker: Tracker, seed: int) -> Checkpoints:
    """Return the checkpoints of the fit of a split."""
    return Checkpoints(tracker.directory / CHECKPOINTS / str(seed), config.train.checkpoint_every)


def fit_parts(
    config: RunConfig,
    parts: Mapping[str, Counts],
    seed: int,
    checkpoints: Checkpoints,
    tracker: Tracker | None = None,
    ranks: Ranks | None = None,
    prior: EarlierTopics | None = None,
) -> TopicFit:
    """Fit the training cells of a split; with a tracker, log every epoch."""

    def log(epoch: EpochMetrics) -> None:
        if tracker is not None:
            metrics = {name: value for name, value in epoch.items() if name != "epoch"}
            tracker.log_metrics(metrics, epoch=int(epoch["epoch"]))

    with step("fit"):
        return fit_model(
            parts["train"],
            parts["valid"],
            config.model,
            config.train,
            seed=seed,
            on_epoch=log,
            checkpoints=checkpoints,
            ranks=ranks,
            prior=prior,
        )


def estimates_of(fit: TopicFit, cells: PreparedCells, config: RunConfig, seed: int) -> Estimates:
    """Return the posterior means of all cells and topics."""
    return Estimates.of(fit, cells.counts, n_samples=config.evaluate.n_samples, seed=seed)


def measure_split(
    estimates: Estimates,
    cells: PreparedCells,
    parts: Mapping[str, Counts],
    config: RunConfig | ExternalConfig,
    seed: int,
) -> Measured:
    """Return the metrics of one split."""
    labels = None if cells.labels is None else cells.labels.to_numpy()
    return measure(estimates, parts, labels, config.evaluate, seed, cells.batches)


def further_splits(
    cells: PreparedCells,
    config: RunConfig,
    tracker: Tracker,
    ranks: Ranks,
    prior: EarlierTopics | None,
) -> Iterator[tuple[str, Measured]]:
    """Fit and score the splits after the first: yield the seed and the values of each."""
    for seed in split_seeds(config.seed, config.evaluate.n_splits)[1:]:
        if str(seed) in tracker.measured:
            continue
        parts = cells.divided(split(cells.adata, config.preprocess.split, seed=seed))
        ranks.first(seed)
        checkpoints = checkpoints_of(config, tracker, seed)
        fit = fit_parts(config, parts, seed, checkpoints, ranks=ranks, prior=prior)
        estimates = estimates_of(fit, cells, config, seed)
        with step("measures"):
            measured = measure_split(estimates, cells, parts, config, seed)
        yield str(seed), measured


@contextlib.contextmanager
def recorded(
    config: RunConfig | ExternalConfig,
    tracker: Tracker,
    cells: PreparedCells,
    tags: Mapping[str, str],
) -> Iterator[dict[str, str]]:
    """Start the record of a run, and end it in every case.

    Yield the tags that are added if the run succeeds.
    """
    last_tags: dict[str, str] = {}
    source = cells.source
    tags = provenance() | dict(tags) | {"topicell.prepared_digest": data_digest(cells.adata)}
    try:
        tracker.start(config, tags)
        tracker.log_dataset(source["name"], source["source"], source["sha256"])
        yield last_tags
        with step("delivery to MLflow"):
            tracker.finish("FINISHED", last_tags or None)
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except BaseException as error:
        if interrupted():
            tracker.finish("KILLED")
            raise KeyboardInterrupt from error
        tracker.finish("FAILED", {"topicell.error": failure(error)})
        raise
