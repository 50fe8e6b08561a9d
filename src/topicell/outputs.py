"""The outputs of a run: saved model, scores, tables, annotated cells, report."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell import report
from topicell.agreement import Agreement
from topicell.config import ExternalConfig, PriorKind, RunConfig, as_dict
from topicell.data.cells import PreparedCells
from topicell.data.frames import write_h5ad
from topicell.data.mapped import is_mapped
from topicell.data.preprocessing import column
from topicell.errors import disk_is_full
from topicell.evaluation.conditions import compare_conditions
from topicell.evaluation.stability import match_topics, stability
from topicell.files import whole
from topicell.model.fit import TopicFit
from topicell.model.posterior import AmortizedFit
from topicell.preflight import TOPIC_COLUMN
from topicell.progress import step
from topicell.report.card import card
from topicell.report.summary import summary
from topicell.report.tables import write_tables
from topicell.scoring import (
    Estimates,
    Measured,
    Values,
    amortization_gap,
    summarized,
    values_of,
)
from topicell.signals import interrupted
from topicell.tracking.record import REPORT_ERROR
from topicell.tracking.runs import Tracker

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, slots=True)
class Result:
    """The fit, its scores by metric name, and the annotated cells of a run.

    `values` has the values that the scores summarise: by metric and split, one for each replicate.
    `report_error` is a one-line message about missing parts of the report; None if nothing failed.
    """

    fit: TopicFit
    scores: dict[str, float]
    values: Values
    adata: AnnData
    report_error: report.ReportError | None = None

    @property
    def tags(self) -> dict[str, str]:
        """The tag of a run whose report failed."""
        return {REPORT_ERROR: str(self.report_error)} if self.report_error else {}


@dataclass(frozen=True, slots=True)
class Measurements:
    """All metrics of a run: values by the seed of each split, that of the run first, and scores.

    `known` are scores that are not values of a replicate or split, such as the seconds of the fit.
    `alignment_K` has the correlation of each topic with its partner in the run of `model.align_to`,
    NaN if it has none; None without such a run. `agreement` has the topics of other runs with which
    this run started, if there are such; then the correlations are with these.
    """

    by_split: Mapping[str, Measured]
    known: Mapping[str, float]
    alignment_K: np.ndarray | None = None
    agreement: Agreement | None = None


def conclude(
    estimates: Estimates,
    measurements: Measurements,
    cells: PreparedCells,
    config: RunConfig | ExternalConfig,
    tracker: Tracker,
) -> Result:
    """Write all outputs of a run: scores, annotated cells, model, tables, report.

    The model and the scores are written first. If the report fails, the result has its error, and
    no error is raised.

    Parameters
    ----------
    estimates
        The topics of the first split.
    measurements
        Values and scores.
    cells
        The cells, whose AnnData is annotated in place.
    config, tracker
        The settings, and the tracker that records the run.
    """
    fit, adata = estimates.fit, cells.adata
    annotate(adata, estimates.theta_RNK[fit.selected])
    adata.varm["lda_topics"] = estimates.beta_RKG[fit.selected].T.copy()
    values = values_of(measurements.by_split)
    scores = dict(summarized(values, next(iter(measurements.by_split)), fit.selected))
    if fit.has_encoder and config.evaluate.n_gap_cells:
        with step("amortization gap"):
            gap_N = amortization_gap(fit, cells, config.evaluate, config.seed)
        adata.obs["amortization_gap"] = gap_N
        scores["inference/amortization_gap"] = float(np.nanmean(gap_N))
    scores |= dict(measurements.known) | {"memory/peak_mib": peak_mib()}
    tracker.log_metrics(scores)

    adata.uns["topicell"] = {
        "config": json.dumps(as_dict(config)),
        "scores": json.dumps(scores),
        "run_id": tracker.run_id,
        "label_key": column(cells.source["label_key"]),
        "sample_key": column(cells.source.get("sample_key", "")),
        "data": cells.source["name"],
        "source": cells.source["source"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("topicell"),
    } | _of_replicates(estimates)
    _add_parts_of_model(adata, fit, cells)
    if measurements.agreement is not None:
        adata.uns["topicell"] |= {
            "topic_support": measurements.agreement.support_C,
            "n_searches": measurements.agreement.n_searches,
        }
        write_agreement(measurements.agreement, measurements.alignment_K, tracker.directory)
    elif measurements.alignment_K is not None:
        assert isinstance(config, RunConfig)
        adata.uns["topicell"] |= {
            "aligned_to": config.model.align_to,
            "topic_alignment": measurements.alignment_K,
        }
    fit.save(tracker.directory / "model")
    write_scores(values, tracker.directory)
    error = _write_rest(estimates, cells, config, tracker)
    return Result(fit, scores, values, adata, error)


def _add_parts_of_model(adata: AnnData, fit: TopicFit, cells: PreparedCells) -> None:
    """Add what the optional parts of the model have learned: batches, background, seeds, prior."""
    if not isinstance(fit, AmortizedFit):
        return
    run = adata.uns["topicell"]
    if fit.batches:
        adata.varm["batch_factors"] = fit.batch_factors().T.to_numpy()
        run["batches"] = list(fit.batches)
        run["batch_key"] = column(fit.model.batch_key or "")
    if fit.model.background:
        adata.varm["lda_deviations"] = fit.deviations().T.copy()
    if isinstance(fit.model.topic_gene_prior, str):
        run["seeds"] = fit.seeds()
    if fit.model.prior is PriorKind.correlated:
        run["prior_correlation"] = fit.topic_correlations()
    if fit.model.prevalence is not None:
        run["prevalence"] = fit.prevalence()
        adata.obsm["X_lda_folded"] = fit.folded(cells.counts)


def write_agreement(agreement: Agreement, refitted_K: np.ndarray | None, folder: Path) -> None:
    """Write ``topics/agreement.csv``: all topics of the searches, with their support.

    ``refit_correlation`` is the correlation of the proportions of an agreed topic with those of the
    refitted topic that has its number.
    """
    table = agreement.table.copy()
    table["refit_correlation"] = np.nan
    table.loc[table["agreed"], "refit_correlation"] = refitted_K
    (folder / "topics").mkdir(exist_ok=True)
    with whole(folder / "topics" / "agreement.csv") as unfinished:
        table.to_csv(unfinished, index=False)


def _of_replicates(estimates: Estimates) -> dict[str, object]:
    """Return the agreement of the replicates, for ``uns``; nothing if there is only one."""
    fit, beta_RKG, agreed = estimates.fit, estimates.beta_RKG, estimates.agreed
    if agreed is None:
        return {}
    return {
        "topic_stability": stability(beta_RKG).per_topic_RK[fit.selected],
        "topic_support": agreed.support_C[agreed.member_RK[fit.selected]],
        "shown": fit.selected,
        "topic_matches": np.stack(
            [match_topics(beta_RKG[fit.selected], other_KG).cosine for other_KG in beta_RKG]
        ),
    }


def _write_rest(
    estimates: Estimates,
    cells: PreparedCells,
    config: RunConfig | ExternalConfig,
    tracker: Tracker,
) -> report.ReportError | None:
    """Write tables, report and cells; return the error of the report."""
    adata, folder = cells.adata, tracker.directory
    failures: list[Exception] = []
    no_room = False
    try:
        if config.evaluate.differential_expression:
            with step("differential expression"), _kept_going(failures):
                report.add_differential_expression(
                    adata, config.evaluate.n_differential_cells, config.seed
                )
        if config.evaluate.conditions is not None:
            with step("conditions"), _kept_going(failures):
                add_conditions(adata, tested_proportions(adata), config)
        with step("tables"):
            selected = estimates.fit.selected
            theta_NK, beta_KG = estimates.theta_RNK[selected], estimates.beta_RKG[selected]
            write_tables(estimates.fit, theta_NK, beta_KG, estimates.agreed, adata, folder)
        with _kept_going(failures):
            (folder / "MODEL_CARD.md").write_text(card(adata), encoding="utf-8")
        with _kept_going(failures):
            write_report(estimates.fit, adata, config, tracker)
    except OSError as error:
        no_room = disk_is_full(error)
        raise
    finally:
        # Write the cells even if a table failed or the run was interrupted, but not on a full disk,
        # where libhdf5 can end the process.
        if not no_room:
            with step("adata.h5ad"), whole(folder / "adata.h5ad") as unfinished:
                stored = _stored(adata, config)
                stored.uns = without_null(stored.uns)
                write_h5ad(stored, unfinished, compression="gzip")
    return _report_error(failures)


def _stored(adata: AnnData, config: RunConfig | ExternalConfig) -> AnnData:
    """Return the cells as they are stored: without matrices if these were prepared in parts.

    The source, its digest and the settings in ``uns`` say how to prepare them again.
    """
    from anndata import AnnData

    kept = config.data.keep_counts if isinstance(config, RunConfig) else True
    in_parts = is_mapped(adata)
    if kept is None:
        kept = not in_parts
    if kept and not in_parts:
        return adata
    return AnnData(
        adata.X if kept else None,
        obs=adata.obs,
        var=adata.var,
        uns=dict(adata.uns),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        layers={"counts": adata.layers["counts"]} if kept else None,
    )


def without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dictionary without the values that are None, also in the dictionaries in it.

    anndata 0.12 writes them as an element that earlier versions, cellxgene among them, cannot read:
    they refuse the whole file. `scanpy.pp.log1p` sets ``uns["log1p"]["base"]`` to None.

    Examples
    --------
    >>> without_null({"log1p": {"base": None}, "pca": {"zero_center": True, "mask": None}})
    {'log1p': {}, 'pca': {'zero_center': True}}
    """
    return {
        name: without_null(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


def tested_proportions(adata: AnnData) -> np.ndarray:
    """Return the topic proportions with which conditions are tested, shape (N, K).

    They are those of the run; if its model knows covariates (``model.prevalence``), those by EM
    with fixed topics, which do not depend on the covariates.
    """
    return np.asarray(adata.obsm["X_lda_folded" if "X_lda_folded" in adata.obsm else "X_lda"])


def add_conditions(
    adata: AnnData, theta_NK: np.ndarray, config: RunConfig | ExternalConfig
) -> None:
    """Test which topics change with ``evaluate.conditions``: set ``uns["topicell"]["conditions"]``.

    Parameters
    ----------
    adata
        The cells.
    theta_NK
        Topic proportions of the cells, of a model that does not know the conditions.
    config
        The formula, the column of samples, and the seed.
    """
    assert config.evaluate.conditions is not None
    found = compare_conditions(
        theta_NK,
        adata.obs,
        config.evaluate.conditions,
        adata.uns["topicell"]["sample_key"],
        min_cells=config.evaluate.min_sample_cells,
        seed=config.seed,
    )
    adata.uns["topicell"]["conditions"] = found.stored()


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
def _kept_going(failures: list[Exception]) -> Iterator[None]:
    """Add an error to a list instead of raising it; an interrupt is raised."""
    try:
        yield
    except Exception as error:
        if interrupted():
            raise
        failures.append(error)


def _report_error(failures: Sequence[Exception]) -> report.ReportError | None:
    """Return all errors as one, None if there are none."""
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


def write_scores(values: Values, folder: Path) -> None:
    """Write ``scores.csv``: each value that a score summarises, by metric, split and replicate."""
    with whole(folder / "scores.csv") as unfinished, unfinished.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["metric", "split", "replicate", "value"])
        for name, by_split in values.items():
            for seed, of_split in by_split.items():
                for replicate, value in enumerate(of_split):
                    table.writerow([name, seed, replicate, value])


def annotate(adata: AnnData, theta_NK: np.ndarray) -> None:
    """Store topics where scverse tools expect them, and replace those of an earlier run.

    In obs, only columns named ``lda_topic_NUMBER`` are replaced, with a warning.
    """
    stale = [str(name) for name in adata.obs if TOPIC_COLUMN.fullmatch(str(name))]
    if stale:
        warnings.warn(
            f"obs already has {len(stale)} columns of topics "
            f"({', '.join(stale[:3])}{', …' if len(stale) > 3 else ''}); the new topics replace "
            "them",
            stacklevel=2,
        )
    adata.obs = adata.obs.drop(columns=stale)
    for name in ("X_umap_counts", "X_umap_topics", "X_lda_folded"):
        adata.obsm.pop(name, None)
    for name in ("lda_topics", "lda_deviations", "batch_factors", *report.DIFFERENTIAL):
        adata.varm.pop(name, None)
    adata.obsm["X_lda"] = theta_NK
    for topic, proportion_N in enumerate(theta_NK.T):
        adata.obs[f"lda_topic_{topic}"] = proportion_N


def peak_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return largest / 2**20  # bytes there, KiB elsewhere
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux, getrusage also counts the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return largest / 1024
