"""Estimates under the posterior: means of θ and β, and the terms of the ELBO.

Posterior means have no closed form with softmax: they are Monte-Carlo estimates. The noise depends
only on the seed and, for θ, is the same for every cell. Therefore the θ of a cell does not depend
on the other cells, their order, or the size of batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import softplus

from topicell.counts import Counts, Rows
from topicell.model.minibatches import (
    NOTHING_GIVEN,
    Batch,
    DeviceCounts,
    Given,
    in_order,
    sparse_batches,
    sparse_is_there,
)
from topicell.model.mixture import MIXTURE
from topicell.model.objective import encode
from topicell.model.priors import CellNormal, NormalPrior, softmax
from topicell.model.program import Likelihood, TopicProgram
from topicell.model.refinement import cell_elbo, quasi_normal, refine
from topicell.progress import tracked

CHUNK = 512
"""Number of cells that are computed at a time."""


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    # Drawn on the CPU, so that all devices have the same noise.
    return torch.randn(shape, generator=generator).to(like)


class Chunks:
    """Cells in chunks of at most `CHUNK`, each made when it is needed.

    Parameters
    ----------
    program
        A program; if it has batches, all cells of a chunk are of the same batch.
    counts
        The cells.
    held
        Keep the chunks in memory, for cells that are needed often.
    """

    def __init__(self, program: TopicProgram, counts: Counts, *, held: bool = False) -> None:
        self.rows = counts.rows
        self.given = program.given(counts)
        self.device = program.topic_mean.device
        self.library_size = float(program.encoder.library_size)
        self.parts = in_order(counts.n_cells, CHUNK)
        if self.given.batch_N is not None and counts.n_cells:
            groups = [
                np.flatnonzero(self.given.batch_N == s) for s in np.unique(self.given.batch_N)
            ]
            self.parts = [g[part] for g in groups for part in in_order(len(g), CHUNK)]
        self.held: list[Batch] | None = None
        if held:
            self.held = list(self)

    def __iter__(self) -> Iterator[Batch]:
        if self.held is not None:
            return iter(self.held)
        return _shown(self.rows, self.parts, self.device, self.library_size, self.given)

    def joined(self, of_chunks: Sequence[np.ndarray]) -> np.ndarray:
        """Return values of all chunks, each of shape (R, B, …), in the order of the cells."""
        joined = np.concatenate(of_chunks, axis=1)
        if self.given.batch_N is None:
            return joined
        order = np.argsort(np.concatenate(self.parts), kind="stable")
        return joined[:, order]


def _made(
    x_NG: Rows,
    parts: list[np.ndarray],
    device: torch.device,
    library_size: float,
    given: Given = NOTHING_GIVEN,
) -> Iterator[Batch]:
    # The form does not depend on the density, so that the proportions of a cell do not depend on
    # the other cells.
    if sparse_is_there(device):
        return sparse_batches(x_NG, parts, library_size, given)
    return DeviceCounts(x_NG, device, given).batches(parts)


def _shown(rows: Rows, parts: list[np.ndarray], *others: Any) -> Iterator[Batch]:
    """Make the chunks of cells, and show how many are done."""
    batches = _made(rows, parts, *others)
    return tracked(batches, "", rows.shape[0], "cells", size=lambda batch: batch.n_cells)


@torch.no_grad()
def mean_theta(
    program: TopicProgram,
    cells: Chunks,
    *,
    n_samples: int,
    seed: int,
    replicates: Sequence[int] | None = None,
    refine: bool = False,
) -> np.ndarray:
    """Return E_q[θ] of each cell, (R, N, K), with the encoder's q or the refined q.

    The result has all replicates, or those in `replicates`.
    """
    noise_SK = quasi_normal(n_samples, program.n_topics, seed, program.topic_mean)
    chosen = list(range(program.n_replicates)) if replicates is None else list(replicates)
    better = Refinement(program, chosen, seed=seed) if refine else None
    parts = []
    for batch in cells:
        if better is None:
            m_RBK, s_RBK = (part[chosen] for part in encoded(program, batch))
        else:
            (m_RBK, s_RBK), _ = better.posterior(batch)
        parts.append(mean_softmax(m_RBK, s_RBK, noise_SK).cpu().numpy())
    return cells.joined(parts)


def encoded(program: TopicProgram, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the encoder's q(t), each of shape (R, B, K)."""
    m_RBK, rho_RBK = encode(program, batch)
    return m_RBK, softplus(rho_RBK)


def mean_softmax(m_RBK: Tensor, s_RBK: Tensor, noise_SK: Tensor) -> Tensor:
    """Return E[softmax(t)] of t ~ Normal(m, s), shape (R, B, K)."""
    # Topics are the first axis: softmax over a leading axis uses whole vectors of cells and is ten
    # times faster than over a short last axis.
    m_KRB, s_KRB = (part.permute(2, 0, 1).contiguous() for part in (m_RBK, s_RBK))
    theta_KRB = torch.zeros_like(m_KRB)
    for noise_K in noise_SK:
        theta_KRB += (m_KRB + s_KRB * noise_K[:, None, None]).softmax(0)
    return (theta_KRB / len(noise_SK)).permute(1, 2, 0)


class Refinement:
    """The better of two posteriors for each cell: the encoder's and the one optimised for it.

    Both are compared by their ELBO on the same draws of topics and of logits, so the selected one
    is never worse on these draws.

    Parameters
    ----------
    program
        The fit.
    replicates
        The replicates of the fit to use.
    n_samples
        Number of draws on which the two are compared.
    seed
        Seed of all draws.
    """

    def __init__(
        self, program: TopicProgram, replicates: Sequence[int], *, n_samples: int = 64, seed: int
    ) -> None:
        self.program = program
        self.replicates = list(replicates)
        self.seed = seed
        self.mean_topics_RKG = mean_topics(program, n_samples=64, seed=seed)
        self.topics: dict[int, Tensor] = {}
        self.noise_SK = quasi_normal(n_samples, program.n_topics, seed, program.topic_mean)

    @torch.no_grad()
    def posterior(self, batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return mean and deviation of the selected q(t), each (R, B, K), and its gain, (R, B) ≥ 0.

        The gain is in nats: the amortization gap of each cell. All cells are of the same batch.
        """
        m_RBK, s_RBK = (part[self.replicates] for part in encoded(self.program, batch))
        # The optimisation uses other draws than the evaluation.
        prior, likelihood = self.program.cell_prior.given(batch.design), self.program.likelihood
        refined = [
            refine(batch, topics_KG, prior.of(replicate), likelihood, seed=self.seed + 1)
            for replicate, topics_KG in zip(
                self.replicates, self._topics(_batch_of(batch)), strict=True
            )
        ]
        mean_RBK, scale_RBK = (torch.stack(part) for part in zip(*refined, strict=True))
        gain_RB = self._elbo(batch, mean_RBK, scale_RBK) - self._elbo(batch, m_RBK, s_RBK)
        # If refinement diverges, its ELBO is NaN; then it is not greater, and not selected.
        better_RB1 = (gain_RB > 0).unsqueeze(-1)
        kept = (
            torch.where(better_RB1, mean_RBK, m_RBK),
            torch.where(better_RB1, scale_RBK, s_RBK),
        )
        return kept, torch.where(gain_RB > 0, gain_RB, 0)

    def _topics(self, batch: int | None) -> Tensor:
        """Return the mean topics in a batch, for which a posterior is optimised, (R, K, G)."""
        number = -1 if batch is None else batch
        if number not in self.topics:
            topics_RKG = in_batch(self.program, self.mean_topics_RKG, batch)[self.replicates]
            self.topics[number] = torch.from_numpy(topics_RKG).to(self.program.topic_mean)
        return self.topics[number]

    def _elbo(self, batch: Batch, m_RBK: Tensor, s_RBK: Tensor) -> Tensor:
        """Return the ELBO of each cell without the KL of topics, shape (R, B)."""
        posterior = self.program.topic_posterior(_batch_of(batch))
        m_RKG, s_RKG = (part[self.replicates] for part in posterior)
        generator = torch.Generator().manual_seed(self.seed)

        def draws() -> Iterator[Tensor]:
            for _ in self.noise_SK:
                noise_KG = _normal((self.program.n_topics, self.program.n_genes), generator, m_RKG)
                yield likelihood.topics(m_RKG + s_RKG * noise_KG)

        prior, likelihood = self.program.cell_prior.given(batch.design), self.program.likelihood
        if isinstance(prior, CellNormal):
            prior = CellNormal(prior.mean[self.replicates], prior.inverse[self.replicates])
        return cell_elbo(batch, m_RBK, s_RBK, prior, likelihood, self.noise_SK, draws())


def _batch_of(batch: Batch) -> int | None:
    """Return the number of the batch of all cells of a chunk; None without batches."""
    return None if batch.one_hot is None else int(batch.one_hot[0].argmax())


def amortization_gap(
    program: TopicProgram,
    cells: Chunks,
    *,
    n_samples: int,
    seed: int,
    replicates: Sequence[int],
) -> np.ndarray:
    """Return the gain of refinement over the encoder, nats of each cell, shape (R, N), ≥ 0."""
    refinement = Refinement(program, replicates, n_samples=n_samples, seed=seed)
    return cells.joined([refinement.posterior(b)[1].cpu().numpy() for b in cells])


@torch.no_grad()
def mean_beta(program: TopicProgram, *, n_samples: int, seed: int) -> np.ndarray:
    """Return E_q[β] of each topic, β = softmax(b), shape (R, K, G)."""
    posterior = program.topic_posterior()
    beta_RKG = MIXTURE.mean_topics(*posterior, n_samples=n_samples, seed=seed)
    return beta_RKG.cpu().numpy()


@torch.no_grad()
def mean_topics(program: TopicProgram, *, n_samples: int, seed: int) -> np.ndarray:
    """Return the topics of the program's likelihood that represent q(b), shape (R, K, G)."""
    posterior = program.topic_posterior()
    topics_RKG = program.likelihood.mean_topics(*posterior, n_samples=n_samples, seed=seed)
    return topics_RKG.cpu().numpy()


@torch.no_grad()
def in_batch(program: TopicProgram, topics_RKG: np.ndarray, batch: int | None) -> np.ndarray:
    """Return topics of `mean_topics` in a batch, by its number; None returns them as they are."""
    if batch is None:
        return topics_RKG
    return program.likelihood.in_batch(topics_RKG, program.shift_in(batch).cpu().numpy())


def topics_by_batch(
    program: TopicProgram, counts: Counts, *, n_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the topics in each batch of cells, (S, R, K, G), and the batch of each cell, (N,).

    A model without batches has one batch, S = 1.
    """
    given = program.given(counts)
    topics_RKG = mean_topics(program, n_samples=n_samples, seed=seed)
    if given.batch_N is None:
        return topics_RKG[None], np.zeros(counts.n_cells, dtype=int)
    present, batch_N = np.unique(given.batch_N, return_inverse=True)
    return np.stack([in_batch(program, topics_RKG, int(s)) for s in present]), batch_N


def side_by_side(
    theta_RNK: np.ndarray, topics_SRKG: np.ndarray, batch_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return topics of all batches as one set of S × K topics, and the proportions of cells.

    The proportions of a cell are 0 for the topics of other batches, so that functions of
    proportions and topics can be used for cells of several batches.

    Returns
    -------
    Proportions, shape (R, N, S K), and topics, (R, S K, G).
    """
    S, R, K, G = topics_SRKG.shape
    if S == 1:
        return theta_RNK, topics_SRKG[0]
    wide_RNSK = np.zeros((R, theta_RNK.shape[1], S, K), theta_RNK.dtype)
    wide_RNSK[:, np.arange(len(batch_N)), batch_N] = theta_RNK
    return wide_RNSK.reshape(R, -1, S * K), topics_SRKG.swapaxes(0, 1).reshape(R, S * K, G)


@dataclass(frozen=True, slots=True)
class ELBOTerms:
    """Terms of the ELBO in nats, with KL weight 1: of each cell (R, N), and of the topics (R,)."""

    reconstruction: np.ndarray
    kl_cells: np.ndarray
    kl_topics: np.ndarray

    def by_cell(self, n_train: int) -> np.ndarray:
        """Return the ELBO of each cell in nats, shape (R, N), with its share of the topics' KL."""
        by_cell: np.ndarray = self.reconstruction - self.kl_cells
        return by_cell - (self.kl_topics / n_train)[:, None]

    def per_cell(self, n_train: int) -> np.ndarray:
        """Return the ELBO in nats per cell, shape (R,).

        The KL of the topics is divided by `n_train` and added to every cell, so that training
        cells, held-out cells and all subsets of them are on the same scale.
        """
        by_cell: np.ndarray = (self.reconstruction - self.kl_cells).mean(1)
        return by_cell - self.kl_topics / n_train


@torch.no_grad()
def elbo_terms(program: TopicProgram, cells: Chunks, *, n_samples: int, seed: int) -> ELBOTerms:
    """Return the ELBO's terms of cells.

    The expected log-likelihood is averaged over `n_samples` draws. Each draw has one b for all
    cells, and separate noise for the logits of each cell.
    """
    m_RKG, s_RKG = program.topic_posterior()
    shift_RSG = program.shifts()
    generator = torch.Generator().manual_seed(seed)
    noise_SKG = _normal((n_samples, program.n_topics, program.n_genes), generator, m_RKG)
    reconstruction, kl_cells = [], []
    for batch in cells:
        m_RBK, rho_RBK = encode(program, batch)
        s_RBK = softplus(rho_RBK)
        log_likelihood_RB = torch.zeros_like(m_RBK[..., 0])
        for noise_KG in noise_SKG:
            topics_RKG = program.likelihood.topics(m_RKG + s_RKG * noise_KG)
            noise_BK = _normal((batch.n_cells, program.n_topics), generator, m_RKG)
            theta_RBK = softmax(m_RBK + s_RBK * noise_BK)
            log_likelihood_RB += program.likelihood.log_likelihood(
                batch, theta_RBK, topics_RKG, shift_RSG
            )
        reconstruction.append((log_likelihood_RB / n_samples).cpu().numpy())
        prior = program.cell_prior.given(batch.design)
        kl_cells.append(prior.kl(m_RBK, s_RBK).cpu().numpy())
    return ELBOTerms(
        cells.joined(reconstruction),
        cells.joined(kl_cells),
        (program.topic_prior.kl(m_RKG, s_RKG, axes=2) + program.penalty()).cpu().numpy(),
    )


def theta_given(
    topics_RKG: np.ndarray,
    prior: NormalPrior,
    likelihood: Likelihood,
    x_NG: Rows,
    *,
    n_samples: int,
    seed: int,
) -> np.ndarray:
    """Return E_q[θ] of each cell, with q optimised for the cell and fixed topics, (R, N, K)."""
    noise_SK = quasi_normal(n_samples, topics_RKG.shape[1], seed, prior.mean)
    parts = [
        mean_softmax(m_RBK, s_RBK, noise_SK).numpy()
        for _, _, m_RBK, s_RBK in _posteriors_given(topics_RKG, prior, likelihood, x_NG, seed)
    ]
    return np.concatenate(parts, axis=1)


def elbo_given(
    topics_RKG: np.ndarray,
    prior: NormalPrior,
    likelihood: Likelihood,
    x_NG: sp.csr_matrix,
    *,
    n_samples: int,
    seed: int,
) -> np.ndarray:
    """Return the ELBO of each cell, with q optimised for the cell and fixed topics, nats, (R, N).

    It is minus infinity for a cell with a count that has probability 0 for every θ.
    """
    noise_SK = quasi_normal(n_samples, topics_RKG.shape[1], seed, prior.mean)
    # Other draws than those with which q was optimised.
    parts = [
        cell_elbo(batch, m_RBK, s_RBK, prior, likelihood, noise_SK, [topics] * n_samples).numpy()
        for batch, topics, m_RBK, s_RBK in _posteriors_given(
            topics_RKG, prior, likelihood, x_NG, seed + 1
        )
    ]
    elbo_RN = np.concatenate(parts, axis=1)
    for elbo_N, topics_KG in zip(elbo_RN, topics_RKG, strict=True):
        elbo_N[likelihood.impossible(x_NG, topics_KG)] = -np.inf
    return elbo_RN


def _posteriors_given(
    topics_RKG: np.ndarray,
    prior: NormalPrior,
    likelihood: Likelihood,
    x_NG: Rows,
    seed: int,
) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
    """Yield each chunk of cells, the topics, and mean and deviation of q(t), each (R, B, K)."""
    topics = torch.from_numpy(topics_RKG).to(prior.mean)
    for batch in _shown(x_NG, in_order(x_NG.shape[0], CHUNK), topics.device, 1.0):
        refined = [refine(batch, t_KG, prior, likelihood, seed=seed) for t_KG in topics]
        m_RBK, s_RBK = (torch.stack(part) for part in zip(*refined, strict=True))
        yield batch, topics, m_RBK, s_RBK
