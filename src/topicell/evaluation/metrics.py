"""The table of all metrics: name, title, meaning, direction, and when two runs can be compared.

Pages, comparison, sweep, command line and ``docs/metrics.md`` read this table. To add a metric of
the topics, write one function and one row here with that function as ``compute``; a curve by epoch
or a metric that `topicell.scoring` computes itself needs the row only.

``python -m topicell.evaluation.metrics`` prints the table as Markdown, which is docs/metrics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from topicell.counts import Rows
from topicell.evaluation.batches import separation
from topicell.evaluation.coherence import npmi, umass
from topicell.evaluation.labels import (
    LabelledCells,
    ari,
    labelled_cells,
    nmi,
)
from topicell.evaluation.ranking import (
    diversity,
    effective_topics,
    exclusivity,
    gene_scores,
    top_genes,
    used_topics,
)


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """The topics of one replicate, and the other inputs of the metrics of topics.

    Shapes: N cells, K topics, G genes, T leading genes of each topic.
    """

    x_NG: Rows
    """Counts of the training cells, in which coherence counts the common occurrences of genes."""
    theta_NK: np.ndarray
    """Topic proportions of all cells."""
    beta_KG: np.ndarray
    """Gene proportions of the topics."""
    labels: Sequence[Any] | np.ndarray | None = None
    """Label of each cell, if the data have labels."""
    batches: Sequence[Any] | np.ndarray | None = None
    """Batch of each cell, if the cells are of several batches."""
    labelled_cells: np.ndarray | None = None
    """Positions of the cells whose labels and batches are used; None uses all."""
    n_coherence_genes: int = 20
    """Leading genes of a topic that coherence and exclusivity use."""
    n_diversity_genes: int = 25
    """Leading genes of a topic that diversity uses."""
    n_neighbors: int = 15
    """Neighbours of a cell that vote for its label."""
    seed: int = 0

    @cached_property
    def top_genes_KT(self) -> np.ndarray:
        """Return the most probable genes of each topic."""
        return top_genes(self.beta_KG, self.n_coherence_genes)

    @cached_property
    def labelled(self) -> LabelledCells | None:
        """Return the cells that have a label; None if fewer than 2 labels are present."""
        if self.labels is None:
            return None
        cells = slice(None) if self.labelled_cells is None else self.labelled_cells
        return labelled_cells(
            self.theta_NK[cells],
            np.asarray(self.labels, dtype=object)[cells],
            n_neighbors=self.n_neighbors,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table."""

    name: str
    """``group/name``, as in scores.csv, metrics.jsonl and MLflow; metrics of topics alone are
    ``topics/…``."""
    title: str
    """At most 32 characters."""
    meaning: str
    """Plain text of one or two sentences that end with a full stop; `explanation` adds the
    direction."""
    better: Literal[-1, 0, 1] = 0
    """1 if higher is better, −1 if lower is better, 0 if neither is."""
    same: tuple[str, ...] = ()
    """Conditions that must be equal in two runs to compare their values: keys of `CONDITIONS`, or
    or names of settings."""
    unit: str = ""
    decimals: int | None = None
    """Decimals in a table of means; None: they depend on the values."""
    headline: bool = False
    """Whether pages begin with it."""
    printed: bool = False
    """Whether ``topicell train`` prints it."""
    panel: bool = False
    """Whether it has a panel in the figures of a comparison."""
    by_epoch: bool = False
    """Whether it is a curve by epoch; all other metrics are shown on the page of a run."""
    compute: Callable[[Replicate], float | None] | None = None
    """Return the value for one replicate, None if it is not defined; None for a metric that is
    computed elsewhere."""

    @property
    def direction(self) -> str:
        """Return which values are better, in words; empty if none are."""
        return {-1: "lower is better", 0: "", 1: "higher is better"}[self.better]

    @property
    def explanation(self) -> str:
        """Return the meaning and which values are better."""
        return f"{self.meaning} {self.direction.capitalize()}." if self.better else self.meaning

    @property
    def axis(self) -> str:
        """Return the label of an axis: unit and direction."""
        return ", ".join(filter(None, (self.unit, self.direction)))


def _of_labels(measure: Callable[[LabelledCells], float]) -> Callable[[Replicate], float | None]:
    """Return the function of a replicate that measures its labelled cells, if it has any."""
    return lambda replicate: None if replicate.labelled is None else measure(replicate.labelled)


def _separation_of_batches(replicate: Replicate) -> float | None:
    """Return how far the cells of a batch are apart from others; None without batches."""
    if replicate.batches is None:
        return None
    cells = slice(None) if replicate.labelled_cells is None else replicate.labelled_cells
    labels = replicate.labels
    return separation(
        replicate.theta_NK[cells],
        np.asarray(replicate.batches, dtype=object)[cells],
        None if labels is None else np.asarray(labels, dtype=object)[cells],
        n_neighbors=replicate.n_neighbors,
    )


def _error_of_accuracy(replicate: Replicate) -> float | None:
    """Return the sampling error of a share; None if all cells were used."""
    if replicate.labelled is None or replicate.labelled_cells is None:
        return None
    share, n_labelled = replicate.labelled.accuracy, len(replicate.labelled.label_N)
    drawn = len(replicate.labelled_cells) / len(replicate.theta_NK)
    return float(np.sqrt(share * (1 - share) / n_labelled * (1 - drawn)))


def _npmi(replicate: Replicate) -> float:
    return float(npmi(replicate.x_NG, replicate.top_genes_KT).mean())


def _npmi_frex(replicate: Replicate) -> float:
    frex_KG = gene_scores(replicate.beta_KG, by="frex")
    return float(npmi(replicate.x_NG, top_genes(frex_KG, replicate.n_coherence_genes)).mean())


def _umass(replicate: Replicate) -> float:
    return float(umass(replicate.x_NG, replicate.top_genes_KT).mean())


def _diversity(replicate: Replicate) -> float:
    return diversity(replicate.beta_KG, replicate.n_diversity_genes)


def _exclusivity(replicate: Replicate) -> float:
    return float(exclusivity(replicate.beta_KG, replicate.n_coherence_genes).mean())


_SPLIT = ("counts", "split")
_COHERENCE = (*_SPLIT, "evaluate.n_coherence_genes")
_LABELS = ("cells", "labels", "evaluate.max_cells")
_NATS = "nats per cell"

ROWS = (
    Metric(
        name="valid/perplexity_folded",
        title="Perplexity of validation cells",
        meaning="How uncertain the model is about a count of a validation cell, as a number of "
        "equally likely genes; computed as for the test cells. Choose settings by this score, so "
        "that the test cells stay unseen until the choice is made.",
        better=-1,
        same=_SPLIT,
        unit="per count",
        panel=True,
    ),
    Metric(
        name="test/perplexity_folded",
        title="Perplexity of test cells",
        meaning="How uncertain the model is about a count of an unseen cell, as a number of "
        "equally likely genes: half of the cell's counts determine its topic proportions (by EM), "
        "and the other half is predicted. Uniform topics score the number of genes.",
        better=-1,
        same=_SPLIT,
        unit="per count",
        headline=True,
        printed=True,
        panel=True,
    ),
    Metric(
        name="test/perplexity_amortized",
        title="Perplexity, by the encoder",
        meaning="The perplexity of test cells with topic proportions from the encoder. If it is "
        "much higher than with proportions found by EM, the encoder infers poor proportions.",
        better=-1,
        same=_SPLIT,
        unit="per count",
    ),
    Metric(
        name="test/perplexity_own",
        title="Perplexity, by the library",
        meaning="The perplexity of test cells with topic proportions from the library that fitted "
        "the topics.",
        better=-1,
        same=_SPLIT,
        unit="per count",
    ),
    Metric(
        name="given/perplexity",
        title="Perplexity of given matrices",
        meaning="The perplexity of all counts of all cells, with both matrices as they were "
        "given. It is too low if the topics were fitted to these cells.",
        better=-1,
        same=("counts",),
        unit="per count",
        printed=True,
    ),
    Metric(
        name="given/perplexity_folded",
        title="Perplexity, half from half",
        meaning="The perplexity of one half of each cell's counts, predicted from the other half, "
        "for all cells. It is too low if the topics were fitted to these cells.",
        better=-1,
        same=("counts",),
        unit="per count",
        headline=True,
        printed=True,
        panel=True,
    ),
    Metric(
        name="given/elbo_given_topics",
        title="ELBO given topics, all cells",
        meaning="The mean over all cells of a lower bound on the log-probability of a cell, with "
        "fixed topics and optimised topic proportions under the prior Dirichlet(1/K).",
        better=1,
        same=("counts", "n_topics"),
        unit=_NATS,
    ),
    Metric(
        name="test/elbo_given_topics",
        title="ELBO given topics",
        meaning="Lower bound on the log-probability of an unseen cell, with fixed topics and "
        "optimised topic proportions under the prior Dirichlet(1/K). It is computed in the same "
        "way for every kind of model, for at most evaluate.n_elbo_cells test cells.",
        better=1,
        same=(*_SPLIT, "n_topics"),
        unit=_NATS,
    ),
    Metric(
        name="test/elbo",
        title="ELBO of test cells",
        meaning="Lower bound on the log-probability of an unseen cell under the whole model, "
        "without the multinomial coefficient.",
        better=1,
        same=_SPLIT,
        unit=_NATS,
        panel=True,
    ),
    Metric(
        name="topics/coherence_npmi",
        title="Coherence (NPMI)",
        meaning="Whether the most probable genes of a topic occur in the same cells: −1 means "
        "never together, 0 as often as by chance, 1 always together.",
        better=1,
        same=_COHERENCE,
        decimals=3,
        headline=True,
        printed=True,
        panel=True,
        compute=_npmi,
    ),
    Metric(
        name="topics/coherence_npmi_frex",
        title="Coherence of FREX genes (NPMI)",
        meaning="Whether the genes that lead a topic by FREX, the ranking that the report shows "
        "first, occur in the same cells. They are frequent in the topic and exclusive to it, "
        "whereas the most probable genes are often those that every cell expresses.",
        better=1,
        same=_COHERENCE,
        decimals=3,
        panel=True,
        compute=_npmi_frex,
    ),
    Metric(
        name="topics/coherence_umass",
        title="Coherence (UMass)",
        meaning="The coherence of the most probable genes by another formula: how probable a gene "
        "is in the cells that have a higher-ranked gene, as a logarithm; about 0 at most.",
        better=1,
        same=_COHERENCE,
        decimals=3,
        compute=_umass,
    ),
    Metric(
        name="topics/diversity",
        title="Diversity",
        meaning="Share of distinct genes among the most probable genes of all topics: 1 if no two "
        "topics share one, 1/K if all K topics have the same.",
        better=1,
        same=("counts", "evaluate.n_diversity_genes"),
        unit="share",
        decimals=3,
        panel=True,
        compute=_diversity,
    ),
    Metric(
        name="topics/exclusivity",
        title="Exclusivity (FREX)",
        meaning="Whether the most probable genes of a topic are also exclusive to it: their mean "
        "FREX score, between 0 and 1.",
        better=1,
        same=("counts",),
        decimals=3,
        compute=_exclusivity,
    ),
    Metric(
        name="topics/used",
        title="Topics in use",
        meaning="Number of topics that have the largest proportion in more than 1 % of the cells. "
        "Topics that are not in use suggest a smaller number of topics.",
        same=("cells",),
        unit="topics",
        decimals=1,
        headline=True,
        printed=True,
        compute=lambda replicate: used_topics(replicate.theta_NK),
    ),
    Metric(
        name="topics/effective",
        title="Effective number of topics",
        meaning="Number of equally common topics that would be as diverse as these: the "
        "exponential of the entropy of the mean topic proportions, between 1 and K.",
        same=("cells",),
        unit="topics",
        decimals=1,
        panel=True,
        compute=lambda replicate: effective_topics(replicate.theta_NK),
    ),
    Metric(
        name="topics/stability",
        title="Stability",
        meaning="Whether replicates, fits from different random starts, find the same topics: "
        "mean cosine of the gene proportions of matched topics. 1 means the same topics.",
        better=1,
        same=("counts",),
        unit="mean cosine",
        decimals=3,
        headline=True,
        printed=True,
        panel=True,
    ),
    Metric(
        name="topics/found_again",
        title="Topics found again",
        meaning="Share of topics that another replicate, a fit from another random start, has too "
        "(correlation of their proportions over all cells of at least 0.9): mean over topics and "
        "over pairs of replicates.",
        better=1,
        same=("cells",),
        unit="share",
        decimals=2,
        headline=True,
        printed=True,
        panel=True,
    ),
    Metric(
        name="topics/consensus",
        title="Consensus topics",
        meaning="Number of consensus topics that more than one replicate found "
        "(topics/consensus.csv).",
        same=("cells",),
        unit="topics",
        decimals=1,
    ),
    Metric(
        name="inference/amortization_gap",
        title="Amortization gap",
        meaning="ELBO that is lost because the encoder predicts the topic proportions of a cell "
        "instead of optimising them. 0 means no loss; transform with refine=true avoids it.",
        better=-1,
        same=("counts",),
        unit=_NATS,
    ),
    Metric(
        name="labels/nmi",
        title="Agreement with labels (NMI)",
        meaning="Whether clusters of cells in topic space agree with the known labels: 0 means "
        "not at all, 1 fully.",
        better=1,
        same=_LABELS,
        decimals=3,
        headline=True,
        panel=True,
        compute=_of_labels(nmi),
    ),
    Metric(
        name="labels/ari",
        title="Agreement with labels (ARI)",
        meaning="Agreement of clusters in topic space with the known labels, counted over pairs of "
        "cells and corrected for chance: 0 means as by chance, 1 full agreement.",
        better=1,
        same=_LABELS,
        decimals=3,
        compute=_of_labels(ari),
    ),
    Metric(
        name="labels/knn_accuracy",
        title="Label accuracy",
        meaning="Share of cells whose label is the most common label of their nearest cells in "
        "topic space, among at most evaluate.max_cells cells.",
        better=1,
        same=(*_LABELS, "evaluate.n_neighbors"),
        decimals=3,
        panel=True,
        compute=_of_labels(lambda cells: cells.accuracy),
    ),
    Metric(
        name="batches/separation",
        title="Separation of batches",
        meaning="Share of the nearest cells in topic space that are of the same batch, compared "
        "with chance: 0 means as many as by chance, 1 only these. With labels, nearest cells are "
        "those of the same label, so that batches with other cell types do not count as separate.",
        better=-1,
        same=(*_LABELS, "evaluate.n_neighbors", "preprocess.batch_key"),
        decimals=3,
        panel=True,
        compute=_separation_of_batches,
    ),
    Metric(
        name="fit/valid_elbo",
        title="ELBO of validation cells",
        meaning="Lower bound on the log-probability of a validation cell after training.",
        better=1,
        same=_SPLIT,
        unit=_NATS,
    ),
    Metric(
        name="fit/train_elbo",
        title="ELBO of training cells",
        meaning="Lower bound on the log-probability of a training cell after training. A model "
        "that memorises its cells has a high value too.",
        same=_SPLIT,
        unit=_NATS,
        printed=True,
    ),
    Metric(
        name="fit/epochs",
        title="Epochs",
        meaning="Number of epochs of training.",
        unit="epochs",
    ),
    Metric(
        name="speed/fit_seconds",
        title="Time of the fit",
        meaning="Time that the fit took, without data preparation, metrics and report; with "
        "several splits, that of the first one.",
        better=-1,
        same=("device",),
        unit="seconds",
        decimals=1,
        printed=True,
    ),
    Metric(
        name="memory/peak_mib",
        title="Peak memory",
        meaning="Largest resident memory of the process.",
        better=-1,
        same=("device",),
        unit="MiB",
    ),
    Metric(
        name="train/loss",
        title="Loss",
        meaning="The negative ELBO with the KL weight of the epoch, which training minimises.",
        better=-1,
        same=_SPLIT,
        unit=_NATS,
        by_epoch=True,
    ),
    Metric(
        name="train/elbo",
        title="ELBO of training cells",
        meaning="Mean ELBO over the mini-batches of the epoch, with KL weight 1.",
        better=1,
        same=_SPLIT,
        unit=_NATS,
        panel=True,
        by_epoch=True,
    ),
    Metric(
        name="train/reconstruction",
        title="Reconstruction",
        meaning="Expected log-probability of the counts of a cell, the first term of the ELBO.",
        better=1,
        same=_SPLIT,
        unit=_NATS,
        by_epoch=True,
    ),
    Metric(
        name="train/kl_cells",
        title="KL term of topic proportions",
        meaning="KL divergence between the posterior of a cell's topic proportions and the prior.",
        same=_SPLIT,
        unit=_NATS,
        by_epoch=True,
    ),
    Metric(
        name="train/kl_topics",
        title="KL term of topics",
        meaning="KL divergence between the posterior of the topics and the prior, divided by the "
        "number of training cells.",
        same=_SPLIT,
        unit=_NATS,
        by_epoch=True,
    ),
    Metric(
        name="train/kl_weight",
        title="KL weight",
        meaning="Weight of both KL terms in the loss at the end of the epoch.",
        by_epoch=True,
    ),
    Metric(
        name="train/learning_rate",
        title="Learning rate",
        meaning="Step size of the optimiser at the end of the epoch.",
        by_epoch=True,
    ),
    Metric(
        name="train/failed_replicates",
        title="Failed replicates",
        meaning="Number of replicates whose loss is no longer finite; they are left out of all "
        "other metrics. The curve is there only if a replicate failed.",
        unit="replicates",
        by_epoch=True,
    ),
    Metric(
        name="valid/elbo",
        title="ELBO of validation cells",
        meaning="ELBO after the epoch, with KL weight 1; early stopping uses it.",
        better=1,
        same=_SPLIT,
        unit=_NATS,
        panel=True,
        by_epoch=True,
    ),
    Metric(
        name="valid/perplexity",
        title="Perplexity of validation cells",
        meaning="Perplexity after the epoch with topic proportions from the encoder; a sweep stops "
        "poor trials by it.",
        better=-1,
        same=_SPLIT,
        unit="per count",
        panel=True,
        by_epoch=True,
    ),
    Metric(
        name="speed/cells_per_second",
        title="Speed of training",
        meaning="Cells that pass through training per second since the start of the fit, counted "
        "for each replicate.",
        better=1,
        same=("device",),
        unit="cells per second",
        by_epoch=True,
    ),
)

SAMPLED = {
    "valid/perplexity_folded": "Error: validation perplexity",
    "test/perplexity_folded": "Error: test perplexity",
    "test/perplexity_amortized": "Error: perplexity, by the encoder",
    "test/perplexity_own": "Error: perplexity, by library",
    "test/elbo_given_topics": "Error: ELBO given topics",
    "test/elbo": "Error: ELBO of test cells",
    "labels/knn_accuracy": "Error: label accuracy",
    "fit/valid_elbo": "Error: ELBO of validation cells",
    "fit/train_elbo": "Error: ELBO of training cells",
}
"""Titles of the sampling errors of the metrics that can be computed for a sample of cells."""


def _sampling_error(row: Metric) -> Metric:
    """Return the row of the sampling error of a metric."""
    given = row.name == "test/elbo_given_topics"
    setting = "evaluate.n_elbo_cells" if given else "evaluate.max_cells"
    return Metric(
        name=f"{row.name}_sampling_error",
        title=SAMPLED[row.name],
        meaning=f"Standard error of {row.name} that is due to the draw of {setting} cells; it "
        "only exists if there are more. Models with the same split and seed are measured on the "
        "same cells, so their difference is more exact.",
        same=tuple(dict.fromkeys((*row.same, setting))),
        unit=row.unit,
        compute=_error_of_accuracy if row.name == "labels/knn_accuracy" else None,
    )


def _with_errors(rows: Iterable[Metric]) -> Iterator[Metric]:
    for row in rows:
        yield row
        if row.name in SAMPLED:
            yield _sampling_error(row)


METRICS: dict[str, Metric] = {row.name: row for row in _with_errors(ROWS)}
"""The rows by name, in the order in which tables show them."""

CONDITIONS = {
    "counts": "the modelled counts (cells, genes and values)",
    "cells": "the cells",
    "split": "the split into training, validation and test cells, or several splits in each run",
    "n_topics": "the number of topics",
    "labels": "the labels of the cells",
    "device": "the device",
}
"""Conditions that `Metric.same` can name besides settings, with their descriptions."""


def metric(name: str) -> Metric:
    """Return the row of a metric; without a row, one with the name as its title."""
    return METRICS.get(name) or Metric(name=name, title=name, meaning="")


def ordered(names: Iterable[str]) -> list[str]:
    """Sort names of metrics as in the table; names without a row follow in their own order."""
    names = dict.fromkeys(names)
    return [name for name in METRICS if name in names] + [n for n in names if n not in METRICS]


def replicate_scores(replicate: Replicate) -> Iterator[tuple[str, float]]:
    """Compute every metric that has a `compute` function: yield name and value.

    Metrics that are not defined for the replicate, such as those of labels where there are none,
    are left out.
    """
    for name, row in METRICS.items():
        value = row.compute(replicate) if row.compute else None
        if value is not None:
            yield name, float(value)


INTRODUCTION = """\
# Metrics

This page is made from the table in `src/topicell/evaluation/metrics.py`: do not edit it, run
`python -m topicell.evaluation.metrics > docs/metrics.md`.

Metrics have the same names in `scores.csv`, in `metrics.jsonl`, in MLflow and on the pages. The
plain name of a final metric is the value of the selected replicate, whose topics the other files
hold. `…_mean` and `…_sd` are the mean and the standard deviation over replicates (and over splits,
if there are several), `…_se` is the standard error over splits. A curve by epoch is the mean over
replicates, with `…_sd` beside it.

Every ELBO is in nats per cell with KL weight 1. All likelihoods leave out the multinomial
coefficient. K is the number of topics.

*Comparable if the same* names what two runs must have in common for the values of a metric to be
compared; `topicell compare` marks all others as not comparable. Names of settings stand for their
values, and:

"""


def reference() -> str:
    """Return the reference page of the metrics as Markdown."""
    text = INTRODUCTION
    text += "".join(f"- *{what}*: {meaning}\n" for what, meaning in CONDITIONS.items())
    for heading, by_epoch in (("Final metrics", False), ("Curves by epoch", True)):
        text += f"\n## {heading}\n\n"
        text += "| metric | title | meaning | better | unit | comparable if the same |\n"
        text += "|---|---|---|---|---|---|\n"
        for row in METRICS.values():
            if row.by_epoch == by_epoch:
                better = {-1: "lower", 0: "–", 1: "higher"}[row.better]
                same = ", ".join(what if what in CONDITIONS else f"`{what}`" for what in row.same)
                cells = (row.title, row.meaning, better, row.unit or "–", same or "–")
                text += f"| `{row.name}` | {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    sys.stdout.write(reference())
