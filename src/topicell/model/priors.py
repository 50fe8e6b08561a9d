"""Priors of logits, and draws on the simplex with their KL divergence from a prior.

The Dirichlet priors of the model are logistic normals: softmax of independent normals.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus


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

    @property
    def precision(self) -> Tensor:
        """Inverse variance of each logit, shape (n,)."""
        return self.scale**-2

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
