"""Compute the values of metrics from a fit and the parts of the cells, and scores from values."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp

from topicell.config import EvaluateConfig
from topicell.counts import Counts, drawn
from topicell.data.cells import PreparedCells
from topicell.evaluation.metrics import Replicate, replicate_scores
from topicell.evaluation.perplexity import sampling_error, thin
from topicell.evaluation.stability import Consensus, consensus, stability
from topicell.model.fit import TopicFit
from topicell.progress import step, tracked

NAMES_OF_PARTS = {"train": "training", "valid": "validation", "test": "test"}
Measured = dict[str, list[float]]
"""Values by metric: one for each replicate, or a single one for a metric that compares
replicates."""
Values = dict[str, dict[str, list[float]]]
"""Values by metric and split."""


@dataclass(frozen=True)
class Estimates:
    """A fit with its posterior means, for all replicates.

    Attributes
    ----------
    fit
        The fit.
    theta_RNK
        Topic proportions of all cells, those of every part.
    beta_RKG
        Gene proportions of the topics.
    """

    fit: TopicFit
    theta_RNK: np.ndarray
    beta_RKG: np.ndarray

    @functools.cached_property
    def agreed(self) -> Consensus | None:
        """The topics on which replicates agree; None if there is only one."""
        if self.fit.n_replicates == 1:
            return None
        return consensus(self.beta_RKG, self.theta_RNK)

    @classmethod
    def of(cls, fit: TopicFit, cells: Counts, *, n_samples: int, seed: int) -> Self:
        """Compute the posterior means."""
        theta_RNK = fit.theta(cells, n_samples=n_samples, seed=seed)
        return cls(fit, theta_RNK, fit.beta(n_samples=n_samples, seed=seed))


def measure(
    estimates: Estimates,
    parts: Mapping[str, Counts],
    labels: np.ndarray | None,
    config: EvaluateConfig,
    seed: int,
    batches: np.ndarray | None = None,
) -> Measured:
    """Return all final metrics of one split.

    Parameters
    ----------
    estimates
        The fit of the training cells of this split.
    parts
        The cells of each part.
    labels
        Label of each cell, shape (N,), or None.
    config
        Settings of the metrics.
    seed
        Seed of the split, which determines halves and draws.
    batches
        Batch of each cell, shape (N,), or None.
    """
    fit = estimates.fit
    by_replicate: Measured = {}
    samples = {name: Sample.of(part, config.max_cells, seed) for name, part in parts.items()}
    test = predictable(samples["test"], seed)
    valid = predictable(samples["valid"], seed)
    if valid is not None:
        # Use this score to choose settings, so that the test cells stay unseen.
        name = "valid/perplexity_folded"
        with step("perplexity of the validation cells"):
            by_replicate |= perplexity(name, fit, valid, config.n_samples, seed, folded=True)
    if test is not None:
        ways = {"test/perplexity_folded": True}
        if fit.own_perplexity:
            ways[fit.own_perplexity] = False
        with step("perplexity of the test cells"):
            for name, folded in ways.items():
                by_replicate |= perplexity(name, fit, test, config.n_samples, seed, folded=folded)
        with step("ELBO given topics"):
            by_replicate |= elbo_given_topics(fit, parts["test"], config.n_elbo_cells, seed)
    if fit.has_encoder:
        for part, sample in samples.items():
            if sample.cells.n_cells:
                # The curves by epoch have the names train/elbo and valid/elbo.
                name = "test/elbo" if part == "test" else f"fit/{part}_elbo"
                with step(f"ELBO of the {NAMES_OF_PARTS[part]} cells"):
                    by_replicate |= elbo(name, fit, sample, config.n_elbo_samples, seed)
    labelled = drawn(len(estimates.theta_RNK[0]), config.max_cells, seed)
    replicates = [
        Replicate(
            x_NG=parts["train"].rows,
            theta_NK=theta_NK,
            beta_KG=beta_KG,
            labels=labels,
            batches=batches,
            labelled_cells=labelled,
            n_coherence_genes=config.n_coherence_genes,
            n_diversity_genes=config.n_diversity_genes,
            n_neighbors=config.n_neighbors,
            seed=seed,
        )
        for theta_NK, beta_KG in zip(estimates.theta_RNK, estimates.beta_RKG, strict=True)
    ]
    of_topics = [
        dict(replicate_scores(replicate))
        for replicate in tracked(replicates, "scores of topics and labels", unit="replicates")
    ]
    for name in of_topics[0]:
        by_replicate[name] = [scores[name] for scores in of_topics]
    agreed = estimates.agreed
    if agreed is not None:
        by_replicate["topics/stability"] = [stability(estimates.beta_RKG).mean]
        by_replicate["topics/found_again"] = [agreed.found_again]
        by_replicate["topics/consensus"] = [float((~agreed.unstable).sum())]
    if fit.history:
        by_replicate["fit/epochs"] = [float(len(fit.history))]
    return by_replicate


@dataclass(frozen=True, slots=True)
class Sample:
    """The cells of a part, or a sample of them.

    Attributes
    ----------
    cells
        The cells that were drawn.
    n_cells
        Number of cells of the part.
    """

    cells: Counts
    n_cells: int

    @classmethod
    def of(cls, part: Counts, max_cells: int, seed: int) -> Self:
        """Draw at most `max_cells` cells."""
        rows = drawn(part.n_cells, max_cells, seed)
        return cls(part if rows is None else part[rows], part.n_cells)

    @property
    def is_whole(self) -> bool:
        """Whether all cells were drawn."""
        return self.cells.n_cells == self.n_cells

    @property
    def correction(self) -> float:
        """Factor of a standard error for a sample without replacement."""
        return float(np.sqrt(1 - self.cells.n_cells / self.n_cells))


def perplexity(
    name: str, fit: TopicFit, sample: Sample, n_samples: int, seed: int, *, folded: bool
) -> Measured:
    """Return a perplexity of held-out cells; of a sample, with its error."""
    completed, theta_RNK, topics_RKG = fit.completion(
        sample.cells, folded=folded, n_samples=n_samples, seed=seed
    )
    measures = [functools.partial(_perplexity, fit, topics_KG) for topics_KG in topics_RKG]
    found = {name: [of(completed, theta) for of, theta in zip(measures, theta_RNK, strict=True)]}
    if not sample.is_whole:
        found[f"{name}_sampling_error"] = [
            sample.correction * sampling_error(of, completed, theta_NK, seed)
            for of, theta_NK in zip(measures, theta_RNK, strict=True)
        ]
    return found


def _perplexity(
    fit: TopicFit, topics_KG: np.ndarray, x_NG: sp.csr_matrix, theta_NK: np.ndarray
) -> float:
    return fit.likelihood.perplexity(x_NG, theta_NK, topics_KG)


def elbo(name: str, fit: TopicFit, sample: Sample, n_samples: int, seed: int) -> Measured:
    """Return the ELBO of the cells of a part; of a sample, with its error."""
    if sample.is_whole:
        elbo_R = fit.elbo_by_replicate(sample.cells, n_samples=n_samples, seed=seed)
        return {name: elbo_R.tolist()}
    return _mean(name, sample, fit.elbo_by_cell(sample.cells, n_samples=n_samples, seed=seed))


def elbo_given_topics(fit: TopicFit, test: Counts, max_cells: int, seed: int) -> Measured:
    """Return the ELBO with fixed topics of the test cells, or of a sample with its error."""
    name, sample = "test/elbo_given_topics", Sample.of(test, max_cells, seed)
    if sample.is_whole:
        return {name: fit.elbo_given_topics(test, seed=seed).tolist()}
    return _mean(name, sample, fit.elbo_given_topics_by_cell(sample.cells, seed=seed))


def _mean(name: str, sample: Sample, value_RN: np.ndarray) -> Measured:
    """Return the mean over the cells of a sample, with its standard error."""
    value_RN = value_RN.astype(np.float64)
    error_R = sample.correction * value_RN.std(1, ddof=1) / np.sqrt(value_RN.shape[1])
    return {name: value_RN.mean(1).tolist(), f"{name}_sampling_error": error_R.tolist()}


def predictable(sample: Sample, seed: int) -> Sample | None:
    """Return the held-out cells; None if there are none, or no counts to predict."""
    if not sample.cells.n_cells:
        return None
    if not thin(sample.cells.x, seed)[1].nnz:
        warnings.warn(
            f"the {sample.cells.n_cells} held-out cells have too few counts to be predicted; their "
            "scores are left out",
            stacklevel=3,
        )
        return None
    return sample


def split_seeds(seed: int, n_splits: int) -> list[int]:
    """Return the seed of each split: that of the run, then seeds that no other run has."""
    drawn = np.random.SeedSequence(seed).generate_state(n_splits - 1)
    return [seed, *(int(value) for value in drawn)]


def values_of(measured: Mapping[str, Measured]) -> Values:
    """Return values by metric and split, from values by split and metric.

    The metrics are those of the first split.
    """
    first = next(iter(measured.values()))
    return {
        name: {seed: of_split[name] for seed, of_split in measured.items() if name in of_split}
        for name in first
    }


def summarized(values: Values, own: str, selected: int) -> Iterator[tuple[str, float]]:
    """Yield scores by metric name.

    The plain name is the value of the selected replicate of the first split, whose topics the
    artifacts hold. If there are several replicates, there are also the mean and the standard
    deviation over replicates (of all splits); with several splits, also the standard error of the
    mean.
    """
    for name, by_split in values.items():
        of_own = by_split[own]
        yield name, float(of_own[selected] if len(of_own) > 1 else of_own[0])
        everything = [value for of_split in by_split.values() for value in of_split]
        if len(everything) > 1:
            yield f"{name}_mean", float(np.mean(everything))
            yield f"{name}_sd", float(np.std(everything, ddof=1))
        if len(by_split) > 1:
            means = [np.mean(of_split) for of_split in by_split.values()]
            yield f"{name}_se", float(np.std(means, ddof=1) / np.sqrt(len(means)))


def amortization_gap(
    fit: TopicFit, cells: PreparedCells, config: EvaluateConfig, seed: int
) -> np.ndarray:
    """Return the gap of each cell in the selected replicate, nats, shape (N,).

    It is NaN for cells that were not drawn.
    """
    n_cells = cells.counts.n_cells
    rows = drawn(n_cells, config.n_gap_cells, seed)
    if rows is None:
        rows = np.arange(n_cells)
    gap_N = np.full(n_cells, np.nan)
    gap_N[rows] = fit.amortization_gap(cells.counts[rows], replicates=[fit.selected], seed=seed)[0]
    return gap_N


def warn_of_infinite(scores: Mapping[str, float]) -> None:
    """Warn of scores that are infinite or NaN."""
    names = [name for name, score in scores.items() if not np.isfinite(score)]
    if names:
        warnings.warn(
            f"not finite: {', '.join(names)}; do not use these scores to choose settings or "
            "compare models",
            stacklevel=3,
        )
