r"""Measure how well topics predict counts: thinning, fold-in, perplexity.

Shapes: N cells, G genes, K topics. All functions use the probability of each count,
:math:`(\theta_c \beta)_g`, without the multinomial coefficient.

Document completion, for cells that were not trained on::

    seen, unseen = thin(x_NG, seed)
    perplexity(unseen, fold_in(seen, beta_KG), beta_KG)

Probabilities are computed only for the non-zero counts: time grows with non-zeros times topics,
memory with non-zeros, and no dense array of cells × genes is made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

GATHERED = 2048
"""Counts whose probabilities are computed at a time."""
FOLDED = 10_000
"""Cells whose topic proportions are found at a time."""
GROUPS = 50
"""Groups of cells from which a sampling error is estimated: its own relative error is 10 %."""


def thin(x_NG: sp.csr_matrix, seed: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Split the counts of each cell at random into two halves.

    Each count goes to either half with probability 1/2. The halves of Poisson counts are
    independent, so one can be predicted from the other.

    Parameters
    ----------
    x_NG
        Counts: whole numbers, shape (N, G).
    seed
        The same counts and seed give the same halves, in any order of storage.

    Returns
    -------
    Two matrices that sum to the counts, of their shape and type.

    Raises
    ------
    ValueError
        A count is negative or not whole.

    References
    ----------
    Wallach, Murray, Salakhutdinov & Mimno (2009), Evaluation methods for topic models (document
    completion); Neufeld et al. (2024), Inference after latent variable estimation for
    single-cell RNA sequencing data (count splitting).
    """
    first = sp.csr_matrix(x_NG, copy=True)
    # One draw for each stored value; the draws must not depend on the order of storage.
    first.sum_duplicates()
    first.eliminate_zeros()
    counts = first.data
    whole = np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts))
    if not whole.all():
        found = counts[~whole][0]
        raise ValueError(f"x has the value {found}: thinning needs counts (whole, not negative)")
    second = first.copy()
    drawn = np.random.default_rng(seed).binomial(counts.astype(np.int64), 0.5)
    first.data = drawn.astype(counts.dtype)
    second.data = counts - first.data
    first.eliminate_zeros()
    second.eliminate_zeros()
    return first, second


def fold_in(
    x_NG: sp.csr_matrix,
    beta_KG: np.ndarray,
    *,
    pseudo_count: float = 0.1,
    n_cycles: int = 100,
    tolerance: float = 1e-6,
) -> np.ndarray:
    """Find topic proportions of new cells by expectation-maximisation, with fixed topics.

    It is the same for every kind of model, so models are compared by it. The optimum is unique,
    because the objective is concave. Each cell starts at uniform proportions and stops on its own,
    so its result does not depend on the other cells. Two M steps give the starting point of a third
    (SQUAREM), which converges in about 36 M steps; EM alone does not in 200. Counts that no topic
    can explain are ignored.

    Parameters
    ----------
    x_NG
        Counts, shape (N, G).
    beta_KG
        Gene proportions of each topic, shape (K, G).
    pseudo_count
        Added to the expected count of each topic, in each cell, at each M step: the result is
        the posterior mode under a Dirichlet of concentration 1 + `pseudo_count`.
    n_cycles
        Largest number of cycles of three M steps.
    tolerance
        A cell is finished when an M step changes no proportion by more than this.

    Returns
    -------
    Topic proportions, shape (N, K), float64; uniform for a cell without counts.

    Raises
    ------
    ValueError
        The shapes do not match.

    References
    ----------
    Hofmann (1999), Probabilistic latent semantic indexing; Asuncion, Welling, Smyth & Teh
    (2009), On smoothing and inference for topic models (maximum a posteriori); Varadhan & Roland
    (2008), Simple and globally convergent methods for accelerating the convergence of any EM
    algorithm (step length S3).
    """
    x = sp.csr_matrix(x_NG)
    beta_KG = np.asarray(beta_KG, dtype=np.float64)
    n_topics = len(beta_KG)
    theta_NK = np.full((x.shape[0], n_topics), 1 / n_topics)
    _check_shapes(x, theta_NK, beta_KG)
    # A cell does not depend on the others, so memory can be bounded.
    for first in range(0, x.shape[0], FOLDED):
        rows = slice(first, first + FOLDED)
        theta_NK[rows] = _folded(
            x[rows], beta_KG, theta_NK[rows], pseudo_count, n_cycles, tolerance
        )
    return theta_NK


def _folded(
    x: sp.csr_matrix,
    beta_KG: np.ndarray,
    theta_NK: np.ndarray,
    pseudo_count: float,
    n_cycles: int,
    tolerance: float,
) -> np.ndarray:
    """Return the topic proportions of some cells, from their initial ones."""
    beta_GK = np.ascontiguousarray(beta_KG.T)
    moving = np.flatnonzero(np.diff(x.indptr))
    x = x[moving].astype(np.float64)

    def m_step(before: np.ndarray) -> np.ndarray:
        probability = _probability_of_counts(x, before, beta_KG)
        ratio = np.zeros_like(probability)
        np.divide(x.data, probability, out=ratio, where=probability > 0)
        expected = before * (sp.csr_matrix((ratio, x.indices, x.indptr), x.shape) @ beta_GK)
        expected += pseudo_count
        total = expected.sum(1, keepdims=True)
        # Without pseudo-counts, a cell without any explainable count keeps its initial proportions.
        after: np.ndarray = np.divide(expected, total, out=before.copy(), where=total > 0)
        return after

    for _ in range(n_cycles):
        if not len(moving):
            break
        start = theta_NK[moving]
        once = m_step(start)
        twice = m_step(once)
        first, bend = once - start, twice - 2 * once + start
        length, bent = (np.linalg.norm(v, axis=1, keepdims=True) for v in (first, bend))
        stride = np.maximum(np.divide(length, bent, out=np.ones_like(bent), where=bent > 0), 1)
        ahead = start + 2 * stride * first + stride**2 * bend
        # Steps that leave the simplex are rejected.
        inside = (ahead > 0).all(1, keepdims=True)
        ahead = np.where(inside, ahead / ahead.sum(1, keepdims=True), twice)
        after = m_step(ahead)
        theta_NK[moving] = after
        moved = np.abs(after - ahead).max(1) >= tolerance
        if not moved.all():
            moving, x = moving[moved], x[moved]
    return theta_NK


def perplexity(x_NG: sp.csr_matrix, theta_NK: np.ndarray, beta_KG: np.ndarray) -> float:
    r"""Compute the perplexity per count, :math:`\exp(-\sum x \log(\theta\beta) / \sum x)`.

    Lower is better. It is never below 1; uniform topics give the number of genes.

    Parameters
    ----------
    x_NG
        Counts, shape (N, G); use held-out counts to measure prediction.
    theta_NK
        Topic proportions of the cells, shape (N, K).
    beta_KG
        Gene proportions of each topic, shape (K, G).

    Returns
    -------
    Perplexity; infinite if a count has probability 0.

    Raises
    ------
    ValueError
        There are no counts, or the shapes do not match.

    References
    ----------
    Blei, Ng & Jordan (2003), Latent Dirichlet allocation, section 7.1; Wallach et al. (2009)
    for `theta_NK` inferred from the other half of each cell.
    """
    x = sp.csr_matrix(x_NG)
    theta_NK = np.asarray(theta_NK, dtype=np.float64)
    beta_KG = np.asarray(beta_KG, dtype=np.float64)
    _check_shapes(x, theta_NK, beta_KG)
    return _perplexity_of(x.data, _probability_of_counts(x, theta_NK, beta_KG))


def sampling_error(
    perplexity: Callable[[sp.csr_matrix, np.ndarray], float],
    x_NG: sp.csr_matrix,
    theta_NK: np.ndarray,
    seed: int,
) -> float:
    """Return the standard error of a perplexity that is due to the draw of the cells.

    Cells are divided at random into `GROUPS` groups. The logarithm of the perplexity is a ratio of
    two sums over groups; its error is linearised (Cochran 1977, Sampling techniques, section 6.3).

    Parameters
    ----------
    perplexity
        Function of counts and topic proportions of cells.
    x_NG
        Counts, shape (N, G).
    theta_NK
        Topic proportions of the cells, shape (N, K).
    seed
        Seed of the groups.
    """
    order = np.random.default_rng(seed).permutation(x_NG.shape[0])
    n_counts, nats = [], []
    for cells in np.array_split(order, min(GROUPS, len(order))):
        x = x_NG[cells]
        n_counts.append(float(x.sum(dtype=np.float64)))
        nats.append(n_counts[-1] * np.log(perplexity(x, theta_NK[cells])) if n_counts[-1] else 0.0)
    whole, n = sum(nats) / sum(n_counts), len(nats)
    if not np.isfinite(whole):
        return np.inf
    residuals = np.array(nats) - whole * np.array(n_counts)
    return float(np.exp(whole) * np.sqrt(n / (n - 1) * (residuals**2).sum()) / sum(n_counts))


def unigram_perplexity(x_NG: sp.csr_matrix, frequencies_G: np.ndarray) -> float:
    """Compute the perplexity per count if all cells have the same gene proportions: one topic.

    A topic model should have a lower perplexity than this.

    Parameters
    ----------
    x_NG
        Counts, shape (N, G).
    frequencies_G
        Share of each gene in all training counts, shape (G,).

    Returns
    -------
    Perplexity; infinite if a gene with counts has frequency 0.

    Raises
    ------
    ValueError
        There are no counts, or the shapes do not match.
    """
    frequencies_G = np.asarray(frequencies_G, dtype=np.float64)
    if frequencies_G.shape != (x_NG.shape[1],):
        raise ValueError(f"x has {x_NG.shape[1]} genes, frequencies shape {frequencies_G.shape}")
    totals_G = np.asarray(sp.csr_matrix(x_NG).sum(0, dtype=np.float64)).ravel()
    return _perplexity_of(totals_G, frequencies_G)


def elbo_perplexity(elbo_total: float, n_counts: float) -> float:
    """Compute perplexity per count from the evidence lower bound, exp(-ELBO / counts).

    It is an upper bound of the perplexity under the marginal likelihood of the model.

    Parameters
    ----------
    elbo_total
        ELBO of all cells together, in nats.
    n_counts
        Sum of the counts of the same cells.

    Returns
    -------
    Perplexity.

    Raises
    ------
    ValueError
        There are no counts.

    References
    ----------
    Hoffman, Blei & Bach (2010), Online learning for latent Dirichlet allocation, section 4.
    """
    if not n_counts > 0:
        raise ValueError("perplexity needs at least one count")
    # The value for a very poor bound may exceed the largest float; infinity is right, without a
    # warning.
    with np.errstate(over="ignore"):
        return float(np.exp(-np.float64(elbo_total) / n_counts))


def _check_shapes(x: sp.csr_matrix, theta_NK: np.ndarray, beta_KG: np.ndarray) -> None:
    if (*theta_NK.shape, *beta_KG.shape[1:]) != (x.shape[0], len(beta_KG), x.shape[1]):
        raise ValueError(
            f"x is {x.shape}, theta {theta_NK.shape} and beta {beta_KG.shape}: "
            "they must be (N, G), (N, K) and (K, G)"
        )


def _probability_of_counts(
    x: sp.csr_matrix, theta_NK: np.ndarray, beta_KG: np.ndarray
) -> np.ndarray:
    """Return (θβ) at each stored count, in the order of storage."""
    cell_n = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    beta_GK = np.ascontiguousarray(beta_KG.T)
    probability = np.empty(x.nnz)
    # Compute a few at a time: an array of non-zeros × topics could be too large for the memory, and
    # blocks that fit into the processor's cache are gathered several times faster.
    for first in range(0, x.nnz, GATHERED):
        some = slice(first, first + GATHERED)
        of_cells, of_genes = theta_NK.take(cell_n[some], 0), beta_GK.take(x.indices[some], 0)
        np.einsum("nk,nk->n", of_cells, of_genes, out=probability[some])
    return probability


def _perplexity_of(counts: np.ndarray, probability: np.ndarray) -> float:
    positive = counts > 0
    counts, probability = counts[positive].astype(np.float64), probability[positive]
    if not len(counts):
        raise ValueError("perplexity needs at least one count")
    if (probability <= 0).any():
        return np.inf
    return elbo_perplexity(float((counts * np.log(probability)).sum()), float(counts.sum()))
