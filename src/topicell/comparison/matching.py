"""Match the topics of one run with those of another.

Shape suffixes: N cells, K topics, G genes.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from topicell.comparison.rules import same_source
from topicell.comparison.runs import StoredRun
from topicell.comparison.values import N_GENES, Match, Pairing, Unmatched
from topicell.evaluation.ranking import top_genes

N_NAMED = 8
"""Leading genes that describe a topic without a partner."""


def pair_topics(a: StoredRun, b: StoredRun) -> Pairing:
    """Match topics one to one so that the sum of their cosine similarities is greatest.

    The cosine similarity is that of the gene proportions over the genes of both runs; it does not
    depend on the share of a topic that these genes hold. The runs may have different numbers of
    topics.

    References
    ----------
    Kuhn (1955), The Hungarian method for the assignment problem.
    """
    genes = a.genes.intersection(b.genes, sort=False)
    cells = a.cells.intersection(b.cells, sort=False) if same_source(a, b) else a.cells[:0]
    betas = [run.beta_KG[:, run.genes.get_indexer(genes)] for run in (a, b)]
    thetas = [run.theta_NK[run.cells.get_indexer(cells)] for run in (a, b)]
    proportions = [run.theta_NK.mean(0) for run in (a, b)]
    unit_a, unit_b = (_unit(beta_KG) for beta_KG in betas)
    cosine_KK = unit_a @ unit_b.T
    leading = [
        [tuple(genes[order]) for order in top_genes(beta_KG, min(N_GENES, len(genes)))]
        for beta_KG in betas
    ]
    pairs = list(zip(*linear_sum_assignment(cosine_KK, maximize=True), strict=True))
    matches = []
    for topic, partner in pairs if len(genes) else []:
        others = np.delete(np.arange(len(unit_b)), partner)
        next_best = None
        if len(others):
            nearest = others[cosine_KK[topic, others].argmax()]
            next_best = (int(nearest), float(cosine_KK[topic, nearest]))
        matches.append(
            Match(
                topic=int(topic),
                partner=int(partner),
                cosine=float(cosine_KK[topic, partner]),
                next_best=next_best,
                genes=tuple(g for g in leading[0][topic] if g in leading[1][partner]),
                proportion=float(proportions[0][topic]),
                partner_proportion=float(proportions[1][partner]),
                correlation=_correlation(thetas[0][:, topic], thetas[1][:, partner]),
            )
        )
    matches.sort(key=lambda match: not match.found)

    def unmatched(side: int, matched: set[int], similar_KK: np.ndarray) -> tuple[Unmatched, ...]:
        return tuple(
            Unmatched(
                topic=topic,
                nearest=int(similar_KK[topic].argmax()),
                cosine=float(similar_KK[topic].max()),
                proportion=float(proportions[side][topic]),
                genes=leading[side][topic][:N_NAMED],
            )
            for topic in range(len(similar_KK))
            if topic not in matched
        )

    return Pairing(
        letters=(a.letter, b.letter),
        n_genes=(len(a.genes), len(b.genes), len(genes)),
        share=(float(betas[0].sum(1).mean()), float(betas[1].sum(1).mean())),
        n_cells=len(cells),
        cosine_KK=cosine_KK,
        matches=tuple(matches),
        unmatched=(
            unmatched(0, {match.topic for match in matches if match.found}, cosine_KK),
            unmatched(1, {match.partner for match in matches if match.found}, cosine_KK.T),
        ),
        little=(a.little, b.little),
    )


def _unit(beta_KG: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; the row of a topic without any of the genes stays 0."""
    length_K1 = np.linalg.norm(beta_KG, axis=1, keepdims=True)
    unit_KG: np.ndarray = beta_KG / np.where(length_K1 > 0, length_K1, 1)
    return unit_KG


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Return the Pearson correlation; NaN if it is not defined."""
    if len(a_N) < 3 or not (np.ptp(a_N) and np.ptp(b_N)):
        return math.nan
    return float(np.corrcoef(a_N, b_N)[0, 1])
