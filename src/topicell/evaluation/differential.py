"""Which genes differ between topics: Poisson rates with grade of membership, and their tests.

The loadings of the cells are fixed: they are the topic proportions. Shapes: N cells, K topics, G
genes, C genes of a chunk, M of these that have not converged, P their non-zero counts, S estimates
of a covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtr
from scipy.stats import false_discovery_control

CHUNK = 2**23
"""Largest number of entries of a dense array of cells × genes, or topics × topics × genes: 64
MiB."""

BLOCK = 4096
"""Cells whose pairs of topics are multiplied at the same time."""

MAX_STEPS = 2000
"""Limit of Newton's method. Seven steps are usual, 20 if topics hardly differ between cells."""

TOLERANCE = 1e-8
"""Tolerance of the squared Newton decrement: the error of all log rates together, in standard
errors."""


@dataclass(frozen=True, slots=True)
class DifferentialExpression:
    """Rates of genes in topics, and how each topic differs from the nearest topic.

    Values are NaN (-1 in `nearest_KG`) if they are not defined: for genes without counts and for
    topics that no cell uses.

    Attributes
    ----------
    rate_KG
        Estimated rate of each gene in each topic, counts per count of the library, shape (K, G);
        0 for a gene without counts.
    lfc_KG
        Log2 fold change relative to the nearest topic, the least extreme of all, shape (K, G).
    se_KG
        Standard error of `lfc_KG`, also in log2 units, shape (K, G).
    nearest_KG
        The topic that `lfc_KG` compares with, shape (K, G).
    p_KG
        p-value for a rate of the gene that is higher, or lower, in the topic than in every other
        topic, shape (K, G); it is not that of ``lfc_KG / se_KG``.
    q_KG
        `p_KG` after Benjamini & Hochberg over the genes of each topic, shape (K, G).
    """

    rate_KG: np.ndarray
    lfc_KG: np.ndarray
    se_KG: np.ndarray
    nearest_KG: np.ndarray
    p_KG: np.ndarray
    q_KG: np.ndarray


def differential_expression(
    x_NG: sp.csr_matrix,
    theta_NK: np.ndarray,
    *,
    robust: bool = True,
    pseudo_count: float = 0.5,
    min_cells: float = 1.0,
) -> DifferentialExpression:
    r"""Find genes whose rate in a topic is higher, or lower, than in every other topic.

    The counts of each gene are regressed on the topic proportions,
    :math:`x_{cg} \sim \mathrm{Poisson}(s_c \sum_k \theta_{ck} f_{kg})`, where :math:`s_c` is the
    library size of the cell, its total in `x_NG`. The rates f maximise the likelihood of the cells
    and of one pseudo-cell for each topic, which has only this topic, `pseudo_count` counts of each
    gene, and the library size for which this number is expected at the overall rate of the gene.
    Therefore rates are finite and positive, the rates of a gene that is equally common in all
    topics do not change, and the rate of a gene with few counts in a topic is shrunk to its overall
    rate.

    Half a count takes most of the bias from the estimate of a log rate (Firth 1993, for cells of
    one topic each) and keeps its standard error under the model below :math:`\sqrt 2` nats. The
    authors of fastTopics add 0.01, which suits the Monte-Carlo intervals that they compute; here it
    would give a standard error of 10 nats for a gene without counts in a topic.

    The p-value is that of an intersection–union test (Berger 1982): the largest of the one-sided
    p-values against each other topic for "higher", the same for "lower", and twice the smaller of
    both. The test compares the cube roots of rates, which are close to normal even for few counts
    (Wilson & Hilferty 1931). It does not compare logs of rates, because the log rate in a topic
    without counts has a large standard error, so even a gene with very many counts in another topic
    would not be significant. Therefore a gene can have a tiny p-value and a wide interval of its
    fold change. The fold change is the least extreme one, which need not belong to the largest
    p-value.

    The tests treat the topic proportions as known. Usually these are estimated from the same
    counts, so the noise that influenced the topics is used again as evidence: use the p-values as a
    ranking with a scale, not as error rates of the whole analysis.

    Parameters
    ----------
    x_NG
        Counts, shape (N, G), of all genes of the fit, because library sizes are computed from them.
        Cells without counts have no influence.
    theta_NK
        Topic proportions of the cells, shape (N, K).
    robust
        Covariance of the log rates from the residuals of the cells (Huber–White sandwich), which is
        valid for counts of any variance. Real counts vary more between cells than a Poisson
        distribution allows, and then the inverse of the Fisher information, which is used if false,
        is too small. The result is never smaller than that inverse, because in a topic of few cells
        residuals are small only because the rates are fitted to them.
    pseudo_count
        Counts of each gene in the pseudo-cell of each topic.
    min_cells
        Topics used by fewer cells are not compared. The number of cells is the sum of their squared
        proportions, so that a cell with only this topic counts as one, and a small proportion
        counts as almost nothing. A topic that no cell uses could have any rate, so no gene would
        differ from it.

    Returns
    -------
    Rates, fold changes with their standard errors, p-values and q-values.

    Raises
    ------
    ValueError
        The shapes do not match, counts or proportions are negative or not finite, proportions do
        not sum to 1, a setting is out of range, or fewer than two topics are used.

    References
    ----------
    Carbonetto et al. (2023), GoM DE: interpreting structure in sequence count data with
    differential expression analysis allowing for grades of membership, Genome Biology 24:236
    (the model and the least extreme fold change; there with Monte-Carlo intervals and adaptive
    shrinkage). White (1982), Maximum likelihood estimation of misspecified models. Berger (1982),
    Multiparameter hypothesis testing and acceptance sampling. Wilson & Hilferty (1931), The
    distribution of chi-square. Firth (1993), Bias reduction of maximum likelihood estimates.
    Benjamini & Hochberg (1995), Controlling the false discovery rate.

    Examples
    --------
    Two cells of each of two topics; gene 0 is common to both.

    >>> x_NG = sp.csr_matrix([[80, 20, 0], [75, 25, 0], [77, 1, 22], [81, 0, 19]])
    >>> theta_NK = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> found = differential_expression(x_NG, theta_NK)
    >>> (found.q_KG < 0.05).tolist()
    [[False, True, True], [False, True, True]]
    >>> (found.lfc_KG > 0).tolist()
    [[False, True, False], [True, False, True]]
    """
    x_GN, theta_NK = _checked(x_NG, theta_NK)
    if not 0 < pseudo_count < np.inf:
        raise ValueError(
            f"pseudo_count = {pseudo_count}: must be greater than 0; the default is 0.5"
        )
    if not 0 <= min_cells < np.inf:
        raise ValueError(f"min_cells = {min_cells}: must be at least 0")
    n_genes, n_topics = x_GN.shape[0], theta_NK.shape[1]
    library_N = np.asarray(x_GN.sum(0, dtype=np.float64)).ravel()
    total_G = np.asarray(x_GN.sum(1, dtype=np.float64)).ravel()
    is_used_K = (theta_NK[library_N > 0] ** 2).sum(0) >= max(min_cells, np.finfo(float).tiny)
    if is_used_K.sum() < 2:
        raise ValueError(
            "differential expression needs at least 2 topics in use: cells with counts use "
            f"{is_used_K.sum()} of {n_topics} (min_cells = {min_cells})"
        )
    used, tested = np.flatnonzero(is_used_K), np.flatnonzero(total_G)

    loading_NK = library_N[:, None] * theta_NK
    squares_KK = loading_NK.T @ loading_NK
    rate_KG = np.zeros((n_topics, n_genes))
    rate_KG[~is_used_K] = np.nan
    lfc_KG, se_KG, p_KG, q_KG = np.full((4, n_topics, n_genes), np.nan)
    nearest_KG = np.full((n_topics, n_genes), -1)
    n_genes_at_once = max(CHUNK // max(len(theta_NK), n_topics**2), 1)
    for start in range(0, len(tested), n_genes_at_once):
        genes = tested[start : start + n_genes_at_once]
        x_CN = _chunk(x_GN, genes)
        pseudo_library_C = pseudo_count * library_N.sum() / total_G[genes]
        exposure_CK = loading_NK.sum(0) + pseudo_library_C[:, None]
        start_CK = (x_CN @ theta_NK + pseudo_count) / exposure_CK
        rate_CK = _maximise(x_CN, loading_NK, exposure_CK, pseudo_count, start_CK)
        covariance_SCKK = _covariances(
            x_CN, loading_NK, rate_CK, pseudo_count, squares_KK if robust else None
        )
        found = _against_others(rate_CK[:, used], covariance_SCKK[:, :, used][:, :, :, used])
        here = np.ix_(used, genes)
        rate_KG[here] = rate_CK[:, used].T
        lfc_KG[here], se_KG[here], p_KG[here] = (value_CK.T for value_CK in found[:3])
        nearest_KG[here] = used[found[3].T]
    compared = np.ix_(used, tested)
    q_KG[compared] = false_discovery_control(p_KG[compared], axis=1)
    return DifferentialExpression(rate_KG, lfc_KG, se_KG, nearest_KG, p_KG, q_KG)


def _checked(x_NG: sp.csr_matrix, theta_NK: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return counts as genes × cells, and topic proportions in float64, after checks."""
    theta_NK = np.asarray(theta_NK, dtype=np.float64)
    if theta_NK.ndim != 2 or np.ndim(x_NG) != 2 or x_NG.shape[0] != len(theta_NK):
        raise ValueError(
            f"counts are {np.shape(x_NG)} and theta {theta_NK.shape}: "
            "they must be (N, G) and (N, K)"
        )
    # The negation also finds NaN.
    if not (np.abs(theta_NK.sum(1) - 1) < 1e-3).all() or (theta_NK < 0).any():
        raise ValueError(
            "theta must hold topic proportions: at least 0, with a sum of 1 over topics"
        )
    x_GN = sp.csr_matrix(x_NG.T)
    if not (x_GN.data >= 0).all() or not np.isfinite(x_GN.data).all():
        raise ValueError("counts must be at least 0 and finite")
    return x_GN, theta_NK


def _chunk(x_GN: sp.csr_matrix, genes: np.ndarray) -> sp.csr_matrix:
    """Return counts of some genes in float64, each stored once and none of them zero."""
    x_CN = x_GN[genes].astype(np.float64)
    x_CN.sum_duplicates()
    x_CN.eliminate_zeros()
    return x_CN


def _maximise(
    x_CN: sp.csr_matrix,
    loading_NK: np.ndarray,
    exposure_CK: np.ndarray,
    pseudo_count: float,
    start_CK: np.ndarray,
) -> np.ndarray:
    """Return rates of maximum likelihood, by Newton's method on all genes at once.

    A gene's loss, exposure · f − Σ x log(loading · f) − pseudo-count · Σ log f, is strictly convex
    in f. Steps are relative to f, where the Hessian is the observed information on log f. If a step
    would raise the loss, it is damped (Levenberg–Marquardt) and not shortened, so that topics that
    are hard to distinguish do not slow down the others.
    """
    rate_CK = start_CK.copy()
    moving = np.arange(len(rate_CK))
    x_MN, f_MK, exposure_MK = x_CN, start_CK, exposure_CK
    damping_M = np.zeros(len(rate_CK))
    mean_P = _means(x_MN, loading_NK, f_MK)
    loss_M = _loss(x_MN, mean_P, f_MK, exposure_MK, pseudo_count)
    for _ in range(MAX_STEPS):
        score_MK = f_MK * (_with_values(x_MN, x_MN.data / mean_P) @ loading_NK - exposure_MK)
        score_MK += pseudo_count
        information_MKK = _information(x_MN, mean_P, loading_NK, f_MK, pseudo_count)
        while True:
            damped_MKK = information_MKK + damping_M[:, None, None] * np.eye(f_MK.shape[1])
            step_MK = np.linalg.solve(damped_MKK, score_MK[:, :, None])[:, :, 0]
            decrement_M = (score_MK * step_MK).sum(1)
            next_MK = f_MK * _stretch(step_MK)
            mean_P = _means(x_MN, loading_NK, next_MK)
            next_loss_M = _loss(x_MN, mean_P, next_MK, exposure_MK, pseudo_count)
            # A gain as small as the tolerance is below the rounding error of the loss.
            worse_M = (next_loss_M > loss_M) & (decrement_M > TOLERANCE + 1e-12 * np.abs(loss_M))
            if not worse_M.any():
                break
            damping_M[worse_M] = np.maximum(3 * damping_M[worse_M], pseudo_count)
        f_MK, loss_M = next_MK, next_loss_M

        rate_CK[moving] = f_MK
        # Newton's method squares the error: the step just taken left less than the tolerance.
        moves_M = (decrement_M > TOLERANCE) | (damping_M > 0)
        if not moves_M.any():
            return rate_CK
        damping_M = np.where(damping_M > pseudo_count, damping_M / 9, 0)
        if not moves_M.all():
            mean_P = mean_P[np.repeat(moves_M, np.diff(x_MN.indptr))]
            x_MN, f_MK, exposure_MK = x_MN[moves_M], f_MK[moves_M], exposure_MK[moves_M]
            loss_M, damping_M, moving = loss_M[moves_M], damping_M[moves_M], moving[moves_M]
    raise AssertionError(f"the fit of {len(moving)} genes did not converge in {MAX_STEPS} steps")


def _stretch(step_CK: np.ndarray) -> np.ndarray:
    """Return the factor by which a rate changes: 1 + step to first order, always positive.

    For a decrease it is Newton's step of 1/f, which is exact for cells of one topic each.
    """
    return np.where(step_CK > 0, 1 + step_CK, 1 / (1 - np.minimum(step_CK, 0)))


def _means(x_CN: sp.csr_matrix, loading_NK: np.ndarray, rate_CK: np.ndarray) -> np.ndarray:
    """Return expected counts where there are counts, shape (P,)."""
    mean_CN = rate_CK @ loading_NK.T
    gene_P = np.repeat(np.arange(len(rate_CK)), np.diff(x_CN.indptr))
    mean_P: np.ndarray = mean_CN[gene_P, x_CN.indices]
    return mean_P


def _loss(
    x_CN: sp.csr_matrix,
    mean_P: np.ndarray,
    rate_CK: np.ndarray,
    exposure_CK: np.ndarray,
    pseudo_count: float,
) -> np.ndarray:
    """Return the negative log-likelihood of each gene up to a constant, shape (C,)."""
    seen_C = np.add.reduceat(x_CN.data * np.log(mean_P), x_CN.indptr[:-1])
    loss_C: np.ndarray = (exposure_CK * rate_CK - pseudo_count * np.log(rate_CK)).sum(1) - seen_C
    return loss_C


def _information(
    x_CN: sp.csr_matrix,
    mean_P: np.ndarray,
    loading_NK: np.ndarray,
    rate_CK: np.ndarray,
    pseudo_count: float,
) -> np.ndarray:
    """Return the observed information on the log rates of each gene, shape (C, K, K)."""
    gram_CKK = _gram(_with_values(x_CN, x_CN.data / mean_P**2), loading_NK)
    return _on_log_rates(gram_CKK, rate_CK, pseudo_count)


def _covariances(
    x_CN: sp.csr_matrix,
    loading_NK: np.ndarray,
    rate_CK: np.ndarray,
    pseudo_count: float,
    squares_KK: np.ndarray | None,
) -> np.ndarray:
    """Return the covariance of the log rates of each gene, shape (S, C, K, K).

    It is that of the model, and also the sandwich if the Gram matrix of the loadings is passed.
    """
    mean_P = _means(x_CN, loading_NK, rate_CK)
    information_CKK = _information(x_CN, mean_P, loading_NK, rate_CK, pseudo_count)
    inverse_CKK = np.linalg.inv(information_CKK)
    if squares_KK is None:
        return inverse_CKK[None]
    # A cell's score is its relative residual x / mean - 1 times its loadings. Without a count the
    # residual is -1, so that a sum over the cells with counts corrects one Gram matrix for all
    # genes. Pseudo-cells contribute the variance of their counts; with their residuals, the rate of
    # a gene without counts in a topic would be known exactly.
    excess_P = (x_CN.data / mean_P - 1) ** 2 - 1
    scores_CKK = _gram(_with_values(x_CN, excess_P), loading_NK) + squares_KK
    sandwich_CKK = inverse_CKK @ _on_log_rates(scores_CKK, rate_CK, pseudo_count) @ inverse_CKK
    return np.stack([inverse_CKK, sandwich_CKK])


def _gram(weight_CN: sp.csr_matrix, loading_NK: np.ndarray) -> np.ndarray:
    """Sum over cells of weight · loading · loadingᵀ, shape (C, K, K)."""
    n_cells, n_topics = loading_NK.shape
    gram_CKK = np.zeros((weight_CN.shape[0], n_topics, n_topics))
    # The loadings of a block of cells stay in the cache for all genes, which is three times as fast
    # at 100,000 cells.
    for start in range(0, n_cells, BLOCK):
        weight_CB = weight_CN[:, start : start + BLOCK] if n_cells > BLOCK else weight_CN
        loading_BK = loading_NK[start : start + BLOCK]
        for k in range(n_topics):
            gram_CKK[:, k, k:] += weight_CB @ (loading_BK[:, k:] * loading_BK[:, k : k + 1])
    lower, upper = np.tril_indices(n_topics, -1)
    gram_CKK[:, lower, upper] = gram_CKK[:, upper, lower]
    return gram_CKK


def _on_log_rates(gram_CKK: np.ndarray, rate_CK: np.ndarray, pseudo_count: float) -> np.ndarray:
    """Convert a sum over cells to log rates, with the pseudo-cells."""
    log_CKK: np.ndarray = gram_CKK * rate_CK[:, :, None] * rate_CK[:, None, :]
    log_CKK += pseudo_count * np.eye(rate_CK.shape[1])
    return log_CKK


def _with_values(x_CN: sp.csr_matrix, data_P: np.ndarray) -> sp.csr_matrix:
    """Return a matrix with other values at the same non-zero positions."""
    return sp.csr_matrix((data_P, x_CN.indices, x_CN.indptr), shape=x_CN.shape)


def _against_others(
    rate_CK: np.ndarray, covariance_SCKK: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return least extreme log2 fold change, its standard error, p-value, and topic: (C, K)."""
    own = np.eye(rate_CK.shape[1], dtype=bool)
    log_CK, root_CK = np.log(rate_CK), np.cbrt(rate_CK)
    lfc_CKK = log_CK[:, :, None] - log_CK[:, None, :]
    nearest_CK = np.where(own, np.inf, np.abs(lfc_CKK)).argmin(2)
    lfc_CK, se_CK = (
        np.take_along_axis(value_CKK, nearest_CK[:, :, None], 2)[:, :, 0] / np.log(2)
        for value_CKK in (lfc_CKK, _errors_of_differences(covariance_SCKK, np.ones_like(rate_CK)))
    )
    # The largest of the one-sided p-values against all others is that of the smallest z.
    z_CKK = root_CK[:, :, None] - root_CK[:, None, :]
    z_CKK /= _errors_of_differences(covariance_SCKK, root_CK / 3)
    higher_CK = np.where(own, np.inf, z_CKK).min(2)
    lower_CK = np.where(own, np.inf, -z_CKK).min(2)
    p_CK = np.minimum(2 * ndtr(-np.maximum(higher_CK, lower_CK)), 1)
    return lfc_CK, se_CK, p_CK, nearest_CK


def _errors_of_differences(covariance_SCKK: np.ndarray, slope_CK: np.ndarray) -> np.ndarray:
    """Return the standard error of the difference between any two topics.

    Shape (C, K, K), from the covariance that gives the larger error; 1 between a topic and itself.
    `slope_CK` is the derivative of the compared values by the log rate.
    """
    covariance_SCKK = covariance_SCKK * slope_CK[:, :, None] * slope_CK[:, None, :]
    variance_SCK = np.diagonal(covariance_SCKK, axis1=2, axis2=3)
    variance_SCKK = variance_SCK[:, :, :, None] + variance_SCK[:, :, None, :]
    variance_SCKK -= covariance_SCKK
    variance_SCKK -= covariance_SCKK.swapaxes(2, 3)
    own = np.eye(slope_CK.shape[1], dtype=bool)
    errors_CKK: np.ndarray = np.sqrt(np.where(own, 1, variance_SCKK.max(0)))
    return errors_CKK
