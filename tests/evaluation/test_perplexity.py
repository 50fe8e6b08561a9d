"""Perplexity, count splitting and fold-in against loops, and their laws."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.evaluation import perplexity as module
from topicell.evaluation.perplexity import (
    elbo_perplexity,
    fold_in,
    perplexity,
    sampling_error,
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


class TestPerplexity:
    def test_is_its_definition(self, x_NG, theta_NK, beta_KG):
        expected = math.exp(-log_likelihood(x_NG, theta_NK, beta_KG) / float(x_NG.sum()))
        assert perplexity(x_NG, theta_NK, beta_KG) == pytest.approx(expected, rel=1e-12)

    def test_uniform_topics_give_the_number_of_genes(self, x_NG, theta_NK):
        uniform_KG = np.full((K, G), 1 / G)
        assert perplexity(x_NG, theta_NK, uniform_KG) == pytest.approx(G, rel=1e-12)

    def test_true_topics_have_the_entropy_of_their_genes(self, beta_KG):
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

    def test_order_and_copies_and_unused_topics_change_nothing(self, rng, x_NG, theta_NK, beta_KG):
        topics, genes, cells = rng.permutation(K), rng.permutation(G), rng.permutation(N)
        unused_NK = np.hstack([theta_NK, np.zeros((N, 5))])
        expected = pytest.approx(perplexity(x_NG, theta_NK, beta_KG), rel=1e-12)
        for same in (
            (x_NG, theta_NK[:, topics], beta_KG[topics]),
            (x_NG[:, genes], theta_NK, beta_KG[:, genes]),
            (x_NG[cells], theta_NK[cells], beta_KG),
            (sp.vstack([x_NG, x_NG]), np.vstack([theta_NK, theta_NK]), beta_KG),
            (x_NG * 7, theta_NK, beta_KG),
            (x_NG, np.hstack([theta_NK] * 4) / 4, np.vstack([beta_KG] * 4)),
            (x_NG, unused_NK, np.vstack([beta_KG, np.full((5, G), 1 / G)])),
        ):
            assert perplexity(*same) == expected
        # The measure does see a permutation of one side only.
        assert perplexity(x_NG, theta_NK[:, [2, 0, 1]], beta_KG) != expected

    def test_extremes(self):
        # Each cell has one gene, and its topic has only this gene: no uncertainty is left.
        assert perplexity(sp.csr_matrix(np.diag([3, 1, 8])), np.eye(3), np.eye(3)) == 1
        one, beta_KG = np.ones((1, 1)), np.array([[1.0, 0.0]])
        assert perplexity(sp.csr_matrix([[1, 1]]), one, beta_KG) == math.inf
        # A stored zero is no count.
        x_NG = sp.csr_matrix((np.array([2.0, 0.0]), np.array([0, 1]), np.array([0, 2])), (1, 2))
        assert perplexity(x_NG, one, beta_KG) == 1

    def test_parts_weigh_as_many_counts_as_they_have(self, x_NG, theta_NK, beta_KG):
        """A mean over parts of different sizes would be wrong."""
        parts = [slice(0, 3), slice(3, 6), slice(6, 7)]
        n_counts = [float(x_NG[part].sum()) for part in parts]
        logs = [math.log(perplexity(x_NG[part], theta_NK[part], beta_KG)) for part in parts]
        whole = perplexity(x_NG, theta_NK, beta_KG)
        assert whole == pytest.approx(math.exp(np.average(logs, weights=n_counts)), rel=1e-12)
        assert whole != pytest.approx(math.exp(np.mean(logs)), rel=1e-3)

    def test_needs_a_count(self, theta_NK, beta_KG):
        with pytest.raises(ValueError, match="at least one count"):
            perplexity(sp.csr_matrix((N, G)), theta_NK, beta_KG)

    def test_refuses_shapes_that_do_not_fit(self, x_NG, theta_NK, beta_KG):
        # Without the check, too many genes of beta give a wrong number.
        for theta, beta in [
            (theta_NK, np.hstack([beta_KG, beta_KG])),
            (theta_NK[:-1], beta_KG),
            (theta_NK[:, :-1], beta_KG),
        ]:
            with pytest.raises(ValueError, match=r"\(N, G\), \(N, K\) and \(K, G\)"):
                perplexity(x_NG, theta, beta)

    def test_unigram_is_one_topic(self, rng, x_NG):
        for frequencies_G in (rng.dirichlet(np.ones(G)), np.full(G, 1 / G)):
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

    def test_elbo_perplexity_without_kl_terms_is_perplexity(self, x_NG, theta_NK, beta_KG):
        n_counts = float(x_NG.sum())
        likelihood = log_likelihood(x_NG, theta_NK, beta_KG)
        expected = perplexity(x_NG, theta_NK, beta_KG)
        assert elbo_perplexity(likelihood, n_counts) == pytest.approx(expected, rel=1e-12)
        # A higher bound is a lower perplexity.
        assert elbo_perplexity(likelihood + 1, n_counts) < expected
        assert elbo_perplexity(0.0, n_counts) == 1
        assert elbo_perplexity(-1e6, 1) == math.inf
        with pytest.raises(ValueError, match="at least one count"):
            elbo_perplexity(-1.0, 0)


class TestTruth:
    """Counts that a model draws are predicted best by this model."""

    @staticmethod
    def others(rng, theta_NK, beta_KG):
        """Yield models near the truth, far from it, with exchanged, fewer and more topics."""
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
    def test_no_model_is_better_in_expectation(self, seed):
        """Gibbs' inequality on expected counts, which have no sampling error."""
        rng = np.random.default_rng(seed)
        theta_NK, beta_KG = rng.dirichlet(np.full(K, 0.5), N), rng.dirichlet(np.full(G, 0.5), K)
        expected_NG = sp.csr_matrix(rng.uniform(10, 1000, (N, 1)) * (theta_NK @ beta_KG))
        true = perplexity(expected_NG, theta_NK, beta_KG)
        for theta, beta in self.others(rng, theta_NK, beta_KG):
            assert perplexity(expected_NG, theta, beta) >= true * (1 - 1e-12)

    def test_perplexity_of_drawn_counts_grows_with_the_distance(self, rng):
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
    def test_completion_prefers_the_true_topics(self, seed):
        rng = np.random.default_rng(seed)
        theta_NK, beta_KG = rng.dirichlet(np.full(4, 0.2), 200), rng.dirichlet(np.full(40, 0.2), 4)
        seen, unseen = thin(sp.csr_matrix(rng.poisson(300 * theta_NK @ beta_KG)), seed)
        wrong_KG = rng.dirichlet(np.full(40, 0.2), 4)
        others = [(1 - share) * beta_KG + share * wrong_KG for share in (0, 0.05, 0.2, 0.5)]
        others.append(np.vstack([beta_KG[:2], beta_KG[2:].mean(0)]))
        true, *rest = [perplexity(unseen, fold_in(seen, beta), beta) for beta in others]
        assert rest[:3] == sorted(rest[:3])
        assert min(rest) > true


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

    def test_the_same_seed_draws_the_same(self, x_NG):
        same = [thin(x_NG, seed)[0].toarray() for seed in (3, 3, 4)]
        np.testing.assert_array_equal(same[0], same[1])
        assert (same[0] != same[2]).any()

    def test_order_of_entries_changes_nothing_and_the_input_is_not_changed(self, x_NG):
        shuffled = x_NG.copy()
        for start, stop in pairwise(x_NG.indptr):
            shuffled.data[start:stop] = x_NG.data[start:stop][::-1]
            shuffled.indices[start:stop] = x_NG.indices[start:stop][::-1]
        shuffled.has_sorted_indices = False
        before = shuffled.data.copy()
        np.testing.assert_array_equal(thin(shuffled, 0)[0].toarray(), thin(x_NG, 0)[0].toarray())
        np.testing.assert_array_equal(shuffled.data, before)

    @pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf])
    def test_values_that_are_no_counts_are_refused(self, value):
        with pytest.raises(ValueError, match=f"{value}: thinning needs counts"):
            thin(sp.csr_matrix(np.array([[1.0, value]])), 0)


class TestFoldIn:
    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=15)
    def test_is_as_likely_as_by_300_steps_of_plain_em(self, seed):
        """Without pseudo-counts the optimum may be on the edge, which EM approaches slowly."""
        rng = np.random.default_rng(seed)
        x_NG = sp.csr_matrix(1 + rng.poisson(2.0, (4, 6)))
        beta_KG = rng.dirichlet(np.ones(6), 3)
        plain_NK = np.full((4, 3), 1 / 3)
        for _ in range(300):
            plain_NK *= (x_NG.toarray() / (plain_NK @ beta_KG)) @ beta_KG.T
            plain_NK /= plain_NK.sum(1, keepdims=True)
        found_NK = fold_in(x_NG, beta_KG, pseudo_count=0)
        least = log_likelihood(x_NG, plain_NK, beta_KG) - 1e-4
        assert log_likelihood(x_NG, found_NK, beta_KG) >= least

    def test_recovers_planted_proportions(self, rng):
        theta_NK = rng.dirichlet(np.ones(4), 20)
        beta_KG = rng.dirichlet(np.full(60, 0.2), 4)
        x_NG = sp.csr_matrix(
            np.stack([rng.multinomial(200_000, p / p.sum()) for p in theta_NK @ beta_KG])
        )
        np.testing.assert_allclose(fold_in(x_NG, beta_KG), theta_NK, atol=0.01)

    @pytest.mark.parametrize("pseudo_count", [0.1, 2.0])
    def test_stops_at_the_mode(self, x_NG, beta_KG, pseudo_count):
        """One more step, written from the definition, moves no proportion."""
        settings = {"pseudo_count": pseudo_count, "n_cycles": 20_000, "tolerance": 1e-13}
        theta_NK = fold_in(x_NG, beta_KG, **settings)
        p_NG = theta_NK @ beta_KG
        expected = theta_NK * ((x_NG.toarray() / p_NG) @ beta_KG.T) + pseudo_count
        np.testing.assert_allclose(theta_NK, expected / expected.sum(1, keepdims=True), atol=1e-11)
        found = fold_in(x_NG, beta_KG, pseudo_count=pseudo_count)
        np.testing.assert_allclose(found, theta_NK, atol=1e-5)
        assert found.dtype == np.float64

    def test_tolerance_stops_early(self, x_NG, beta_KG):
        one_step = fold_in(x_NG, beta_KG, n_cycles=1)
        np.testing.assert_array_equal(fold_in(x_NG, beta_KG, tolerance=1.0), one_step)

    def test_a_cell_does_not_depend_on_the_others(self, x_NG, beta_KG):
        together = fold_in(x_NG, beta_KG)
        for c in range(N):
            np.testing.assert_allclose(fold_in(x_NG[c], beta_KG)[0], together[c], rtol=1e-12)

    def test_order_of_genes_changes_nothing_and_order_of_topics_orders(self, rng, x_NG, beta_KG):
        topics, genes = rng.permutation(K), rng.permutation(G)
        found = fold_in(x_NG[:, genes], beta_KG[topics][:, genes])
        np.testing.assert_allclose(found, fold_in(x_NG, beta_KG)[:, topics], atol=1e-8)

    @pytest.mark.parametrize("pseudo_count", [0.0, 0.1])
    def test_a_cell_without_information_is_uniform(self, pseudo_count):
        beta_KG = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
        # No counts; counts of a gene that no topic has; counts of known genes.
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


def test_cells_are_folded_in_a_few_at_a_time_with_the_same_result(x_NG, beta_KG, monkeypatch):
    whole = fold_in(x_NG, beta_KG)
    monkeypatch.setattr(module, "FOLDED", 3)
    np.testing.assert_array_equal(fold_in(x_NG, beta_KG), whole)


def test_the_sampling_error_is_the_spread_of_the_perplexity_over_samples():
    """Cells differ in depth and in how well they are predicted, and one has no counts."""
    rng = np.random.default_rng(0)
    beta_KG = rng.dirichlet(np.full(20, 0.3), 3)
    theta_NK = rng.dirichlet(np.full(3, 0.3), 3000)
    depth_N = rng.integers(5, 200, 3000)
    beta_NG = 0.7 * theta_NK @ beta_KG + 0.3 * rng.dirichlet(np.full(20, 0.3), 3000)
    counts = [rng.multinomial(n, p) for n, p in zip(depth_N, beta_NG, strict=True)]
    counts[0] *= 0
    x_NG = sp.csr_matrix(np.array(counts))

    def of(x, theta):
        return perplexity(x, theta, beta_KG)

    drawn = [rng.choice(3000, 300, replace=False) for _ in range(600)]
    values = np.array([of(x_NG[rows], theta_NK[rows]) for rows in drawn])
    errors = np.array([sampling_error(of, x_NG[rows], theta_NK[rows], 0) for rows in drawn])
    # Samples without replacement from 3,000 cells.
    spread = np.sqrt(1 - 300 / 3000) * np.sqrt((errors**2).mean())
    assert spread == pytest.approx(values.std(ddof=1), rel=0.1)
    assert values.mean() == pytest.approx(of(x_NG, theta_NK), rel=0.005)
    # The order of the cells does not matter: data are often sorted by type.
    kind = np.argsort(theta_NK[drawn[0], 0])
    rows = drawn[0][kind]
    assert sampling_error(of, x_NG[rows], theta_NK[rows], 0) == pytest.approx(errors[0], rel=0.5)
    assert sampling_error(lambda x, theta: np.inf, x_NG, theta_NK, 0) == np.inf
