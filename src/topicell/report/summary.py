"""A run in a few lines of Markdown: what MLflow shows beside it, and its folder holds."""

from __future__ import annotations

import html
import json
import re
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
    shown = [name for name in HEADLINES if name in scores]
    found = cautions(
        theta_NK,
        beta_KG,
        run.get("topic_stability"),
        run.get("topic_support"),
        adata.var_names,
    )
    # MLflow folds all but the first lines away: what matters stands first, its meaning below.
    lines = [
        f"**{theta_NK.shape[1]} topics in {_as_text(run['data'])}** ({adata.n_obs:,} cells): "
        + ", ".join(f"{SCORES[name][0]} {number(scores[name])}" for name in shown),
        "",
        *(f"- {heading}" for heading, _ in found),
        "",
        *(f"*{SCORES[name][0]}*: {SCORES[name][1]}  " for name in shown),
    ]
    return "\n".join(lines) + "\n"


def _as_text(name: str) -> str:
    """A name as Markdown that shows it: no HTML, link, picture, code or emphasis of its own."""
    return html.escape(re.sub(r"([\\`*\[\]])", r"\\\1", " ".join(name.split())), quote=False)
