"""Warnings that a page shows before topics and scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from topicell.evaluation import ranking
from topicell.evaluation.stability import FOUND, little_support
from topicell.genes import is_of
from topicell.report.figure_set import number_of_searches

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

FEW_TEST_CELLS = 30
USED_SHARE = 0.01
"""A topic that is dominant in no more than this share of the cells counts as not used."""
DUPLICATE_COSINE = 0.95
"""Two topics are near copies if the cosine of their β is greater than this."""
COMMON_COSINE = 0.9
"""A topic is a background if its cosine with the average cell is greater than this, and..."""
PRESENT = 0.05
COMMON_SHARE = 0.8
"""...its proportion is above `PRESENT` in more than this share of the cells."""
HOUSEKEEPING_SHARE = 0.5
"""A topic with more of its mass on ribosomal or mitochondrial genes than this gets a warning."""


def run_warnings(adata: AnnData) -> list[tuple[str, str]]:
    """Return all warnings about a run: (heading, explanation).

    Parameters
    ----------
    adata
        The run's cells, topics and ``uns["topicell"]``.
    """
    run = adata.uns["topicell"]
    n_searches = number_of_searches(run)
    n_test = int((adata.obs["split"] == "test").sum()) if "split" in adata.obs else 0
    return [
        *topic_warnings(
            np.asarray(adata.obsm["X_lda"]),
            np.asarray(adata.varm["lda_topics"]).T,
            run.get("topic_support") if n_searches > 1 else None,
            n_searches,
            adata.var_names,
        ),
        *alignment_warnings(run.get("topic_alignment"), run.get("aligned_to", "")),
        *seed_warnings(run.get("seeds")),
        *score_warnings(
            n_test,
            replicated=n_searches > 1,
            given="theta" in json.loads(run["config"]),
            n_rounded=int(adata.uns.get("topicell_rounded", 0)),
        ),
    ]


def topic_warnings(
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    support_K: np.ndarray | None = None,
    n_replicates: int = 1,
    genes: Sequence[str] | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield warnings about the topics: (heading, explanation).

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells.
    beta_KG
        Gene proportions of the topics.
    support_K
        Number of replicates that found each topic; None if there is only one replicate.
    n_replicates
        Number of replicates.
    genes
        Names of the genes, by which ribosomal and mitochondrial genes are recognised.
    """
    n_topics = theta_NK.shape[1]
    unused = np.flatnonzero(dominance(theta_NK) <= USED_SHARE)
    if len(unused):
        yield (
            f"{len(unused)} of {n_topics} topics hardly used",
            f"{_topic_names(unused)} dominant in at most {100 * USED_SHARE:g} % of the cells: "
            "either collapsed, or a background of which many cells have a little. If the genes "
            "have no meaning either, lower model.n_topics.",
        )
    unit_KG = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    groups = [_topic_list(group) for group in _near_copies(unit_KG @ unit_KG.T)]
    if groups:
        yield (
            "Near copies among the topics",
            "In each of these groups, the gene proportions of a topic have a cosine above "
            f"{DUPLICATE_COSINE} with those of another: topics {'; '.join(groups)}. Genes that "
            "every cell expresses (ribosomal ones) cause this too: compare the genes that lead by "
            "FREX before you treat a group as one topic or lower model.n_topics.",
        )
    yield from _backgrounds(theta_NK, beta_KG, genes)
    if support_K is not None:
        little = np.flatnonzero(little_support(support_K, n_replicates))
        if len(little):
            found = ", ".join(f"{topic} ({support_K[topic]})" for topic in little)
            yield (
                f"{len(little)} of {n_topics} topics with little support (marked with *)",
                f"At most half of the {n_replicates} replicates have these topics (number of "
                f"replicates in brackets): {found}. Fits from other random starts have other "
                "topics instead. Do not base conclusions on these topics.",
            )


def alignment_warnings(alignment_K: np.ndarray | None, earlier: str) -> Iterator[tuple[str, str]]:
    """Yield warnings about topics that an earlier run does not have: (heading, explanation).

    Parameters
    ----------
    alignment_K
        Correlation of each topic with its partner in the earlier run, NaN without a partner; None
        if the topics were not aligned.
    earlier
        The earlier run.
    """
    if alignment_K is None:
        return
    differ = np.flatnonzero(~(alignment_K >= FOUND))
    if len(differ):
        found = ", ".join(
            f"{topic} ({'new' if np.isnan(alignment_K[topic]) else f'{alignment_K[topic]:.2f}'})"
            for topic in differ
        )
        yield (
            f"{len(differ)} of {len(alignment_K)} topics are not those of the earlier run",
            f"The topics are numbered as in run {earlier}, but these are new, or the correlation "
            f"of their proportions with those of that run (in brackets) is below {FOUND:g}: "
            f"{found}.",
        )


def seed_warnings(seeds: pd.DataFrame | None) -> Iterator[tuple[str, str]]:
    """Yield warnings about seeded topics that are no longer those of their seed.

    Parameters
    ----------
    seeds
        Table of `topicell.model.posterior.AmortizedFit.seeds`, or None.
    """
    if seeds is None:
        return
    moved = seeds["highest_topic"] != seeds.index
    lost = seeds[moved | (seeds["log2_lift"] < seeds["prior_log2_lift"] / 4)]
    if len(lost):
        listed = "; ".join(
            f"{topic} ({row['seed']}): log2 lift {row['log2_lift']:.1f}, "
            f"{row['prior_log2_lift']:.1f} in the prior, highest in {row['highest_topic']}"
            for topic, row in lost.iterrows()
        )
        yield (
            f"{len(lost)} of {len(seeds)} seeded topics moved away from their seed",
            "Another topic has the genes of the seed more, or they lead no longer: the cells do "
            f"not support the seed as a topic, or another topic took its cells. {listed}.",
        )


def score_warnings(
    n_test: int, *, replicated: bool, given: bool = False, n_rounded: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield warnings about the scores: (heading, explanation).

    Parameters
    ----------
    n_test
        Number of test cells; 0 if there are none.
    replicated
        Whether there are several replicates.
    given
        Whether the topics were fitted by another tool.
    n_rounded
        Number of values that were rounded to counts.
    """
    if n_rounded:
        yield (
            "The counts were rounded",
            f"{n_rounded:,} values of the file were not whole numbers (corrected or expected "
            "counts) and were rounded. Perplexity and ELBO are those of the rounded counts.",
        )
    if given and not n_test:
        yield (
            "No held-out cells are known",
            "If the topics were fitted to these cells, the perplexities and the ELBO are too "
            "good. held_out=FILE names cells that the topics were not fitted to.",
        )
    if 0 < n_test < FEW_TEST_CELLS:
        yield (
            f"Only {n_test} test cells",
            "The perplexity of other cells can be very different. Compare it only with fits of "
            "the same split.",
        )
    if not replicated and not given:
        yield (
            "One replicate, so no stability",
            "This page cannot say whether another random start finds the same topics; use "
            "train.n_replicates=4.",
        )


def _backgrounds(
    theta_NK: np.ndarray, beta_KG: np.ndarray, genes: Sequence[str] | None
) -> Iterator[tuple[str, str]]:
    """Yield warnings about topics that all cells have: ambient RNA, ribosomes, mitochondria."""
    mean_G = theta_NK.mean(axis=0) @ beta_KG
    cosine_K = beta_KG @ mean_G / (np.linalg.norm(beta_KG, axis=1) * np.linalg.norm(mean_G))
    present_K = (theta_NK > PRESENT).mean(axis=0)
    common = np.flatnonzero((cosine_K > COMMON_COSINE) & (present_K > COMMON_SHARE))
    if len(common) and theta_NK.shape[1] > 1:
        found = ", ".join(
            f"{topic} ({100 * present_K[topic]:.0f} % of the cells)" for topic in common
        )
        yield (
            f"{len(common)} of {theta_NK.shape[1]} topics similar to a background",
            "Present in nearly all cells, and very similar to the average cell: "
            f"{'topics' if len(common) > 1 else 'topic'} {found}. Ambient RNA and genes that "
            "every cell expresses cause such topics; cell types do not.",
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
            "belong to such genes. Rank the genes by relevance or FREX, or leave these genes out "
            "(preprocess=no_ribosomal).",
        )


def dominance(theta_NK: np.ndarray) -> np.ndarray:
    """Return the share of the cells in which each topic is dominant, shape (K,)."""
    dominant_N = ranking.dominant_topics(theta_NK)
    return np.bincount(dominant_N, minlength=theta_NK.shape[1]) / len(theta_NK)


def _near_copies(cosine_KK: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the groups of topics that are linked by cosines above `DUPLICATE_COSINE`."""
    from scipy.sparse.csgraph import connected_components

    _, group_K = connected_components(cosine_KK > DUPLICATE_COSINE, directed=False)
    for group in np.unique(group_K):
        topics = np.flatnonzero(group_K == group)
        if len(topics) > 1:
            yield topics


def _topic_names(topics: np.ndarray) -> str:
    if len(topics) == 1:
        return f"Topic {topics[0]} is"
    return f"Topics {_topic_list(topics)} are"


def _topic_list(topics: np.ndarray) -> str:
    *others, last = map(str, topics)
    return f"{', '.join(others)} and {last}" if others else last
