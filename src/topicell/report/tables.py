"""The tables of a run, as csv: ranked genes, topics, what replicates agree on, cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from topicell.evaluation.ranking import RANKINGS, gene_scores, top_genes
from topicell.evaluation.stability import Consensus
from topicell.model.fit import TopicFit, ranked_table


def write_tables(
    fit: TopicFit,
    theta_RNK: np.ndarray,
    beta_RKG: np.ndarray,
    agreed: Consensus | None,
    cells: pd.Index,
    folder: Path,
) -> None:
    """Write ``topics/*.csv`` and ``cells/cell_topics.csv`` of the replicate shown.

    Parameters
    ----------
    fit
        The topics' names, genes and frequencies.
    theta_RNK, beta_RKG
        Topic proportions of the cells, gene proportions of the topics.
    agreed
        The consensus of the replicates; None where there is one replicate.
    cells
        Names of the cells.
    folder
        Where to write.
    """
    topics = folder / "topics"
    topics.mkdir(exist_ok=True)
    beta_KG = beta_RKG[fit.shown]
    for by in RANKINGS:
        name = "top_genes" if by == "probability" else f"top_genes_{by}"
        score_KG = gene_scores(beta_KG, by, fit.gene_frequency_G)
        ranked_table(fit.genes, beta_KG, score_KG, fit.n_genes).to_csv(topics / f"{name}.csv")
    pd.DataFrame(beta_KG.T, index=fit.genes, columns=fit.topic_names).to_csv(
        topics / "gene_topics.csv", index_label="gene"
    )
    if agreed is not None:
        names = [f"consensus_{c}" for c in range(len(agreed.support_C))]
        pd.DataFrame(agreed.beta_CG.T, index=fit.genes, columns=names).to_csv(
            topics / "consensus_topics.csv", index_label="gene"
        )
        consensus_table(agreed, fit, names).to_csv(topics / "consensus.csv")
    (folder / "cells").mkdir(exist_ok=True)
    pd.DataFrame(theta_RNK[fit.shown], index=cells, columns=fit.topic_names).to_csv(
        folder / "cells" / "cell_topics.csv", index_label="cell"
    )


def consensus_table(agreed: Consensus, fit: TopicFit, names: Sequence[str]) -> pd.DataFrame:
    """Of each consensus topic: in how many replicates it was found, and how alike it was there."""
    shown = np.full(len(names), "", dtype=object)
    shown[agreed.member_RK[fit.shown]] = fit.topic_names
    score_CG = gene_scores(agreed.beta_CG, "relevance", fit.gene_frequency_G)
    return pd.DataFrame(
        {
            "found_in": agreed.support_C,
            "replicates": fit.n_replicates,
            "unstable": agreed.unstable,
            "cosine": agreed.cosine_C,
            "topic_shown": shown,
            "relevant_genes": [" ".join(fit.genes[genes]) for genes in top_genes(score_CG, 10)],
        },
        index=pd.Index(names, name="consensus"),
    )
