"""Which figures a report has, and how each is drawn from the run's AnnData."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from topicell.evaluation import ranking
from topicell.report import figures

if TYPE_CHECKING:
    from anndata import AnnData

    from topicell.config import ReportConfig

MAX_TOPICS = 30
"""Topics that figures and cards show: as many as have a colour of their own."""
N_LEADING = 5
"""Most genes of a topic beside those of all others."""
MAX_GROUPS = 60
"""Groups of cells that a figure tells apart."""
N_SIDE_BY_SIDE = 50
"""About how many genes stand side by side."""


Drawing = tuple[str, Callable[[], Any]]
"""The name of a figure's file, and a function that draws it with matplotlib."""


def shown_topics(theta_NK: np.ndarray) -> list[int] | None:
    """Return the topics that figures and cards show, None for all of them.

    Of more than `MAX_TOPICS` these are the ones with the largest mean proportion.
    """
    if theta_NK.shape[1] <= MAX_TOPICS:
        return None
    order = np.argsort(-theta_NK.mean(axis=0), kind="stable")
    return sorted(order[:MAX_TOPICS].tolist())


def folded(groups: pd.Series) -> Any:
    """Return groups of cells as figures can show them: the smallest of very many become one."""
    sizes = groups.value_counts()
    sizes = sizes[sizes > 0]
    if len(sizes) <= MAX_GROUPS:
        return groups
    small = sizes.index[MAX_GROUPS - 1 :]
    names = groups.astype(object).where(~groups.isin(small), f"{len(small):,} other groups")
    return names.where(groups.notna()).astype("category")


def drawings(
    adata: AnnData,
    history: Sequence[Mapping[str, float]],
    config: ReportConfig,
    seed: int,
    sets: pd.DataFrame | None,
) -> Iterator[Drawing]:
    """Yield the figures of a run, not yet drawn.

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
    topics = shown_topics(theta_NK)
    label_key = adata.uns["topicell"]["label_key"]
    labels = folded(adata.obs[label_key]) if label_key else None
    clusters = folded(adata.obs["leiden"])

    for space in ("counts", "topics"):
        umap_N2 = np.asarray(adata.obsm[f"X_umap_{space}"])
        title = f"UMAP of the {space}"
        yield (
            f"umap_{space}_topics",
            partial(figures.umap_by_topic, umap_N2, theta_NK, f"{title}, by topic", topics),
        )
        by_cluster = f"{title}, by Leiden cluster of the counts"
        yield (
            f"umap_{space}_leiden",
            partial(figures.umap_by_category, umap_N2, clusters, by_cluster),
        )
        if labels is not None:
            yield (
                f"umap_{space}_labels",
                partial(figures.umap_by_category, umap_N2, labels, f"{title}, by label"),
            )
    groups = clusters if labels is None else labels
    yield "structure", partial(figures.structure_plot, theta_NK, groups, seed, topics=topics)
    by = "Leiden cluster" if labels is None else "label"
    yield (
        "topic_by_label",
        partial(figures.topic_by_label, theta_NK, groups, f"Topics by {by}", topics),
    )
    yield from _of_genes(adata, theta_NK, beta_KG, config, topics)
    if theta_NK.shape[1] > 1:
        yield "topic_correlation", partial(figures.topic_correlation, theta_NK, topics)
        yield "topic_similarity", partial(figures.topic_similarity, beta_KG, topics)
    yield from _of_tests(adata, sets, topics)
    run = adata.uns["topicell"]
    if "topic_matches" in run:
        shown = int(run["shown"])
        yield (
            "stability",
            partial(
                figures.stability_matrix, run["topic_matches"], shown, run["topic_support"], topics
            ),
        )
    if "amortization_gap" in adata.obs:
        gap_N = adata.obs["amortization_gap"].to_numpy()
        yield "amortization_gap", partial(figures.gap_histogram, gap_N)
    if history:
        yield "training_curves", partial(figures.training_curves, history)


def _of_genes(
    adata: AnnData,
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    config: ReportConfig,
    topics: list[int] | None,
) -> Iterator[Drawing]:
    """Yield figures of genes, of each topic and against all other topics."""
    genes = adata.var_names.to_numpy()
    n_topics = len(beta_KG)

    def most_probable() -> Any:
        genes_KT = ranking.top_genes(beta_KG, config.n_top_genes)
        return figures.top_genes(
            genes[genes_KT],
            np.take_along_axis(beta_KG, genes_KT, axis=1),
            "Most probable genes of each topic",
            topics,
        )

    @cache
    def characteristic() -> tuple[np.ndarray, list[int]]:
        """Return columns of the leading genes, and the topic that each one leads."""
        numbers = np.arange(n_topics) if topics is None else np.array(topics)
        n_each = int(np.clip(N_SIDE_BY_SIDE // len(numbers), 2, N_LEADING))
        leading_KT = ranking.top_genes(ranking.frex(beta_KG), n_each)[numbers]
        # A gene that leads two topics stands with the first.
        columns, first = np.unique(leading_KT.ravel(), return_index=True)
        order = np.argsort(first)
        return columns[order], numbers[first[order] // leading_KT.shape[1]].tolist()

    title = "Characteristic genes (FREX) of each topic, in all topics"

    def dots() -> Any:
        columns, topic_of_T = characteristic()
        expressed_NT = adata.X[:, columns] > 0
        dominant_N = ranking.dominant_topics(theta_NK)
        expressed_KT = np.full((n_topics, len(columns)), np.nan)
        for topic in np.unique(dominant_N):
            of_topic = expressed_NT[dominant_N == topic].mean(axis=0)
            expressed_KT[topic] = np.asarray(of_topic).ravel()
        return figures.top_genes_dots(
            genes[columns], beta_KG[:, columns], expressed_KT, title, topic_of_T, topics
        )

    def heatmap() -> Any:
        columns, topic_of_T = characteristic()
        return figures.top_genes_heatmap(
            genes[columns], beta_KG[:, columns], title, topic_of_T, topics
        )

    yield "top_genes", most_probable
    yield "top_genes_dots", dots
    yield "top_genes_heatmap", heatmap


def _of_tests(
    adata: AnnData, sets: pd.DataFrame | None, topics: list[int] | None
) -> Iterator[Drawing]:
    """Yield figures of differential expression and gene sets."""
    if "lda_lfc" in adata.varm:
        lfc_KG, p_KG, q_KG = (
            np.asarray(adata.varm[name]).T for name in ("lda_lfc", "lda_p", "lda_q")
        )
        genes = adata.var_names.to_numpy()
        yield "volcanoes", partial(figures.volcanoes, lfc_KG, p_KG, q_KG, genes, topics)
    if sets is not None:
        topics_B = sets["topic"].str.removeprefix("topic_").astype(int)
        yield (
            "enrichment",
            partial(
                figures.enrichment_bars,
                topics_B.tolist(),
                sets["gene_set"].tolist(),
                sets["q"].to_numpy(),
                np.asarray(adata.obsm["X_lda"]).shape[1],
                topics,
            ),
        )
