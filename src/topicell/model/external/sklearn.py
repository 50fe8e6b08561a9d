"""Models of scikit-learn."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from topicell.errors import InputError
from topicell.model.external.library import FLOOR, Fitted, Settings

PRIORS = ("cell_topic_prior", "topic_gene_prior")


def lda(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Fit by batch variational Bayes (Hoffman, Blei & Bach 2010)."""
    from sklearn.decomposition import LatentDirichletAllocation

    for name in PRIORS:
        prior = getattr(settings, name)
        taken = prior is None or (isinstance(prior, float) and prior <= 1)
        settings.require_prior(name, taken, "scikit-learn's LDA takes one number of at most 1")
    fitted = LatentDirichletAllocation(
        settings.n_topics,
        doc_topic_prior=settings.cell_topic_prior,
        topic_word_prior=settings.topic_gene_prior,
        learning_method="batch",
        max_iter=settings.passes,
        random_state=settings.seed,
    ).fit(x_NG)
    return Fitted(fitted.components_, fitted.transform)


def nmf(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Fit by multiplicative updates of the KL loss: the likelihood of LDA without its priors.

    Gaussier & Goutte (2005), Relation between PLSA and NMF.
    """
    from sklearn.decomposition import NMF

    for name in PRIORS:
        none = getattr(settings, name) is None
        settings.require_prior(name, none, "model.kind=sklearn_nmf has no priors; leave it out")
    if settings.n_topics > x_NG.shape[1]:
        raise InputError(
            f"model.n_topics = {settings.n_topics}: model.kind=sklearn_nmf cannot find more topics "
            f"than there are genes ({x_NG.shape[1]}); ask for fewer topics"
        )
    fitted = NMF(
        settings.n_topics,
        beta_loss="kullback-leibler",
        solver="mu",
        init="nndsvdar",
        max_iter=settings.passes,
        random_state=settings.seed,
    ).fit(x_NG)
    weight_KG = fitted.components_.astype(np.float64)
    total_K = weight_KG.sum(1)
    return Fitted(
        weight_KG / np.maximum(total_K[:, None], 1e-30) + FLOOR,
        lambda x: fitted.transform(x) * total_K,
    )
