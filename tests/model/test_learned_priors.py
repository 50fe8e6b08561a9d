"""Correlated topics and covariates of prevalence: planted values are found."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import linear_sum_assignment
from torch.distributions import MultivariateNormal, kl_divergence

import topicell
from topicell.config import ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.model.priors import LearnedPrior, NormalPrior
from topicell.model.program import Constants, TopicProgram
from topicell.model.refinement import refine
from topicell.model.training import train

K, G, N = 4, 100, 800
CONFIG = TrainConfig(n_replicates=2, epochs=20, progress=False)


def draw(logit_NK, seed=0, depth=400):
    """Draw counts of cells with these topic logits: return counts and true topics."""
    generator = np.random.default_rng(seed)
    beta_KG = generator.dirichlet(np.full(G, 0.1), logit_NK.shape[1])
    theta_NK = np.exp(logit_NK - logit_NK.max(1, keepdims=True))
    theta_NK /= theta_NK.sum(1, keepdims=True)
    x_NG = np.stack([generator.multinomial(depth, p / p.sum()) for p in theta_NK @ beta_KG])
    cells, genes = (
        np.array([f"{name}{i}" for i in range(n)], dtype=object)
        for name, n in (("cell", len(x_NG)), ("gene", G))
    )
    return Counts(sp.csr_matrix(x_NG.astype(np.float32)), cells, genes), theta_NK


def partners(fit, theta_NK):
    """Return the true topic of each topic of a fit."""
    found_NK = fit.theta(fit.cells)[fit.selected]
    n = theta_NK.shape[1]
    correlation = np.corrcoef(found_NK.T, theta_NK[: len(found_NK)].T)[:n, n:]
    return linear_sum_assignment(-correlation)[1]


@pytest.fixture(scope="module")
def cohort():
    """Draw cells whose first topic is more, and second less frequent in treated cells."""
    generator = np.random.default_rng(1)
    treated_N = generator.integers(0, 2, N).astype(float)
    age_N = generator.normal(0, 1, N)
    logit_NK = generator.normal(0, 2, (N, K))
    logit_NK[:, 0] += 1.5 * treated_N
    logit_NK[:, 1] -= 1.5 * treated_N
    counts, theta_NK = draw(logit_NK)
    design_ND = np.stack([treated_N - treated_N.mean(), age_N - age_N.mean()], 1)
    named = replace(
        counts, design=design_ND.astype(np.float32), covariates=("condition[T.b]", "age")
    )
    return named, theta_NK, treated_N


@pytest.fixture(scope="module")
def prevalence_fit(cohort):
    counts = cohort[0]
    model = ModelConfig(n_topics=K, n_hidden=16, prevalence="condition + age")
    return train(counts[:700], counts[700:], model, CONFIG)


@pytest.fixture
def prior():
    torch.manual_seed(0)
    learned = LearnedPrior(NormalPrior.dirichlet([0.1, 0.5, 1.0, 2.0], K, K), 3, 2, correlated=True)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter += torch.randn_like(parameter)
    return learned


@pytest.mark.usefixtures("double_precision")
def test_kl_gradient_and_precision_are_those_of_a_multivariate_normal(prior):
    design_BD, mean, scale = torch.randn(5, 2), torch.randn(3, 5, K), torch.rand(3, 5, K) + 0.1
    given = prior.given(design_BD)
    covariance_RKK = prior.covariance()
    expected_mean = prior.base.mean + design_BD @ prior.effects()
    torch.testing.assert_close(given.mean, expected_mean)
    torch.testing.assert_close(prior.effects().sum(-1), torch.zeros(3, 2))
    distribution = MultivariateNormal(expected_mean, covariance_RKK.unsqueeze(1))
    q = MultivariateNormal(mean, torch.diag_embed(scale.square()))
    torch.testing.assert_close(given.kl(mean, scale), kl_divergence(q, distribution))
    logits = mean.clone().requires_grad_()
    distribution.log_prob(logits).sum().backward()
    torch.testing.assert_close(given.pull(mean), -logits.grad)
    inverse_RKK = covariance_RKK.inverse()
    torch.testing.assert_close(given.precision[:, 0], inverse_RKK.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(given.total_precision.flatten(), inverse_RKK.sum((-2, -1)))
    one = given.of(1)
    torch.testing.assert_close(one.kl(mean[1], scale[1]), given.kl(mean, scale)[1])


@pytest.mark.usefixtures("double_precision")
def test_at_the_start_it_is_the_independent_prior():
    base = NormalPrior.dirichlet([0.1, 0.5, 1.0, 2.0], K, K)
    learned = LearnedPrior(base, 2, 1, correlated=True)
    m, rho, noise = torch.randn(3, 2, 5, K)
    for one, other in zip(
        learned.draw(m, rho, noise, torch.randn(5, 1)), base.draw(m, rho, noise), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("double_precision")
def test_refinement_finds_the_optimum_of_its_own_prior(prior, make_batch):
    """No posterior near the refined one has a higher ELBO, on the same draws."""
    from topicell.model.mixture import MIXTURE
    from topicell.model.refinement import cell_elbo, quasi_normal

    generator = np.random.default_rng(0)
    beta_KG = torch.from_numpy(generator.dirichlet(np.full(30, 0.3), K))
    batch = make_batch(sp.csr_matrix(generator.poisson(3.0, (5, 30)).astype(np.float64)))
    given = prior.given(torch.randn(5, 2)).of(0)
    m, s = (part.detach() for part in refine(batch, beta_KG, given, MIXTURE, seed=0))
    noise = quasi_normal(4096, K, 1, m)

    def elbo(mean, scale):
        return cell_elbo(
            batch, mean[None], scale[None], given, MIXTURE, noise, [beta_KG[None]] * len(noise)
        )[0]

    best = elbo(m, s)
    for _ in range(20):
        moved = elbo(m + 0.3 * torch.randn_like(m), s * (0.3 * torch.randn_like(s)).exp())
        assert (moved < best + 0.02).all()


def test_planted_effects_on_prevalence_are_found(cohort, prevalence_fit):
    _, theta_NK, _ = cohort
    table = prevalence_fit.prevalence()
    true_of = partners(prevalence_fit, theta_NK)
    effect = table[table["covariate"] == "condition[T.b]"]["effect"].to_numpy()
    by_true = np.empty(K)
    by_true[true_of] = effect
    assert by_true.argmax() == 0
    assert by_true.argmin() == 1
    assert by_true[0] == pytest.approx(-by_true[1], rel=0.5)
    assert np.abs(by_true[2:]).max() < 0.4 * by_true[0]
    of_age = table[table["covariate"] == "age"]["effect"].abs().max()
    assert of_age < 0.2 * by_true[0]
    for column in ("proportion", "proportion_with"):
        np.testing.assert_allclose(table.groupby("covariate")[column].sum(), 1, rtol=1e-5)


def test_the_encoder_does_not_see_covariates_and_a_refined_posterior_does(cohort, prevalence_fit):
    counts = cohort[0][:40]
    bare = replace(counts, design=None, covariates=())
    np.testing.assert_array_equal(prevalence_fit.theta(counts), prevalence_fit.theta(bare))
    np.testing.assert_array_equal(prevalence_fit.folded(counts), prevalence_fit.folded(bare))
    refined = [prevalence_fit.theta(cells, refine=True) for cells in (counts, bare)]
    assert np.abs(refined[0] - refined[1]).max() > 1e-4
    assert (prevalence_fit.amortization_gap(counts) >= 0).all()
    assert prevalence_fit.elbo(counts) != prevalence_fit.elbo(bare)


def test_covariates_without_effect_change_perplexity_by_less_than_its_error(cohort):
    counts = cohort[0]
    noise_ND = np.random.default_rng(5).normal(0, 1, (N, 2)).astype(np.float32)
    ratios = []
    for fold in range(4):
        held = np.arange(N) % 4 == fold
        plain = ModelConfig(n_topics=K, n_hidden=16)
        parts = [replace(counts, design=noise_ND)[rows] for rows in (~held, held)]
        fits = [train(*parts, m, CONFIG) for m in (plain, replace(plain, prevalence="x + y"))]
        logs = [np.log(fit.perplexity_by_replicate()).mean() for fit in fits]
        ratios.append(logs[1] - logs[0])
    assert abs(np.mean(ratios)) < 1 / np.sqrt(float(parts[1].x.sum()))


def test_planted_correlations_are_found():
    generator = np.random.default_rng(2)
    correlation_KK = np.eye(K)
    correlation_KK[0, 1] = correlation_KK[1, 0] = 0.9
    correlation_KK[2, 3] = correlation_KK[3, 2] = 0.6
    logit_NK = 2.5 * generator.multivariate_normal(np.zeros(K), correlation_KK, 2000)
    counts, theta_NK = draw(logit_NK, depth=600)
    model = ModelConfig(n_topics=K, n_hidden=32, prior="correlated")
    fit = train(counts, None, model, replace(CONFIG, n_replicates=1, epochs=30))
    found_KK = fit.topic_correlations()
    np.testing.assert_allclose(np.diag(found_KK), 1)
    true_of = partners(fit, theta_NK)
    by_true = np.empty((K, K))
    by_true[np.ix_(true_of, true_of)] = found_KK
    pairs = {(a, b): by_true[a, b] for a in range(K) for b in range(a)}
    assert max(pairs, key=pairs.get) == (1, 0)
    together = [pairs[1, 0], pairs[3, 2]]
    assert min(together) > max(
        value for pair, value in pairs.items() if pair not in ((1, 0), (3, 2))
    )
    independent = train(counts, None, ModelConfig(n_topics=K, n_hidden=32), CONFIG)
    assert fit.elbo(counts) > independent.elbo(counts)
    with pytest.raises(InputError, match="the prior of this model is independent"):
        independent.topic_correlations()
    with pytest.raises(InputError, match="has no covariates; fit it with prevalence=FORMULA"):
        independent.prevalence()


@pytest.mark.parametrize("kind", ["amortized_lda", "prodlda"])
def test_saved_and_loaded_fits_are_equal(kind, tmp_path, cohort):
    from topicell.model.registry import fit_model

    counts = cohort[0]
    model = ModelConfig(
        kind=kind, n_topics=K, n_hidden=8, prevalence="condition + age", prior="correlated"
    )
    config = replace(CONFIG, epochs=2)
    fit = fit_model(counts[:300], counts[300:400], model, config)
    fit.save(tmp_path / "model")
    loaded = topicell.load(tmp_path / "model")
    cells = counts[:50]
    np.testing.assert_array_equal(loaded.theta(cells), fit.theta(cells))
    np.testing.assert_array_equal(loaded.theta(cells, refine=True), fit.theta(cells, refine=True))
    assert loaded.elbo(cells) == fit.elbo(cells)
    assert loaded.prevalence().equals(fit.prevalence())
    np.testing.assert_array_equal(loaded.topic_correlations(), fit.topic_correlations())
    assert loaded.program.of_replicates([1]).cell_prior.n_replicates == 1


def test_python_takes_covariates_from_obs(cohort):
    import anndata

    counts, _, treated_N = cohort
    obs = pd.DataFrame(
        {"condition": np.where(treated_N > 0, "b", "a"), "age": counts.design[:, 1] * 7 + 40},
        index=counts.cells,
    )
    adata = anndata.AnnData(counts.x, obs=obs, var=pd.DataFrame(index=counts.genes))
    settings = {"n_topics": K, "n_replicates": 1, "epochs": 1, "progress": False}
    fit = topicell.fit(adata, prevalence="condition + age", **settings)
    assert fit.program.constants.covariates == ("condition[T.b]", "age")
    design_ND = fit.cells.design
    np.testing.assert_allclose(design_ND.mean(0), 0, atol=1e-5)
    assert design_ND[:, 1].std() == pytest.approx(1, rel=1e-4)
    assert np.ptp(design_ND[:, 0]) == pytest.approx(1)
    for formula, message in (
        ("sex", "obs has no column 'sex'"),
        ("condition +", "is not a formula"),
        ("condition + C(condition)", "determine each other"),
    ):
        with pytest.raises(InputError, match=f"model.prevalence: .*{message}"):
            topicell.fit(adata, prevalence=formula, **settings)
    with pytest.raises(InputError, match="these cells have no covariates"):
        train(
            replace(counts, design=None),
            None,
            ModelConfig(n_topics=K, prevalence="condition"),
            CONFIG,
        )


def test_parameters_are_learned_slowly():
    """A step of Adam moves them by less than the learning rate."""
    base = NormalPrior.dirichlet(None, K, K)
    assert LearnedPrior(base, 1, 0, correlated=False).effects() is None
    program = TopicProgram(
        6, 1, ModelConfig(n_topics=K, prior="correlated"), constants=Constants(covariates=("x",))
    )
    with torch.no_grad():
        program.cell_prior.effect += 1
        program.cell_prior.factor += 1
    assert program.cell_prior.effects().abs().max() < 0.31
    assert program.penalty().shape == (1,)
