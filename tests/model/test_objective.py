"""The fast objective: its value and gradients are those of Pyro."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig
from topicell.model.minibatches import Given
from topicell.model.mixture import MIXTURE
from topicell.model.objective import _SparseProduct, encode, negative_elbo
from topicell.model.prodlda import PRODUCT
from topicell.model.program import Constants, TopicELBO, TopicProgram
from topicell.model.seeds import Seeds

R, B, G, K, N = 3, 30, 20, 4, 500
pytestmark = pytest.mark.usefixtures("double_precision")
PROGRAMS = {
    "default": {},
    "scalar priors": {"cell_topic_prior": 1.5, "topic_gene_prior": 0.7},
    "vector priors": {
        "cell_topic_prior": [0.1, 0.5, 2.0, 1.0],
        "topic_gene_prior": [0.1 * (g + 1) for g in range(G)],
    },
    "deep": {"n_layers": 3},
    "dropout": {"dropout": 0.2, "topic_gene_prior": 0.7},
    "free means": {"normalize_means": False, "cell_topic_prior": [0.1, 0.5, 2.0, 1.0]},
    "product": {"likelihood": PRODUCT},
    "batches": {"n_batches": 3},
    "batches, product": {"n_batches": 2, "likelihood": PRODUCT},
    "topics in batches": {"n_batches": 3, "batch_key": "lab", "batch_topic_scale": 0.2},
    "topics in batches, product": {
        "n_batches": 2,
        "batch_key": "lab",
        "batch_topic_scale": 0.2,
        "likelihood": PRODUCT,
    },
    "correlated": {"prior": "correlated", "cell_topic_prior": [0.1, 0.5, 2.0, 1.0]},
    "covariates": {"n_covariates": 2},
    "all": {"n_batches": 2, "n_covariates": 3, "prior": "correlated"},
    "background": {"background": True, "background_scale": 0.7},
    "seeds": {"topic_gene_prior": "seeds.gmt", "prior_scale": 0.4},
    "seeds, background": {"topic_gene_prior": "seeds.gmt", "background": True},
}


@pytest.fixture
def x_BG():
    x = np.random.default_rng(0).poisson(0.3, (B, G)).astype(np.float64)
    x[4] = 0  # a cell without counts
    x[:, 7] = 0  # a gene without counts
    return sp.csr_matrix(x)


def make_program(likelihood=MIXTURE, n_batches=0, n_covariates=0, **settings):
    shift_SG = np.random.default_rng(2).normal(0, 0.5, (n_batches, G)) if n_batches else None
    logits = np.random.default_rng(4).normal(0, 1, (3, G))
    constants = Constants(
        tuple("abc"[:n_batches]),
        shift_SG,
        tuple("xyz"[:n_covariates]),
        background_G=logits[2] if "background" in settings else None,
        seeds=Seeds(("one", "two"), logits[:2], logits[:2] > 0, True)
        if "topic_gene_prior" in settings and isinstance(settings["topic_gene_prior"], str)
        else None,
    )
    model = ModelConfig(n_topics=K, n_hidden=6, **settings)
    program = TopicProgram(G, R, model, likelihood, constants)
    program.encoder.library_size.fill_(1e4)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return program


def given(program):
    """Return batches and covariates of the cells; one cell has no known batch."""
    random, constants = np.random.default_rng(3), program.constants
    n_covariates = len(constants.covariates)
    design_ND = random.normal(0, 1, (B, n_covariates)) if n_covariates else None
    if not constants.batches:
        return Given(design_ND=design_ND)
    batch_N = random.integers(0, len(constants.batches), B)
    batch_N[5] = len(constants.batches)
    return Given(batch_N, program.encoder.factor_SG.numpy(), design_ND)


def loss_terms_gradients(program, compute):
    program.zero_grad()
    torch.manual_seed(1)
    loss, terms = compute()
    loss.backward()
    return loss.item(), terms, {name: p.grad.clone() for name, p in program.named_parameters()}


@pytest.mark.parametrize("kl_weight", [0.001, 0.3, 1.0])
@pytest.mark.parametrize("settings", PROGRAMS.values(), ids=PROGRAMS)
def test_value_and_gradients_are_pyros(make_batch, kl_weight, settings, x_BG):
    program = make_program(**settings)
    elbo = TopicELBO()
    x = torch.from_numpy(x_BG.toarray())
    batch = make_batch(x_BG, given(program))
    arguments = (program.model, program.guide, x, N, kl_weight, batch.one_hot, batch.design)
    expected = loss_terms_gradients(program, lambda: (elbo.differentiable_loss(*arguments), None))
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


@pytest.mark.parametrize("settings", [{}, {"normalize_means": False}], ids=["default", "free"])
@pytest.mark.parametrize("shift", [-1e4, -60.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_posterior_out_of_bounds_is_pyros_and_finite(make_batch, settings, shift, dtype, x_BG):
    torch.set_default_dtype(dtype)
    program = make_program(**settings)
    with torch.no_grad():
        program.encoder.scale.bias += shift
        program.encoder.mean.weight *= 1e4
        program.topic_mean[:, :, :3] -= 300
    deep = sp.csr_matrix((1e5 * x_BG).astype(np.float64 if dtype == torch.float64 else np.float32))
    x, batch = torch.from_numpy(deep.toarray()), make_batch(deep)
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
        # The gradient raises a scale below its bound.
        assert (found[2]["encoder.scale.bias"] < 0).all()


def test_the_encoder_in_evaluation_is_pyros_guide(make_batch, x_BG):
    program = make_program().eval()
    m_RBK, rho_RBK = encode(program, make_batch(x_BG))
    expected_m, expected_s = program.encoder(torch.from_numpy(x_BG.toarray()))
    torch.testing.assert_close(m_RBK, expected_m, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.nn.functional.softplus(rho_RBK), expected_s)


@pytest.mark.parametrize("make_batch", ["sparse"], indirect=True)
def test_gradients_of_the_sparse_product_are_differences(make_batch, x_BG):
    batch = make_batch(x_BG)
    weight = torch.randn(R, G, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: _SparseProduct.apply(batch, w), (weight,))
