"""Refined posteriors against numerical integration and a slow optimiser."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import minimize

from topicell.model.minibatches import DenseBatch
from topicell.model.mixture import MIXTURE
from topicell.model.priors import NormalPrior
from topicell.model.refinement import cell_elbo, quasi_normal, refine

pytestmark = pytest.mark.usefixtures("double_precision")
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def dense(x_NG):
    return DenseBatch(torch.from_numpy(sp.csr_matrix(x_NG, dtype=np.float64).toarray()))


def make_prior(n_topics, concentration=None):
    return NormalPrior.dirichlet(concentration, n_topics, n_topics), MIXTURE


def elbo(x_NG, posterior, beta_KG, prior, *, n_samples=2048, seed=99):
    """Return the ELBO of each cell on draws that were not used to optimise."""
    mean, scale = posterior
    noise_SK = quasi_normal(n_samples, len(beta_KG), seed, beta_KG)
    batch, topics = dense(x_NG), [beta_KG[None]] * n_samples
    return cell_elbo(batch, mean[None], scale[None], *prior, noise_SK, topics)[0]


def adam(x_NG, beta_KG, prior, start, *, n_steps=500, n_draws=16):
    """Return the posterior that many small steps with reparametrised gradients find."""
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
    """Return counts of cells that mix sparse topics, and the topics."""
    generator = np.random.default_rng(0)
    beta_KG = generator.dirichlet(np.full(n_genes, 0.1), n_topics)
    theta_NK = generator.dirichlet(np.full(n_topics, 0.1), n_cells)
    x_NG = np.stack([generator.multinomial(n_counts, p / p.sum()) for p in theta_NK @ beta_KG])
    return x_NG.astype(np.float64), torch.from_numpy(beta_KG)


@pytest.fixture
def corpus(planted):
    """Return counts of 20 planted cells, the last without counts, and the planted topics."""
    x_NG = planted[0].x[:20].astype(np.float64).tolil()
    x_NG[19] = 0
    return x_NG.tocsr(), torch.from_numpy(planted[2])


@pytest.fixture
def pair():
    """Return counts of 6 cells × 15 genes of two topics that share genes, and the topics."""
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
    """Return the log-likelihood of a cell, a function of the difference of its two logits."""
    share = 1 / (1 + np.exp(-difference))[..., None]
    return (x_G * np.log(share * beta_KG[0] + (1 - share) * beta_KG[1])).sum(-1)


def test_a_cell_has_the_same_posterior_in_any_batch(make_batch, corpus):
    """In both forms, alone, and among others in any order."""
    x_NG, beta_KG = corpus
    prior = make_prior(4)
    whole = refine(dense(x_NG), beta_KG, *prior, seed=0)
    for rows in (np.arange(20), [7], [19], np.random.default_rng(0).permutation(20)):
        few = refine(make_batch(x_NG[rows]), beta_KG, *prior, seed=0)
        torch.testing.assert_close(few, tuple(part[rows] for part in whole))


def test_the_same_seed_gives_the_same_bytes(make_batch, corpus):
    x_NG, beta_KG = corpus
    before = torch.get_rng_state()
    first, again, other = (
        refine(make_batch(x_NG), beta_KG, *make_prior(4), seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    for part, same, different in zip(first, again, other, strict=True):
        assert torch.equal(part, same)
        assert not torch.equal(part, different)
    # The seed moves proportions by hundredths at most.
    difference = first[0].softmax(-1) - other[0].softmax(-1)
    assert difference.abs().max() < 0.02


@pytest.mark.parametrize("concentration", [None, 5.0, [0.1, 2.0, 0.5, 1.0]])
def test_a_cell_without_counts_gets_the_prior(make_batch, concentration, corpus):
    x_NG, beta_KG = corpus
    prior = make_prior(4, concentration)
    for cells in (x_NG, x_NG[19:]):
        mean, scale = refine(make_batch(cells), beta_KG, *prior, seed=0)
        torch.testing.assert_close(mean[-1], prior[0].mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(scale[-1], prior[0].scale, atol=1e-4, rtol=0)
        of_empty = elbo(x_NG[19:], (mean[-1:], scale[-1:]), beta_KG, prior, n_samples=4)
        assert of_empty.item() == pytest.approx(0, abs=1e-7)


def test_the_elbo_is_below_the_evidence_and_the_best_of_its_family(pair):
    """With two topics, both are integrals over the difference of the two logits."""
    x_NG, beta_KG = pair
    prior = make_prior(2, [0.7, 0.3])
    posterior = refine(dense(x_NG), beta_KG, *prior, seed=0)
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
        # Independent logits cannot have a narrow difference and a wide sum.
        assert best < evidence < best + 3


def test_the_mean_proportion_is_that_of_the_exact_posterior(pair):
    x_NG, beta_KG = pair
    prior = make_prior(2, 1.0)
    mean, scale = refine(dense(x_NG), beta_KG, *prior, seed=0)
    noise = quasi_normal(4096, 2, 1, beta_KG)
    refined_N = (mean + scale * noise[:, None]).softmax(-1).mean(0)[:, 0]
    grid = np.linspace(-40, 40, 100_001)
    share = 1 / (1 + np.exp(-grid))
    for x_G, refined in zip(x_NG, refined_N, strict=True):
        log_density = likelihood_of_two(x_G, beta_KG.numpy(), grid)
        log_density -= 0.25 * grid**2 / float(prior[0].scale[0]) ** 2
        density = np.exp(log_density - log_density.max())
        assert float(refined) == pytest.approx((share * density).sum() / density.sum(), abs=0.02)


@pytest.mark.parametrize(("n_topics", "n_counts", "below"), [(4, 300, 0.02), (30, 2000, 1.0)])
def test_a_slow_optimiser_is_hardly_better(n_topics, n_counts, below):
    """Adam on reparametrised gradients with fifty times the work, from two starts.

    The more topics a cell lacks, the heavier are the tails that a few draws average.
    """
    x_NG, beta_KG = draw(n_topics, n_counts)
    prior = make_prior(n_topics)
    posterior = refine(dense(x_NG), beta_KG, *prior, seed=0)
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
        refine(dense(x_NG), topics, *make_prior(4, prior), seed=0)[0].softmax(-1)
        for topics, prior in (
            (beta_KG, concentration),
            (beta_KG[order], [concentration[k] for k in order]),
        )
    )
    # The draws of a topic depend on its position.
    torch.testing.assert_close(relabelled, theta[:, order], atol=0.02, rtol=0)


def test_more_counts_narrow_the_posterior(corpus):
    """Four times the counts halve the deviation of logits that the counts determine."""
    x_NG, beta_KG = corpus
    x_NG = x_NG[:19] * 10
    prior = make_prior(4)
    few, many = (refine(dense(times * x_NG), beta_KG, *prior, seed=0) for times in (1, 4))
    theta = few[0].softmax(-1)
    decided = (theta > 0.05) & (theta < 0.9)
    ratio = (few[1] / many[1])[decided]
    assert decided.sum() > 20
    assert (ratio - 2).abs().max() < 0.1
    assert (many[1] < few[1]).all()


@pytest.mark.parametrize("concentration", [0.001, 100.0])
def test_extreme_counts_and_priors_give_finite_posteriors(concentration):
    """One count to ten million, and extreme priors, in single precision."""
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


def test_counts_that_no_topic_explains_are_ignored(corpus):
    x_NG, beta_KG = corpus
    with_more = x_NG.toarray()
    gone = beta_KG.argmax(1)
    beta_KG = beta_KG.clone()
    beta_KG[:, gone] = 0
    with_more[:, gone], without = 50, with_more.copy()
    without[:, gone] = 0
    posteriors = (refine(dense(x), beta_KG, *make_prior(4), seed=0) for x in (with_more, without))
    torch.testing.assert_close(*posteriors)


def test_quasi_normal_draws_are_normal_and_keep_the_random_state():
    before = torch.get_rng_state()
    noise = quasi_normal(512, 50, 3, torch.zeros(0))
    assert noise.dtype == torch.float64
    assert quasi_normal(4, 2, 3, torch.zeros(0, dtype=torch.float32)).dtype == torch.float32
    assert torch.equal(noise, quasi_normal(512, 50, 3, torch.zeros(0)))
    assert not torch.equal(noise, quasi_normal(512, 50, 4, torch.zeros(0)))
    assert torch.equal(before, torch.get_rng_state())
    assert noise.isfinite().all()
    # The errors of independent draws are 0.04 and 0.06.
    assert noise.mean(0).abs().max() < 0.01
    assert (noise.var(0) - 1).abs().max() < 0.05
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().mean() < 0.02


def test_cell_elbo_equals_loops_over_replicates_and_draws(make_batch, corpus):
    """Each replicate has its own draws of topics."""
    x_NG = corpus[0][-5:]
    prior = make_prior(4, [0.5, 1.0, 0.1, 0.2])
    mean, scale = torch.randn(2, 5, 4), torch.rand(2, 5, 4) + 0.1
    noise_SK, beta_SRKG = torch.randn(3, 4), torch.rand(3, 2, 4, 120).softmax(-1)
    found = cell_elbo(make_batch(x_NG), mean, scale, *prior, noise_SK, iter(beta_SRKG))
    for r in range(2):
        for cell, x_G in enumerate(torch.from_numpy(x_NG.toarray())):
            q = torch.distributions.Normal(mean[r, cell], scale[r, cell])
            p = torch.distributions.Normal(prior[0].mean, prior[0].scale)
            expected = -torch.distributions.kl_divergence(q, p).sum()
            for noise_K, beta_RKG in zip(noise_SK, beta_SRKG, strict=True):
                theta_K = (q.loc + q.scale * noise_K).softmax(-1)
                expected = expected + (x_G * (theta_K @ beta_RKG[r]).log()).sum() / 3
            torch.testing.assert_close(found[r, cell], expected)
