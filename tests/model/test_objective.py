"""The fast objective against Pyro's, and its hand-written gradients against differences."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig
from topicell.model.minibatches import DenseBatch, in_order, sparse_batches, sparse_is_there
from topicell.model.mixture import log_likelihood
from topicell.model.objective import _SparseProduct, encode, negative_elbo
from topicell.model.priors import NormalPrior, logistic_normal, softmax
from topicell.model.program import TopicELBO, TopicProgram

R, B, G, K, N = 3, 30, 20, 4, 500
pytestmark = pytest.mark.usefixtures("double_precision")
needs_mkl = pytest.mark.skipif(
    not sparse_is_there(torch.device("cpu")), reason="this torch was built without MKL"
)
FORMS = ["dense", pytest.param("sparse", marks=needs_mkl)]
PRIORS = {
    "default": {},
    "scalar": {"cell_topic_prior": 1.5, "topic_gene_prior": 0.7},
    "vector": {
        "cell_topic_prior": [0.1, 0.5, 2.0, 1.0],
        "topic_gene_prior": [0.1 * (g + 1) for g in range(G)],
    },
}


@pytest.fixture
def x_BG():
    x = np.random.default_rng(0).poisson(0.3, (B, G)).astype(np.float64)
    x[4] = 0  # a cell without counts
    x[:, 7] = 0  # a gene without counts
    return sp.csr_matrix(x)


def make_program(**settings):
    program = TopicProgram(G, R, ModelConfig(n_topics=K, n_hidden=6, **settings))
    program.encoder.library_size.fill_(1e4)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return program


def make_batch(form, x_BG):
    if form == "dense":
        return DenseBatch(torch.from_numpy(x_BG.toarray()))
    (batch,) = sparse_batches(x_BG, in_order(x_BG.shape[0], x_BG.shape[0]), 1e4)
    return batch


def loss_terms_gradients(program, compute):
    program.zero_grad()
    torch.manual_seed(1)
    loss, terms = compute()
    loss.backward()
    return loss.item(), terms, {name: p.grad.clone() for name, p in program.named_parameters()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kl_weight", [0.001, 0.3, 1.0])
@pytest.mark.parametrize("priors", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize(
    "encoder",
    [{}, {"n_layers": 3}, {"dropout": 0.2}, {"normalize_means": False}],
    ids=["default", "deep", "dropout", "free means"],
)
def test_value_and_gradients_are_pyros(form, kl_weight, priors, encoder, x_BG):
    program = make_program(**priors, **encoder)
    elbo = TopicELBO()
    x = torch.from_numpy(x_BG.toarray())
    expected = loss_terms_gradients(
        program,
        lambda: (
            elbo.differentiable_loss(program.model, program.guide, x, N, kl_weight),
            None,
        ),
    )
    batch = make_batch(form, x_BG)
    weight = torch.tensor(kl_weight)
    found = loss_terms_gradients(program, lambda: negative_elbo(program, batch, N, weight))
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    for name, value_R in elbo.terms.items():
        torch.testing.assert_close(getattr(found[1], name), value_R, rtol=1e-9, atol=0)
    assert found[1].loss.sum().item() == pytest.approx(expected[0], rel=1e-9)
    for name, gradient in expected[2].items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (found[2][name] - gradient).abs().max() <= 1e-9 * scale, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{}, {"normalize_means": False}], ids=["default", "free"])
@pytest.mark.parametrize("shift", [-1e4, -60.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_posterior_out_of_bounds_is_pyros_and_finite(form, settings, shift, dtype, x_BG):
    torch.set_default_dtype(dtype)
    program = make_program(**settings)
    with torch.no_grad():
        program.encoder.scale.bias += shift
        program.encoder.mean.weight *= 1e4
        program.topic_mean[:, :, :3] -= 300
    deep = sp.csr_matrix((1e5 * x_BG).astype(np.float64 if dtype == torch.float64 else np.float32))
    x, batch = torch.from_numpy(deep.toarray()), make_batch(form, deep)
    expected = loss_terms_gradients(
        program, lambda: (TopicELBO().differentiable_loss(program.model, program.guide, x, N), None)
    )
    found = loss_terms_gradients(program, lambda: negative_elbo(program, batch, N))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-2
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    for name, gradient in expected[2].items():
        assert found[2][name].isfinite().all(), name
        error = (found[2][name] - gradient).abs().max()
        assert error <= tolerance * gradient.abs().max(), name
    rho_RBK = encode(program, batch)[1]
    low, high = program.encoder.rho_bounds
    assert (low <= rho_RBK).all()
    assert (rho_RBK <= high).all()
    if shift < 0:
        # A scale below its bound is pulled back: the gradient raises it.
        assert (found[2]["encoder.scale.bias"] < 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_encoder_is_pyros_guide_in_evaluation(form, x_BG):
    program = make_program().eval()
    m_RBK, rho_RBK = encode(program, make_batch(form, x_BG))
    expected_m, expected_s = program.encoder(torch.from_numpy(x_BG.toarray()))
    torch.testing.assert_close(m_RBK, expected_m, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.nn.functional.softplus(rho_RBK), expected_s)


@pytest.mark.parametrize("n", [5, 100])
def test_gradients_of_a_logistic_normal_draw(n):
    mean, rho = (torch.randn(2, 3, n, requires_grad=True) for _ in range(2))
    noise, prior_mean, prior_scale = torch.randn(2, 3, n), torch.randn(n), torch.rand(n) + 0.5

    def draw(mean, rho):
        return logistic_normal(mean, rho, noise, NormalPrior(prior_mean, prior_scale))

    assert torch.autograd.gradcheck(draw, (mean, rho))
    q = torch.distributions.Normal(mean, torch.nn.functional.softplus(rho))
    p = torch.distributions.Normal(prior_mean, prior_scale)
    divergence = torch.distributions.kl_divergence(q, p).sum(-1)
    torch.testing.assert_close(draw(mean, rho)[1], divergence)
    assert (draw(mean, rho)[0].sum(-1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_likelihood(form, x_BG):
    batch = make_batch(form, x_BG)
    theta = torch.rand(R, B, K).softmax(-1).requires_grad_()
    beta = torch.rand(R, K, G).softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, b: log_likelihood(batch, t, b), (theta, beta))
    found = log_likelihood(batch, theta, beta).detach()
    x = x_BG.toarray()
    for r in range(R):
        probability = (theta[r] @ beta[r]).detach().numpy()
        np.testing.assert_allclose(found[r], (x * np.log(probability)).sum(1), rtol=1e-12)
    assert (found[:, 4] == 0).all()


@needs_mkl
def test_gradients_of_the_sparse_product(x_BG):
    batch = make_batch("sparse", x_BG)
    weight = torch.randn(R, G, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: _SparseProduct.apply(batch, w), (weight,))


@pytest.mark.parametrize("form", FORMS)
def test_a_gene_that_underflows_costs_much_but_stays_finite(form):
    torch.set_default_dtype(torch.float32)
    batch = make_batch(form, sp.csr_matrix(np.array([[3, 1], [3, 0]], dtype=np.float32)))
    theta = torch.ones(1, 2, 1, requires_grad=True)
    beta = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    nats = log_likelihood(batch, theta, beta)
    assert -float("inf") < nats[0, 0].item() < -60
    assert nats[0, 1].item() == 0


def test_softmax_over_a_short_and_a_long_axis():
    for n in (3, 63, 64, 200):
        logits = torch.randn(2, 5, n)
        torch.testing.assert_close(softmax(logits), logits.softmax(-1))
