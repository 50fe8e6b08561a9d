"""One run, from configuration to report: the page to read first.

configuration → data → model → evaluation → report; every result is in the returned `Result`, in
the run folder, and with the tracker.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from topicell import report
from topicell.config import Device, EvaluateConfig, ExternalConfig, ReportConfig, RunConfig, as_dict
from topicell.counts import Counts
from topicell.data.preprocessing import PARTS, column, prepared, split
from topicell.data.reading import data_digest, load, source_digest
from topicell.errors import InputError, disk_is_full, failure
from topicell.evaluation.metrics import Replicate, replicate_scores
from topicell.evaluation.perplexity import thin
from topicell.evaluation.stability import consensus, match_topics, stability
from topicell.files import whole
from topicell.model.checkpoints import Checkpoints
from topicell.model.engines import check_precision, cpu_threads, resolve_device
from topicell.model.fit import TopicFit
from topicell.model.registry import fit_model, require_model
from topicell.model.sizes import check_sizes
from topicell.progress import step
from topicell.report.summary import summary
from topicell.report.tables import write_tables
from topicell.signals import interrupted
from topicell.tracking.provenance import provenance
from topicell.tracking.record import CHECKPOINTS, REPORT_ERROR
from topicell.tracking.runs import Tracker

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


Measured = dict[str, list[float]]
"""Values by metric, one a replicate; one alone of what compares replicates."""
Values = dict[str, dict[str, list[float]]]
"""Values by metric and split."""


TOPIC_COLUMN = re.compile(r"lda_topic_\d+", re.ASCII)
"""Columns of obs that a run writes: the proportion of each topic."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run found: the fit, its scores by metric name, and the annotated cells.

    `values` has what the scores summarise: by metric and split, one value a replicate.
    `report_error` says in one line what the report lacks; None if nothing failed.
    """

    fit: TopicFit
    scores: dict[str, float]
    values: Values
    adata: AnnData
    report_error: report.ReportError | None = None


def run(config: RunConfig, tracker: Tracker) -> Result:
    """Prepare the data, fit, measure, report, and record it all with the tracker.

    Parameters
    ----------
    config
        Every knob.
    tracker
        Where the run is recorded; its folder receives the artifacts.

    Raises
    ------
    InputError
        The data or a setting is bad; nothing was recorded.
    """
    spec = require_model(config.model, config.train)
    with step("data"):
        adata = prepared(
            lambda: load(config.data),
            source_digest(config.data),
            config.preprocess,
            seed=config.seed,
        )
    parts = parts_of(adata)
    check_sizes(parts["train"], config.model)
    device = resolve_device(config.train.device if spec.on_gpu else Device.cpu)
    if spec.on_gpu:
        check_precision(config.train.precision, device)
    check_report(adata, config.report)
    with (
        recorded(config, tracker, adata, {"device": device.type}) as last_tags,
        # One thread setting for all that is estimated: sums depend on it in their last digits.
        cpu_threads(config.train.threads),
    ):
        checkpoints = checkpoints_of(config, tracker, config.seed)
        fit = fit_model(
            parts["train"],
            parts["valid"],
            config.model,
            config.train,
            seed=config.seed,
            on_epoch=lambda epoch: tracker.log_metrics(
                {name: value for name, value in epoch.items() if name != "epoch"},
                epoch=int(epoch["epoch"]),
            ),
            checkpoints=checkpoints,
        )
        known = {"speed/fit_seconds": checkpoints.seconds}
        of_cells = Counts.of(adata, "counts")
        with step("topic proportions of the cells"):
            theta_RNK = fit.theta(of_cells, n_samples=config.evaluate.n_samples, seed=config.seed)
        beta_RKG = fit.beta(n_samples=config.evaluate.n_samples, seed=config.seed)
        # A run that is gone on with has measured some splits before.
        measured = dict(tracker.measured)
        first = str(config.seed)
        if first not in measured:
            with step("measures"):
                measured[first] = measure(
                    fit, parts, theta_RNK, beta_RKG, labels_of(adata), config.evaluate, config.seed
                )
            tracker.log_split(first, measured[first])
        for seed, of_split in further_splits(adata, config, tracker):
            measured[seed] = of_split
            tracker.log_split(seed, of_split)
        result = conclude(fit, theta_RNK, beta_RKG, adata, measured, config, tracker, known)
        warn_of_infinite(result.scores)
        last_tags.update(tags_of(result))
    return result


def checkpoints_of(config: RunConfig, tracker: Tracker, seed: int) -> Checkpoints:
    """Where the fit of a split keeps its state."""
    return Checkpoints(tracker.directory / CHECKPOINTS / str(seed), config.train.checkpoint_every)


def further_splits(
    adata: AnnData, config: RunConfig, tracker: Tracker
) -> Iterator[tuple[str, Measured]]:
    """Fit and measure on the splits after the first: (seed of the split, values)."""
    cells = Counts.of(adata, "counts")
    for seed in split_seeds(config.seed, config.evaluate.n_splits)[1:]:
        if str(seed) in tracker.measured:
            continue
        part_N = split(adata, config.preprocess.split, seed=seed)
        parts = {name: cells[np.flatnonzero(part_N == name)] for name in PARTS}
        fit = fit_model(
            parts["train"],
            parts["valid"],
            config.model,
            config.train,
            seed=seed,
            checkpoints=checkpoints_of(config, tracker, seed),
        )
        theta_RNK = fit.theta(cells, n_samples=config.evaluate.n_samples, seed=seed)
        beta_RKG = fit.beta(n_samples=config.evaluate.n_samples, seed=seed)
        yield (
            str(seed),
            measure(fit, parts, theta_RNK, beta_RKG, labels_of(adata), config.evaluate, seed),
        )


def split_seeds(seed: int, n_splits: int) -> list[int]:
    """The seed of each split: the run's own, then such as neighbouring seeds do not share."""
    drawn = np.random.SeedSequence(seed).generate_state(n_splits - 1)
    return [seed, *(int(value) for value in drawn)]


def parts_of(adata: AnnData) -> dict[str, Counts]:
    """The cells of each part: ``train``, ``valid`` and ``test``."""
    cells = Counts.of(adata, "counts")
    return {name: cells[np.flatnonzero(adata.obs["split"] == name)] for name in PARTS}


def check_report(adata: AnnData, config: ReportConfig) -> None:
    """Refuse what could not be measured or reported, before anything is computed."""
    if config.enabled:
        report.require_enough_cells(adata)
        report.require_gene_sets(adata, config)
    labels = labels_of(adata)
    if labels is not None:
        if TOPIC_COLUMN.fullmatch(str(labels.name)):
            raise InputError(
                f"data.label_key = {labels.name!r}: the run replaces columns of this name by its "
                "topics; rename the column of labels"
            )
        require_labels(labels)


def labels_of(adata: AnnData) -> pd.Series | None:
    """The known cell types, if the data have any."""
    key = column(adata.uns["topicell_source"]["label_key"])
    return adata.obs[key] if key else None


@contextlib.contextmanager
def recorded(
    config: RunConfig | ExternalConfig, tracker: Tracker, adata: AnnData, tags: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """Start the record of a run, and end it in whichever way the run ends.

    Yields the tags that are added if it ends well.
    """
    last_tags: dict[str, str] = {}
    source = adata.uns["topicell_source"]
    marks = provenance() | dict(tags) | {"topicell.prepared_digest": data_digest(adata)}
    try:
        tracker.start(config, marks)
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


def conclude(
    fit: TopicFit,
    theta_RNK: np.ndarray,
    beta_RKG: np.ndarray,
    adata: AnnData,
    measured: Mapping[str, Measured],
    config: RunConfig | ExternalConfig,
    tracker: Tracker,
    known: Mapping[str, float],
) -> Result:
    """What comes after the measures: scores, annotated cells, tables, report.

    The model and the scores are written first. A report that fails is an entry of the result, and
    no error.

    Parameters
    ----------
    fit, theta_RNK, beta_RKG, adata
        The topics, and the cells.
    measured
        What was measured, by the seed of each split; the first is of `fit`.
    config, tracker
        What was asked, and where it is recorded.
    known
        Scores that were taken before.

    Returns
    -------
    The scores by metric name, the values that they summarise, and what the report lacks.
    """
    annotate(adata, theta_RNK[fit.shown])
    adata.varm["lda_topics"] = beta_RKG[fit.shown].T.copy()
    own = next(iter(measured))
    values = {
        name: {seed: of_split[name] for seed, of_split in measured.items() if name in of_split}
        for name in measured[own]
    }
    scores = dict(summarized(values, own, fit.shown))
    if fit.has_encoder and config.evaluate.n_gap_cells:
        with step("amortization gap"):
            gap_N = amortization_gap(fit, Counts.of(adata, "counts"), config.evaluate, config.seed)
        adata.obs["amortization_gap"] = gap_N
        scores["inference/amortization_gap"] = float(np.nanmean(gap_N))
    scores |= dict(known) | {"memory/peak_mib": peak_mib()}
    tracker.log_metrics(scores)

    source = adata.uns["topicell_source"]
    adata.uns["topicell"] = {
        "config": json.dumps(as_dict(config)),
        "scores": json.dumps(scores),
        "run_id": tracker.run_id,
        "label_key": column(source["label_key"]),
        "data": source["name"],
        "source": source["source"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("topicell"),
    }
    agreed = consensus(beta_RKG) if fit.n_replicates > 1 else None
    if agreed is not None:
        adata.uns["topicell"] |= {
            "topic_stability": stability(beta_RKG).per_topic_RK[fit.shown],
            "topic_support": agreed.support_C[agreed.member_RK[fit.shown]],
            "shown": fit.shown,
            "topic_matches": np.stack(
                [match_topics(beta_RKG[fit.shown], other_KG).cosine for other_KG in beta_RKG]
            ),
        }
    folder = tracker.directory
    fit.save(folder / "model")
    write_scores(values, folder)
    failures: list[Exception] = []
    no_room = False
    try:
        if config.evaluate.differential_expression:
            with step("differential expression"), kept_going(failures):
                report.add_differential_expression(adata)
        with step("tables"):
            write_tables(fit, theta_RNK, beta_RKG, agreed, adata, folder)
        with kept_going(failures):
            write_report(fit, adata, config, tracker)
    except OSError as error:
        no_room = disk_is_full(error)
        raise
    finally:
        # The cells outlive a table that fails, and an interrupt. On a full disk libhdf5 can end the
        # process.
        if not no_room:
            with step("adata.h5ad"), whole(folder / "adata.h5ad") as unfinished:
                adata.write_h5ad(unfinished, compression="gzip")
    return Result(fit, scores, values, adata, report_error(failures))


def write_report(
    fit: TopicFit, adata: AnnData, config: RunConfig | ExternalConfig, tracker: Tracker
) -> None:
    """Write the summary and, if it is enabled, the report."""
    text, picture = summary(adata), f"{report.PICTURE}.png"
    tracker.log_summary(text, "")
    if not config.report.enabled:
        return
    try:
        report.write(adata, fit.history, tracker.directory, config.report, config.seed)
    finally:
        if (tracker.directory / picture).exists():
            tracker.log_summary(text, picture)


@contextlib.contextmanager
def kept_going(failures: list[Exception]) -> Iterator[None]:
    """Add an error to a list, and go on; an interrupt is no error."""
    try:
        yield
    except Exception as error:
        if interrupted():
            raise
        failures.append(error)


def report_error(failures: Sequence[Exception]) -> report.ReportError | None:
    """Return what failed as one error, None if nothing did."""
    if not failures:
        return None
    error = report.ReportError(
        "; ".join(
            str(failed) if isinstance(failed, report.ReportError) else report.described(failed)
            for failed in failures
        )
    )
    error.__cause__ = failures[0]
    return error


def tags_of(result: Result) -> dict[str, str]:
    """Return the tag of a run whose report failed."""
    return {REPORT_ERROR: str(result.report_error)} if result.report_error else {}


def require_labels(labels: pd.Series) -> None:
    """Refuse a column that names cells or holds measurements: it agrees with any topics."""
    n_labels = labels.nunique()
    if n_labels > max(len(labels) / 2, 2):
        raise InputError(
            f"data.label_key = {labels.name!r}: {n_labels} different values for {len(labels)} "
            "cells are no labels; name a column of cell types, or none"
        )


def measure(
    fit: TopicFit,
    parts: Mapping[str, Counts],
    theta_RNK: np.ndarray,
    beta_RKG: np.ndarray,
    labels: pd.Series | None,
    config: EvaluateConfig,
    seed: int,
) -> Measured:
    """Every final measure of one split."""
    by_replicate: Measured = {}
    test = predictable(parts["test"], seed)
    valid = predictable(parts["valid"], seed)
    if valid.n_cells:
        # The score to choose settings by: the test cells are for the choice.
        by_replicate["valid/perplexity_folded"] = fit.perplexity_by_replicate(
            valid, folded=True, n_samples=config.n_samples, seed=seed
        ).tolist()
    if test.n_cells:
        ways = {"test/perplexity_folded": True}
        if fit.own_perplexity:
            ways[fit.own_perplexity] = False
        for name, folded in ways.items():
            by_replicate[name] = fit.perplexity_by_replicate(
                test, folded=folded, n_samples=config.n_samples, seed=seed
            ).tolist()
        by_replicate["test/elbo_given_topics"] = fit.elbo_given_topics(test, seed=seed).tolist()
    if fit.has_encoder:
        for part in ("train", "valid", "test"):
            if parts[part].n_cells:
                # The curves by epoch have the names train/elbo and valid/elbo.
                name = "test/elbo" if part == "test" else f"fit/{part}_elbo"
                by_replicate[name] = fit.elbo_by_replicate(
                    parts[part], n_samples=config.n_elbo_samples, seed=seed
                ).tolist()
    of_topics = [
        dict(
            replicate_scores(
                Replicate(
                    x_NG=parts["train"].x,
                    theta_NK=theta_NK,
                    beta_KG=beta_KG,
                    labels=None if labels is None else labels.to_numpy(),
                    n_coherence_genes=config.n_coherence_genes,
                    n_diversity_genes=config.n_diversity_genes,
                    n_neighbors=config.n_neighbors,
                    seed=seed,
                )
            )
        )
        for theta_NK, beta_KG in zip(theta_RNK, beta_RKG, strict=True)
    ]
    for name in of_topics[0]:
        by_replicate[name] = [scores[name] for scores in of_topics]
    if fit.n_replicates > 1:
        by_replicate["topics/stability"] = [stability(beta_RKG).mean]
        by_replicate["topics/consensus"] = [float((~consensus(beta_RKG).unstable).sum())]
    if fit.history:
        by_replicate["fit/epochs"] = [float(len(fit.history))]
    return by_replicate


def predictable(cells: Counts, seed: int) -> Counts:
    """The held-out cells, or none of them if no count is left to predict."""
    if cells.n_cells and not thin(cells.x, seed)[1].nnz:
        warnings.warn(
            f"the {cells.n_cells} held-out cells have too few counts to predict; what they "
            "measure is left out",
            stacklevel=3,
        )
        return cells[:0]
    return cells


def summarized(values: Values, own: str, shown: int) -> Iterator[tuple[str, float]]:
    """Scores by metric name.

    The plain name is the replicate shown of the run's own split, whose topics the artifacts hold;
    beside it stand the mean and the standard deviation over replicates (of all splits) where there
    are several, and the standard error of the mean where there are several splits.
    """
    for name, by_split in values.items():
        of_own = by_split[own]
        yield name, float(of_own[shown] if len(of_own) > 1 else of_own[0])
        everything = [value for of_split in by_split.values() for value in of_split]
        if len(everything) > 1:
            yield f"{name}_mean", float(np.mean(everything))
            yield f"{name}_sd", float(np.std(everything, ddof=1))
        if len(by_split) > 1:
            means = [np.mean(of_split) for of_split in by_split.values()]
            yield f"{name}_se", float(np.std(means, ddof=1) / np.sqrt(len(means)))


def warn_of_infinite(scores: Mapping[str, float]) -> None:
    """Warn of scores that are infinite or NaN."""
    names = [name for name, score in scores.items() if not np.isfinite(score)]
    if names:
        warnings.warn(
            f"not finite: {', '.join(names)}; do not choose settings or compare models by these",
            stacklevel=3,
        )


def write_scores(values: Values, folder: Path) -> None:
    """Write ``scores.csv``: each value that a score summarises, by metric, split and replicate."""
    with whole(folder / "scores.csv") as unfinished, unfinished.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["metric", "split", "replicate", "value"])
        for name, by_split in values.items():
            for seed, of_split in by_split.items():
                for replicate, value in enumerate(of_split):
                    table.writerow([name, seed, replicate, value])


def amortization_gap(fit: TopicFit, cells: Counts, config: EvaluateConfig, seed: int) -> np.ndarray:
    """Gap of each cell under the replicate shown, nats; NaN for cells that were not drawn."""
    drawn = np.arange(cells.n_cells)
    if cells.n_cells > config.n_gap_cells:
        generator = np.random.default_rng(seed)
        drawn = np.sort(generator.choice(cells.n_cells, config.n_gap_cells, replace=False))
    gap_N = np.full(cells.n_cells, np.nan)
    gap_N[drawn] = fit.amortization_gap(cells[drawn], replicates=[fit.shown], seed=seed)[0]
    return gap_N


def annotate(adata: AnnData, theta_NK: np.ndarray) -> None:
    """Put topics where scverse tools look for them, in place of those of an earlier run.

    Of the columns of obs only ``lda_topic_NUMBER`` are replaced, with a warning.
    """
    stale = [str(name) for name in adata.obs if TOPIC_COLUMN.fullmatch(str(name))]
    if stale:
        warnings.warn(
            f"obs of the cells has {len(stale)} columns of topics already ({', '.join(stale[:3])}"
            f"{', …' if len(stale) > 3 else ''}); the new topics replace them",
            stacklevel=2,
        )
    adata.obs = adata.obs.drop(columns=stale)
    for name in ("X_umap_counts", "X_umap_topics"):
        adata.obsm.pop(name, None)
    for name in ("lda_topics", *report.DIFFERENTIAL):
        adata.varm.pop(name, None)
    adata.obsm["X_lda"] = theta_NK
    for topic, proportion_N in enumerate(theta_NK.T):
        adata.obs[f"lda_topic_{topic}"] = proportion_N


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, getrusage counts the process that started this one too.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
