"""Topics on which independent searches agree.

Each replicate of each run is a search. Topics of several searches are the same if their proportions
in the same cells are correlated.

Shapes: N cells, G genes, K topics of a search, T topics of all searches, C agreed topics.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from topicell.counts import Counts, drawn
from topicell.errors import InputError
from topicell.evaluation.ranking import gene_scores, top_genes
from topicell.evaluation.stability import correlations, grouped
from topicell.files import whole
from topicell.model.fit import TopicFit

if TYPE_CHECKING:
    import pandas as pd

COMPARED_CELLS = 5000
"""Largest number of cells in which the proportions of topics are compared."""
STEPS = 30
"""EM steps for the genes of topics with known proportions; a convex problem."""
FLOOR = 1e-12
"""Smallest expected share of a count."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The topics of several searches, in groups of topics that are the same.

    Attributes
    ----------
    cells
        The cells in which proportions were compared.
    theta_NC
        Mean proportions of the agreed topics in these cells, those with the largest first.
    support_C
        Number of searches that have each agreed topic.
    n_searches
        Number of searches.
    table
        One row for each group: whether it is agreed, its number among the agreed topics, support,
        members (``RUN replicate R topic K``), and the leading genes of its first member.
    """

    cells: Counts
    theta_NC: np.ndarray
    support_C: np.ndarray
    n_searches: int
    table: pd.DataFrame

    def initial_topics(self) -> np.ndarray:
        """Return the gene proportions of the agreed topics in the compared cells, (C, G)."""
        others_N1 = 1 - self.theta_NC.sum(1, keepdims=True)
        theta = np.concatenate([self.theta_NC, np.maximum(others_N1, 0.01)], axis=1)
        return topics_given(self.cells.x, theta)[:-1]

    def write_initial_topics(self, path: Path) -> None:
        """Write the gene proportions of the agreed topics, as ``model.init_topics`` reads them."""
        beta_CG = self.initial_topics()
        with whole(path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["gene", *(f"topic_{c}" for c in range(len(beta_CG)))])
            writer.writerows(
                [gene, *map(float, of)]
                for gene, of in zip(self.cells.genes, beta_CG.T, strict=True)
            )


def agreement_of(
    fits: Mapping[str, TopicFit], cells: Counts, *, min_support: float = 0.5, seed: int = 0
) -> Agreement:
    """Return the topics that more than a share of the searches have, and the others.

    Parameters
    ----------
    fits
        The fit of each run, by the name of the run.
    cells
        Cells of which at most `COMPARED_CELLS` are drawn; they need most of the genes of each fit.
    min_support
        An agreed topic is in more than this share of the searches.
    seed
        Seed of the draw and of the estimates.

    Raises
    ------
    InputError
        There is only one search, the cells lack most of the genes of a run, or fewer than two
        topics are agreed on.
    """
    import pandas as pd

    rows = drawn(cells.n_cells, COMPARED_CELLS, seed)
    cells = cells if rows is None else cells[rows]
    thetas, names, leading = [], [], []
    for run, fit in fits.items():
        fit.require_most_genes(cells, run)
        counts = cells.with_genes(fit.genes, ids=fit.gene_ids, fill_missing=True)
        beta_RKG = fit.beta(seed=seed)
        for replicate, theta_NK in enumerate(fit.theta(counts, seed=seed)):
            thetas.append(theta_NK)
            names += [f"{run} replicate {replicate} topic {k}" for k in range(fit.n_topics)]
            score_KG = gene_scores(beta_RKG[replicate], "relevance", fit.gene_frequency_G)
            leading += [" ".join(map(str, fit.genes[genes])) for genes in top_genes(score_KG, 10)]
    if len(thetas) < 2:
        raise InputError(
            "runs: there is one replicate, so there is nothing to agree with; name several runs, "
            "or a run with train.n_replicates=4"
        )
    search_T = np.repeat(np.arange(len(thetas)), [theta.shape[1] for theta in thetas])
    group_T = grouped(correlations(thetas), search_T)
    theta_NT = np.concatenate(thetas, axis=1)
    members = [np.flatnonzero(group_T == group) for group in np.unique(group_T)]
    support = np.array([len(of) for of in members])
    mean_NC = np.stack([theta_NT[:, of].mean(1) for of in members], axis=1)
    is_agreed = support > min_support * len(thetas)
    # The agreed topics first, by their proportion; then the others, by their support.
    order = np.lexsort((-mean_NC.mean(0), np.where(is_agreed, 0, -support), ~is_agreed))
    n_agreed = int(is_agreed.sum())
    if n_agreed < 2:
        raise InputError(
            f"runs: more than {100 * min_support:g} % of the {len(thetas)} searches agree on "
            f"{n_agreed} topics; a model needs 2. Try fewer topics, or a lower min_support"
        )
    table = pd.DataFrame(
        {
            "topic": [f"topic_{c}" if c < n_agreed else "" for c in range(len(order))],
            "agreed": is_agreed[order],
            "found_in": support[order],
            "searches": len(thetas),
            "proportion": mean_NC.mean(0)[order],
            "relevant_genes": [leading[members[group][0]] for group in order],
            "members": ["; ".join(names[t] for t in members[group]) for group in order],
        }
    )
    agreed = order[:n_agreed]
    return Agreement(cells, mean_NC[:, agreed], support[agreed], len(thetas), table)


def topics_given(x_NG: sp.csr_matrix, theta_NK: np.ndarray) -> np.ndarray:
    """Return the gene proportions with the highest likelihood for known proportions, (K, G).

    EM for the multinomial mixture with fixed θ, from the same profile for every topic; the
    likelihood is concave in β, so there is one optimum.

    Parameters
    ----------
    x_NG
        Counts.
    theta_NK
        Topic proportions of the cells.
    """
    row = np.repeat(np.arange(x_NG.shape[0]), np.diff(x_NG.indptr))
    ratio_NG = x_NG.astype(np.float32)
    total_G = np.asarray(x_NG.sum(0), dtype=np.float32).ravel()
    background_G = (total_G + 0.5) / (total_G + 0.5).sum()
    theta = np.asfortranarray(theta_NK, dtype=np.float32)
    beta_KG = np.tile(background_G, (theta.shape[1], 1))
    for _ in range(STEPS):
        expected = np.full(x_NG.nnz, FLOOR, dtype=np.float32)
        for theta_N, beta_G in zip(theta.T, beta_KG, strict=True):
            expected += theta_N[row] * beta_G[x_NG.indices]
        np.divide(x_NG.data, expected, out=ratio_NG.data)
        beta_KG *= (ratio_NG.T @ theta).T
        # A little background keeps every gene possible.
        beta_KG += 1e-6 * beta_KG.sum(1, keepdims=True) * background_G
        beta_KG /= beta_KG.sum(1, keepdims=True)
    return beta_KG
