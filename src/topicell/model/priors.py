"""Priors of logits, and draws on the simplex with their KL divergence from a prior.

The Dirichlet priors of the model are logistic normals: softmax of independent normals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import Laplace, Normal, kl_divergence
from torch.nn.functional import softplus

SLOWER = 0.3
"""Share of the learning rate with which the parameters of `LearnedPrior` are learned: the steps of
Adam have the size of the rate, so parameters are stored divided by this."""


class NormalPrior(nn.Module):
    """Independent normals of logits.

    Parameters
    ----------
    mean, scale
        Mean and standard deviation of each logit, shape (n,). They are not part of a saved state:
        the settings hold the priors.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    @classmethod
    def dirichlet(cls, concentration: Any, length: int, n_topics: int) -> NormalPrior:
        """Return the approximation of a Dirichlet in the softmax basis.

        Parameters
        ----------
        concentration
            One concentration for all, a sequence of `length` numbers, or None for 1 / `n_topics`.
        length
            Number of logits, n.
        n_topics
            K.
        """
        return cls(*laplace_prior(concentrations(concentration, length, n_topics)))

    def distribution(self) -> Normal:
        """Return the distribution of each logit."""
        return Normal(self.mean, self.scale)

    @property
    def precision(self) -> Tensor:
        """Inverse variance of each logit, shape (n,)."""
        return self.scale**-2

    @property
    def total_precision(self) -> Tensor:
        """Sum of all entries of the inverse covariance."""
        return self.precision.sum()

    def pull(self, logits: Tensor) -> Tensor:
        """Return the gradient of minus the log-density of logits, shape (..., n)."""
        return (logits - self.mean) * self.precision

    def given(self, design_BD: Tensor | None) -> NormalPrior:
        """Return the prior of cells with these covariates: the same for all."""
        return self

    def of(self, replicate: int) -> NormalPrior:
        """Return the prior of a replicate: the same for all."""
        return self

    def penalty(self) -> float:
        """Return 0: nothing is learned."""
        return 0.0

    def draw(
        self, mean: Tensor, rho: Tensor, noise: Tensor, design_BD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a draw on the simplex, and the KL of its logits (`logistic_normal`)."""
        return logistic_normal(mean, rho, noise, self)

    def log_prob(self, logits: Tensor) -> Tensor:
        """Return the log-density of logits, shape (...), from shape (..., n)."""
        log_density: Tensor = Normal(self.mean, self.scale).log_prob(logits).sum(-1)
        return log_density

    def kl(self, mean: Tensor, scale: Tensor, *, axes: int = 1) -> Tensor:
        """Return the KL of independent normals from this prior, in nats.

        Parameters
        ----------
        mean, scale
            Of shape (..., n).
        axes
            Number of last axes that are summed.
        """
        divergence = kl_divergence(Normal(mean, scale), Normal(self.mean, self.scale))
        return divergence.sum(tuple(range(-axes, 0)))


class LaplacePrior(nn.Module):
    """Independent Laplace distributions of logits, which make most distances from the mean small.

    Parameters
    ----------
    mean, scale
        Mean and scale of each logit, shape (n,) or (K, n). They are not part of a saved state.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def distribution(self) -> Laplace:
        """Return the distribution of each logit."""
        return Laplace(self.mean, self.scale)

    def kl(self, mean: Tensor, scale: Tensor, *, axes: int = 1) -> Tensor:
        """Return the KL of independent normals from this prior, in nats (`NormalPrior.kl`)."""
        divergence = kl_divergence(Normal(mean, scale), self.distribution())
        return divergence.sum(tuple(range(-axes, 0)))

    def draw(self, mean: Tensor, rho: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draw on the simplex, and the KL of its logits (`logistic_normal`)."""
        scale = softplus(rho)
        return softmax(torch.addcmul(mean, scale, noise)), self.kl(mean, scale)


TopicPrior = NormalPrior | LaplacePrior


@dataclass(frozen=True, slots=True)
class CellNormal:
    """Normals of topic logits, with a mean for each cell or a full covariance.

    Attributes
    ----------
    mean
        Shape (..., B, K), or (..., 1, K) if it is the same for all cells.
    inverse
        Inverse of the Cholesky factor of the covariance, shape (..., K, K), lower triangular.
    """

    mean: Tensor
    inverse: Tensor

    @property
    def precision(self) -> Tensor:
        """Diagonal of the inverse covariance, shape (..., 1, K)."""
        return self.inverse.square().sum(-2, keepdim=True)

    @property
    def total_precision(self) -> Tensor:
        """Sum of all entries of the inverse covariance, shape (..., 1, 1)."""
        return self.inverse.sum(-1).square().sum(-1)[..., None, None]

    def pull(self, logits: Tensor) -> Tensor:
        """Return the gradient of minus the log-density of logits, shape (..., B, K)."""
        return (logits - self.mean) @ self.inverse.mT @ self.inverse

    def kl(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the KL of independent normals from this prior, in nats, shape (..., B)."""
        distance = ((mean - self.mean) @ self.inverse.mT).square().sum(-1)
        spread = (scale.square() * self.precision).sum(-1)
        log_det = -self.inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        return 0.5 * (distance + spread - mean.shape[-1]) + log_det - scale.log().sum(-1)

    def of(self, replicate: int) -> CellNormal:
        """Return the prior of a replicate, the first axis."""
        return CellNormal(self.mean[replicate], self.inverse[replicate])


class LearnedPrior(nn.Module):
    r"""A prior of the topic logits of cells with parameters that are learned.

    :math:`t \sim \mathrm{Normal}(\mu + \Gamma^T z, \Sigma)` with D covariates z of the cell. Both
    parts are optional: without covariates :math:`\Gamma = 0`; without correlations Σ is diagonal
    and fixed. Parameters begin at the independent prior and are point estimates.

    Parameters
    ----------
    base
        The independent prior.
    n_replicates, n_covariates
        R and D.
    correlated
        Whether Σ is learned.

    References
    ----------
    Roberts, Stewart & Airoldi (2016), A model of text for experimentation in the social sciences;
    Blei & Lafferty (2007), A correlated topic model of Science.
    """

    def __init__(
        self, base: NormalPrior, n_replicates: int, n_covariates: int, *, correlated: bool
    ) -> None:
        super().__init__()
        n_topics = len(base.mean)
        self.base = base
        self.n_replicates = n_replicates
        self.effect = self.factor = None
        if n_covariates:
            self.effect = nn.Parameter(torch.zeros(n_replicates, n_covariates, n_topics))
        if correlated:
            self.factor = nn.Parameter(torch.zeros(n_replicates, n_topics, n_topics))

    def effects(self) -> Tensor | None:
        """Return Γ, shape (R, D, K), with sum 0 over topics; None without covariates."""
        if self.effect is None:
            return None
        scaled_RDK = SLOWER * self.effect
        return scaled_RDK - scaled_RDK.mean(-1, keepdim=True)

    def cholesky(self) -> Tensor:
        """Return the Cholesky factor of Σ, shape (R, K, K)."""
        diagonal_RKK = torch.diag(self.base.scale).expand(self.n_replicates, -1, -1)
        if self.factor is None:
            return diagonal_RKK
        learned_RKK = SLOWER * self.factor
        scale_RKK = torch.diag_embed(learned_RKK.diagonal(dim1=-2, dim2=-1).exp())
        return diagonal_RKK @ (scale_RKK + learned_RKK.tril(-1))

    def covariance(self) -> Tensor:
        """Return Σ, shape (R, K, K)."""
        factor_RKK = self.cholesky()
        return factor_RKK @ factor_RKK.mT

    def given(self, design_BD: Tensor | None) -> CellNormal:
        """Return the prior of cells with these covariates; those of the mean cell for None."""
        factor_RKK = self.cholesky()
        identity = torch.eye(factor_RKK.shape[-1]).to(factor_RKK)
        inverse_RKK = torch.linalg.solve_triangular(
            factor_RKK, identity.expand_as(factor_RKK), upper=False
        )
        effect_RDK = self.effects()
        mean_R1K = self.base.mean.expand(self.n_replicates, 1, -1)
        if effect_RDK is None or design_BD is None:
            return CellNormal(mean_R1K, inverse_RKK)
        return CellNormal(mean_R1K + design_BD @ effect_RDK, inverse_RKK)

    def penalty(self) -> Tensor | float:
        """Return minus the log-density of Γ, Normal(0, 1), relative to its maximum, (R,)."""
        effect_RDK = self.effects()
        return 0.0 if effect_RDK is None else effect_RDK.square().sum((1, 2)) / 2

    def draw(
        self, mean: Tensor, rho: Tensor, noise: Tensor, design_BD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a draw on the simplex, (R, B, K), and the KL of its logits, (R, B)."""
        scale = softplus(rho)
        divergence = self.given(design_BD).kl(mean, scale)
        return softmax(torch.addcmul(mean, scale, noise)), divergence


CellPrior = NormalPrior | LearnedPrior


def laplace_prior(concentration: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normal approximation of a Dirichlet in the softmax basis.

    Parameters
    ----------
    concentration
        Dirichlet concentrations, shape (..., n).

    Returns
    -------
    Mean and standard deviation of each logit, shape (..., n) (Srivastava & Sutton 2017, eq. 3).
    """
    n = concentration.shape[-1]
    log_concentration = concentration.log()
    mean = log_concentration - log_concentration.mean(-1, keepdim=True)
    inverse = 1 / concentration
    variance = inverse * (1 - 2 / n) + inverse.sum(-1, keepdim=True) / n**2
    return mean, variance.sqrt()


def concentrations(prior: Any, length: int, n_topics: int) -> Tensor:
    """Return a prior as a vector: 1/K for None, one number repeated, or the numbers themselves."""
    if prior is None:
        prior = 1 / n_topics
    if isinstance(prior, (int, float)):
        return torch.full((length,), float(prior))
    return torch.tensor([float(value) for value in prior])


def logistic_normal(
    mean: Tensor, rho: Tensor, noise: Tensor, prior: NormalPrior
) -> tuple[Tensor, Tensor]:
    """Return a draw of softmax(Normal(mean, softplus(rho))) and the KL of that Normal from a prior.

    Parameters
    ----------
    mean, rho, noise
        Shape (..., n); the noise is standard normal.
    prior
        The prior of the n logits.

    Returns
    -------
    The draw on the simplex, shape (..., n), and the divergence in nats, shape (...).
    """
    draw, divergence = _LogisticNormal.apply(mean, rho, noise, prior.mean, prior.scale)
    return draw, divergence


def softmax(logits: Tensor) -> Tensor:
    """Return the softmax over the last axis, computed over a leading axis, which is much faster."""
    if logits.shape[-1] < 64:
        return logits.mT.contiguous().softmax(-2).mT
    return logits.softmax(-1)


class _LogisticNormal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, rho: Tensor, noise: Tensor, *prior: Tensor) -> Any:
        prior_mean, prior_scale = prior
        scale = softplus(rho)
        draw = softmax(torch.addcmul(mean, scale, noise))
        distance, ratio = (mean - prior_mean) / prior_scale, scale / prior_scale
        twice = distance.square().addcmul_(ratio, ratio).sub_(ratio.log(), alpha=2)
        divergence = 0.5 * (twice.sum(-1) - mean.shape[-1])
        ctx.save_for_backward(draw, rho, noise, distance, ratio, prior_scale)
        return draw, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_draw: Tensor, d_divergence: Tensor) -> Any:
        draw, rho, noise, distance, ratio, prior_scale = ctx.saved_tensors
        d_logit = draw * d_draw
        d_logit = torch.addcmul(d_logit, draw, d_logit.sum(-1, keepdim=True), value=-1)
        weight = d_divergence.unsqueeze(-1) / prior_scale
        d_scale = torch.addcmul(d_logit * noise, weight, ratio - 1 / ratio)
        # The derivative of softplus is the logistic function.
        return torch.addcmul(d_logit, weight, distance), d_scale * rho.sigmoid(), None, None, None
