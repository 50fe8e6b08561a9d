"""A run in a few lines of Markdown: what MLflow shows beside it, and its folder holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from topicell.report.cautions import cautions
from topicell.report.scores import HEADLINES, SCORES, number

if TYPE_CHECKING:
    from anndata import AnnData


def summary(adata: AnnData) -> str:
    """Scores with their meaning, and the warnings.

    Parameters
    ----------
    adata
        The run's cells, topics and ``uns["topicell"]``.
    """
    run = adata.uns["topicell"]
    scores = json.loads(run["scores"])
    theta_NK = np.asarray(adata.obsm["X_lda"])
    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    lines = [f"**{theta_NK.shape[1]} topics in {run['data']}** ({adata.n_obs:,} cells)", ""]
    lines += ["| score | value | |", "|---|---|---|"]
    for name in HEADLINES:
        if name in scores:
            title, meaning = SCORES[name]
            lines.append(f"| {title} | {number(scores[name])} | {meaning} |")
    found = cautions(
        theta_NK,
        beta_KG,
        run.get("topic_stability"),
        run.get("topic_support"),
        adata.var_names,
    )
    lines += ["", *(f"- {heading}" for heading, _ in found)]
    return "\n".join(lines) + "\n"
