"""LDAModel of tomotopy."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from topicell.model.external.library import FLOOR, Fitted, Settings


def lda(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Fit by collapsed Gibbs sampling (Griffiths & Steyvers 2004)."""
    import tomotopy

    one = not isinstance(settings.topic_gene_prior, list)
    settings.require_prior("topic_gene_prior", one, "tomotopy takes one number for all genes")
    genes = np.arange(x_NG.shape[1]).astype(str)

    def words(x: sp.csr_matrix, cell: int) -> list[str]:
        row = slice(x.indptr[cell], x.indptr[cell + 1])
        of_cell: list[str] = genes[x.indices[row]].repeat(x.data[row].astype(int)).tolist()
        return of_cell

    given = {"alpha": settings.cell_topic_prior, "eta": settings.topic_gene_prior}
    fitted = tomotopy.LDAModel(
        k=settings.n_topics,
        seed=settings.seed,
        **{name: prior for name, prior in given.items() if prior is not None},
    )
    if settings.cell_topic_prior is not None:
        # By default tomotopy also fits the prior and ignores the one that is set.
        fitted.optim_interval = 0
    for cell in range(x_NG.shape[0]):
        # tomotopy leaves out empty documents.
        if x_NG.indptr[cell] < x_NG.indptr[cell + 1]:
            fitted.add_doc(words(x_NG, cell))
    fitted.train(settings.passes, workers=settings.threads)
    known = np.array([int(gene) for gene in fitted.used_vocabs])
    weight_KG = np.full((settings.n_topics, len(genes)), FLOOR)
    for topic in range(settings.n_topics):
        weight_KG[topic, known] = fitted.get_topic_word_dist(topic)

    def infer(x: sp.csr_matrix) -> np.ndarray:
        theta_NK = np.full((x.shape[0], settings.n_topics), 1 / settings.n_topics)
        kept = x.multiply(np.isin(np.arange(x.shape[1]), known)).tocsr()
        kept.eliminate_zeros()
        there = np.flatnonzero(np.diff(kept.indptr))
        documents = [fitted.make_doc(words(kept, int(cell))) for cell in there]
        if documents:
            theta_NK[there] = fitted.infer(documents, workers=settings.threads)[0]
        return theta_NK

    return Fitted(weight_KG, infer)
