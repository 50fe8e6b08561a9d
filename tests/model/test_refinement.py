"""Refined posteriors against differentiation, numerical integration and a patient optimiser."""

import functools
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import minimize

from topicell.model.minibatches import DenseBatch, in_order, sparse_batches, sparse_is_there
from topicell.model.mixture import MIXTURE, Slopes
from topicell.model.priors import NormalPrior
from topicell.model.refinement import (
    cell_elbo,
    quasi_normal,
    refine,
)

pytestmark = pytest.mark.usefixtures("double_precision")
needs_mkl = pytest.mark.skipif(
    not sparse_is_there(torch.device("cpu")), reason="this torch was built without MKL"
)
FORMS = ["dense", pytest.param("sparse", marks=needs_mkl)]
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def make_batch(form, x_NG):
    x_NG = sp.csr_matrix(x_NG, dtype=np.float64)
    if form == "dense":
        return DenseBatch(torch.from_numpy(x_NG.toarray()))
    (batch,) = sparse_batches(x_NG, in_order(x_NG.shape[0], x_NG.shape[0]), 1.0)
    return batch


def make_prior(n_topics, concentration=None):
    return NormalPrior.dirichlet(concentration, n_topics, n_topics), MIXTURE


def elbo(x_NG, posterior, beta_KG, prior, *, n_samples=2048, seed=99):
    """ELBO of each cell on draws that no posterior was optimised on."""
    mean, scale = posterior
    noise_SK = quasi_normal(n_samples, len(beta_KG), seed, beta_KG)
    batch, topics = make_batch("dense", x_NG), [beta_KG[None]] * n_samples
    return cell_elbo(batch, mean[None], scale[None], *prior, noise_SK, topics)[0]


def adam(x_NG, beta_KG, prior, start, *, n_steps=500, n_draws=16):
    """The posterior that reparametrised gradients find in many small steps."""
    x_NG = torch.from_numpy(sp.csr_matrix(x_NG).toarray()).double()
    mean, log_scale = (part.clone().requires_grad_() for part in (start[0], start[1].log()))
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        half = torch.randn(n_draws // 2, 1, len(beta_KG), generator=generator)
        theta = (mean + log_scale.exp() * torch.cat([half, -half])).softmax(-1)
        likelihood = (x_NG * (theta @ beta_KG).clamp_min(1e-300).log()).sum(-1).mean(0)
        divergence = prior[0].kl(mean, log_scale.exp())
        optimizer.zero_grad()
        (divergence - likelihood).sum().backward()
        optimizer.step()
        schedule.step()
    return mean.detach(), log_scale.detach().exp()


def draw(n_topics, n_counts, n_cells=8, n_genes=200):
    """Counts of each cell's mixture of sparse topics, and the topics."""
    generator = np.random.default_rng(0)
    beta_KG = generator.dirichlet(np.full(n_genes, 0.1), n_topics)
    theta_NK = generator.dirichlet(np.full(n_topics, 0.1), n_cells)
    x_NG = np.stack([generator.multinomial(n_counts, p / p.sum()) for p in theta_NK @ beta_KG])
    return x_NG.astype(np.float64), torch.from_numpy(beta_KG)


@pytest.fixture
def corpus(planted):
    """(Counts of 20 planted cells, the last without any; planted topics)."""
    x_NG = planted[0].x[:20].astype(np.float64).tolil()
    x_NG[19] = 0
    return x_NG.tocsr(), torch.from_numpy(planted[2])


@pytest.fixture
def pair():
    """Cells of two topics that share genes: (counts of 6 cells × 15 genes, topics)."""
    generator = np.random.default_rng(3)
    beta_KG = generator.dirichlet(np.full(15, 0.5), 2)
    x_NG = np.stack(
        [
            generator.multinomial(n, share * beta_KG[0] + (1 - share) * beta_KG[1])
            for n, share in [(1, 0.5), (5, 0.9), (20, 0.5), (20, 1.0), (100, 0.3), (400, 0.02)]
        ]
    )
    return x_NG.astype(np.float64), torch.from_numpy(beta_KG)


def likelihood_of_two(x_G, beta_KG, difference):
    """Log-likelihood of a cell by the difference of its two logits."""
    share = 1 / (1 + np.exp(-difference))[..., None]
    return (x_G * np.log(share * beta_KG[0] + (1 - share) * beta_KG[1])).sum(-1)


@pytest.mark.parametrize("form", FORMS)
def test_slopes_and_curvatures_are_those_of_the_likelihood(form):
    """By automatic differentiation; a gene that no topic has moves nothing."""
    generator = np.random.default_rng(0)
    x_BG = generator.poisson(0.7, (6, 12)).astype(np.float64)
    x_BG[2] = 0
    x_BG[3, :] = 0
    x_BG[3, 5] = 4  # nothing but a gene that no topic has
    beta_KG = torch.from_numpy(generator.dirichlet(np.full(12, 0.3), 3))
    beta_KG[:, 5] = 0
    x_BG[:, 8] = 0
    logits_BK = torch.randn(6, 3)

    def likelihood(logits_K, x_G):
        probability = logits_K.softmax(-1) @ beta_KG
        there = probability > 0
        return (x_G[there] * probability[there].log()).sum()

    slopes = Slopes(make_batch(form, x_BG), beta_KG)
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
    # Softmax does not see a shift of all logits.
    torch.testing.assert_close(slope_BK.sum(1), torch.zeros(6))
    assert (slope_BK[2:4] == 0).all()
    assert (curvature_BK[2:4] == 0).all()


@needs_mkl
def test_sparse_and_dense_are_one(corpus):
    x_NG, beta_KG = corpus
    prior = make_prior(4)
    dense, sparse = (
        refine(make_batch(form, x_NG), beta_KG, *prior, seed=0) for form in ("dense", "sparse")
    )
    torch.testing.assert_close(dense, sparse)


@pytest.mark.parametrize("form", FORMS)
def test_what_becomes_of_a_cell_does_not_depend_on_its_company(form, corpus):
    x_NG, beta_KG = corpus
    prior = make_prior(4)
    whole = refine(make_batch(form, x_NG), beta_KG, *prior, seed=0)
    shuffled = np.random.default_rng(0).permutation(20)
    for rows in ([7], [19], shuffled):
        few = refine(make_batch(form, x_NG[rows]), beta_KG, *prior, seed=0)
        torch.testing.assert_close(few, tuple(part[rows] for part in whole))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_seed_gives_the_same_bytes(form, corpus):
    x_NG, beta_KG = corpus
    before = torch.get_rng_state()
    first, again, other = (
        refine(make_batch(form, x_NG), beta_KG, *make_prior(4), seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    for part, same, different in zip(first, again, other, strict=True):
        assert torch.equal(part, same)
        assert not torch.equal(part, different)
    # The seed moves proportions by hundredths at most.
    difference = first[0].softmax(-1) - other[0].softmax(-1)
    assert difference.abs().max() < 0.02


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("concentration", [None, 5.0, [0.1, 2.0, 0.5, 1.0]])
def test_a_cell_without_counts_gets_the_prior(form, concentration, corpus):
    x_NG, beta_KG = corpus
    prior = make_prior(4, concentration)
    for cells in (x_NG, x_NG[19:]):
        mean, scale = refine(make_batch(form, cells), beta_KG, *prior, seed=0)
        torch.testing.assert_close(mean[-1], prior[0].mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(scale[-1], prior[0].scale, atol=1e-4, rtol=0)
        of_empty = elbo(x_NG[19:], (mean[-1:], scale[-1:]), beta_KG, prior, n_samples=4)
        assert of_empty.item() == pytest.approx(0, abs=1e-7)


def test_the_elbo_is_below_the_evidence_and_at_the_best_of_its_family(pair):
    """Two topics: both have integrals over one number, the difference of the two logits."""
    x_NG, beta_KG = pair
    prior = make_prior(2, [0.7, 0.3])
    posterior = refine(make_batch("dense", x_NG), beta_KG, *prior, seed=0)
    by_draws_N = elbo(x_NG, posterior, beta_KG, prior).numpy()
    m, s, topics = (part.numpy() for part in (prior[0].mean, prior[0].scale, beta_KG))
    place_N4 = torch.cat([posterior[0], posterior[1].log()], 1).numpy()
    grid = np.linspace(-60, 60, 200_001)
    density = np.exp(-0.5 * (grid - (m[0] - m[1])) ** 2 / (s**2).sum())
    density /= density.sum()
    for x_G, place, by_draws in zip(x_NG, place_N4, by_draws_N, strict=True):

        def by_integral(place, x_G=x_G):
            mean, scale = place[:2], np.exp(place[2:])
            difference = mean[0] - mean[1] + math.hypot(*scale) * NODES
            expected = likelihood_of_two(x_G, topics, difference) @ WEIGHTS / WEIGHTS.sum()
            ratio, distance = scale / s, (mean - m) / s
            return expected - 0.5 * (ratio**2 + distance**2 - 1).sum() + np.log(ratio).sum()

        reached = by_integral(place)
        assert by_draws == pytest.approx(reached, abs=0.01)
        best = -minimize(lambda place, elbo=by_integral: -elbo(place), np.zeros(4)).fun
        assert best - 0.005 < reached < best + 1e-6
        log_likelihood = likelihood_of_two(x_G, topics, grid)
        top = log_likelihood.max()
        evidence = top + math.log((np.exp(log_likelihood - top) * density).sum())
        # Independent logits cannot have a sharp difference and a vague sum.
        assert best < evidence < best + 3


def test_the_mean_proportion_is_that_of_the_exact_posterior(pair):
    x_NG, beta_KG = pair
    prior = make_prior(2, 1.0)
    mean, scale = refine(make_batch("dense", x_NG), beta_KG, *prior, seed=0)
    noise = quasi_normal(4096, 2, 1, beta_KG)
    refined_N = (mean + scale * noise[:, None]).softmax(-1).mean(0)[:, 0]
    grid = np.linspace(-40, 40, 100_001)
    share = 1 / (1 + np.exp(-grid))
    for x_G, refined in zip(x_NG, refined_N, strict=True):
        log_density = likelihood_of_two(x_G, beta_KG.numpy(), grid)
        log_density -= 0.25 * grid**2 / float(prior[0].scale[0]) ** 2
        density = np.exp(log_density - log_density.max())
        assert float(refined) == pytest.approx((share * density).sum() / density.sum(), abs=0.02)


@pytest.mark.parametrize(
    ("n_topics", "n_counts", "below"), [(4, 300, 0.02), (10, 1000, 0.05), (30, 2000, 1.0)]
)
def test_a_patient_optimiser_gets_hardly_higher(n_topics, n_counts, below):
    """Adam on reparametrised gradients, fifty times the work, from here and from the prior.

    The more topics a cell does without, the heavier the tails of what a few draws must average.
    """
    x_NG, beta_KG = draw(n_topics, n_counts)
    prior = make_prior(n_topics)
    posterior = refine(make_batch("dense", x_NG), beta_KG, *prior, seed=0)
    vague = tuple(part.expand(len(x_NG), -1) for part in (prior[0].mean, prior[0].scale / 3))
    best = np.max(
        [
            elbo(x_NG, adam(x_NG, beta_KG, prior, start), beta_KG, prior).numpy()
            for start in (posterior, vague)
        ],
        axis=0,
    )
    short = best - elbo(x_NG, posterior, beta_KG, prior).numpy()
    assert short.mean() < below
    assert short.max() < 2 * below


def test_relabelling_topics_relabels_proportions_only(corpus):
    x_NG, beta_KG = corpus
    concentration = [0.1, 0.4, 0.2, 1.0]
    order = torch.tensor([2, 0, 3, 1])
    theta, relabelled = (
        refine(make_batch("dense", x_NG), topics, *make_prior(4, prior), seed=0)[0].softmax(-1)
        for topics, prior in (
            (beta_KG, concentration),
            (beta_KG[order], [concentration[k] for k in order]),
        )
    )
    # The draws of a topic are those of its place.
    torch.testing.assert_close(relabelled, theta[:, order], atol=0.02, rtol=0)


def test_more_counts_narrow_the_posterior(corpus):
    """Of logits that the counts decide, four times the counts halve the deviation."""
    x_NG, beta_KG = corpus
    x_NG = x_NG[:19] * 10
    prior = make_prior(4)
    few, many = (
        refine(make_batch("dense", times * x_NG), beta_KG, *prior, seed=0) for times in (1, 4)
    )
    theta = few[0].softmax(-1)
    decided = (theta > 0.05) & (theta < 0.9)
    ratio = (few[1] / many[1])[decided]
    assert decided.sum() > 20
    assert (ratio - 2).abs().max() < 0.1
    assert (many[1] < few[1]).all()


@pytest.mark.parametrize("concentration", [0.001, 100.0])
def test_extremes_stay_finite(concentration):
    """One count or ten million; priors of all or nothing, or of no choice; single precision."""
    x_NG, beta_KG = draw(4, 50)
    x_NG[0] = 0
    x_NG[1, :] = np.eye(200)[3]
    x_NG[2] *= 2e5
    x_NG[3, 7] = 1e7
    beta_KG[:, 7] = 0
    beta_KG[:, 8] = torch.tensor([1e-12, 0, 0, 0])
    x_NG[4, 8] = 3
    beta_KG, prior = beta_KG.float(), make_prior(4, concentration)
    prior[0].float()
    batch = DenseBatch(torch.from_numpy(x_NG).float())
    posterior = refine(batch, beta_KG, *prior, seed=0)
    assert all(part.isfinite().all() for part in posterior)
    prior[0].double()
    vague = tuple(part.expand(8, -1) for part in (prior[0].mean, prior[0].scale))
    sharp = tuple(part.double() for part in posterior)
    gain = elbo(x_NG, sharp, beta_KG.double(), prior) - elbo(x_NG, vague, beta_KG.double(), prior)
    assert (gain > -1e-3).all()


def test_counts_that_no_topic_explains_are_passed_over(corpus):
    x_NG, beta_KG = corpus
    with_more = x_NG.toarray()
    gone = beta_KG.argmax(1)
    beta_KG = beta_KG.clone()
    beta_KG[:, gone] = 0
    with_more[:, gone], without = 50, with_more.copy()
    without[:, gone] = 0
    posteriors = (
        refine(make_batch("dense", x), beta_KG, *make_prior(4), seed=0)
        for x in (with_more, without)
    )
    torch.testing.assert_close(*posteriors)


def test_quasi_normal_draws_are_normal_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    noise = quasi_normal(512, 50, 3, torch.zeros(0))
    assert noise.dtype == torch.float64
    assert quasi_normal(4, 2, 3, torch.zeros(0, dtype=torch.float32)).dtype == torch.float32
    assert torch.equal(noise, quasi_normal(512, 50, 3, torch.zeros(0)))
    assert not torch.equal(noise, quasi_normal(512, 50, 4, torch.zeros(0)))
    assert torch.equal(before, torch.get_rng_state())
    assert noise.isfinite().all()
    # Independent draws would be off by 0.04 and 0.06.
    assert noise.mean(0).abs().max() < 0.01
    assert (noise.var(0) - 1).abs().max() < 0.05
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().mean() < 0.02


@pytest.mark.parametrize("form", FORMS)
def test_cell_elbo_is_of_each_replicate_and_draw_by_itself(form, corpus):
    """Replicates with draws of topics of their own, against loops over all of it."""
    x_NG = corpus[0][-5:]
    prior = make_prior(4, [0.5, 1.0, 0.1, 0.2])
    mean, scale = torch.randn(2, 5, 4), torch.rand(2, 5, 4) + 0.1
    noise_SK, beta_SRKG = torch.randn(3, 4), torch.rand(3, 2, 4, 120).softmax(-1)
    found = cell_elbo(make_batch(form, x_NG), mean, scale, *prior, noise_SK, iter(beta_SRKG))
    for r in range(2):
        for cell, x_G in enumerate(torch.from_numpy(x_NG.toarray())):
            q = torch.distributions.Normal(mean[r, cell], scale[r, cell])
            p = torch.distributions.Normal(prior[0].mean, prior[0].scale)
            expected = -torch.distributions.kl_divergence(q, p).sum()
            for noise_K, beta_RKG in zip(noise_SK, beta_SRKG, strict=True):
                theta_K = (q.loc + q.scale * noise_K).softmax(-1)
                expected = expected + (x_G * (theta_K @ beta_RKG[r]).log()).sum() / 3
            torch.testing.assert_close(found[r, cell], expected)
