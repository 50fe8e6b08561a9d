"""Corpora with known topics: cells drawn from the Dirichlet-multinomial model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from topicell.config import SimulationConfig
from topicell.config.checks import LARGEST
from topicell.counts import as_counts
from topicell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

_CHUNK_ENTRIES = 2_000_000
"""Number of dense entries (cells × genes) drawn at a time: 16 MB in each of two arrays."""


def simulate(config: SimulationConfig) -> AnnData:
    """Draw a corpus from latent Dirichlet allocation.

    For topic k, β_k ~ Dirichlet(`topic_gene_prior`); for cell c, θ_c ~
    Dirichlet(`cell_topic_prior`), a library size n_c, log-normal with mean `mean_counts`,
    rounded and at least 1, and counts x_c ~ Multinomial(n_c, θ_c β). The same settings give
    the same corpus.

    Returns
    -------
    adata
        ``obsm["theta"]`` (cells × topics) and ``varm["beta"]`` (genes × topics) hold the truth,
        ``obs["dominant_topic"]`` the largest topic of each cell.

    Raises
    ------
    InputError
        The library sizes, or the counts, are too large.

    References
    ----------
    Blei, Ng, Jordan (2003), JMLR 3, 993-1022.
    """
    import pandas as pd
    from anndata import AnnData

    n_cells, n_genes, n_topics = config.n_cells, config.n_genes, config.n_topics
    rng = np.random.default_rng(config.seed)
    beta_KG = rng.dirichlet(np.full(n_genes, config.topic_gene_prior), size=n_topics)
    theta_NK = rng.dirichlet(np.full(n_topics, config.cell_topic_prior), size=n_cells)
    # exp(mu + sd²/2) is the mean of a log-normal.
    mu = np.log(config.mean_counts) - config.counts_sd**2 / 2
    library_N = np.maximum(1, np.rint(rng.lognormal(mu, config.counts_sd, n_cells)))
    if not library_N.max() <= LARGEST:
        raise InputError(
            f"data.simulation.mean_counts = {config.mean_counts}, counts_sd = {config.counts_sd}: "
            f"a cell of {library_N.max():.3g} counts cannot be simulated; use smaller values"
        )
    size_N = library_N.astype(np.int64)

    parts = []
    step = max(1, _CHUNK_ENTRIES // n_genes)
    for start in range(0, n_cells, step):
        proportions = theta_NK[start : start + step] @ beta_KG
        # Rows sum to 1 except for rounding, which the multinomial does not accept.
        proportions /= proportions.sum(axis=1, keepdims=True)
        parts.append(sp.csr_matrix(rng.multinomial(size_N[start : start + step], proportions)))
    x = as_counts(sp.vstack(parts, format="csr"), "simulated counts")

    topics = pd.Index([f"topic_{k}" for k in range(n_topics)], dtype=object)
    dominant = pd.Categorical.from_codes(theta_NK.argmax(axis=1), categories=topics)
    adata = AnnData(
        x,
        obs=pd.DataFrame(
            {"dominant_topic": dominant},
            index=[f"cell_{c}" for c in range(n_cells)],
        ),
        var=pd.DataFrame(index=[f"gene_{g}" for g in range(n_genes)]),
        obsm={"theta": theta_NK},
        varm={"beta": np.ascontiguousarray(beta_KG.T)},
        layers={"counts": x},
    )
    adata.uns["topicell_source"] = {
        "name": "simulated",
        "source": "simulation",
        "sha256": settings_digest(config),
        "label_key": "dominant_topic",
    }
    return adata


def settings_digest(config: SimulationConfig) -> str:
    """Return the sha256 of the settings as JSON, which identifies their corpus."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()
