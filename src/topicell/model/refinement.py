r"""Refinement: the posterior of each cell's topics, optimised for that cell, the topics held fixed.

The encoder gives every cell its q(t) in one pass; what that costs in ELBO is the amortization gap
(Cremer, Li & Duvenaud 2018). Topics that come without an encoder have no other posterior.

Natural-gradient ascent (Khan & Rue 2023, The Bayesian learning rule, section 4). For a cell, with
:math:`p_g = \sum_k \theta_k \beta_{kg}` and the responsibilities
:math:`r_{gk} = \theta_k \beta_{kg} / p_g`, the log-likelihood :math:`f = \sum_g x_g \log p_g` has

.. math::
    \partial f / \partial t_k = \sum_g x_g r_{gk} - n \theta_k, \qquad
    \partial^2 f / \partial t_k^2 =
        \sum_g x_g r_{gk} (1 - r_{gk}) - n \theta_k (1 - \theta_k),

n the cell's counts. Their means over q(t), with the prior's, move mean and precision: a few hundred
draws find nearly what Adam finds in thousands (``experiments/measures``).

Shapes as in `program`: B cells, G genes, K topics; one replicate at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from topicell.model.minibatches import Batch, DenseBatch, SparseBatch
from topicell.model.objective import log_likelihood, multiply, softmax

EM_STEPS = 25
STEPS = 80
DRAWS = 4
"""Draws of t a step, two and their mirror images."""
STEP_SIZE = 0.3
STEADY_STEPS = 20
"""Steps of the full size; it then falls with the square root of their number."""
AVERAGED_STEPS = 20
"""The last ones: draws differ from step to step, and the mean place is nearer than the last."""
LONGEST_MOVE = 1.0
"""Of a mean in a step, in logits: the curvature is that of the place it comes from."""
LARGEST_RISE = 2.0
"""Of a precision in a step, a factor: one draw from the tail of a wide posterior can have a
curvature a thousand times the mean, and what it narrows takes many steps to widen again."""
PSEUDO_COUNT = 0.1
UNLIKELY = 1e-15
"""Counts of a probability below this move nothing: their slopes would overflow."""


def quasi_normal(n_samples: int, n: int, seed: int, like: Tensor) -> Tensor:
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


@torch.no_grad()
def refine(
    batch: Batch, beta_KG: Tensor, prior_mean: Tensor, prior_scale: Tensor, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Optimise q(t) of each cell for itself, from the mode that EM finds.

    Parameters
    ----------
    batch
        B cells; what becomes of one does not depend on the others.
    beta_KG
        Gene proportions of the topics.
    prior_mean, prior_scale
        Of t, shape (K,).
    seed
        Of the draws, which all cells share.

    Returns
    -------
    Mean and standard deviation of q(t), each of shape (B, K).
    """
    slopes = _Slopes(batch, beta_KG)
    theta_BK = beta_KG.new_full((batch.n_cells, len(beta_KG)), 1 / len(beta_KG))
    for _ in range(EM_STEPS):
        expected_BK = theta_BK * slopes.first(theta_BK) + PSEUDO_COUNT
        theta_BK = expected_BK / expected_BK.sum(1, keepdim=True)
    log_theta_BK = theta_BK.log()
    prior_precision = prior_scale**-2
    mean_BK = _centred(log_theta_BK, prior_mean, prior_precision)
    precision_BK = prior_precision + slopes.both(theta_BK)[1].clamp_min(0)

    noise = quasi_normal(STEPS * DRAWS // 2, len(beta_KG), seed, beta_KG)
    total_mean, total_precision = torch.zeros_like(mean_BK), torch.zeros_like(mean_BK)
    for step, half in enumerate(noise.split(DRAWS // 2)):
        scale_BK = precision_BK.rsqrt()
        slope_BK, curvature_BK = torch.zeros_like(mean_BK), torch.zeros_like(mean_BK)
        for noise_K in (*half, *-half):
            slope, curvature = slopes.both(softmax(mean_BK + scale_BK * noise_K))
            slope_BK += slope / DRAWS
            curvature_BK += curvature / DRAWS
        size = STEP_SIZE * max(step - STEADY_STEPS + 1, 1) ** -0.5
        precision_BK = torch.minimum(
            torch.lerp(precision_BK, prior_precision + curvature_BK.clamp_min(0), size),
            LARGEST_RISE * precision_BK,
        )
        uphill_BK = slope_BK - (mean_BK - prior_mean) * prior_precision
        move_BK = size * uphill_BK / precision_BK
        mean_BK = mean_BK + move_BK.clamp(-LONGEST_MOVE, LONGEST_MOVE)
        mean_BK = _centred(mean_BK, prior_mean, prior_precision)
        if step >= STEPS - AVERAGED_STEPS:
            total_mean += mean_BK
            total_precision += precision_BK
    return total_mean / AVERAGED_STEPS, (total_precision / AVERAGED_STEPS).rsqrt()


def _centred(mean_BK: Tensor, prior_mean: Tensor, prior_precision: Tensor) -> Tensor:
    """The means, all moved alike to where the prior is likeliest: the likelihood does not see it.

    Step by step they would get there at the pace of the most precise of them.
    """
    pull_B1 = ((mean_BK - prior_mean) * prior_precision).sum(1, keepdim=True)
    return mean_BK - pull_B1 / prior_precision.sum()


@torch.no_grad()
def cell_elbo(
    batch: Batch,
    m_RBK: Tensor,
    s_RBK: Tensor,
    prior_mean: Tensor,
    prior_scale: Tensor,
    noise_SK: Tensor,
    beta_SRKG: Iterable[Tensor],
) -> Tensor:
    """ELBO of each cell under each replicate given the topics, in nats, shape (R, B).

    Parameters
    ----------
    m_RBK, s_RBK
        Mean and standard deviation of q(t).
    prior_mean, prior_scale
        Of t, shape (K,).
    noise_SK
        Standard normals of each draw of t, shared by all cells.
    beta_SRKG
        Topics of each draw: the same at each if they are known.
    """
    total_RB = torch.zeros_like(m_RBK[..., 0])
    for noise_K, beta_RKG in zip(noise_SK, beta_SRKG, strict=True):
        total_RB += log_likelihood(batch, softmax(m_RBK + s_RBK * noise_K), beta_RKG)
    return total_RB / len(noise_SK) - normal_kl(m_RBK, s_RBK, prior_mean, prior_scale).sum(-1)


def normal_kl(m: Tensor, s: Tensor, prior_m: Tensor, prior_s: Tensor) -> Tensor:
    """KL of Normal(m, s) from the prior, elementwise."""
    return torch.distributions.kl_divergence(
        torch.distributions.Normal(m, s), torch.distributions.Normal(prior_m, prior_s)
    )


class _Slopes:
    """First and second derivatives of the log-likelihood by the topic logits."""

    def __init__(self, batch: Batch, beta_KG: Tensor) -> None:
        self.batch = batch
        self.beta_KG = beta_KG
        self.beta_GK = beta_KG.T.contiguous()
        self.squared_GK = self.beta_GK.square()
        self.pattern = (
            None if isinstance(batch, DenseBatch) else batch.by_cell.with_values(batch.counts)
        )

    def first(self, theta_BK: Tensor) -> Tensor:
        """Σ_g x_g β_kg / p_g."""
        return self._product(self._ratios(theta_BK)[0], self.beta_GK)

    def both(self, theta_BK: Tensor) -> tuple[Tensor, Tensor]:
        """∂f/∂t_k and −∂²f/∂t_k², each of shape (B, K)."""
        ratio, probability = self._ratios(theta_BK)
        expected_BK = theta_BK * self._product(ratio, self.beta_GK)
        squared_BK = theta_BK.square() * self._product(ratio / probability, self.squared_GK)
        # The counts that move anything: n, less those that no topic explains.
        share_BK = expected_BK.sum(1, keepdim=True) * theta_BK
        return expected_BK - share_BK, squared_BK - expected_BK + share_BK * (1 - theta_BK)

    def _ratios(self, theta_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The ratio x / p and p, of all genes or at the non-zeros."""
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
