"""Estimates under the posterior: means of θ and β, and the terms of the ELBO.

Posterior means have no closed form under softmax: they are Monte-Carlo estimates, over noise
that depends on the seed alone and, for θ, is the same for every cell. So the θ of a cell does
not depend on which other cells are beside it, in which order, or in batches of which size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import softplus

from topicell.model.minibatches import (
    Batch,
    DeviceCounts,
    in_order,
    sparse_batches,
    sparse_is_there,
)
from topicell.model.objective import encode, log_likelihood, softmax
from topicell.model.program import TopicProgram

CHUNK = 512
"""Cells that are computed at a time."""


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    # Drawn on the CPU, so that devices agree.
    return torch.randn(shape, generator=generator).to(like)


def _quasi_normal(n_samples: int, n: int, seed: int, like: Tensor) -> Tensor:
    """Scrambled Sobol points as standard normals, shape (n_samples, n).

    They are the same for every cell, so their error is not averaged out over cells; a few hundred
    of them are as near to the mean as many thousand independent draws.
    """
    uniform = torch.quasirandom.SobolEngine(n, scramble=True, seed=seed).draw(
        n_samples, dtype=torch.float64
    )
    # A point on the edge of the cube would be infinite.
    points: Tensor = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    return points.to(like)


def chunks(program: TopicProgram, x_NG: sp.csr_matrix) -> Iterator[Batch]:
    """Cells as the estimates read them, made as they are read."""
    device, parts = program.topic_mean.device, in_order(x_NG.shape[0], CHUNK)
    # Whichever the density, so that the proportions of a cell do not depend on its company.
    if sparse_is_there(device):
        yield from sparse_batches(x_NG, parts, float(program.encoder.library_size))
    else:
        yield from DeviceCounts(x_NG, device).batches(parts)


@torch.no_grad()
def mean_theta(
    program: TopicProgram, cells: Iterable[Batch], *, n_samples: int, seed: int
) -> np.ndarray:
    """E_q[θ] of each cell of `chunks`, shape (R, N, K)."""
    noise_SK = _quasi_normal(n_samples, program.n_topics, seed, program.topic_mean)
    parts = []
    for batch in cells:
        m_RBK, rho_RBK = encode(program, batch)
        # Topics first: softmax over a leading axis runs along whole vectors of cells, ten times
        # faster than over a short last axis.
        m_KRB, s_KRB = (part.permute(2, 0, 1).contiguous() for part in (m_RBK, softplus(rho_RBK)))
        theta_KRB = torch.zeros_like(m_KRB)
        for noise_K in noise_SK:
            theta_KRB += (m_KRB + s_KRB * noise_K[:, None, None]).softmax(0)
        parts.append((theta_KRB / n_samples).permute(1, 2, 0).cpu().numpy())
    return np.concatenate(parts, axis=1)


@torch.no_grad()
def mean_beta(program: TopicProgram, *, n_samples: int, seed: int) -> np.ndarray:
    """E_q[β] of each topic, shape (R, K, G)."""
    m_RKG, s_RKG = program.topic_posterior()
    generator = torch.Generator().manual_seed(seed)
    beta_RKG = torch.zeros_like(m_RKG)
    for _ in range(n_samples):
        noise_G = _normal((program.n_genes,), generator, m_RKG)
        beta_RKG += (m_RKG + s_RKG * noise_G).softmax(-1)
    return (beta_RKG / n_samples).cpu().numpy()


@dataclass(frozen=True, slots=True)
class ELBOTerms:
    """Terms of the ELBO in nats, KL weight 1: by cell (R, N), and of the topics (R,)."""

    reconstruction: np.ndarray
    kl_cells: np.ndarray
    kl_topics: np.ndarray

    def per_cell(self, n_train: int) -> np.ndarray:
        """ELBO in nats per cell, shape (R,).

        The topics were paid for once, by the training cells: each cell carries 1/`n_train` of
        their KL, so that training and held-out cells are on one scale and no subset of cells
        changes it.
        """
        by_cell: np.ndarray = (self.reconstruction - self.kl_cells).mean(1)
        return by_cell - self.kl_topics / n_train


@torch.no_grad()
def elbo_terms(
    program: TopicProgram, cells: Iterable[Batch], *, n_samples: int, seed: int
) -> ELBOTerms:
    """The ELBO's terms of the cells of `chunks`.

    The expected log-likelihood is averaged over `n_samples` draws.
    Each draw takes one b for all cells, and noise of its own for the logits of each cell.
    """
    m_RKG, s_RKG = program.topic_posterior()
    generator = torch.Generator().manual_seed(seed)
    noise_SKG = _normal((n_samples, program.n_topics, program.n_genes), generator, m_RKG)
    reconstruction, kl_cells = [], []
    for batch in cells:
        m_RBK, rho_RBK = encode(program, batch)
        s_RBK = softplus(rho_RBK)
        log_likelihood_RB = torch.zeros_like(m_RBK[..., 0])
        for noise_KG in noise_SKG:
            beta_RKG = (m_RKG + s_RKG * noise_KG).softmax(-1)
            noise_BK = _normal((batch.n_cells, program.n_topics), generator, m_RKG)
            theta_RBK = softmax(m_RBK + s_RBK * noise_BK)
            log_likelihood_RB += log_likelihood(batch, theta_RBK, beta_RKG)
        reconstruction.append((log_likelihood_RB / n_samples).cpu().numpy())
        prior = (program.cell_prior_mean, program.cell_prior_scale)
        kl_cells.append(_normal_kl(m_RBK, s_RBK, *prior).sum(-1).cpu().numpy())
    prior = (program.topic_prior_mean, program.topic_prior_scale)
    return ELBOTerms(
        np.concatenate(reconstruction, axis=1),
        np.concatenate(kl_cells, axis=1),
        _normal_kl(m_RKG, s_RKG, *prior).sum((-2, -1)).cpu().numpy(),
    )


def _normal_kl(m: Tensor, s: Tensor, prior_m: Tensor, prior_s: Tensor) -> Tensor:
    return torch.distributions.kl_divergence(
        torch.distributions.Normal(m, s), torch.distributions.Normal(prior_m, prior_s)
    )
