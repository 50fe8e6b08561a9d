"""Perplexity against loops written from its definition, and the laws it obeys."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.evaluation.perplexity import (
    elbo_perplexity,
    fold_in,
    perplexity,
    thin,
    unigram_perplexity,
)

N, G, K = 7, 11, 3


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def x_NG(rng):
    return sp.csr_matrix(rng.poisson(1.5, (N, G)).astype(np.float32))


@pytest.fixture
def theta_NK(rng):
    return rng.dirichlet(np.ones(K), N)


@pytest.fixture
def beta_KG(rng):
    return rng.dirichlet(np.ones(G), K)


def log_likelihood(x_NG, theta_NK, beta_KG):
    total = 0.0
    for c, counts in enumerate(x_NG.toarray()):
        for g, count in enumerate(counts):
            if count:
                p = sum(theta_NK[c][k] * beta_KG[k][g] for k in range(len(beta_KG)))
                total += float(count) * math.log(p)
    return total


def fold_in_by_loops(x_NG, beta_KG, pseudo_count, n_iterations):
    n_topics = len(beta_KG)
    result = []
    for counts in x_NG.toarray():
        theta = [1 / n_topics] * n_topics
        for _ in range(n_iterations):
            expected = [pseudo_count] * n_topics
            for g, count in enumerate(counts):
                share = [theta[k] * beta_KG[k][g] for k in range(n_topics)]
                for k in range(n_topics):
                    expected[k] += count * share[k] / sum(share)
            theta = [value / sum(expected) for value in expected]
        result.append(theta)
    return np.array(result)


class TestPerplexity:
    def test_is_its_definition(self, x_NG, theta_NK, beta_KG):
        expected = math.exp(-log_likelihood(x_NG, theta_NK, beta_KG) / float(x_NG.sum()))
        assert perplexity(x_NG, theta_NK, beta_KG) == pytest.approx(expected, rel=1e-12)

    def test_uniform_topics_give_the_number_of_genes(self, x_NG, theta_NK):
        uniform_KG = np.full((K, G), 1 / G)
        assert perplexity(x_NG, theta_NK, uniform_KG) == pytest.approx(G, rel=1e-12)

    def test_certain_genes_give_one(self):
        # Each cell has one gene, and its topic only that: nothing is left to predict.
        x_NG = sp.csr_matrix(np.diag([3, 1, 8]))
        assert perplexity(x_NG, np.eye(3), np.eye(3)) == 1

    def test_truth_scores_the_entropy_of_its_genes(self, beta_KG):
        x_NG = sp.csr_matrix(np.round(beta_KG * 1e7))
        entropy = -(beta_KG * np.log(beta_KG)).sum() / K
        assert perplexity(x_NG, np.eye(K), beta_KG) == pytest.approx(math.exp(entropy), rel=1e-5)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 8))
    @settings(deadline=None, max_examples=30)
    def test_is_never_below_one(self, seed, n_topics, n_genes):
        rng = np.random.default_rng(seed)
        x_NG = sp.csr_matrix(1 + rng.poisson(1.0, (4, n_genes)))
        theta_NK = rng.dirichlet(np.ones(n_topics), 4)
        beta_KG = rng.dirichlet(np.ones(n_genes), n_topics)
        assert perplexity(x_NG, theta_NK, beta_KG) >= 1 - 1e-12

    def test_relabelling_topics_changes_nothing(self, x_NG, theta_NK, beta_KG):
        order = [2, 0, 1]
        relabelled = perplexity(x_NG, theta_NK[:, order], beta_KG[order])
        assert relabelled == pytest.approx(perplexity(x_NG, theta_NK, beta_KG), rel=1e-12)
        # A permutation of one side alone does change it: the law above can fail.
        mixed = perplexity(x_NG, theta_NK[:, order], beta_KG)
        assert mixed != pytest.approx(perplexity(x_NG, theta_NK, beta_KG), rel=1e-3)

    def test_permuting_genes_changes_nothing(self, rng, x_NG, theta_NK, beta_KG):
        order = rng.permutation(G)
        permuted = perplexity(x_NG[:, order], theta_NK, beta_KG[:, order])
        assert permuted == pytest.approx(perplexity(x_NG, theta_NK, beta_KG), rel=1e-12)

    def test_duplicating_cells_changes_nothing(self, x_NG, theta_NK, beta_KG):
        twice = perplexity(sp.vstack([x_NG, x_NG]), np.vstack([theta_NK, theta_NK]), beta_KG)
        assert twice == pytest.approx(perplexity(x_NG, theta_NK, beta_KG), rel=1e-12)

    def test_is_infinite_where_a_count_has_probability_zero(self):
        beta_KG = np.array([[1.0, 0.0]])
        assert perplexity(sp.csr_matrix([[1, 1]]), np.ones((1, 1)), beta_KG) == math.inf

    def test_stored_zeros_do_not_count(self):
        x_NG = sp.csr_matrix((np.array([2.0, 0.0]), np.array([0, 1]), np.array([0, 2])), (1, 2))
        assert perplexity(x_NG, np.ones((1, 1)), np.array([[1.0, 0.0]])) == 1

    def test_needs_a_count(self, theta_NK, beta_KG):
        with pytest.raises(ValueError, match="at least one count"):
            perplexity(sp.csr_matrix((N, G)), theta_NK, beta_KG)

    def test_refuses_shapes_that_do_not_fit(self, x_NG, theta_NK, beta_KG):
        # Too many genes of beta would otherwise give a number, and a wrong one.
        for theta, beta in [
            (theta_NK, np.hstack([beta_KG, beta_KG])),
            (theta_NK[:-1], beta_KG),
            (theta_NK[:, :-1], beta_KG),
        ]:
            with pytest.raises(ValueError, match=r"\(N, G\), \(N, K\) and \(K, G\)"):
                perplexity(x_NG, theta, beta)

    def test_unigram_is_one_topic(self, rng, x_NG):
        frequencies_G = rng.dirichlet(np.ones(G))
        one_topic = perplexity(x_NG, np.ones((N, 1)), frequencies_G[None])
        assert unigram_perplexity(x_NG, frequencies_G) == pytest.approx(one_topic, rel=1e-12)

    def test_unigram_is_least_at_the_frequencies_of_the_counts(self, rng, x_NG):
        own_G = np.asarray(x_NG.sum(0)).ravel() / x_NG.sum()
        other_G = rng.dirichlet(np.ones(G))
        assert unigram_perplexity(x_NG, own_G) < unigram_perplexity(x_NG, other_G)

    def test_unigram_is_infinite_or_refuses(self):
        assert unigram_perplexity(sp.csr_matrix([[1, 1]]), np.array([1.0, 0.0])) == math.inf
        assert unigram_perplexity(sp.csr_matrix([[1, 0]]), np.array([1.0, 0.0])) == 1
        with pytest.raises(ValueError, match="at least one count"):
            unigram_perplexity(sp.csr_matrix((1, 2)), np.array([0.5, 0.5]))
        with pytest.raises(ValueError, match="2 genes"):
            unigram_perplexity(sp.csr_matrix([[1, 1]]), np.array([[0.5, 0.5]]))

    def test_elbo(self, x_NG, theta_NK, beta_KG):
        n_counts = float(x_NG.sum())
        # With no KL terms the bound is the likelihood, so the two perplexities meet.
        likelihood = log_likelihood(x_NG, theta_NK, beta_KG)
        expected = perplexity(x_NG, theta_NK, beta_KG)
        assert elbo_perplexity(likelihood, n_counts) == pytest.approx(expected, rel=1e-12)
        # A higher bound is a lower perplexity: the sign peers got wrong.
        assert elbo_perplexity(likelihood + 1, n_counts) < expected
        assert elbo_perplexity(-1e6, 1) == math.inf
        with pytest.raises(ValueError, match="at least one count"):
            elbo_perplexity(-1.0, 0)


class TestThin:
    @given(st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=30)
    def test_halves_are_counts_that_sum_back(self, seed):
        x_NG = sp.csr_matrix(np.random.default_rng(seed).poisson(2.0, (5, 6)), dtype=np.float32)
        first, second = thin(x_NG, seed)
        np.testing.assert_array_equal((first + second).toarray(), x_NG.toarray())
        for half in (first, second):
            assert half.dtype == x_NG.dtype
            assert (half.data > 0).all()
            assert (half.data == np.floor(half.data)).all()

    def test_draws_are_binomial_of_one_half(self):
        count, n = 10, 40_000
        first, _ = thin(sp.csr_matrix(np.full((n // 100, 100), count)), seed=1)
        drawn = first.toarray().ravel()
        # Five standard errors of mean and variance.
        assert drawn.mean() == pytest.approx(count / 2, abs=5 * math.sqrt(count / 4 / n))
        assert drawn.var() == pytest.approx(count / 4, rel=5 * math.sqrt(2 / n))

    def test_seed_decides(self, x_NG):
        same = [thin(x_NG, seed)[0].toarray() for seed in (3, 3, 4)]
        np.testing.assert_array_equal(same[0], same[1])
        assert (same[0] != same[2]).any()

    def test_storage_does_not_matter_and_the_input_stays(self, x_NG):
        shuffled = x_NG.copy()
        for start, stop in pairwise(x_NG.indptr):
            shuffled.data[start:stop] = x_NG.data[start:stop][::-1]
            shuffled.indices[start:stop] = x_NG.indices[start:stop][::-1]
        shuffled.has_sorted_indices = False
        before = shuffled.data.copy()
        np.testing.assert_array_equal(thin(shuffled, 0)[0].toarray(), thin(x_NG, 0)[0].toarray())
        np.testing.assert_array_equal(shuffled.data, before)

    @pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf])
    def test_refuses_what_is_not_a_count(self, value):
        with pytest.raises(ValueError, match=f"{value}: thinning needs counts"):
            thin(sp.csr_matrix(np.array([[1.0, value]])), 0)


class TestFoldIn:
    @pytest.mark.parametrize("pseudo_count", [0.0, 0.1, 2.0])
    @pytest.mark.parametrize("n_iterations", [1, 2, 25])
    def test_is_its_definition(self, x_NG, beta_KG, pseudo_count, n_iterations):
        theta_NK = fold_in(
            x_NG, beta_KG, pseudo_count=pseudo_count, n_iterations=n_iterations, tolerance=0
        )
        expected = fold_in_by_loops(x_NG, beta_KG, pseudo_count, n_iterations)
        np.testing.assert_allclose(theta_NK, expected, rtol=1e-10)
        assert theta_NK.dtype == np.float64

    @given(st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=15)
    def test_each_step_raises_the_likelihood(self, seed):
        rng = np.random.default_rng(seed)
        x_NG = sp.csr_matrix(1 + rng.poisson(2.0, (4, 6)))
        beta_KG = rng.dirichlet(np.ones(6), 3)
        values = [
            log_likelihood(x_NG, fold_in(x_NG, beta_KG, pseudo_count=0, n_iterations=n), beta_KG)
            for n in range(8)
        ]
        assert all(later >= earlier - 1e-9 for earlier, later in pairwise(values))
        assert values[-1] > values[0]

    def test_recovers_planted_proportions(self, rng):
        theta_NK = rng.dirichlet(np.ones(4), 20)
        beta_KG = rng.dirichlet(np.full(60, 0.2), 4)
        x_NG = sp.csr_matrix(
            np.stack([rng.multinomial(200_000, p / p.sum()) for p in theta_NK @ beta_KG])
        )
        np.testing.assert_allclose(fold_in(x_NG, beta_KG), theta_NK, atol=0.01)

    def test_stops_at_the_mode(self, x_NG, beta_KG):
        """A fixed point: one more step, from the definition, moves it no more."""
        theta_NK = fold_in(x_NG, beta_KG, n_iterations=20_000, tolerance=1e-13)
        p_NG = theta_NK @ beta_KG
        expected = theta_NK * ((x_NG.toarray() / p_NG) @ beta_KG.T) + 0.1
        np.testing.assert_allclose(theta_NK, expected / expected.sum(1, keepdims=True), atol=1e-11)

    def test_tolerance_stops_early(self, x_NG, beta_KG):
        one_step = fold_in(x_NG, beta_KG, n_iterations=1)
        np.testing.assert_array_equal(fold_in(x_NG, beta_KG, tolerance=1.0), one_step)

    def test_a_cell_does_not_depend_on_the_others(self, x_NG, beta_KG):
        together = fold_in(x_NG, beta_KG)
        for c in range(N):
            np.testing.assert_allclose(fold_in(x_NG[c], beta_KG)[0], together[c], rtol=1e-12)

    def test_relabelling_topics_relabels_the_result(self, x_NG, beta_KG):
        order = [1, 2, 0]
        relabelled = fold_in(x_NG, beta_KG[order])
        np.testing.assert_allclose(relabelled, fold_in(x_NG, beta_KG)[:, order], atol=1e-8)

    def test_permuting_genes_changes_nothing(self, rng, x_NG, beta_KG):
        order = rng.permutation(G)
        permuted = fold_in(x_NG[:, order], beta_KG[:, order])
        np.testing.assert_allclose(permuted, fold_in(x_NG, beta_KG), atol=1e-8)

    @pytest.mark.parametrize("pseudo_count", [0.0, 0.1])
    def test_a_cell_that_says_nothing_is_uniform(self, pseudo_count):
        beta_KG = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
        # No counts; counts of a gene that no topic has; and a cell that does say something.
        x_NG = sp.csr_matrix([[0, 0, 0], [0, 0, 5], [4, 0, 1]])
        theta_NK = fold_in(x_NG, beta_KG, pseudo_count=pseudo_count)
        np.testing.assert_array_equal(theta_NK[:2], 0.5)
        assert theta_NK[2, 0] > 0.8
        np.testing.assert_allclose(theta_NK.sum(1), 1)

    def test_no_cells(self, beta_KG):
        assert fold_in(sp.csr_matrix((0, G)), beta_KG).shape == (0, K)

    def test_refuses_shapes_that_do_not_fit(self, x_NG, beta_KG):
        with pytest.raises(ValueError, match=r"\(N, G\), \(N, K\) and \(K, G\)"):
            fold_in(x_NG, np.hstack([beta_KG, beta_KG]))

    def test_completion_prefers_the_true_topics(self, rng):
        theta_NK = rng.dirichlet(np.full(3, 0.2), 100)
        beta_KG = rng.dirichlet(np.full(40, 0.2), 3)
        x_NG = sp.csr_matrix(rng.poisson(200 * theta_NK @ beta_KG))
        seen, unseen = thin(x_NG, 0)
        frequencies_G = np.asarray(seen.sum(0)).ravel() / seen.sum() * (1 - 1e-6) + 1e-6 / 40
        true = perplexity(unseen, fold_in(seen, beta_KG), beta_KG)
        wrong_KG = rng.dirichlet(np.full(40, 2.0), 3)
        wrong = perplexity(unseen, fold_in(seen, wrong_KG), wrong_KG)
        assert true < unigram_perplexity(unseen, frequencies_G) < wrong
