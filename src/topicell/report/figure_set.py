"""Which figures a report has, drawn one by one from the run's AnnData."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from topicell.evaluation import ranking
from topicell.report import figures

if TYPE_CHECKING:
    from anndata import AnnData

    from topicell.config import ReportConfig

N_LEADING = 5
"""Most genes of a topic beside those of all others."""
MAX_GROUPS = 60
"""Groups of cells that a figure tells apart."""
N_SIDE_BY_SIDE = 50
"""About how many genes stand side by side."""


def folded(groups: pd.Series) -> Any:
    """Groups of cells as figures can show them: of very many, the smallest become one."""
    sizes = groups.value_counts()
    sizes = sizes[sizes > 0]
    if len(sizes) <= MAX_GROUPS:
        return groups
    small = sizes.index[MAX_GROUPS - 1 :]
    names = groups.astype(object).where(~groups.isin(small), f"{len(small):,} other groups")
    return names.where(groups.notna()).astype("category")


def drawn(
    adata: AnnData,
    history: Sequence[Mapping[str, float]],
    config: ReportConfig,
    seed: int,
    sets: pd.DataFrame | None,
) -> Iterator[tuple[str, Any]]:
    """The figures of a run, of matplotlib, each with the name of its file.

    Parameters
    ----------
    adata
        The run's cells, maps, clusters and topics.
    history
        Metrics of each epoch; without them there are no training curves.
    config
        How many genes are shown.
    seed
        Of the draw of cells for the structure plot.
    sets
        Enrichment of gene sets, if it was asked for.
    """
    theta_NK = np.asarray(adata.obsm["X_lda"])
    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    label_key = adata.uns["topicell"]["label_key"]
    labels = folded(adata.obs[label_key]) if label_key else None
    clusters = folded(adata.obs["leiden"])

    for space in ("counts", "topics"):
        umap_N2 = np.asarray(adata.obsm[f"X_umap_{space}"])
        title = f"UMAP of the {space}"
        yield (
            f"umap_{space}_topics",
            figures.umap_by_topic(umap_N2, theta_NK, f"{title}, by topic"),
        )
        yield (
            f"umap_{space}_leiden",
            figures.umap_by_category(
                umap_N2, clusters, f"{title}, by Leiden cluster of the counts"
            ),
        )
        if labels is not None:
            yield (
                f"umap_{space}_labels",
                figures.umap_by_category(umap_N2, labels, f"{title}, by label"),
            )
    groups = clusters if labels is None else labels
    yield "structure", figures.structure_plot(theta_NK, groups, seed)
    by = "Leiden cluster" if labels is None else "label"
    yield "topic_by_label", figures.topic_by_label(theta_NK, groups, f"Topics by {by}")
    yield from _of_genes(adata, theta_NK, beta_KG, config)
    if theta_NK.shape[1] > 1:
        yield "topic_correlation", figures.topic_correlation(theta_NK)
        yield "topic_similarity", figures.topic_similarity(beta_KG)
    yield from _of_tests(adata, sets)
    run = adata.uns["topicell"]
    if "topic_matches" in run:
        yield (
            "stability",
            figures.stability_matrix(run["topic_matches"], int(run["shown"]), run["topic_support"]),
        )
    if "amortization_gap" in adata.obs:
        gap_N = adata.obs["amortization_gap"].to_numpy()
        yield "amortization_gap", figures.gap_histogram(gap_N)
    if history:
        yield "training_curves", figures.training_curves(history)


def _of_genes(
    adata: AnnData, theta_NK: np.ndarray, beta_KG: np.ndarray, config: ReportConfig
) -> Iterator[tuple[str, Any]]:
    """Genes of each topic alone, and against all other topics."""
    genes = adata.var_names.to_numpy()
    genes_KT = ranking.top_genes(beta_KG, config.n_top_genes)
    yield (
        "top_genes",
        figures.top_genes(
            genes[genes_KT],
            np.take_along_axis(beta_KG, genes_KT, axis=1),
            "Most probable genes of each topic",
        ),
    )
    n_topics = len(beta_KG)
    n_each = int(np.clip(N_SIDE_BY_SIDE // n_topics, 2, N_LEADING))
    leading_KT = ranking.top_genes(ranking.frex(beta_KG), n_each)
    # A gene that leads two topics stands with the first.
    columns, first = np.unique(leading_KT.ravel(), return_index=True)
    columns, topic_T = columns[np.argsort(first)], np.sort(first) // leading_KT.shape[1]
    expressed_NT = adata.X[:, columns] > 0
    dominant_N = ranking.dominant_topics(theta_NK)
    expressed_KT = np.full((n_topics, len(columns)), np.nan)
    for topic in np.unique(dominant_N):
        expressed_KT[topic] = np.asarray(expressed_NT[dominant_N == topic].mean(axis=0)).ravel()
    title = "Characteristic genes (FREX) of each topic, in all topics"
    yield (
        "top_genes_dots",
        figures.top_genes_dots(
            genes[columns], beta_KG[:, columns], expressed_KT, title, topic_T.tolist()
        ),
    )
    yield (
        "top_genes_heatmap",
        figures.top_genes_heatmap(genes[columns], beta_KG[:, columns], title, topic_T.tolist()),
    )


def _of_tests(adata: AnnData, sets: pd.DataFrame | None) -> Iterator[tuple[str, Any]]:
    """Differential expression, and gene sets."""
    if "lda_lfc" in adata.varm:
        lfc_KG, p_KG, q_KG = (
            np.asarray(adata.varm[name]).T for name in ("lda_lfc", "lda_p", "lda_q")
        )
        yield "volcanoes", figures.volcanoes(lfc_KG, p_KG, q_KG, adata.var_names.to_numpy())
    if sets is not None:
        topics_B = sets["topic"].str.removeprefix("topic_").astype(int)
        yield (
            "enrichment",
            figures.enrichment_bars(
                topics_B.tolist(),
                sets["gene_set"].tolist(),
                sets["q"].to_numpy(),
                np.asarray(adata.obsm["X_lda"]).shape[1],
            ),
        )
