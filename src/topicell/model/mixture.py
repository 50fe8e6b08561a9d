r"""The likelihood of latent Dirichlet allocation: a cell mixes the gene proportions of topics.

:math:`\log p(x_c \mid \theta_c, \beta) = \sum_g x_{cg} \log (\theta_c \beta)_g` with
:math:`\beta_k = \mathrm{softmax}(b_k)`.

Shapes: R replicates, B cells of a mini-batch, G genes, K topics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topicell.evaluation.perplexity import fold_in, perplexity
from topicell.model.minibatches import Batch, DenseBatch, SparseBatch
from topicell.model.priors import TopicPrior

LEAST_PROPORTION = 1e-28
"""Added to the proportion of each gene: single precision can underflow to 0 for a gene that no
topic uses, and the slope x / p of a cell with many counts then overflows. Proportions above 1e-20
do not change by a single bit."""
EM_STEPS = 25
PSEUDO_COUNT = 0.1
"""Added to the expected count of each topic, as in `topicell.evaluation.perplexity.fold_in`."""
UNLIKELY = 1e-15
"""Counts with a probability below this do not change the posterior: their slopes would overflow."""


class Mixture:
    """The likelihood as `topicell.model.program.Likelihood`; its topics are gene proportions β."""

    def topics(self, b: Tensor) -> Tensor:
        """Return β = softmax(b), shape (..., K, G)."""
        return b.softmax(-1)

    def draw(
        self, mean: Tensor, rho: Tensor, noise: Tensor, prior: TopicPrior
    ) -> tuple[Tensor, Tensor]:
        """Return a draw of β, (..., K, G), and the KL of q(b) from its prior, (..., K)."""
        return prior.draw(mean, rho, noise)

    def log_proportions(self, theta: Tensor, topics: Tensor) -> Tensor:
        """Return the log-proportion of each gene in each cell, shape (..., B, G)."""
        return (theta @ topics + LEAST_PROPORTION).log()

    def log_likelihood(
        self,
        batch: Batch,
        theta_RBK: Tensor,
        topics_RKG: Tensor,
        shift_RSG: Tensor | None = None,
    ) -> Tensor:
        r"""Return the log-likelihood of each cell's counts, in nats, shape (R, B).

        With shifts :math:`d_s` of the logits in batch s, topic k has the proportions
        :math:`\beta_{kg} e^{d_{sg}} / Z_{ks}` there, where :math:`Z_{ks} = \sum_g \beta_{kg}
        e^{d_{sg}}`. Therefore the log-likelihood is that of the weights :math:`\theta_k / Z_{ks}`
        without shifts, plus :math:`\sum_g x_g d_{sg}`. If the shifts of topics differ, of shape
        (R, S, K, G), the topics of all batches are computed.
        """
        if shift_RSG is None:
            return log_likelihood(batch, theta_RBK, topics_RKG)
        assert batch.one_hot is not None
        if shift_RSG.dim() == 4:
            topics_RSKG = topics_RKG.unsqueeze(1) * shift_RSG.exp()
            topics_RSKG = topics_RSKG / topics_RSKG.sum(-1, keepdim=True)
            return log_likelihood(batch, *of_batches(batch.one_hot, theta_RBK, topics_RSKG))
        total_RSK = shift_RSG.exp() @ topics_RKG.mT
        weight_RBK = theta_RBK / (batch.one_hot @ total_RSK)
        return log_likelihood(batch, weight_RBK, topics_RKG) + shifted(batch, shift_RSG)

    def slopes(self, batch: Batch, topics_KG: Tensor) -> Slopes:
        """Return the derivatives of the log-likelihood of cells."""
        return Slopes(batch, topics_KG)

    def mean_topics(self, mean: Tensor, scale: Tensor, *, n_samples: int, seed: int) -> Tensor:
        """Return E[softmax(b)] of b ~ Normal(mean, scale), from draws, shape (R, K, G)."""
        generator = torch.Generator().manual_seed(seed)
        beta_RKG = torch.zeros_like(mean)
        for _ in range(n_samples):
            # Drawn on the CPU, so that all devices have the same noise.
            noise_G = torch.randn((mean.shape[-1],), generator=generator).to(mean)
            beta_RKG += (mean + scale * noise_G).softmax(-1)
        return beta_RKG / n_samples

    def in_batch(self, topics_KG: np.ndarray, shift_G: np.ndarray) -> np.ndarray:
        """Return β in a batch: each proportion times the factor of its gene, and normalised."""
        topics_KG = topics_KG * np.exp(shift_G)
        in_batch_KG: np.ndarray = topics_KG / topics_KG.sum(-1, keepdims=True)
        return in_batch_KG

    def fold_in(self, x_NG: sp.csr_matrix, topics_KG: np.ndarray) -> np.ndarray:
        """Return topic proportions of new cells, shape (N, K), by EM."""
        return fold_in(x_NG, topics_KG)

    def perplexity(self, x_NG: sp.csr_matrix, theta_NK: np.ndarray, topics_KG: np.ndarray) -> float:
        """Return the perplexity per count."""
        return perplexity(x_NG, theta_NK, topics_KG)

    def impossible(self, x_NG: sp.csr_matrix, topics_KG: np.ndarray) -> np.ndarray:
        """Return which cells have a count with probability 0 for every θ, shape (N,)."""
        found: np.ndarray = x_NG[:, ~topics_KG.any(0)].getnnz(1) > 0
        return found


MIXTURE = Mixture()


def log_likelihood(batch: Batch, theta_RBK: Tensor, beta_RKG: Tensor) -> Tensor:
    """Return the log-likelihood of each cell in each replicate, in nats, shape (R, B)."""
    if isinstance(batch, DenseBatch):
        result: Tensor = _DenseLikelihood.apply(batch.counts, theta_RBK, beta_RKG)
    else:
        result = _SparseLikelihood.apply(batch, theta_RBK, beta_RKG)
    return result


def of_batches(one_hot_BS: Tensor, theta_RBK: Tensor, topics_RSKG: Tensor) -> tuple[Tensor, Tensor]:
    """Return the topics of all batches as one set, and the proportions of cells in it.

    The proportions of a cell are 0 for the topics of other batches: shapes (R, B, S K) and
    (R, S K, G).
    """
    theta_RBSK = one_hot_BS.unsqueeze(-1) * theta_RBK.unsqueeze(2)
    return theta_RBSK.flatten(2), topics_RSKG.flatten(1, 2)


def shifted(batch: Batch, shift_RSG: Tensor) -> Tensor:
    """Return Σ_g x_g d_sg of each cell, with the shifts d_s of its batch, shape (R, B)."""
    assert batch.one_hot is not None
    if isinstance(batch, DenseBatch):
        of_each_RBS = batch.counts @ shift_RSG.mT
    else:
        of_each_RBS = _SparseTotals.apply(batch, shift_RSG)
    own_RB: Tensor = (of_each_RBS * batch.one_hot).sum(-1)
    return own_RB


class _SparseTotals(torch.autograd.Function):
    """The counts of a sparse mini-batch (B, G) times R dense matrices (R, S, G): (R, B, S)."""

    @staticmethod
    def forward(ctx: Any, batch: SparseBatch, values_RSG: Tensor) -> Tensor:
        ctx.batch = batch
        return products(batch.by_cell.with_values(batch.counts), values_RSG.mT.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RBS: Tensor) -> Any:
        batch: SparseBatch = ctx.batch
        by_gene = batch.by_gene.with_values(batch.counts.index_select(0, batch.order))
        return None, products(by_gene, d_RBS.contiguous()).mT


def products(matrix: Tensor, values_Rnm: Tensor) -> Tensor:
    """Return the products of a sparse matrix and R dense ones."""
    R, _, m = values_Rnm.shape
    result = values_Rnm.new_empty(R, len(matrix), m)
    for values, out in zip(values_Rnm, result, strict=True):
        multiply(matrix, values, out)
    return result


def multiply(matrix: Tensor, values: Tensor, out: Tensor) -> None:
    """Write the product of a sparse and a dense matrix to `out`."""
    # torch.mm would fill another matrix and copy it to `out`.
    torch.addmm(out, matrix, values, beta=0, out=out)


class _DenseLikelihood(torch.autograd.Function):
    """Σ_g x log(θβ), with the derivative x / θβ by θβ."""

    @staticmethod
    def forward(ctx: Any, x_BG: Tensor, theta_RBK: Tensor, beta_RKG: Tensor) -> Tensor:
        probability = (theta_RBK @ beta_RKG).add_(LEAST_PROPORTION)
        ctx.save_for_backward(x_BG / probability, theta_RBK, beta_RKG)
        return probability.log_().mul_(x_BG).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RB: Tensor) -> Any:
        ratio_RBG, theta_RBK, beta_RKG = ctx.saved_tensors
        # Multiply the weight of a cell into the small factor, not into cells × genes.
        return (
            None,
            (ratio_RBG @ beta_RKG.mT) * d_RB.unsqueeze(-1),
            (theta_RBK * d_RB.unsqueeze(-1)).mT @ ratio_RBG,
        )


class _SparseLikelihood(torch.autograd.Function):
    """The same at the non-zeros only: genes without counts add nothing."""

    @staticmethod
    def forward(ctx: Any, batch: SparseBatch, theta_RBK: Tensor, beta_RKG: Tensor) -> Tensor:
        pattern = batch.by_cell.with_values(batch.counts)
        probability_Rn = torch.stack(
            [
                torch.sparse.sampled_addmm(pattern, theta_BK, beta_KG, beta=0.0).values()
                for theta_BK, beta_KG in zip(theta_RBK, beta_RKG, strict=True)
            ]
        ).add_(LEAST_PROPORTION)
        ctx.batch = batch
        ctx.save_for_backward(theta_RBK, beta_RKG, batch.counts / probability_Rn)
        nats_Rn = probability_Rn.log_().mul_(batch.counts)
        starts = batch.by_cell.starts.long().expand(len(nats_Rn), -1).contiguous()
        return torch.segment_reduce(nats_Rn, "sum", offsets=starts, axis=1, unsafe=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RB: Tensor) -> Any:
        batch: SparseBatch = ctx.batch
        theta_RBK, beta_RKG, ratio_Rn = ctx.saved_tensors
        d_RB1 = d_RB.unsqueeze(-1)
        weighted_RBK, beta_RGK = (theta_RBK * d_RB1).contiguous(), beta_RKG.mT.contiguous()
        d_theta, d_beta = torch.empty_like(weighted_RBK), torch.empty_like(beta_RGK)
        for r, ratio in enumerate(ratio_Rn):
            by_gene = ratio.index_select(0, batch.order)
            multiply(batch.by_cell.with_values(ratio), beta_RGK[r], d_theta[r])
            multiply(batch.by_gene.with_values(by_gene), weighted_RBK[r], d_beta[r])
        return None, d_theta * d_RB1, d_beta.mT


class Slopes:
    """First and second derivatives of the log-likelihood by the topic logits t, θ = softmax(t)."""

    def __init__(self, batch: Batch, beta_KG: Tensor) -> None:
        self.batch = batch
        self.beta_KG = beta_KG
        self.beta_GK = beta_KG.T.contiguous()
        self.squared_GK = self.beta_GK.square()
        self.pattern = (
            None if isinstance(batch, DenseBatch) else batch.by_cell.with_values(batch.counts)
        )

    def first(self, theta_BK: Tensor) -> Tensor:
        """Return ∂f/∂θ_k = Σ_g x_g β_kg / p_g, shape (B, K)."""
        return self._product(self._ratios(theta_BK)[0], self.beta_GK)

    def mode(self) -> Tensor:
        """Return the θ of each cell that EM finds from uniform proportions, shape (B, K)."""
        n_topics = len(self.beta_KG)
        theta_BK = self.beta_KG.new_full((self.batch.n_cells, n_topics), 1 / n_topics)
        for _ in range(EM_STEPS):
            expected_BK = theta_BK * self.first(theta_BK) + PSEUDO_COUNT
            theta_BK = expected_BK / expected_BK.sum(1, keepdim=True)
        return theta_BK

    def both(self, theta_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return ∂f/∂t_k and −∂²f/∂t_k², each of shape (B, K)."""
        ratio, probability = self._ratios(theta_BK)
        expected_BK = theta_BK * self._product(ratio, self.beta_GK)
        squared_BK = theta_BK.square() * self._product(ratio / probability, self.squared_GK)
        # n, without the counts that no topic explains.
        share_BK = expected_BK.sum(1, keepdim=True) * theta_BK
        return expected_BK - share_BK, squared_BK - expected_BK + share_BK * (1 - theta_BK)

    def _ratios(self, theta_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return x / p and p, at all genes or at the non-zeros."""
        if self.pattern is None:
            probability = theta_BK @ self.beta_KG
        else:
            probability = torch.sparse.sampled_addmm(
                self.pattern, theta_BK.contiguous(), self.beta_KG, beta=0.0
            ).values()
        likely = probability > UNLIKELY
        probability = probability.clamp_min(UNLIKELY)
        return (self.batch.counts / probability).mul_(likely), probability

    def _product(self, values: Tensor, factor_GK: Tensor) -> Tensor:
        if self.pattern is None:
            return values @ factor_GK
        assert isinstance(self.batch, SparseBatch)
        result = factor_GK.new_empty(self.batch.n_cells, factor_GK.shape[1])
        multiply(self.batch.by_cell.with_values(values), factor_GK, result)
        return result
