r"""ProdLDA: a cell is a product of its topics, not a mixture.

:math:`\log p(x_c \mid \theta_c, b) = \sum_g x_{cg} \log \mathrm{softmax}(\theta_c b)_g` with
unnormalised topics :math:`b_k`: a product of experts, weighted by the topic proportions. Priors,
encoder and inference are those of `topicell.model.program`. A cell of one topic has the gene
proportions :math:`\beta_k = \mathrm{softmax}(b_k)`, which are the topic in tables and figures.

Shapes: R replicates, N cells, B cells of a mini-batch, G genes, K topics.

References
----------
Srivastava & Sutton (2017), Autoencoding variational inference for topic models, arXiv:1703.01488,
section 4. They fit point estimates of the topics; here the topics have the prior and the posterior
of amortized LDA.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import softplus

from topicell.evaluation.perplexity import elbo_perplexity
from topicell.model.minibatches import Batch, DenseBatch, in_order
from topicell.model.mixture import PSEUDO_COUNT, of_batches
from topicell.model.priors import TopicPrior

NEWTON_STEPS = 50
TOLERANCE = 1e-6
"""A cell is finished when a Newton step changes no proportion by more than this."""
CHUNK = 256
"""Number of cells whose proportions are computed at a time."""


class ProductOfExperts:
    """The likelihood as `topicell.model.program.Likelihood`; its topics are the logits b."""

    def topics(self, b: Tensor) -> Tensor:
        """Return the logits themselves."""
        return b

    def draw(
        self, mean: Tensor, rho: Tensor, noise: Tensor, prior: TopicPrior
    ) -> tuple[Tensor, Tensor]:
        """Return a draw of b, (..., K, G), and the KL of q(b) from its prior, (..., K)."""
        scale = softplus(rho)
        return torch.addcmul(mean, scale, noise), prior.kl(mean, scale)

    def log_proportions(self, theta: Tensor, topics: Tensor) -> Tensor:
        """Return log softmax(θb), shape (..., B, G)."""
        return (theta @ topics).log_softmax(-1)

    def log_likelihood(
        self,
        batch: Batch,
        theta_RBK: Tensor,
        topics_RKG: Tensor,
        shift_RSG: Tensor | None = None,
    ) -> Tensor:
        """Return the log-likelihood of each cell's counts, in nats, shape (R, B).

        Topic proportions sum to 1, so a shift of all topics is a shift of the cell's logits.
        """
        if shift_RSG is None or batch.one_hot is None:
            logits_RBG = theta_RBK @ topics_RKG
        elif shift_RSG.dim() == 4:
            topics_RSKG = topics_RKG.unsqueeze(1) + shift_RSG
            theta, topics = of_batches(batch.one_hot, theta_RBK, topics_RSKG)
            logits_RBG = theta @ topics
        else:
            logits_RBG = theta_RBK @ topics_RKG + batch.one_hot @ shift_RSG
        return (_dense(batch) * logits_RBG.log_softmax(-1)).sum(-1)

    def slopes(self, batch: Batch, topics_KG: Tensor) -> ProductSlopes:
        """Return the derivatives of the log-likelihood of cells."""
        return ProductSlopes(batch, topics_KG)

    def mean_topics(self, mean: Tensor, scale: Tensor, *, n_samples: int, seed: int) -> Tensor:
        """Return E[b], which needs no draws, shape (R, K, G)."""
        return mean

    def in_batch(self, topics_KG: np.ndarray, shift_G: np.ndarray) -> np.ndarray:
        """Return b in a batch."""
        in_batch_KG: np.ndarray = topics_KG + shift_G
        return in_batch_KG

    def fold_in(self, x_NG: sp.csr_matrix, topics_KG: np.ndarray) -> np.ndarray:
        """Return topic proportions of new cells, with fixed topics, shape (N, K).

        They maximise the log-likelihood plus `PSEUDO_COUNT` Σ log θ, as EM does for a
        mixture; the optimum is unique, because the objective is concave.
        """
        topics = torch.from_numpy(np.asarray(topics_KG, dtype=np.float64))
        x = sp.csr_matrix(x_NG)
        parts = [
            ProductSlopes(_batch(x[rows]), topics).mode().numpy()
            for rows in in_order(x.shape[0], CHUNK)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(topics_KG)))

    def perplexity(self, x_NG: sp.csr_matrix, theta_NK: np.ndarray, topics_KG: np.ndarray) -> float:
        """Return the perplexity per count.

        Raises
        ------
        ValueError
            There are no counts.
        """
        topics = torch.from_numpy(np.asarray(topics_KG, dtype=np.float64))[None]
        x, nats = sp.csr_matrix(x_NG), 0.0
        for rows in in_order(x.shape[0], CHUNK):
            theta = torch.from_numpy(np.asarray(theta_NK[rows], dtype=np.float64))[None]
            nats += float(self.log_likelihood(_batch(x[rows]), theta, topics).sum())
        return elbo_perplexity(nats, float(x.sum(dtype=np.float64)))

    def impossible(self, x_NG: sp.csr_matrix, topics_KG: np.ndarray) -> np.ndarray:
        """Return False for all cells: every gene has a positive proportion, shape (N,)."""
        return np.zeros(x_NG.shape[0], dtype=bool)


PRODUCT = ProductOfExperts()


class ProductSlopes:
    r"""Derivatives of the log-likelihood f of B cells, and the proportions that maximise it.

    With :math:`p = \mathrm{softmax}(\theta b)` and a cell's counts n, the slope by
    :math:`\theta_k` is :math:`\sum_g (x_g - n p_g) b_{kg}`, and the Hessian by :math:`\theta` is
    :math:`-n \mathrm{Cov}_p(b_k, b_j)`.
    """

    def __init__(self, batch: Batch, topics_KG: Tensor) -> None:
        self.x_BG = _dense(batch).to(topics_KG)
        self.topics_KG = topics_KG
        self.n_B1 = self.x_BG.sum(1, keepdim=True)

    def mode(self) -> Tensor:
        """Return the θ of each cell that maximises f + `PSEUDO_COUNT` Σ log θ, shape (B, K).

        Newton steps on the simplex, halved until the objective rises.
        """
        K = len(self.topics_KG)
        theta_BK = self.topics_KG.new_full((len(self.x_BG), K), 1 / K)
        # Only these sums depend on the counts.
        linear_BK = self.x_BG @ self.topics_KG.T
        # A finished cell does not change any more, so that its result does not depend on the
        # others.
        moving_B1 = torch.ones_like(self.n_B1, dtype=torch.bool)
        for _ in range(NEWTON_STEPS):
            step_BK = self._newton(theta_BK, linear_BK)
            # Stop just before the edge of the simplex.
            ratio_B1 = (-step_BK / theta_BK).amax(1, keepdim=True)
            size_B1 = (0.95 / ratio_B1.clamp_min(1e-30)).clamp_max(1.0)
            before_B1 = self._objective(theta_BK, linear_BK)
            for _ in range(30):
                after_B1 = self._objective(theta_BK + size_B1 * step_BK, linear_BK)
                worse_B1 = after_B1 < before_B1
                if not worse_B1.any():
                    break
                size_B1 = torch.where(worse_B1, size_B1 / 2, size_B1)
            move_BK = torch.where(moving_B1 & ~worse_B1, size_B1 * step_BK, 0)
            theta_BK = theta_BK + move_BK
            moving_B1 = move_BK.abs().amax(1, keepdim=True) >= TOLERANCE
            if not moving_B1.any():
                break
        return theta_BK

    def both(self, theta_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return ∂f/∂t_k and −∂²f/∂t_k² of θ = softmax(t), each of shape (B, K)."""
        logits_BG = theta_BK @ self.topics_KG
        p_BG = logits_BG.softmax(-1)
        slope_BK = (self.x_BG - self.n_B1 * p_BG) @ self.topics_KG.T
        excess_BK = slope_BK - (theta_BK * slope_BK).sum(1, keepdim=True)
        # Variance under p of b_k − θb, which is the derivative of the logits by t_k, divided by
        # θ_k.
        centred_BG = logits_BG - (p_BG * logits_BG).sum(1, keepdim=True)
        mean_BK = p_BG @ self.topics_KG.T
        own_BK = p_BG @ self.topics_KG.square().T - mean_BK.square()
        shared_BK = (p_BG * centred_BG) @ self.topics_KG.T
        total_B1 = (p_BG * centred_BG.square()).sum(1, keepdim=True)
        variance_BK = own_BK - 2 * shared_BK + total_B1
        first_BK = theta_BK * excess_BK
        second_BK = first_BK * (1 - 2 * theta_BK) - self.n_B1 * theta_BK.square() * variance_BK
        return first_BK, -second_BK

    def _objective(self, theta_BK: Tensor, linear_BK: Tensor) -> Tensor:
        logits_BG = theta_BK @ self.topics_KG
        likelihood_B1 = (theta_BK * linear_BK).sum(1, keepdim=True) - self.n_B1 * (
            logits_BG.logsumexp(1, keepdim=True)
        )
        return likelihood_B1 + PSEUDO_COUNT * theta_BK.log().sum(1, keepdim=True)

    def _newton(self, theta_BK: Tensor, linear_BK: Tensor) -> Tensor:
        """Return the Newton step within the simplex, shape (B, K)."""
        p_BG = (theta_BK @ self.topics_KG).softmax(-1)
        mean_BK = p_BG @ self.topics_KG.T
        slope_BK = linear_BK - self.n_B1 * mean_BK + PSEUDO_COUNT / theta_BK
        # One topic at a time: cells × topics × genes would not fit into memory with many genes.
        second_BKK = torch.stack([(p_BG * b_G) @ self.topics_KG.T for b_G in self.topics_KG], 1)
        covariance_BKK = second_BKK - mean_BK.unsqueeze(2) * mean_BK.unsqueeze(1)
        hessian_BKK = self.n_B1.unsqueeze(2) * covariance_BKK
        hessian_BKK = hessian_BKK + torch.diag_embed(PSEUDO_COUNT / theta_BK.square())
        # Solutions for the two right-hand sides; the multiplier keeps the sum of θ at 1.
        ones_BK = torch.ones_like(slope_BK)
        solved_BK2 = torch.linalg.solve(hessian_BKK, torch.stack([slope_BK, ones_BK], 2))
        free_BK, shift_BK = solved_BK2.unbind(2)
        multiplier_B1 = free_BK.sum(1, keepdim=True) / shift_BK.sum(1, keepdim=True)
        step_BK: Tensor = free_BK - multiplier_B1 * shift_BK
        return step_BK


def _dense(batch: Batch) -> Tensor:
    if isinstance(batch, DenseBatch):
        return batch.counts
    return batch.by_cell.with_values(batch.counts).to_dense()


def _batch(x: sp.csr_matrix) -> DenseBatch:
    return DenseBatch(torch.from_numpy(x.toarray().astype(np.float64)))
