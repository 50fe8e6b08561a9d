"""What a reader should know before reading topics and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from topicell.evaluation import ranking
from topicell.genes import is_of

FEW_TEST_CELLS = 30
USED_SHARE = 0.01
"""A topic that is dominant in no more than this share of the cells counts as not used."""
DUPLICATE_COSINE = 0.95
"""Two topics whose β have a greater cosine than this are near copies."""
COMMON_COSINE = 0.9
"""A topic whose β has a greater cosine than this with the average of the cells, and..."""
PRESENT = 0.05
COMMON_SHARE = 0.8
"""...a proportion above `PRESENT` in more than this share of them, is a background."""
HOUSEKEEPING_SHARE = 0.5
"""A topic with more than this share of its mass on such genes tells little of cell types."""
STABLE = 0.7
"""A topic that replicates find with a cosine below this should not be read much into."""


def cautions(
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    stability_K: np.ndarray | None = None,
    support_K: np.ndarray | None = None,
    genes: Sequence[str] | None = None,
) -> Iterator[tuple[str, str]]:
    """Return warnings to read before the topics: (heading, explanation).

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells.
    beta_KG
        Gene proportions of the topics.
    stability_K
        How well replicates agree on each topic; None where there is one replicate only.
    support_K
        In how many replicates each topic was found.
    genes
        Names of the genes, to know ribosomal and mitochondrial ones by.
    """
    n_topics = theta_NK.shape[1]
    unused = np.flatnonzero(dominance(theta_NK) <= USED_SHARE)
    if len(unused):
        yield (
            f"{len(unused)} of {n_topics} topics hardly used",
            f"{_topic_names(unused)} dominant in at most {100 * USED_SHARE:g} % of the cells: "
            "collapsed, or a background that many cells share a little of. If the genes say "
            "nothing either, lower model.n_topics.",
        )
    unit_KG = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    cosine_KK = np.triu(unit_KG @ unit_KG.T, k=1)
    pairs = [
        f"{a} and {b} ({cosine_KK[a, b]:.3f})" for a, b in np.argwhere(cosine_KK > DUPLICATE_COSINE)
    ]
    if pairs:
        yield (
            "Near copies among the topics",
            f"Cosine of the gene proportions above {DUPLICATE_COSINE}: topics {', '.join(pairs)}. "
            "Read each pair as one topic, or lower model.n_topics.",
        )
    yield from _backgrounds(theta_NK, beta_KG, genes)
    if stability_K is not None:
        stability_K = np.asarray(stability_K, dtype=float)
        weak_K = stability_K < STABLE
        if support_K is not None:
            weak_K |= np.asarray(support_K) == 1
        unstable = np.flatnonzero(weak_K)
        if len(unstable):
            found = ", ".join(f"{topic} ({stability_K[topic]:.3f})" for topic in unstable)
            yield (
                f"{len(unstable)} of {n_topics} topics not found again",
                f"In this replicate alone, or of a stability below {STABLE}: "
                f"{'topics' if len(unstable) > 1 else 'topic'} {found}. Other starts give other "
                "topics in their place, unstable or redundant; build nothing on them.",
            )


def limits(
    n_test: int, *, replicated: bool, given: bool = False, n_rounded: int = 0
) -> Iterator[tuple[str, str]]:
    """Return the limits of the scores: (heading, explanation).

    Parameters
    ----------
    n_test
        Number of test cells; 0 where none were kept.
    replicated
        Whether there are several replicates.
    given
        Whether the topics come from elsewhere.
    n_rounded
        How many values were rounded to counts.
    """
    if n_rounded:
        yield (
            "The counts were rounded",
            f"{n_rounded:,} values of the file were not whole (corrected or expected counts) and "
            "were rounded to the nearest number. Perplexity and ELBO are of the rounded counts.",
        )
    if given and not n_test:
        yield (
            "No cell is known to be held out",
            "If the topics were fitted to these cells, the perplexities and the ELBO are too good; "
            "held_out=FILE names cells that they were not fitted to.",
        )
    if 0 < n_test < FEW_TEST_CELLS:
        yield (
            f"Only {n_test} test cells",
            "The perplexity of other cells may be quite another: compare it with nothing but fits "
            "of the same split.",
        )
    if not replicated and not given:
        yield (
            "One replicate, so no stability",
            "Nothing here says whether another start finds the same topics; train.n_replicates=4 "
            "does.",
        )


def _backgrounds(
    theta_NK: np.ndarray, beta_KG: np.ndarray, genes: Sequence[str] | None
) -> Iterator[tuple[str, str]]:
    """Return topics of what all cells have: ambient RNA, ribosomes, mitochondria."""
    mean_G = theta_NK.mean(axis=0) @ beta_KG
    cosine_K = beta_KG @ mean_G / (np.linalg.norm(beta_KG, axis=1) * np.linalg.norm(mean_G))
    present_K = (theta_NK > PRESENT).mean(axis=0)
    common = np.flatnonzero((cosine_K > COMMON_COSINE) & (present_K > COMMON_SHARE))
    if len(common) and theta_NK.shape[1] > 1:
        found = ", ".join(
            f"{topic} ({100 * present_K[topic]:.0f} % of the cells)" for topic in common
        )
        yield (
            f"{len(common)} of {theta_NK.shape[1]} topics like a background",
            f"In nearly all cells, and much like the average of their counts: "
            f"{'topics' if len(common) > 1 else 'topic'} {found}. Ambient RNA and genes that every "
            "cell expresses look so; a cell type does not.",
        )
    if genes is None:
        return
    names = [str(gene) for gene in genes]
    housekeeping_G = is_of("ribosomal", names) | is_of("mitochondrial", names)
    share_K = beta_KG[:, housekeeping_G].sum(axis=1)
    heavy = np.flatnonzero(share_K > HOUSEKEEPING_SHARE)
    if len(heavy):
        found = ", ".join(f"{topic} ({100 * share_K[topic]:.0f} %)" for topic in heavy)
        yield (
            f"{len(heavy)} of {theta_NK.shape[1]} topics mostly ribosomal or mitochondrial",
            f"More than half of the counts of {'topics' if len(heavy) > 1 else 'topic'} {found} "
            "are of such genes. Rank its genes by relevance or FREX, or leave those genes out "
            "(preprocess=no_ribosomal).",
        )


def dominance(theta_NK: np.ndarray) -> np.ndarray:
    """Return the share of the cells in which each topic is dominant, shape (K,)."""
    dominant_N = ranking.dominant_topics(theta_NK)
    return np.bincount(dominant_N, minlength=theta_NK.shape[1]) / len(theta_NK)


def _topic_names(topics: np.ndarray) -> str:
    names = [str(topic) for topic in topics]
    if len(names) == 1:
        return f"Topic {names[0]} is"
    return f"Topics {', '.join(names[:-1])} and {names[-1]} are"
