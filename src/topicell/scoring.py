"""Compute the values of metrics from a fit and the parts of the cells, and scores from values."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from topicell.config import EvaluateConfig
from topicell.counts import Counts
from topicell.data.cells import PreparedCells
from topicell.evaluation.metrics import Replicate, replicate_scores
from topicell.evaluation.perplexity import thin
from topicell.evaluation.stability import consensus, stability
from topicell.model.fit import TopicFit

Measured = dict[str, list[float]]
"""Values by metric: one for each replicate, or a single one for a metric that compares
replicates."""
Values = dict[str, dict[str, list[float]]]
"""Values by metric and split."""


@dataclass(frozen=True, slots=True)
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
    """
    fit = estimates.fit
    by_replicate: Measured = {}
    test = predictable(parts["test"], seed)
    valid = predictable(parts["valid"], seed)
    if valid.n_cells:
        # Use this score to choose settings, so that the test cells stay unseen.
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
        by_replicate |= elbo_given_topics(fit, test, config.n_elbo_cells, seed)
    if fit.has_encoder:
        for part in ("train", "valid", "test"):
            if parts[part].n_cells:
                # The curves by epoch have the names train/elbo and valid/elbo.
                name = "test/elbo" if part == "test" else f"fit/{part}_elbo"
                by_replicate[name] = fit.elbo_by_replicate(
                    parts[part], n_samples=config.n_elbo_samples, seed=seed
                ).tolist()
    replicates = [
        Replicate(
            x_NG=parts["train"].rows,
            theta_NK=theta_NK,
            beta_KG=beta_KG,
            labels=labels,
            n_coherence_genes=config.n_coherence_genes,
            n_diversity_genes=config.n_diversity_genes,
            n_neighbors=config.n_neighbors,
            seed=seed,
        )
        for theta_NK, beta_KG in zip(estimates.theta_RNK, estimates.beta_RKG, strict=True)
    ]
    of_topics = [dict(replicate_scores(replicate)) for replicate in replicates]
    for name in of_topics[0]:
        by_replicate[name] = [scores[name] for scores in of_topics]
    if fit.n_replicates > 1:
        by_replicate["topics/stability"] = [stability(estimates.beta_RKG).mean]
        n_agreed = (~consensus(estimates.beta_RKG).unstable).sum()
        by_replicate["topics/consensus"] = [float(n_agreed)]
    if fit.history:
        by_replicate["fit/epochs"] = [float(len(fit.history))]
    return by_replicate


def elbo_given_topics(fit: TopicFit, test: Counts, max_cells: int, seed: int) -> Measured:
    """Return the ELBO with fixed topics of the test cells, or of a sample with its error."""
    name, n_cells = "test/elbo_given_topics", test.n_cells
    if n_cells <= max_cells:
        return {name: fit.elbo_given_topics(test, seed=seed).tolist()}
    drawn = np.random.default_rng(seed).choice(n_cells, max_cells, replace=False)
    elbo_RN = fit.elbo_given_topics_by_cell(test[np.sort(drawn)], seed=seed).astype(np.float64)
    # The standard error of the mean of a sample without replacement.
    error_R = elbo_RN.std(1, ddof=1) * np.sqrt((1 / max_cells) * (1 - max_cells / n_cells))
    return {name: elbo_RN.mean(1).tolist(), f"{name}_sampling_error": error_R.tolist()}


def predictable(cells: Counts, seed: int) -> Counts:
    """Return the held-out cells, or no cells if there are no counts to predict."""
    if cells.n_cells and not thin(cells.x, seed)[1].nnz:
        warnings.warn(
            f"the {cells.n_cells} held-out cells have too few counts to be predicted; their "
            "scores are left out",
            stacklevel=3,
        )
        return cells[:0]
    return cells


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
    drawn = np.arange(n_cells)
    if n_cells > config.n_gap_cells:
        generator = np.random.default_rng(seed)
        drawn = np.sort(generator.choice(n_cells, config.n_gap_cells, replace=False))
    gap_N = np.full(n_cells, np.nan)
    gap_N[drawn] = fit.amortization_gap(cells.counts[drawn], replicates=[fit.selected], seed=seed)[
        0
    ]
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
