"""NPMI and UMass coherence: whether the top genes of a topic occur in the same cells.

Shapes: N cells, G genes, K topics, T top genes of each topic. A cell has a gene if it has at
least one count of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from topicell.counts import LateRows, Rows


def npmi(x_NG: Rows, genes_KT: np.ndarray) -> np.ndarray:
    r"""Return the mean normalised pointwise mutual information of the pairs of top genes.

    The value of a pair is :math:`\log\frac{p(g,h)}{p(g)\,p(h)} / -\log p(g,h)`, where p is the
    share of cells. It is -1 for genes that never occur together, 0 for independent ones and 1
    for genes that only occur together. A pair that occurs in every cell gives 0/0 and counts as
    1, which is the limit: genes that only occur together have the value 1 for any share below 1.

    Parameters
    ----------
    x_NG
        Counts of the training cells, shape (N, G).
    genes_KT
        Indices of the top genes of each topic, shape (K, T).

    Returns
    -------
    Coherence of each topic, between -1 and 1, shape (K,).

    Raises
    ------
    ValueError
        There is no cell, or T is less than 2.

    References
    ----------
    Bouma (2009), Normalized (pointwise) mutual information in collocation extraction;
    Lau, Newman & Baldwin (2014), Machine reading tea leaves.
    """
    coherence = []
    for together_TT in _cells_with_both(x_NG, genes_KT):
        share_TT = together_TT / x_NG.shape[0]
        first, second = np.triu_indices(len(share_TT), k=1)
        both = share_TT[first, second]
        apart = share_TT.diagonal()[first] * share_TT.diagonal()[second]
        value = np.where(both > 0, 1.0, -1.0)
        finite = (both > 0) & (both < 1)
        log_both = np.log(both[finite])
        value[finite] = (log_both - np.log(apart[finite])) / -log_both
        coherence.append(value.mean())
    return np.array(coherence)


def umass(x_NG: Rows, genes_KT: np.ndarray) -> np.ndarray:
    r"""Return the mean UMass coherence of the pairs of top genes.

    The value of a pair is :math:`\log\frac{D(v_m, v_l) + 1}{D(v_l)}`, where D is the number of
    cells with the genes and :math:`v_l` ranks above :math:`v_m`. The paper sums over the pairs;
    the mean does not grow with T. A pair whose higher-ranked gene is in no cell counts as 0, as
    in gensim.

    Parameters
    ----------
    x_NG
        Counts of the training cells, shape (N, G).
    genes_KT
        Indices of the top genes of each topic, best first, shape (K, T).

    Returns
    -------
    Coherence of each topic, shape (K,); higher is better.

    Raises
    ------
    ValueError
        There is no cell, or T is less than 2.

    References
    ----------
    Mimno, Wallach, Talley, Leenders & McCallum (2011), Optimizing semantic coherence in topic
    models, eq. 1.
    """
    coherence = []
    for together_TT in _cells_with_both(x_NG, genes_KT):
        higher, lower = np.triu_indices(len(together_TT), k=1)
        n_higher = np.maximum(together_TT.diagonal()[higher], 1)
        coherence.append(np.log((together_TT[lower, higher] + 1) / n_higher).mean())
    return np.array(coherence)


def _cells_with_both(x_NG: Rows, genes_KT: np.ndarray) -> Iterator[np.ndarray]:
    """Yield for each topic the number of cells with both genes of a pair (T × T).

    The diagonal has the number of cells with each gene.
    """
    if not x_NG.shape[0]:
        raise ValueError("coherence needs at least one cell")
    if genes_KT.shape[1] < 2:
        raise ValueError(f"coherence needs pairs: {genes_KT.shape[1]} top genes are too few")
    genes, place_KT = np.unique(genes_KT, return_inverse=True)
    rows = x_NG if isinstance(x_NG, LateRows) else LateRows(sp.csr_matrix(x_NG))
    together = np.zeros((len(genes), len(genes)), dtype=np.int64)
    for x in rows.chunks():
        # Dense, because that is faster than a sparse product; the numbers are exact.
        dense = (x[:, genes] > 0).toarray().astype(np.float32)
        together += (dense.T @ dense).astype(np.int64)
    for place_T in place_KT.reshape(genes_KT.shape):
        yield together[np.ix_(place_T, place_T)]
