"""The summary of a run in a few lines of Markdown, for its folder and its page in MLflow."""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING

import numpy as np

from topicell.report.figure_set import number_of_searches
from topicell.report.scores import headlines, score
from topicell.report.warnings import alignment_warnings, seed_warnings, topic_warnings

if TYPE_CHECKING:
    from anndata import AnnData


def summary(adata: AnnData) -> str:
    """Return the scores with their meaning, and the warnings.

    Parameters
    ----------
    adata
        The run's cells, topics and ``uns["topicell"]``.
    """
    run = adata.uns["topicell"]
    scores = json.loads(run["scores"])
    theta_NK = np.asarray(adata.obsm["X_lda"])
    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    shown = [score(name, scores[name]) for name in headlines(scores)]
    n_searches = number_of_searches(run)
    found = [
        *topic_warnings(
            theta_NK,
            beta_KG,
            run.get("topic_support") if n_searches > 1 else None,
            n_searches,
            adata.var_names,
        ),
        *alignment_warnings(run.get("topic_alignment"), run.get("aligned_to", "")),
        *seed_warnings(run.get("seeds")),
    ]
    # MLflow folds long descriptions: values come first, their meaning last.
    lines = [
        f"**{theta_NK.shape[1]} topics in {as_text(run['data'])}** ({adata.n_obs:,} cells): "
        + ", ".join(f"{row['title']} {row['value']}" for row in shown),
        "",
        *(f"- {heading}" for heading, _ in found),
        "",
        *(f"*{row['title']}*: {row['meaning']}  " for row in shown),
    ]
    return "\n".join(lines) + "\n"


def as_text(name: str) -> str:
    """Escape a name so that Markdown shows it as it is, without HTML, links or formatting."""
    return html.escape(re.sub(r"([\\`*\[\]])", r"\\\1", " ".join(name.split())), quote=False)
