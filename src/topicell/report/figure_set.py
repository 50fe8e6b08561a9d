"""The table of figures: how each is drawn from a run, and its caption on the page.

To add a figure, write a function in `topicell.report.figures` that makes it from arrays, and here a
function of a `ReportedRun` that calls it, with a row of `FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from topicell.data.preprocessing import DEPTH
from topicell.evaluation import ranking
from topicell.evaluation.conditions import Conditions
from topicell.evaluation.stability import little_support
from topicell.report import figures
from topicell.report.embedding import mapped

if TYPE_CHECKING:
    from anndata import AnnData

    from topicell.config import ReportConfig

MAX_TOPICS = 30
"""Largest number of topics in figures and cards; each has its own colour."""
N_LEADING = 5
"""Largest number of genes of a topic in a figure with the genes of all topics."""
MAX_GROUPS = 60
"""Largest number of groups of cells in a figure."""
N_SIDE_BY_SIDE = 50
"""Approximate number of genes in a figure with the genes of all topics."""

Drawing = tuple[str, Callable[[], Any]]
"""The name of a figure's file, and a function that draws it with matplotlib."""


def shown_topics(theta_NK: np.ndarray) -> list[int] | None:
    """Return the topics that figures and cards show; None means all.

    With more than `MAX_TOPICS`, these are the topics with the largest mean proportion.
    """
    if theta_NK.shape[1] <= MAX_TOPICS:
        return None
    order = np.argsort(-theta_NK.mean(axis=0), kind="stable")
    return sorted(order[:MAX_TOPICS].tolist())


def with_little_support(adata: AnnData) -> np.ndarray:
    """Return whether each topic of a run has little support; none if there is one replicate."""
    run = adata.uns["topicell"]
    return np.isin(
        np.arange(np.asarray(adata.obsm["X_lda"]).shape[1]), topics_with_little_support(run)
    )


def topics_with_little_support(run: Mapping[str, Any]) -> list[int]:
    """Return the topics with little support, from ``uns["topicell"]`` of a run."""
    n_searches = number_of_searches(run)
    if n_searches == 1:
        return []
    little: list[int] = np.flatnonzero(little_support(run["topic_support"], n_searches)).tolist()
    return little


def number_of_searches(run: Mapping[str, Any]) -> int:
    """Return the number of searches in which the support of a topic is counted.

    These are the replicates, without those that failed, or those of the runs of a consensus.
    """
    return int(run.get("n_searches", len(run.get("topic_matches", [0]))))


def folded(groups: pd.Series) -> Any:
    """Return groups of cells for figures; if there are too many, the smallest are combined."""
    sizes = groups.value_counts()
    sizes = sizes[sizes > 0]
    if len(sizes) <= MAX_GROUPS:
        return groups
    small = sizes.index[MAX_GROUPS - 1 :]
    names = groups.astype(object).where(~groups.isin(small), f"{len(small):,} other groups")
    return names.where(groups.notna()).astype("category")


@dataclass(frozen=True)
class ReportedRun:
    """The parts of a run that figures use.

    Attributes
    ----------
    adata
        The run's cells × modelled genes: log-normalised ``X``, ``layers["counts"]``, topics in
        ``obsm["X_lda"]`` and ``varm["lda_topics"]``, ``obs["leiden"]``, ``obsm["X_umap_counts"]``
        and ``["X_umap_topics"]``. Stored runs of earlier versions can lack layers and columns.
    history
        Metrics of each epoch; empty if there are none.
    config
        Settings of the report.
    seed
        Seed of the draw of cells for the structure plot.
    sets
        Enrichment of gene sets, if it was computed.
    """

    adata: AnnData
    history: Sequence[Mapping[str, float]]
    config: ReportConfig
    seed: int
    sets: pd.DataFrame | None

    @cached_property
    def theta_NK(self) -> np.ndarray:
        """Topic proportions of the cells."""
        return np.asarray(self.adata.obsm["X_lda"])

    @cached_property
    def beta_KG(self) -> np.ndarray:
        """Gene proportions of the topics."""
        return np.asarray(self.adata.varm["lda_topics"]).T

    @cached_property
    def mapped_M(self) -> np.ndarray:
        """Positions of the cells on the maps."""
        return mapped(self.adata)

    def xy_M2(self, space: str) -> np.ndarray:
        """Return the coordinates of the cells on a map, ``counts`` or ``topics``."""
        xy_M2: np.ndarray = np.asarray(self.adata.obsm[f"X_umap_{space}"])[self.mapped_M]
        return xy_M2

    def title_of_map(self, space: str, by: str) -> str:
        """Return the heading of a map, with the numbers of cells if not all are on it."""
        n_mapped, n_cells = len(self.mapped_M), self.adata.n_obs
        sample = f" ({n_mapped:,} of {n_cells:,} cells)" if n_mapped < n_cells else ""
        return f"UMAP of the {space}, by {by}{sample}"

    @cached_property
    def dominant_N(self) -> np.ndarray:
        """The topic with the largest proportion in each cell."""
        return ranking.dominant_topics(self.theta_NK)

    @cached_property
    def genes(self) -> np.ndarray:
        """Names of the modelled genes."""
        names: np.ndarray = self.adata.var_names.to_numpy()
        return names

    @cached_property
    def topics(self) -> figures.Topics:
        """The topics to draw, None for all; every figure of topics draws only these."""
        return figures.marked(shown_topics(self.theta_NK), self.little_K)

    @cached_property
    def little_K(self) -> np.ndarray:
        """Whether a topic has little support."""
        return with_little_support(self.adata)

    @cached_property
    def clusters(self) -> Any:
        """The Leiden cluster of each cell."""
        return folded(self.adata.obs["leiden"])

    @cached_property
    def labels(self) -> Any:
        """The label of each cell, None without labels."""
        key = self.adata.uns["topicell"]["label_key"]
        return folded(self.adata.obs[key]) if key else None

    @cached_property
    def samples(self) -> Any:
        """The sample of each cell, None without samples."""
        key = self.adata.uns["topicell"].get("sample_key")
        return folded(self.adata.obs[key].astype("category")) if key else None

    @cached_property
    def conditions(self) -> Conditions | None:
        """The test of conditions, if the run has one."""
        entry = self.adata.uns["topicell"].get("conditions")
        return None if entry is None else Conditions.restored(entry)

    @property
    def groups(self) -> Any:
        """Labels; clusters if there are no labels."""
        return self.clusters if self.labels is None else self.labels

    @cached_property
    def characteristic(self) -> tuple[np.ndarray, list[int]]:
        """Columns of the leading genes by FREX, and the topic of each."""
        n_topics = len(self.beta_KG)
        numbers = np.arange(n_topics) if self.topics is None else np.array(list(self.topics))
        n_each = int(np.clip(N_SIDE_BY_SIDE // len(numbers), 2, N_LEADING))
        leading_KT = ranking.top_genes(ranking.frex(self.beta_KG), n_each)[numbers]
        # A gene that leads two topics is drawn with the first.
        columns, first = np.unique(leading_KT.ravel(), return_index=True)
        order = np.argsort(first)
        return columns[order], numbers[first[order] // leading_KT.shape[1]].tolist()


def _always(run: ReportedRun) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureSpec:
    """A figure: one row of the table.

    Attributes
    ----------
    name
        Name of its files, and of the anchor on the page: lower case and underscores.
    draw
        Draw it with matplotlib.
    applies
        Whether a run has what the figure needs, such as labels or a layer.
    caption, alt
        Caption and alternative text on the page; a figure without a caption is not on the page.
        The text may contain ``{n_topics}`` (those drawn), ``{n_cells}`` (those on the
        maps) and ``{n_epochs}``.
    """

    name: str
    draw: Callable[[ReportedRun], Any]
    applies: Callable[[ReportedRun], bool] = _always
    caption: str = ""
    alt: str = ""


def _structure(run: ReportedRun) -> Any:
    return figures.structure_plot(run.theta_NK, run.groups, run.seed, topics=run.topics)


def _topic_by_label(run: ReportedRun) -> Any:
    by = "Leiden cluster" if run.labels is None else "label"
    return figures.topic_by_label(run.theta_NK, run.groups, f"Topics by {by}", run.topics)


def _samples(run: ReportedRun) -> Any:
    depth = run.adata.uns[DEPTH]["median_counts"] if DEPTH in run.adata.uns else None
    return figures.samples(run.theta_NK, run.samples, depth, run.topics)


def _umap_by_topic(space: str, run: ReportedRun) -> Any:
    title = run.title_of_map(space, "topic")
    return figures.umap_by_topic(run.xy_M2(space), run.theta_NK[run.mapped_M], title, run.topics)


def _umap_by_cluster(space: str, run: ReportedRun) -> Any:
    title = run.title_of_map(space, "Leiden cluster of the counts")
    return figures.umap_by_category(run.xy_M2(space), run.clusters.iloc[run.mapped_M], title)


def _umap_by_label(space: str, run: ReportedRun) -> Any:
    title = run.title_of_map(space, "label")
    return figures.umap_by_category(run.xy_M2(space), run.labels.iloc[run.mapped_M], title)


def _top_genes(run: ReportedRun) -> Any:
    above = run.adata.varm.get("lda_deviations")
    score_KG = run.beta_KG if above is None else np.asarray(above).T
    genes_KT = ranking.top_genes(score_KG, run.config.n_top_genes)
    title = "Most probable genes" if above is None else "Genes that deviate from the background"
    return figures.top_genes(
        run.genes[genes_KT],
        np.take_along_axis(run.beta_KG, genes_KT, axis=1),
        f"{title} of each topic" if above is None else f"{title}, by topic",
        run.topics,
    )


_CHARACTERISTIC = "Characteristic genes (FREX) of each topic, in all topics"


def _top_genes_dots(run: ReportedRun) -> Any:
    columns, topic_of_T = run.characteristic
    expressed_NT = run.adata.X[:, columns] > 0
    expressed_KT = np.full((len(run.beta_KG), len(columns)), np.nan)
    for topic in np.unique(run.dominant_N):
        of_topic = expressed_NT[run.dominant_N == topic].mean(axis=0)
        expressed_KT[topic] = np.asarray(of_topic).ravel()
    return figures.top_genes_dots(
        run.genes[columns],
        run.beta_KG[:, columns],
        expressed_KT,
        _CHARACTERISTIC,
        topic_of_T,
        run.topics,
    )


def _top_genes_heatmap(run: ReportedRun) -> Any:
    columns, topic_of_T = run.characteristic
    return figures.top_genes_heatmap(
        run.genes[columns], run.beta_KG[:, columns], _CHARACTERISTIC, topic_of_T, run.topics
    )


def _volcanoes(run: ReportedRun) -> Any:
    lfc_KG, p_KG, q_KG = (
        np.asarray(run.adata.varm[name]).T for name in ("lda_lfc", "lda_p", "lda_q")
    )
    return figures.volcanoes(lfc_KG, p_KG, q_KG, run.genes.tolist(), run.topics)


def _enrichment(run: ReportedRun) -> Any:
    assert run.sets is not None
    return figures.enrichment_bars(
        run.sets["topic"].str.removeprefix("topic_").astype(int).tolist(),
        run.sets["gene_set"].tolist(),
        run.sets["q"].to_numpy(),
        run.theta_NK.shape[1],
        run.topics,
    )


def _batch_factors(run: ReportedRun) -> Any:
    names = [str(name) for name in run.adata.uns["topicell"]["batches"]]
    return figures.batch_factors(run.adata.varm["batch_factors"], run.genes.tolist(), names)


def _umap_by_batch(space: str, run: ReportedRun) -> Any:
    batch = run.adata.obs[run.adata.uns["topicell"]["batch_key"]]
    title = run.title_of_map(space, "batch")
    return figures.umap_by_category(run.xy_M2(space), folded(batch).iloc[run.mapped_M], title)


def _has_batches(run: ReportedRun) -> bool:
    return "batch_factors" in run.adata.varm


def _stability(run: ReportedRun) -> Any:
    stored = run.adata.uns["topicell"]
    return figures.stability_matrix(
        stored["topic_matches"], int(stored["shown"]), stored["topic_support"], run.topics
    )


def _conditions(run: ReportedRun) -> Any:
    assert run.conditions is not None
    term = run.conditions.drawable()[0]
    return figures.condition_effects(run.conditions.of_term(term), term, run.topics)


def _several_topics(run: ReportedRun) -> bool:
    return len(run.beta_KG) > 1


def _has_labels(run: ReportedRun) -> bool:
    return run.labels is not None


# Figures with a caption are on the page, in this order; the others are files only.
_MAP = "Each point is a cell. In a UMAP, only neighbours are meaningful; long distances are not."
FIGURES = {
    spec.name: spec
    for spec in (
        FigureSpec(
            name="structure",
            draw=_structure,
            caption="Topic proportions of single cells: each cell is one thin column, its topics "
            "stacked. The number of cells of each group is in brackets; small groups are drawn "
            "wider than their share.",
            alt="Stacked bars of the proportions of {n_topics} topics in the cells, by group",
        ),
        FigureSpec(
            name="topic_by_label",
            draw=_topic_by_label,
            caption="Mean proportion of each topic in the cells of each group.",
            alt="Heat map of the mean proportions of {n_topics} topics by group of cells",
        ),
        FigureSpec(
            name="samples",
            draw=_samples,
            applies=lambda run: run.samples is not None and run.samples.nunique() > 1,
            caption="Mean topic proportions of the cells of each sample, with its number of cells "
            "and the median counts of a cell, of all genes. A topic that only one sample has, or "
            "that follows the depth, may be technical.",
            alt="Stacked bars of the mean proportions of {n_topics} topics in each sample, with "
            "numbers of cells and median counts",
        ),
        FigureSpec(
            name="conditions",
            draw=_conditions,
            applies=lambda run: run.conditions is not None and bool(run.conditions.drawable()),
            caption="How topics change with the first term of the formula. Each point is a sample: "
            "the log₂ ratio of its mean proportion of the topic to the average topic, adjusted for "
            "the other terms, as difference to the first level or to the mean of a number. "
            "Diamonds or lines are the estimated effects with 95 % confidence intervals. Topics "
            "with q below 0.05 are bold.",
            alt="Log-ratios of {n_topics} topics in the samples, by the first term of the formula",
        ),
        FigureSpec(
            name="umap_counts_topics",
            draw=partial(_umap_by_topic, "counts"),
            caption=f"Each topic on the map of the log-normalised counts. {_MAP}",
            alt="Map of {n_cells} cells by counts, once for each of {n_topics} topics, coloured by "
            "the topic's proportion",
        ),
        FigureSpec(
            name="top_genes_dots",
            draw=_top_genes_dots,
            caption=(
                "Genes that are frequent in a topic and exclusive to it. A larger dot means that "
                "more of the topic's cells express the gene."
            ),
            alt="Dot plot of leading genes in {n_topics} topics",
        ),
        FigureSpec(
            name="top_genes_heatmap",
            draw=_top_genes_heatmap,
            caption=(
                "The same genes: their proportion in each topic, relative to the mean over topics."
            ),
            alt="Heat map of leading genes in {n_topics} topics",
        ),
        FigureSpec(
            name="top_genes",
            draw=_top_genes,
            caption=(
                "The leading genes of each topic, all on one scale: the most probable ones, or, if "
                "the model has a background, those that deviate from it. Genes that every cell "
                "expresses lead many topics by probability; the topic cards above can also rank by "
                "FREX or relevance."
            ),
            alt="Bars of the proportions of the leading genes in each of {n_topics} topics",
        ),
        FigureSpec(
            name="volcanoes",
            draw=_volcanoes,
            applies=lambda run: "lda_lfc" in run.adata.varm,
            caption="Differential expression of topics: log₂ fold change of each gene against the "
            "nearest other topic, so a gene has a large value only if it differs from all other "
            "topics. Coloured genes have q below 0.05 and a change of more than two-fold.",
            alt="Volcano plots of the genes of {n_topics} topics",
        ),
        FigureSpec(
            name="enrichment",
            draw=_enrichment,
            applies=lambda run: run.sets is not None,
            caption=(
                "Gene sets that are enriched among the leading genes of each topic (FREX), "
                "compared with all modelled genes. Hypergeometric test; q is computed over all "
                "sets of a topic."
            ),
            alt="Bars of the most enriched gene sets of {n_topics} topics",
        ),
        FigureSpec(
            name="umap_topics_batches",
            draw=partial(_umap_by_batch, "topics"),
            applies=_has_batches,
            caption="Batches on the map of the topics: the cells of a type should be mixed. "
            f"{_MAP}",
            alt="Map of {n_cells} cells by topics, coloured by batch",
        ),
        FigureSpec(
            name="batch_factors",
            draw=_batch_factors,
            applies=_has_batches,
            caption="Genes in which the batches differ most: the factor by which a batch "
            "multiplies the proportion of the gene in all topics. The topics are without these "
            "factors.",
            alt="Heat map of the factors of genes in the batches",
        ),
        FigureSpec(
            name="topic_correlation",
            draw=lambda run: figures.topic_correlation(run.theta_NK, run.topics),
            applies=_several_topics,
            caption="Topics that occur in the same cells: correlation of their proportions.",
            alt="Heat map of the correlations between {n_topics} topics over cells",
        ),
        FigureSpec(
            name="prior_correlation",
            draw=lambda run: figures.prior_correlation(
                run.adata.uns["topicell"]["prior_correlation"], run.topics
            ),
            applies=lambda run: "prior_correlation" in run.adata.uns["topicell"],
            caption="Topics that the model expects in the same cells (red) or in different cells "
            "(blue): correlations of the learned prior, without the part that all topics share. "
            "Wider lines are stronger correlations; weak ones are left out.",
            alt="Graph of the prior correlations between {n_topics} topics",
        ),
        FigureSpec(
            name="topic_similarity",
            draw=lambda run: figures.topic_similarity(run.beta_KG, run.topics),
            applies=_several_topics,
            caption="Topics that use the same genes: cosine similarity of their gene proportions.",
            alt="Heat map of the similarities between the genes of {n_topics} topics",
        ),
        FigureSpec(
            name="stability",
            draw=_stability,
            applies=lambda run: "topic_matches" in run.adata.uns["topicell"],
            caption="How well the other replicates, fits with other seeds, found the same topics.",
            alt="Heat map of how well {n_topics} topics are found again in each replicate",
        ),
        FigureSpec(
            name="training_curves",
            draw=lambda run: figures.training_curves(run.history),
            applies=lambda run: bool(run.history),
            caption="Training by epoch; bands are ± 1 standard deviation over replicates. The ELBO "
            "is computed with full KL weight throughout.",
            alt="Curves over {n_epochs} epochs: ELBO, validation perplexity, KL terms, KL weight "
            "and learning rate",
        ),
        FigureSpec(
            name="amortization_gap",
            draw=lambda run: figures.gap_histogram(run.adata.obs["amortization_gap"].to_numpy()),
            applies=lambda run: "amortization_gap" in run.adata.obs,
            caption=(
                "The ELBO of each cell that is lost because the encoder predicts its posterior; "
                "the reference is a posterior optimised for the cell, with fixed topics."
            ),
            alt="Histogram of the amortization gap of the cells, in nats",
        ),
        FigureSpec(name="umap_topics_topics", draw=partial(_umap_by_topic, "topics")),
        FigureSpec(
            name="umap_counts_batches", draw=partial(_umap_by_batch, "counts"), applies=_has_batches
        ),
        FigureSpec(name="umap_counts_leiden", draw=partial(_umap_by_cluster, "counts")),
        FigureSpec(name="umap_topics_leiden", draw=partial(_umap_by_cluster, "topics")),
        FigureSpec(
            name="umap_counts_labels", draw=partial(_umap_by_label, "counts"), applies=_has_labels
        ),
        FigureSpec(
            name="umap_topics_labels", draw=partial(_umap_by_label, "topics"), applies=_has_labels
        ),
    )
}
"""All figures."""


def drawings(run: ReportedRun) -> Iterator[Drawing]:
    """Yield the figures of a run, not yet drawn."""
    for spec in FIGURES.values():
        if spec.applies(run):
            yield spec.name, partial(spec.draw, run)
