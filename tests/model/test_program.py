"""The Pyro program against the formulas written as loops."""

import math

import numpy as np
import pyro
import pyro.distributions
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

from topicell.config import ModelConfig
from topicell.model.program import (
    BagOfWords,
    ReplicateLinear,
    ReplicateNorm,
    TopicELBO,
    TopicProgram,
)

R, B, G, K, N = 2, 5, 7, 3, 40
pytestmark = pytest.mark.usefixtures("double_precision")


def make_program(**settings):
    program = TopicProgram(G, R, ModelConfig(n_topics=K, n_hidden=6, **settings))
    with torch.no_grad():
        program.topic_mean.normal_()
        program.topic_rho.normal_()
    return program, torch.poisson(3 * torch.rand(B, G))


def test_the_likelihood_is_the_multinomial_without_its_coefficient():
    p = torch.rand(4, G).softmax(-1)
    x = torch.poisson(2 * torch.ones(4, G))
    for row in range(4):
        n = x[row].sum()
        multinomial = pyro.distributions.Multinomial(int(n), p[row]).log_prob(x[row])
        coefficient = torch.lgamma(n + 1) - torch.lgamma(x[row] + 1).sum()
        expected = (multinomial - coefficient).item()
        assert BagOfWords(p[row].log()).log_prob(x[row]).item() == pytest.approx(expected)


@pytest.mark.parametrize("kl_weight", [0.001, 0.3, 1.0])
@pytest.mark.parametrize(
    "priors",
    [
        {},
        {"cell_topic_prior": 1.5, "topic_gene_prior": 0.7},
        {
            "cell_topic_prior": [0.1, 0.5, 2.0],
            "topic_gene_prior": [0.1 * (g + 1) for g in range(G)],
        },
    ],
    ids=["default", "scalar", "vector"],
)
def test_the_loss_is_the_elbo_by_loops(priors, kl_weight):
    program, x = make_program(**priors)
    elbo = TopicELBO()
    torch.manual_seed(1)
    loss = elbo.differentiable_loss(program.model, program.guide, x, N, kl_weight)
    torch.manual_seed(1)
    plain = TraceMeanField_ELBO().differentiable_loss(program.model, program.guide, x, N, kl_weight)
    assert loss.item() == plain.item()

    torch.manual_seed(1)
    guide = poutine.trace(program.guide).get_trace(x, N, kl_weight)
    b = guide.nodes["topic_logits"]["value"].detach()
    t = guide.nodes["cell_logits"]["value"].detach()
    m_b, s_b = program.topic_posterior()
    q_t = guide.nodes["cell_logits"]["fn"].base_dist

    def kl(m, s, prior_m, prior_s):
        return math.log(prior_s / s) + (s * s + (m - prior_m) ** 2) / (2 * prior_s * prior_s) - 0.5

    expected = 0.0
    for r in range(R):
        beta, theta = b[r].softmax(-1), t[r].softmax(-1)
        reconstruction = sum(
            x[c, g].item() * math.log(sum(theta[c, k] * beta[k, g] for k in range(K)))
            for c in range(B)
            for g in range(G)
        )
        kl_cells = sum(
            kl(
                q_t.loc[r, c, k].item(),
                q_t.scale[r, c, k].item(),
                program.cell_prior.mean[k].item(),
                program.cell_prior.scale[k].item(),
            )
            for c in range(B)
            for k in range(K)
        )
        kl_topics = sum(
            kl(
                m_b[r, k, g].item(),
                s_b[r, k, g].item(),
                program.topic_prior.mean[g].item(),
                program.topic_prior.scale[g].item(),
            )
            for k in range(K)
            for g in range(G)
        )
        assert elbo.terms["reconstruction"][r].item() == pytest.approx(reconstruction, rel=1e-9)
        assert elbo.terms["kl_cells"][r].item() == pytest.approx(kl_cells, rel=1e-9)
        assert elbo.terms["kl_topics"][r].item() == pytest.approx(kl_topics, rel=1e-9)
        expected += -N / B * (reconstruction - kl_weight * kl_cells) + kl_weight * kl_topics
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_every_parameter_gets_a_gradient():
    program, x = make_program()
    TopicELBO().differentiable_loss(program.model, program.guide, x, N, 0.5).backward()
    for name, parameter in program.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 1e-9, name


def test_replicates_are_independent():
    program, x = make_program()
    elbo = TopicELBO()

    def loss_terms():
        torch.manual_seed(3)
        program.zero_grad()
        elbo.differentiable_loss(program.model, program.guide, x, N, 1.0).backward()
        gradients = [p.grad[0].clone() for p in program.parameters() if p.shape[0] == R]
        return {name: value[0].item() for name, value in elbo.terms.items()}, gradients

    before, gradients_before = loss_terms()
    with torch.no_grad():
        for parameter in program.parameters():
            if parameter.shape[0] == R:
                parameter[1] += 0.5
    after, gradients_after = loss_terms()
    assert before == pytest.approx(after, rel=1e-12)
    for one, other in zip(gradients_before, gradients_after, strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_of_replicates_is_one_layer_for_each():
    layer = ReplicateLinear(R, 4, 3, bias=True)
    shared, own = torch.randn(B, 4), torch.randn(R, B, 4)
    for r in range(R):
        torch.testing.assert_close(layer(shared)[r], shared @ layer.weight[r] + layer.bias[r])
        torch.testing.assert_close(layer(own)[r], own[r] @ layer.weight[r] + layer.bias[r])
    assert ReplicateLinear(R, 4, 3, bias=False).bias is None
    norm = ReplicateNorm(R, 4, affine=False)
    separate = [torch.nn.BatchNorm1d(4, affine=False) for _ in range(R)]
    for _ in range(3):
        own = torch.randn(R, B, 4)
        together = norm(own)
        for r in range(R):
            torch.testing.assert_close(together[r], separate[r](own[r]))
    norm.eval()
    for r in range(R):
        torch.testing.assert_close(norm(own)[r], separate[r].eval()(own[r]))


def test_normalised_means_have_the_priors_mean_and_its_scale_times_one_factor():
    program, _ = make_program(cell_topic_prior=[0.1, 0.5, 2.0])
    with torch.no_grad():
        program.encoder.mean_spread[1] = math.log(0.5)
    m_RBK, s_RBK = program.encoder(torch.poisson(3 * torch.rand(400, G)))
    mean, scale = program.cell_prior.mean, program.cell_prior.scale
    torch.testing.assert_close(m_RBK.mean(1), mean.expand(R, K), atol=1e-6, rtol=0)
    expected = torch.stack([scale, 0.5 * scale])
    torch.testing.assert_close(m_RBK.std(1, correction=0), expected, rtol=1e-2, atol=0)
    assert (s_RBK > 0).all()


def test_the_encoder_reads_proportions_not_depth():
    program, x = make_program()
    program.eval()
    for one, other in zip(program.encoder(x), program.encoder(3 * x), strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_of_one_cell_trains():
    program, x = make_program()
    assert torch.isfinite(
        TopicELBO().differentiable_loss(program.model, program.guide, x[:1], N, 1.0)
    )


def test_dropout_acts_only_in_training():
    program, x = make_program(dropout=0.5)
    program.train()
    assert not np.allclose(*(program.encoder(x)[0].detach().numpy() for _ in range(2)))
    program.eval()
    assert np.allclose(*(program.encoder(x)[0].detach().numpy() for _ in range(2)))
