"""Priors of logits against distributions of torch."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from topicell.model.priors import NormalPrior, laplace_prior, logistic_normal, softmax

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.fixture
def prior():
    return NormalPrior(torch.randn(5), torch.rand(5) + 0.5)


def test_the_prior_is_the_laplace_approximation():
    alpha = [0.2, 1.0, 3.0]
    mean, scale = laplace_prior(torch.tensor(alpha))
    for k in range(3):
        expected = math.log(alpha[k]) - sum(math.log(a) for a in alpha) / 3
        variance = (1 / alpha[k]) * (1 - 2 / 3) + sum(1 / a for a in alpha) / 9
        assert mean[k].item() == pytest.approx(expected)
        assert scale[k].item() == pytest.approx(math.sqrt(variance))
    mean, scale = laplace_prior(torch.full((10,), 0.1))
    assert mean.abs().max() < 1e-12
    assert scale[0].item() == pytest.approx(3.0)


def test_density_precision_and_divergence(prior):
    logits, mean, scale = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.rand(3, 4, 5) + 0.1
    normal = Normal(prior.mean, prior.scale)
    torch.testing.assert_close(prior.log_prob(logits), normal.log_prob(logits).sum(-1))
    torch.testing.assert_close(prior.precision, 1 / normal.variance)
    divergence = kl_divergence(Normal(mean, scale), normal)
    torch.testing.assert_close(prior.kl(mean, scale), divergence.sum(-1))
    torch.testing.assert_close(prior.kl(mean, scale, axes=2), divergence.sum((-2, -1)))
    assert prior.kl(prior.mean, prior.scale).item() == 0


@pytest.mark.parametrize("concentration", [None, 0.3, [0.1, 0.5, 2.0]])
def test_a_dirichlet_is_its_laplace_approximation(concentration):
    numbers = [1 / 3] * 3 if concentration is None else concentration
    numbers = numbers if isinstance(numbers, list) else [numbers] * 3
    prior = NormalPrior.dirichlet(concentration, 3, 3)
    mean, scale = laplace_prior(torch.tensor(numbers))
    torch.testing.assert_close(prior.mean, mean)
    torch.testing.assert_close(prior.scale, scale)


def test_a_prior_is_not_saved_with_the_weights(prior):
    assert prior.state_dict() == {}
    assert prior.float().mean.dtype == torch.float32


@pytest.mark.parametrize("n", [5, 100])
def test_gradients_of_a_logistic_normal_draw(n):
    mean, rho = (torch.randn(2, 1, n, requires_grad=True) for _ in range(2))
    noise, prior_mean, prior_scale = torch.randn(2, 1, n), torch.randn(n), torch.rand(n) + 0.5

    def draw(mean, rho):
        return logistic_normal(mean, rho, noise, NormalPrior(prior_mean, prior_scale))

    assert torch.autograd.gradcheck(draw, (mean, rho))
    q = torch.distributions.Normal(mean, torch.nn.functional.softplus(rho))
    p = torch.distributions.Normal(prior_mean, prior_scale)
    divergence = torch.distributions.kl_divergence(q, p).sum(-1)
    torch.testing.assert_close(draw(mean, rho)[1], divergence)
    assert (draw(mean, rho)[0].sum(-1) - 1).abs().max() < 1e-12


def test_softmax_of_short_and_long_axes_is_torchs():
    for n in (3, 63, 64, 200):
        logits = torch.randn(2, 5, n)
        torch.testing.assert_close(softmax(logits), logits.softmax(-1))
