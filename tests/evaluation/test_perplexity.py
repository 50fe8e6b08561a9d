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
    @settings(max_examples=30)
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

    def test_permuting_cells_changes_nothing(self, rng, x_NG, theta_NK, beta_KG):
        order = rng.permutation(N)
        permuted = perplexity(x_NG[order], theta_NK[order], beta_KG)
        assert permuted == pytest.approx(perplexity(x_NG, theta_NK, beta_KG), rel=1e-12)

    def test_scaling_counts_changes_nothing(self, x_NG, theta_NK, beta_KG):
        scaled = perplexity(x_NG * 7, theta_NK, beta_KG)
        assert scaled == pytest.approx(perplexity(x_NG, theta_NK, beta_KG), rel=1e-12)

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

    def test_unigram_of_equal_frequencies_is_the_number_of_genes(self, x_NG):
        assert unigram_perplexity(x_NG, np.full(G, 1 / G)) == pytest.approx(G, rel=1e-12)

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
        # Twice the cells: both double.
        assert elbo_perplexity(2 * likelihood, 2 * n_counts) == pytest.approx(expected, rel=1e-12)
        assert elbo_perplexity(-n_counts * math.log(G), n_counts) == pytest.approx(G, rel=1e-12)
        assert elbo_perplexity(0.0, n_counts) == 1
        assert elbo_perplexity(-1e6, 1) == math.inf
        with pytest.raises(ValueError, match="at least one count"):
            elbo_perplexity(-1.0, 0)


class TestTruth:
    """Counts drawn from a model are predicted best by that model."""

    @staticmethod
    def others(rng, theta_NK, beta_KG):
        """Models near the truth, far from it, with topics mixed up, fewer and more topics."""
        for share in (0.01, 0.1, 0.5, 1.0):
            off_KG = (1 - share) * beta_KG + share * rng.dirichlet(np.ones(G), K)
            off_NK = (1 - share) * theta_NK + share * rng.dirichlet(np.ones(K), len(theta_NK))
            yield theta_NK, off_KG
            yield off_NK, beta_KG
            yield off_NK, off_KG
        yield theta_NK[:, [1, 2, 0]], beta_KG
        yield theta_NK[::-1], beta_KG
        yield np.ones((len(theta_NK), 1)), theta_NK.mean(0, keepdims=True) @ beta_KG
        yield rng.dirichlet(np.ones(8), len(theta_NK)), rng.dirichlet(np.ones(G), 8)

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_in_expectation_nothing_beats_it(self, seed):
        """Expected counts in place of drawn ones: Gibbs' inequality, without sampling error."""
        rng = np.random.default_rng(seed)
        theta_NK, beta_KG = rng.dirichlet(np.full(K, 0.5), N), rng.dirichlet(np.full(G, 0.5), K)
        expected_NG = sp.csr_matrix(rng.uniform(10, 1000, (N, 1)) * (theta_NK @ beta_KG))
        true = perplexity(expected_NG, theta_NK, beta_KG)
        for theta, beta in self.others(rng, theta_NK, beta_KG):
            assert perplexity(expected_NG, theta, beta) >= true * (1 - 1e-12)

    def test_drawn_counts_are_predicted_worse_the_further_from_it(self, rng):
        theta_NK, beta_KG = rng.dirichlet(np.full(K, 0.5), 300), rng.dirichlet(np.ones(G), K)
        x_NG = sp.csr_matrix(rng.poisson(500 * theta_NK @ beta_KG))
        wrong_KG = rng.dirichlet(np.ones(G), K)
        values = [
            perplexity(x_NG, theta_NK, (1 - share) * beta_KG + share * wrong_KG)
            for share in (0, 0.1, 0.3, 0.6, 1)
        ]
        assert values == sorted(values)
        for theta, beta in self.others(rng, theta_NK, beta_KG):
            assert perplexity(x_NG, theta, beta) > values[0]

    @pytest.mark.parametrize("seed", range(3))
    def test_completion_prefers_it_to_topics_that_are_off(self, seed):
        rng = np.random.default_rng(seed)
        theta_NK, beta_KG = rng.dirichlet(np.full(4, 0.2), 200), rng.dirichlet(np.full(40, 0.2), 4)
        seen, unseen = thin(sp.csr_matrix(rng.poisson(300 * theta_NK @ beta_KG)), seed)
        wrong_KG = rng.dirichlet(np.full(40, 0.2), 4)
        others = [(1 - share) * beta_KG + share * wrong_KG for share in (0, 0.05, 0.2, 0.5)]
        others.append(np.vstack([beta_KG[:2], beta_KG[2:].mean(0)]))
        true, *rest = [perplexity(unseen, fold_in(seen, beta), beta) for beta in others]
        assert rest[:3] == sorted(rest[:3])
        assert min(rest) > true


class TestFaultsOfPeers:
    def test_parts_weigh_as_many_counts_as_they_have(self, x_NG, theta_NK, beta_KG):
        """A mean over mini-batches would let a short last one weigh as much as a full one."""
        parts = [slice(0, 3), slice(3, 6), slice(6, 7)]
        n_counts = [float(x_NG[part].sum()) for part in parts]
        logs = [math.log(perplexity(x_NG[part], theta_NK[part], beta_KG)) for part in parts]
        whole = perplexity(x_NG, theta_NK, beta_KG)
        assert whole == pytest.approx(math.exp(np.average(logs, weights=n_counts)), rel=1e-12)
        assert whole != pytest.approx(math.exp(np.mean(logs)), rel=1e-3)

    def test_every_cell_counts(self, x_NG, theta_NK, beta_KG):
        """pycisTopic assigns the likelihood of a part where it must be added to the others'."""
        whole = perplexity(x_NG, theta_NK, beta_KG)
        for c in range(N):
            others = np.delete(np.arange(N), c)
            rest = perplexity(x_NG[others], theta_NK[others], beta_KG)
            assert rest != pytest.approx(whole, rel=1e-6)

    def test_more_topics_alone_change_nothing(self, x_NG, theta_NK, beta_KG):
        whole = perplexity(x_NG, theta_NK, beta_KG)
        split = perplexity(x_NG, np.hstack([theta_NK] * 4) / 4, np.vstack([beta_KG] * 4))
        unused_NK = np.hstack([theta_NK, np.zeros((N, 5))])
        unused = perplexity(x_NG, unused_NK, np.vstack([beta_KG, np.full((5, G), 1 / G)]))
        assert split == pytest.approx(whole, rel=1e-12)
        assert unused == pytest.approx(whole, rel=1e-12)

    def test_the_counts_that_divide_are_those_predicted(self, x_NG, theta_NK):
        """Divided by any others, as in scikit-learn, equal probabilities would not give G."""
        uniform_KG = np.full((K, G), 1 / G)
        seen, unseen = thin(x_NG, 0)
        for part, rows in [(seen, slice(0, N)), (unseen, slice(0, N)), (x_NG[2:5], slice(2, 5))]:
            found = perplexity(part, theta_NK[rows], uniform_KG)
            assert found == pytest.approx(G, rel=1e-12)
            assert unigram_perplexity(part, uniform_KG[0]) == pytest.approx(G, rel=1e-12)

    def test_topics_that_learn_cells_by_heart_do_not_win(self, rng):
        """STdeconvolve measures on what it was trained on, where a topic a cell is best."""
        theta_NK, beta_KG = rng.dirichlet(np.full(3, 0.3), 60), rng.dirichlet(np.full(40, 0.3), 3)
        seen, unseen = thin(sp.csr_matrix(rng.poisson(100 * theta_NK @ beta_KG)), 0)
        by_heart_NG = seen.toarray() + 0.01
        by_heart_NG /= by_heart_NG.sum(1, keepdims=True)
        by_heart, true = [], []
        for half in (seen, unseen):
            by_heart.append(perplexity(half, np.eye(60), by_heart_NG))
            true.append(perplexity(half, fold_in(seen, beta_KG), beta_KG))
        assert by_heart[0] < true[0]
        assert by_heart[1] > true[1]


class TestThin:
    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
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
    @pytest.mark.parametrize("pseudo_count", [0.1, 2.0])
    def test_is_where_plain_expectation_maximisation_ends(self, x_NG, beta_KG, pseudo_count):
        expected = fold_in_by_loops(x_NG, beta_KG, pseudo_count, 2000)
        theta_NK = fold_in(x_NG, beta_KG, pseudo_count=pseudo_count)
        np.testing.assert_allclose(theta_NK, expected, atol=1e-5)
        assert theta_NK.dtype == np.float64

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=15)
    def test_is_as_likely_as_plain_expectation_maximisation_makes_it(self, seed):
        """Without pseudo-counts the optimum may be on the edge, where EM only creeps."""
        rng = np.random.default_rng(seed)
        x_NG = sp.csr_matrix(1 + rng.poisson(2.0, (4, 6)))
        beta_KG = rng.dirichlet(np.ones(6), 3)
        plain = fold_in_by_loops(x_NG, beta_KG, 0.0, 300)
        ours = fold_in(x_NG, beta_KG, pseudo_count=0)
        assert log_likelihood(x_NG, ours, beta_KG) >= log_likelihood(x_NG, plain, beta_KG) - 1e-4

    def test_recovers_planted_proportions(self, rng):
        theta_NK = rng.dirichlet(np.ones(4), 20)
        beta_KG = rng.dirichlet(np.full(60, 0.2), 4)
        x_NG = sp.csr_matrix(
            np.stack([rng.multinomial(200_000, p / p.sum()) for p in theta_NK @ beta_KG])
        )
        np.testing.assert_allclose(fold_in(x_NG, beta_KG), theta_NK, atol=0.01)

    def test_stops_at_the_mode(self, x_NG, beta_KG):
        """A fixed point: one more step, from the definition, moves it no more."""
        theta_NK = fold_in(x_NG, beta_KG, n_cycles=20_000, tolerance=1e-13)
        p_NG = theta_NK @ beta_KG
        expected = theta_NK * ((x_NG.toarray() / p_NG) @ beta_KG.T) + 0.1
        np.testing.assert_allclose(theta_NK, expected / expected.sum(1, keepdims=True), atol=1e-11)

    def test_tolerance_stops_early(self, x_NG, beta_KG):
        one_step = fold_in(x_NG, beta_KG, n_cycles=1)
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
