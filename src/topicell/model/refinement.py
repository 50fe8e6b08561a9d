r"""Refinement: the posterior of each cell's proportions, optimised for the cell with fixed topics.

The encoder computes q(t) of every cell in one pass; the resulting loss of ELBO is the amortization
gap (Cremer, Li & Duvenaud 2018). Topics without an encoder only have the refined posterior.

Natural-gradient ascent (Khan & Rue 2023, The Bayesian learning rule, section 4). For a cell, with
:math:`p_g = \sum_k \theta_k \beta_{kg}` and the responsibilities
:math:`r_{gk} = \theta_k \beta_{kg} / p_g`, the log-likelihood :math:`f = \sum_g x_g \log p_g` has

.. math::
    \partial f / \partial t_k = \sum_g x_g r_{gk} - n \theta_k, \qquad
    \partial^2 f / \partial t_k^2 =
        \sum_g x_g r_{gk} (1 - r_{gk}) - n \theta_k (1 - \theta_k),

where n is the number of counts of the cell. Their means over q(t), with those of the prior, update
mean and precision. A few hundred draws find nearly the optimum that Adam finds with thousands
(``experiments/measures``).

Shapes as in `program`: B cells, G genes, K topics; one replicate at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from topicell.model.minibatches import Batch
from topicell.model.priors import CellNormal, NormalPrior, softmax
from topicell.model.program import Likelihood

STEPS = 80
DRAWS = 4
"""Draws of t per step: two draws and their mirror images."""
STEP_SIZE = 0.3
STEADY_STEPS = 20
"""Number of steps with full size; then the size falls with the square root of the number of
steps."""
AVERAGED_STEPS = 20
"""Number of last steps whose means are averaged, because draws differ between steps."""
LONGEST_MOVE = 1.0
"""Largest change of a mean per step, in logits; the curvature is only valid locally."""
LARGEST_RISE = 2.0
"""Largest factor of a precision per step: one draw from the tail of a wide posterior can have a
curvature a thousand times the mean, and a posterior that became too narrow widens slowly."""


def quasi_normal(n_samples: int, n: int, seed: int, like: Tensor) -> Tensor:
    """Return scrambled Sobol points as standard normals, shape (n_samples, n).

    They are the same for every cell, so their error does not average out over cells. A few hundred
    points are as precise as many thousand independent draws.
    """
    uniform = torch.quasirandom.SobolEngine(n, scramble=True, seed=seed).draw(
        n_samples, dtype=torch.float64
    )
    # A point on the edge of the cube would become infinite.
    points: Tensor = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    return points.to(like)


@torch.no_grad()
def refine(
    batch: Batch,
    topics_KG: Tensor,
    prior: NormalPrior | CellNormal,
    likelihood: Likelihood,
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Optimise q(t) of each cell separately, starting at the mode of the likelihood.

    Parameters
    ----------
    batch
        B cells; the result of a cell does not depend on the others.
    topics_KG
        Topics of the likelihood.
    prior
        The prior of t.
    likelihood
        The distribution of counts for given topics.
    seed
        Seed of the draws, which all cells share.

    Returns
    -------
    Mean and standard deviation of q(t), each of shape (B, K).
    """
    slopes = likelihood.slopes(batch, topics_KG)
    theta_BK = slopes.mode()
    mean_BK = _centred(theta_BK.log(), prior)
    precision_BK = prior.precision + slopes.both(theta_BK)[1].clamp_min(0)

    noise = quasi_normal(STEPS * DRAWS // 2, len(topics_KG), seed, topics_KG)
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
            torch.lerp(precision_BK, prior.precision + curvature_BK.clamp_min(0), size),
            LARGEST_RISE * precision_BK,
        )
        uphill_BK = slope_BK - prior.pull(mean_BK)
        move_BK = size * uphill_BK / precision_BK
        mean_BK = mean_BK + move_BK.clamp(-LONGEST_MOVE, LONGEST_MOVE)
        mean_BK = _centred(mean_BK, prior)
        if step >= STEPS - AVERAGED_STEPS:
            total_mean += mean_BK
            total_precision += precision_BK
    return total_mean / AVERAGED_STEPS, (total_precision / AVERAGED_STEPS).rsqrt()


def _centred(mean_BK: Tensor, prior: NormalPrior | CellNormal) -> Tensor:
    """Shift all means of a cell by one number, to the most likely point of the prior.

    The likelihood does not depend on this shift. Without the shift, the means reach that point only
    as fast as the most precise mean.
    """
    return mean_BK - prior.pull(mean_BK).sum(1, keepdim=True) / prior.total_precision


@torch.no_grad()
def cell_elbo(
    batch: Batch,
    m_RBK: Tensor,
    s_RBK: Tensor,
    prior: NormalPrior | CellNormal,
    likelihood: Likelihood,
    noise_SK: Tensor,
    topics_SRKG: Iterable[Tensor],
) -> Tensor:
    """Return the ELBO of each cell under each replicate given the topics, in nats, shape (R, B).

    Parameters
    ----------
    m_RBK, s_RBK
        Mean and standard deviation of q(t).
    prior
        The prior of t.
    likelihood
        The distribution of counts for given topics.
    noise_SK
        Standard normals of each draw of t, shared by all cells.
    topics_SRKG
        Topics of each draw; equal for all draws if the topics are fixed.
    """
    total_RB = torch.zeros_like(m_RBK[..., 0])
    for noise_K, topics_RKG in zip(noise_SK, topics_SRKG, strict=True):
        theta_RBK = softmax(m_RBK + s_RBK * noise_K)
        total_RB += likelihood.log_likelihood(batch, theta_RBK, topics_RKG)
    return total_RB / len(noise_SK) - prior.kl(m_RBK, s_RBK)
