"""LdaModel of gensim."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from topicell.model.external.library import Fitted, Settings


def lda(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Fit by online variational Bayes (Hoffman, Blei & Bach 2010)."""
    from gensim.matutils import Sparse2Corpus
    from gensim.models import LdaModel
    from gensim.utils import get_random_state

    def corpus(x: sp.csr_matrix) -> Any:
        return Sparse2Corpus(x, documents_columns=False)

    given = {"alpha": settings.cell_topic_prior, "eta": settings.topic_gene_prior}
    fitted = LdaModel(
        corpus(x_NG),
        num_topics=settings.n_topics,
        id2word={gene: str(gene) for gene in range(x_NG.shape[1])},
        passes=settings.passes,
        random_state=settings.seed,
        **{name: prior for name, prior in given.items() if prior is not None},
    )

    def infer(x: sp.csr_matrix) -> np.ndarray:
        theta_NK = np.empty((x.shape[0], settings.n_topics))
        for cell, words in enumerate(corpus(x)):
            # Inference starts at random numbers; use the same for every cell, independent of
            # earlier calls.
            fitted.random_state = get_random_state(settings.seed)
            theta_NK[cell] = fitted.inference([words])[0]
        return theta_NK

    return Fitted(fitted.get_topics(), infer)
