"""One run, from configuration to report: the page to read first.

configuration → data → model → evaluation → report; every result is in the returned `Result`, in
the run folder, and with the tracker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from topicell import report
from topicell.config import InputError, RunConfig, as_dict
from topicell.data.preprocessing import PARTS, column, prepared
from topicell.data.reading import data_digest, load, source_digest
from topicell.evaluation import topic_scores
from topicell.evaluation.labels import label_scores
from topicell.evaluation.stability import stability
from topicell.model.counts import Counts
from topicell.model.engines import check_precision, cpu_threads, resolve_device
from topicell.model.posterior import TopicFit
from topicell.model.training import check_sizes, train
from topicell.tracking import Tracker, provenance

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True, slots=True)
class Result:
    """What a run found: the fit, its scores by metric name, and the annotated cells."""

    fit: TopicFit
    scores: dict[str, float]
    adata: AnnData


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
    adata = prepared(
        lambda: load(config.data),
        source_digest(config.data),
        config.preprocess,
        seed=config.seed,
    )
    cells = Counts.of(adata, "counts")
    parts = {name: cells[np.flatnonzero(adata.obs["split"] == name)] for name in PARTS}
    check_sizes(parts["train"], config.model)
    device = resolve_device(config.train.device)
    check_precision(config.train.precision, device)
    if config.report.enabled:
        report.require_enough_cells(adata)

    source = adata.uns["topicell_source"]
    label_key = column(source["label_key"])
    labels = adata.obs[label_key] if label_key else None
    if labels is not None:
        require_labels(labels)
    tags = provenance() | {"device": device.type, "topicell.prepared_digest": data_digest(adata)}
    tracker.start(config, tags)
    try:
        tracker.log_dataset(source["name"], source["source"], source["sha256"])

        # One thread setting for all that is estimated: sums depend on it in their last digits.
        with cpu_threads(config.train.threads):
            started = time.perf_counter()
            fit = train(
                parts["train"],
                parts["valid"],
                config.model,
                config.train,
                seed=config.seed,
                on_epoch=lambda epoch: tracker.log_metrics(
                    {name: value for name, value in epoch.items() if name != "epoch"},
                    epoch=int(epoch["epoch"]),
                ),
            )
            fit_seconds = time.perf_counter() - started
            theta_RNK = fit.theta(cells, n_samples=config.evaluate.n_samples, seed=config.seed)
            beta_RKG = fit.beta(n_samples=config.evaluate.n_samples, seed=config.seed)
            scores = dict(measure(fit, parts, theta_RNK, beta_RKG, labels, config))
        scores |= {"speed/fit_seconds": fit_seconds, "memory/peak_mib": peak_mib()}
        tracker.log_metrics(scores)

        annotate(adata, theta_RNK[fit.shown])
        adata.varm["lda_topics"] = beta_RKG[fit.shown].T.copy()
        adata.uns["topicell"] = {
            "config": json.dumps(as_dict(config)),
            "scores": json.dumps(scores),
            "run_id": tracker.run_id,
            "label_key": label_key,
            "data": source["name"],
            "source": source["source"],
            "created": tags["topicell.started"],
            "version": tags["topicell.version"],
        }
        if fit.n_replicates > 1:
            per_topic_RK = stability(beta_RKG).per_topic_RK
            adata.uns["topicell"]["topic_stability"] = per_topic_RK[fit.shown]
        write_artifacts(fit, adata, config, tracker.directory)
        tracker.finish("FINISHED")
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    return Result(fit, scores, adata)


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
    parts: dict[str, Counts],
    theta_RNK: np.ndarray,
    beta_RKG: np.ndarray,
    labels: pd.Series | None,
    config: RunConfig,
) -> Iterator[tuple[str, float]]:
    """Every final measure, as (name, value).

    The plain name is the replicate shown, whose topics the artifacts hold; beside it stand the
    mean and the standard deviation over replicates when there are several.
    """
    evaluate, seed = config.evaluate, config.seed
    by_replicate: dict[str, list[float]] = {}
    if parts["test"].n_cells:
        for name, folded in (("folded", True), ("amortized", False)):
            by_replicate[f"test/perplexity_{name}"] = list(
                fit.perplexity_by_replicate(
                    parts["test"], folded=folded, n_samples=evaluate.n_samples, seed=seed
                )
            )
    for part in ("train", "valid", "test"):
        if parts[part].n_cells:
            # The curves by epoch have the names train/elbo and valid/elbo.
            name = "test/elbo" if part == "test" else f"fit/{part}_elbo"
            by_replicate[name] = list(
                fit.elbo_by_replicate(parts[part], n_samples=evaluate.n_elbo_samples, seed=seed)
            )
    for theta_NK, beta_KG in zip(theta_RNK, beta_RKG, strict=True):
        scores = topic_scores(
            parts["train"].x,
            theta_NK,
            beta_KG,
            n_coherence_genes=evaluate.n_coherence_genes,
            n_diversity_genes=evaluate.n_diversity_genes,
        )
        for name, value in scores:
            by_replicate.setdefault(name, []).append(value)
        if labels is not None:
            for name, value in label_scores(
                theta_NK, labels.to_numpy(), n_neighbors=evaluate.n_neighbors, seed=seed
            ):
                by_replicate.setdefault(name, []).append(value)
    for name, values in by_replicate.items():
        yield name, float(values[fit.shown])
        if fit.n_replicates > 1:
            yield f"{name}_mean", float(np.mean(values))
            yield f"{name}_sd", float(np.std(values, ddof=1))
    if fit.n_replicates > 1:
        yield "topics/stability", stability(beta_RKG).mean


def annotate(adata: AnnData, theta_NK: np.ndarray) -> None:
    """Put topics where scverse tools look for them, in place of those of an earlier run."""
    stale = [name for name in adata.obs if str(name).startswith("lda_topic_")]
    adata.obs = adata.obs.drop(columns=stale)
    for name in ("X_umap_counts", "X_umap_topics"):
        adata.obsm.pop(name, None)
    adata.obsm["X_lda"] = theta_NK
    for topic, proportion_N in enumerate(theta_NK.T):
        adata.obs[f"lda_topic_{topic}"] = proportion_N


def write_artifacts(fit: TopicFit, adata: AnnData, config: RunConfig, folder: Path) -> None:
    """Model, tables, figures, page and the annotated cells, in the run folder."""
    import pandas as pd

    options = {"n_samples": config.evaluate.n_samples, "seed": config.seed}
    for name in ("topics", "cells"):
        (folder / name).mkdir(exist_ok=True)
    fit.save(folder / "model")
    fit.top_genes(fit.program.n_genes, **options).to_csv(folder / "topics" / "top_genes.csv")
    pd.DataFrame(adata.varm["lda_topics"], index=fit.genes, columns=fit.topic_names).to_csv(
        folder / "topics" / "gene_topics.csv", index_label="gene"
    )
    pd.DataFrame(adata.obsm["X_lda"], index=adata.obs_names, columns=fit.topic_names).to_csv(
        folder / "cells" / "cell_topics.csv", index_label="cell"
    )
    try:
        if config.report.enabled:
            report.write(adata, fit.history, folder, config.report, config.seed)
    finally:
        # The cells outlive a report that fails.
        adata.write_h5ad(folder / "adata.h5ad", compression="gzip")


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
