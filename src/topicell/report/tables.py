"""The tables of a run, as csv: ranked genes, topics, consensus topics, cells, samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from topicell.counts import LateRows
from topicell.data.preprocessing import DEPTH, OWN_COLUMNS
from topicell.evaluation.ranking import RANKINGS, gene_scores, top_genes
from topicell.evaluation.stability import FOUND, Consensus
from topicell.files import whole
from topicell.model.fit import TopicFit, ranked_table

if TYPE_CHECKING:
    from anndata import AnnData

N_RANKED = 200
"""Number of genes of each topic in the ranked tables of the page."""
FDR = 0.05
"""A gene or a gene set with a lower q counts as significant."""


def write_tables(
    fit: TopicFit,
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    agreed: Consensus | None,
    adata: AnnData,
    folder: Path,
) -> None:
    """Write ``topics/*.csv`` and ``cells/*.csv`` of the selected replicate.

    Names are written as in the data, even if a spreadsheet reads them as a formula (``=1+1``),
    because cells and genes are matched by name when these tables are read again.

    Parameters
    ----------
    fit
        Has the names of topics and genes, and the frequencies of genes.
    theta_NK, beta_KG
        Topic proportions of the cells, gene proportions of the topics.
    agreed
        The topics on which replicates agree; None if there is only one.
    adata
        The cells, with the differential expression of the topics if it was computed.
    folder
        Output folder.
    """
    (folder / "topics").mkdir(exist_ok=True)
    (folder / "cells").mkdir(exist_ok=True)
    for path, table in _tables(fit, theta_NK, beta_KG, agreed, adata):
        with whole(folder / path) as unfinished:
            table.to_csv(unfinished)


def _tables(
    fit: TopicFit,
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    agreed: Consensus | None,
    adata: AnnData,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield paths in the run folder, and their tables."""
    for by in RANKINGS:
        name = "top_genes" if by == "probability" else f"top_genes_{by}"
        score_KG = gene_scores(beta_KG, by, fit.gene_frequency_G)
        yield f"topics/{name}.csv", ranked_table(fit.genes, beta_KG, score_KG, fit.n_genes)
    if "lda_deviations" in adata.varm:
        above_KG = np.asarray(adata.varm["lda_deviations"]).T
        table = ranked_table(fit.genes, beta_KG, above_KG, fit.n_genes)
        yield "topics/top_genes_deviation.csv", table
    genes = pd.DataFrame(beta_KG.T, index=fit.genes, columns=fit.topic_names)
    yield "topics/gene_topics.csv", genes.rename_axis("gene")
    run = adata.uns["topicell"]
    if "prevalence" in run:
        yield "topics/prevalence.csv", run["prevalence"].set_index("topic")
    if "seeds" in run:
        yield "topics/seeds.csv", run["seeds"]
    if "prior_correlation" in run:
        yield "topics/prior_correlation.csv", correlation_table(run["prior_correlation"])
    if agreed is not None:
        names = [f"consensus_{c}" for c in range(len(agreed.support_C))]
        agreed_GC = pd.DataFrame(agreed.beta_CG.T, index=fit.genes, columns=names)
        yield "topics/consensus_topics.csv", agreed_GC.rename_axis("gene")
        yield "topics/consensus.csv", consensus_table(agreed, fit, names)
    if "batch_factors" in adata.varm:
        yield "topics/batch_factors.csv", batch_table(adata)
    if "topic_alignment" in adata.uns["topicell"]:
        correlation_K = adata.uns["topicell"]["topic_alignment"]
        yield "topics/alignment.csv", alignment_table(correlation_K, fit.topic_names)
    if "lda_lfc" in adata.varm:
        yield "topics/differential_expression.csv", differential_table(adata)
    if "conditions" in adata.uns["topicell"]:
        yield "topics/conditions.csv", adata.uns["topicell"]["conditions"]["table"]
    cells = pd.DataFrame(theta_NK, index=adata.obs_names, columns=fit.topic_names)
    yield "cells/cell_topics.csv", cells.rename_axis("cell")
    if adata.uns["topicell"].get("sample_key"):
        yield "cells/samples.csv", samples_table(adata)


def consensus_table(agreed: Consensus, fit: TopicFit, names: Sequence[str]) -> pd.DataFrame:
    """Return how many replicates found each consensus topic, and the similarity in each."""
    shown = np.full(len(names), "", dtype=object)
    shown[agreed.member_RK[fit.selected]] = fit.topic_names
    score_CG = gene_scores(agreed.beta_CG, "relevance", fit.gene_frequency_G)
    return pd.DataFrame(
        {
            "found_in": agreed.support_C,
            "replicates": fit.n_replicates,
            "unstable": agreed.unstable,
            "cosine": agreed.cosine_C,
            "topic_shown": shown,
            "relevant_genes": [" ".join(fit.genes[genes]) for genes in top_genes(score_CG, 10)],
        },
        index=pd.Index(names, name="consensus"),
    )


def scores_of_genes(
    adata: AnnData, beta_KG: np.ndarray, frequency_G: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the scores by which the report ranks the genes of topics, each of shape (K, G).

    The first is the default: deviations if the model has a background.
    """
    scores = {by: gene_scores(beta_KG, by, frequency_G) for by in RANKINGS}
    if "lda_deviations" not in adata.varm:
        return scores
    return {"deviation": np.asarray(adata.varm["lda_deviations"]).T} | scores


def correlation_table(correlation_KK: np.ndarray) -> pd.DataFrame:
    """Return the correlations of topics that the prior has learned, topics × topics."""
    names = [f"topic_{k}" for k in range(len(correlation_KK))]
    return pd.DataFrame(correlation_KK, index=pd.Index(names, name="topic"), columns=names)


def batch_table(adata: AnnData) -> pd.DataFrame:
    """Return the factor of each gene in each batch, genes × batches, largest differences first."""
    factor_GS = np.asarray(adata.varm["batch_factors"])
    table = pd.DataFrame(
        factor_GS,
        index=adata.var_names.rename("gene"),
        columns=[str(name) for name in adata.uns["topicell"]["batches"]],
    )
    return table.iloc[np.argsort(-np.abs(np.log(factor_GS)).max(1), kind="stable")]


def alignment_table(correlation_K: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return the topic of the earlier run that has the number of each topic, and how they agree."""
    partners = [
        "" if np.isnan(value) else name for name, value in zip(names, correlation_K, strict=True)
    ]
    return pd.DataFrame(
        {
            "earlier_topic": partners,
            "correlation": correlation_K,
            "found_again": correlation_K >= FOUND,
        },
        index=pd.Index(names, name="topic"),
    )


def samples_table(adata: AnnData) -> pd.DataFrame:
    """Return the columns, cells, depth and mean topic proportions of each sample of a run.

    Its columns are those of obs with one value in each sample. Depth is the median over its cells
    of the counts, and of the genes with counts, of all genes in the files.
    """
    obs, key = adata.obs, adata.uns["topicell"]["sample_key"]
    sample_N = obs[key].astype("category").cat.remove_unused_categories()
    grouped = obs.groupby(sample_N, observed=True)
    others = [
        name
        for name in obs.columns
        if name not in (key, *OWN_COLUMNS) and not str(name).startswith("lda_topic_")
    ]
    table = grouped[[name for name in others if _one_in_each(obs[name], sample_N)]].first()
    table["n_cells"] = grouped.size()
    if DEPTH in adata.uns:
        depth = adata.uns[DEPTH].reindex(table.index.astype(str))
        table[list(depth.columns)] = depth.to_numpy()
    theta_NK = np.asarray(adata.obsm["X_lda"])
    topics = [f"topic_{k}" for k in range(theta_NK.shape[1])]
    mean = pd.DataFrame(theta_NK, index=obs.index, columns=topics)
    table[topics] = mean.groupby(sample_N, observed=True).mean()
    return pd.DataFrame(table).rename_axis(key)


def _one_in_each(column: pd.Series, sample_N: pd.Series) -> bool:
    """Return whether a column has one value in each sample."""
    return bool(column.groupby(sample_N, observed=True).nunique(dropna=False).max() == 1)


def gene_frequency(adata: AnnData) -> np.ndarray:
    """Return the share of each gene in all counts of the training cells, shape (G,).

    If the counts are not stored, it is the share that the topics expect.
    """
    if "counts" not in adata.layers:
        expected_G = (
            np.asarray(adata.obsm["X_lda"]).mean(axis=0) @ np.asarray(adata.varm["lda_topics"]).T
        )
        return np.asarray(expected_G / expected_G.sum())
    counts = LateRows(adata.layers["counts"])
    if "split" in adata.obs and (adata.obs["split"] == "train").any():
        counts = counts.of((adata.obs["split"] == "train").to_numpy())
    total_G = counts.sum(0)
    return np.asarray(total_G / total_G.sum())


def differential_table(adata: AnnData) -> pd.DataFrame:
    """Return differential expression, one row for each topic and gene, most significant first."""
    lfc_GK = np.asarray(adata.varm["lda_lfc"])
    n_genes, n_topics = lfc_GK.shape
    long = pd.DataFrame(
        {
            "topic": np.repeat([f"topic_{k}" for k in range(n_topics)], n_genes),
            "gene": np.tile(adata.var_names.to_numpy(), n_topics),
            "rate": np.asarray(adata.varm["lda_rate"]).T.ravel(),
            "log2_fold_change": lfc_GK.T.ravel(),
            "standard_error": np.asarray(adata.varm["lda_lfc_se"]).T.ravel(),
            "nearest_topic": [
                f"topic_{k}" for k in np.asarray(adata.varm["lda_nearest"]).T.ravel()
            ],
            "p": np.asarray(adata.varm["lda_p"]).T.ravel(),
            "q": np.asarray(adata.varm["lda_q"]).T.ravel(),
        }
    )
    order = np.lexsort((-long["log2_fold_change"], long["p"], np.repeat(range(n_topics), n_genes)))
    return long.iloc[order].set_index("topic")


def of_page(
    adata: AnnData, scores: Mapping[str, float], sets: pd.DataFrame | None
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Return the tables that the page offers: name, description, table."""
    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    topics = [f"topic_{k}" for k in range(len(beta_KG))]
    frequency_G = gene_frequency(adata)
    for by, score_KG in scores_of_genes(adata, beta_KG, frequency_G).items():
        name = "top_genes" if by == "probability" else f"top_genes_{by}"
        yield (
            name,
            f"the {N_RANKED} leading genes of each topic by {by}",
            ranked_table(adata.var_names.to_numpy(), beta_KG, score_KG, N_RANKED),
        )
    genes = pd.DataFrame(beta_KG.T, index=adata.var_names, columns=topics)
    yield "gene_topics", "genes × topics", genes.rename_axis("gene")
    cells = pd.DataFrame(np.asarray(adata.obsm["X_lda"]), index=adata.obs_names, columns=topics)
    yield "cell_topics", "cells × topics", cells.rename_axis("cell")
    if adata.uns["topicell"].get("sample_key"):
        meaning = "cells, depth and mean topic proportions of each sample"
        yield "samples", meaning, samples_table(adata)
    if "lda_lfc" in adata.varm:
        table = differential_table(adata)
        n_drawn = adata.uns["topicell"].get("differential_cells")
        sample = f", from {n_drawn:,} drawn cells" if n_drawn else ""
        yield (
            "differential_expression",
            f"genes that differ in a topic from every other topic (q < {FDR:g}), with fold "
            f"changes{sample}",
            table[table["q"] < FDR],
        )
    run = adata.uns["topicell"]
    if "prevalence" in run:
        table = run["prevalence"].set_index("topic")
        yield "prevalence", "topics that the prior expects, by covariates", table
    if "seeds" in run:
        yield "seeds", "how far each seeded topic moved from its prior", run["seeds"]
    if "prior_correlation" in run:
        table = correlation_table(run["prior_correlation"])
        yield "prior_correlation", "correlations of topics in the learned prior", table
    if "batch_factors" in adata.varm:
        yield (
            "batch_factors",
            "factors by which the batches multiply the proportions of genes",
            batch_table(adata),
        )
    if "conditions" in run:
        yield (
            "conditions",
            "changes of the topics with the conditions, with the sample as the unit",
            run["conditions"]["table"],
        )
    if sets is not None:
        yield "enrichment", "gene sets among the leading genes", sets.set_index("topic")
    values = pd.DataFrame({"value": scores}).rename_axis("score")
    yield "score_summary", "the scores above", values
