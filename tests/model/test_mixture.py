"""The likelihood of a mixture of topics and its derivatives, in both forms of a mini-batch."""

import functools
import math

import numpy as np
import pytest
import torch

from topicell.model.mixture import MIXTURE, Slopes, log_likelihood
from topicell.model.program import BagOfWords

R, B, G, K = 2, 12, 20, 4
pytestmark = pytest.mark.usefixtures("double_precision")


def test_likelihood_is_its_definition_and_its_gradients_are_differences(make_batch):
    x_BG = np.random.default_rng(0).poisson(0.3, (B, G)).astype(np.float64)
    x_BG[4] = 0
    x_BG[:, 7] = 0
    batch = make_batch(x_BG)
    theta = torch.rand(R, B, K).softmax(-1).requires_grad_()
    beta = torch.rand(R, K, G).softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, b: log_likelihood(batch, t, b), (theta, beta))
    found = log_likelihood(batch, theta, beta).detach()
    for r in range(R):
        probability = (theta[r] @ beta[r]).detach().numpy()
        np.testing.assert_allclose(found[r], (x_BG * np.log(probability)).sum(1), rtol=1e-12)
    assert (found[:, 4] == 0).all()


def test_a_gene_that_underflows_has_a_low_and_finite_likelihood(make_batch):
    torch.set_default_dtype(torch.float32)
    x_BG = np.array([[3, 1], [3, 0]], dtype=np.float32)
    theta, beta = torch.ones(1, 2, 1, requires_grad=True), torch.tensor([[[1.0, 0.0]]])
    program = BagOfWords(MIXTURE.log_proportions(theta, beta)).log_prob(torch.from_numpy(x_BG))
    fast = log_likelihood(make_batch(x_BG), theta, beta.requires_grad_())
    for nats in (program, fast):
        assert -math.inf < nats[0, 0].item() < -60
        assert nats[0, 1].item() == 0


def test_slopes_and_curvatures_are_those_of_automatic_differentiation(make_batch):
    """A gene that no topic has adds nothing."""
    generator = np.random.default_rng(0)
    x_BG = generator.poisson(0.7, (6, 12)).astype(np.float64)
    x_BG[2] = 0
    x_BG[3, :] = 0
    x_BG[3, 5] = 4  # only a gene that no topic has
    beta_KG = torch.from_numpy(generator.dirichlet(np.full(12, 0.3), 3))
    beta_KG[:, 5] = 0
    x_BG[:, 8] = 0
    logits_BK = torch.randn(6, 3)

    def likelihood(logits_K, x_G):
        probability = logits_K.softmax(-1) @ beta_KG
        there = probability > 0
        return (x_G[there] * probability[there].log()).sum()

    slopes = Slopes(make_batch(x_BG), beta_KG)
    first_BK = slopes.first(logits_BK.softmax(-1))
    slope_BK, curvature_BK = slopes.both(logits_BK.softmax(-1))
    for cell, x_G in enumerate(torch.from_numpy(x_BG)):
        of_logits = functools.partial(likelihood, x_G=x_G)
        slope = torch.autograd.functional.jacobian(of_logits, logits_BK[cell])
        hessian = torch.autograd.functional.hessian(of_logits, logits_BK[cell])
        torch.testing.assert_close(slope_BK[cell], slope)
        torch.testing.assert_close(curvature_BK[cell], -hessian.diagonal())
        probability = logits_BK[cell].softmax(-1) @ beta_KG
        kept = probability > 0
        expected = (beta_KG * x_G / probability)[:, kept].sum(1)
        torch.testing.assert_close(first_BK[cell], expected)
    # A shift of all logits does not change the softmax.
    torch.testing.assert_close(slope_BK.sum(1), torch.zeros(6))
    assert (slope_BK[2:4] == 0).all()
    assert (curvature_BK[2:4] == 0).all()
