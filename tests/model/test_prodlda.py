"""ProdLDA: its likelihood against the formula, and its use in every command."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.evaluation.perplexity import perplexity, thin
from topicell.evaluation.stability import match_topics
from topicell.model.loading import load_fit
from topicell.model.minibatches import DenseBatch
from topicell.model.prodlda import PRODUCT, PSEUDO_COUNT, ProductSlopes
from topicell.model.registry import fit_model

B, G, K = 12, 15, 3
SMALL = [
    *("data=simulated", "data.simulation.n_cells=120", "data.simulation.n_genes=60"),
    *("preprocess.n_variable_genes=null", "model=prodlda", "model.n_topics=3", "train.epochs=3"),
    *("train.n_replicates=2", "model.n_hidden=8", "evaluate.n_samples=16"),
]


@pytest.fixture
def x_BG():
    x = np.random.default_rng(0).poisson(1.0, (B, G)).astype(np.float64)
    x[4] = 0
    x[:, 7] = 0
    return sp.csr_matrix(x)


@pytest.fixture
def topics_KG():
    return torch.from_numpy(np.random.default_rng(1).normal(0, 2, (K, G)))


def objective(theta_K, x_G, topics_KG):
    """Return the log-likelihood of one cell plus the pseudo-counts."""
    logits = theta_K @ topics_KG
    log_p = logits - np.logaddexp.reduce(logits)
    return x_G @ log_p + PSEUDO_COUNT * np.log(theta_K).sum()


@pytest.mark.usefixtures("double_precision")
def test_likelihood_and_slopes_are_those_of_the_formula(make_batch, x_BG, topics_KG):
    logits_BK = torch.randn(B, K)
    batch = make_batch(x_BG)

    def nats(logits_K, x_G):
        return (x_G * (logits_K.softmax(-1) @ topics_KG).log_softmax(-1)).sum()

    theta_BK = logits_BK.softmax(-1)
    found_B = PRODUCT.log_likelihood(batch, theta_BK[None], topics_KG[None])[0]
    slope_BK, curvature_BK = PRODUCT.slopes(batch, topics_KG).both(theta_BK)
    for cell, x_G in enumerate(torch.from_numpy(x_BG.toarray())):
        at = (logits_BK[cell], x_G)
        torch.testing.assert_close(found_B[cell], nats(*at))
        slope = torch.autograd.functional.jacobian(nats, at)[0]
        hessian = torch.autograd.functional.hessian(nats, at)[0][0]
        torch.testing.assert_close(slope_BK[cell], slope)
        torch.testing.assert_close(curvature_BK[cell], -hessian.diagonal())


def test_fold_in_finds_the_optimum_of_each_cell(x_BG, topics_KG):
    topics = topics_KG.numpy()
    theta_BK = PRODUCT.fold_in(x_BG, topics)
    np.testing.assert_allclose(theta_BK.sum(1), 1)
    np.testing.assert_allclose(theta_BK[4], 1 / K)
    for cell, x_G in enumerate(x_BG.toarray()):
        found = scipy.optimize.minimize(
            lambda t, x_G=x_G: -objective(np.exp(t) / np.exp(t).sum(), x_G, topics),
            np.zeros(K),
            tol=1e-10,
        )
        best = np.exp(found.x) / np.exp(found.x).sum()
        assert objective(theta_BK[cell], x_G, topics) >= objective(best, x_G, topics) - 1e-9
        np.testing.assert_allclose(theta_BK[cell], best, atol=1e-4)
        alone = PRODUCT.fold_in(x_BG[cell], topics)
        np.testing.assert_allclose(theta_BK[cell], alone[0], atol=1e-12)
    assert PRODUCT.fold_in(x_BG[:0], topics).shape == (0, K)


def test_fold_in_of_deep_cells_and_far_topics_stays_on_the_simplex():
    generator = np.random.default_rng(2)
    x = sp.csr_matrix(generator.poisson(200, (6, 30)).astype(np.float32))
    theta_NK = PRODUCT.fold_in(x, generator.normal(0, 20, (4, 30)))
    assert (theta_NK > 0).all()
    np.testing.assert_allclose(theta_NK.sum(1), 1)


@pytest.mark.usefixtures("double_precision")
def test_the_mode_has_the_same_slope_in_single_precision(x_BG, topics_KG):
    double = ProductSlopes(DenseBatch(torch.from_numpy(x_BG.toarray())), topics_KG).mode()
    single = ProductSlopes(DenseBatch(torch.from_numpy(x_BG.toarray())), topics_KG.float()).mode()
    torch.testing.assert_close(single.double(), double, atol=1e-3, rtol=0)


def test_perplexity_of_cells_of_one_topic_is_that_of_a_mixture(x_BG, topics_KG):
    """The product of one topic is the topic; uniform topics give the number of genes."""
    theta_BK = np.eye(K)[np.arange(B) % K]
    beta_KG = topics_KG.softmax(-1).numpy()
    found = PRODUCT.perplexity(x_BG, theta_BK, topics_KG.numpy())
    assert found == pytest.approx(perplexity(x_BG, theta_BK, beta_KG))
    flat = PRODUCT.perplexity(x_BG, np.full((B, K), 1 / K), np.zeros((K, G)))
    assert flat == pytest.approx(G)
    with pytest.raises(ValueError, match="at least one count"):
        PRODUCT.perplexity(x_BG[4:5], theta_BK[:1], topics_KG.numpy())


@pytest.fixture(scope="module")
def product():
    """Return counts of known products of topics, the proportions and the logits of topics."""
    generator = np.random.default_rng(0)
    topics_KG = generator.normal(0, 1.5, (3, 80))
    theta_NK = generator.dirichlet(np.full(3, 0.2), 500)
    logits_NG = theta_NK @ topics_KG
    p_NG = np.exp(logits_NG - np.logaddexp.reduce(logits_NG, axis=1, keepdims=True))
    x_NG = np.stack([generator.multinomial(400, p / p.sum()) for p in p_NG])
    cells = np.array([f"cell_{i}" for i in range(500)], dtype=object)
    genes = np.array([f"gene_{i}" for i in range(80)], dtype=object)
    return Counts(sp.csr_matrix(x_NG.astype(np.float32)), cells, genes), theta_NK, topics_KG


@pytest.fixture(scope="module")
def fit(product):
    config = TrainConfig(n_replicates=2, epochs=40, progress=False)
    model = ModelConfig(kind="prodlda", n_topics=3, n_hidden=16)
    rows = np.arange(500)
    return fit_model(product[0][rows[:400]], product[0][rows[400:]], model, config)


def test_true_topics_and_proportions_are_found(fit, product):
    _, theta_NK, topics_KG = product
    beta_KG = np.exp(topics_KG) / np.exp(topics_KG).sum(1, keepdims=True)
    match = match_topics(beta_KG, fit.beta()[fit.selected])
    assert match.cosine.min() > 0.97
    found_NK = fit.theta(fit.held_out, replicates=[fit.selected])[0][:, match.permutation]
    assert np.corrcoef(found_NK.ravel(), theta_NK[400:].ravel())[0, 1] > 0.97


def test_a_product_predicts_its_own_cells_better_than_a_mixture(fit, product):
    config = TrainConfig(n_replicates=2, epochs=40, progress=False)
    rows = np.arange(500)
    model = ModelConfig(n_topics=3, n_hidden=16)
    mixture = fit_model(product[0][rows[:400]], product[0][rows[400:]], model, config)
    assert fit.perplexity() < mixture.perplexity()
    assert fit.elbo(fit.held_out) > mixture.elbo(fit.held_out)
    # The true topics predict as well within 2 %.
    seen, unseen = thin(fit.held_out.x, 0)
    truth = PRODUCT.perplexity(unseen, PRODUCT.fold_in(seen, product[2]), product[2])
    assert fit.perplexity() == pytest.approx(truth, rel=0.02)


def test_refinement_is_never_worse_than_the_encoder(fit):
    gap_RN = fit.amortization_gap()
    assert (gap_RN >= 0).all()
    assert (gap_RN > 0).mean() > 0.9
    cells = fit.held_out
    assert fit.elbo(cells, refine=True) >= fit.elbo(cells)
    assert (fit.elbo_given_topics(cells) > fit.elbo_by_replicate(cells)).all()


def test_a_saved_fit_gives_the_same_numbers(fit, tmp_path):
    loaded = load_fit(fit.save(tmp_path / "model"))
    cells = fit.held_out
    assert loaded.model.kind == "prodlda"
    for ours, theirs in (
        (fit.theta(cells), loaded.theta(cells)),
        (fit.topics(), loaded.topics()),
        (fit.beta(), loaded.beta()),
        (fit.perplexity_by_replicate(cells), loaded.perplexity_by_replicate(cells)),
        (fit.elbo_by_replicate(cells), loaded.elbo_by_replicate(cells)),
    ):
        assert np.array_equal(ours, theirs)


def test_train_compare_transform_and_report(run_here):
    for name, kind in (("product", "prodlda"), ("mixture", "amortized_lda")):
        code, _, err = run_here("train", *SMALL, f"model={kind}", f"hydra.run.dir={name}")
        assert code == 0, err
    page = report_text("product/report.html")
    assert "ProdLDA, a product of 3 topics, with amortized inference" in page
    scores = pd.read_csv("product/scores.csv")
    expected = pd.read_csv("mixture/scores.csv")
    assert scores.metric.unique().tolist() == expected.metric.unique().tolist()
    assert run_here("report", "run=product", "output=again")[0] == 0
    assert "ProdLDA" in report_text("again/report.html")
    code, _, err = run_here("compare", "runs=[product,mixture]", "output=compared")
    assert code == 0, err
    for refine in ("false", "true"):
        arguments = ("run=product", "input=product/adata.h5ad", f"output={refine}.csv")
        assert run_here("transform", *arguments, f"refine={refine}", "n_samples=16")[0] == 0
    table = pd.read_csv("false.csv", index_col=0)
    own = pd.read_csv("product/cells/cell_topics.csv", index_col=0)
    np.testing.assert_allclose(table.to_numpy(), own.to_numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_sweep_chooses_a_number_of_topics(run_here):
    code, out, err = run_here(
        *("train", "-m", "sweep=topics", *SMALL, "report=off", "sweep.n_trials=3"),
        *("model.n_topics=choice(2,3,5)", "sweep.sampler=grid", "sweep.n_jobs=1"),
        "sweep.support_floor=0",
    )
    assert code == 0, err
    assert "K = " in out


def report_text(path):
    return Path(path).read_text(encoding="utf-8")
