"""Matching against all permutations, and agreement of replicates against loops."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.evaluation.stability import match_topics, stability


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def best_permutation(a_KG, b_KG):
    def total(permutation):
        return sum(cosine(a, b_KG[j]) for a, j in zip(a_KG, permutation, strict=True))

    return max(permutations(range(len(a_KG))), key=total)


def replicates(seed, n_replicates=4, n_topics=4, n_genes=7):
    return np.random.default_rng(seed).dirichlet(np.ones(n_genes), (n_replicates, n_topics))


class TestMatchTopics:
    @given(st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=40)
    def test_is_the_best_of_all_permutations(self, seed):
        a_KG, b_KG = replicates(seed, n_replicates=2)
        matching = match_topics(a_KG, b_KG)
        best = best_permutation(a_KG, b_KG)
        assert tuple(matching.permutation) == best
        np.testing.assert_allclose(
            matching.cosine, [cosine(a, b_KG[j]) for a, j in zip(a_KG, best, strict=True)]
        )

    def test_is_not_greedy(self):
        """The most similar pair of all is given up where the others lose more by it."""
        a_KG = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0]])
        b_KG = np.array([[0.9, math.sqrt(0.19), 0.0], [0.0, 1.0, 0.0]])
        matching = match_topics(a_KG, b_KG)
        np.testing.assert_allclose(matching.cosine, [0.9, 0.6])
        assert cosine(a_KG[1], b_KG[0]) > 0.98
        assert matching.permutation.tolist() == [0, 1]

    @given(st.permutations(range(6)))
    @settings(deadline=None, max_examples=30)
    def test_undoes_a_permutation(self, order):
        beta_KG = replicates(0, 1, 6, 10)[0]
        matching = match_topics(beta_KG, beta_KG[order])
        np.testing.assert_array_equal(beta_KG[order][matching.permutation], beta_KG)
        np.testing.assert_allclose(matching.cosine, 1)

    def test_scale_of_a_topic_does_not_matter(self):
        a_KG, b_KG = replicates(1, n_replicates=2)
        scaled = match_topics(a_KG * np.array([[1.0], [5.0], [0.1], [9.0]]), b_KG)
        np.testing.assert_allclose(scaled.cosine, match_topics(a_KG, b_KG).cosine)

    def test_refuses_different_shapes(self):
        with pytest.raises(ValueError, match=r"\(4, 7\) and \(3, 7\)"):
            match_topics(replicates(0)[0], replicates(0)[0][:3])


class TestStability:
    @given(st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=15)
    def test_is_its_definition(self, seed):
        beta_RKG = replicates(seed, n_replicates=3)
        expected = np.zeros((3, 4))
        for r in range(3):
            for other in range(3):
                if other != r:
                    best = best_permutation(beta_RKG[r], beta_RKG[other])
                    for k, j in enumerate(best):
                        expected[r, k] += cosine(beta_RKG[r, k], beta_RKG[other, j]) / 2
        found = stability(beta_RKG)
        np.testing.assert_allclose(found.per_topic_RK, expected)
        assert found.mean == pytest.approx(expected.mean())

    def test_topics_average_to_the_mean_of_pairs(self):
        beta_RKG = replicates(2)
        pairs = [
            match_topics(beta_RKG[a], beta_RKG[b]).cosine.mean() for a in range(4) for b in range(a)
        ]
        found = stability(beta_RKG)
        assert found.mean == pytest.approx(np.mean(pairs))
        assert found.per_topic_RK.mean() == pytest.approx(np.mean(pairs))

    def test_the_same_topics_in_any_order_are_stable(self):
        rng = np.random.default_rng(0)
        beta_KG = replicates(3)[0]
        found = stability(np.stack([beta_KG[rng.permutation(4)] for _ in range(5)]))
        assert found.mean == pytest.approx(1)
        np.testing.assert_allclose(found.per_topic_RK, 1)

    def test_a_topic_found_once_is_the_one_that_is_not_stable(self):
        eye = np.eye(5)
        beta_RKG = np.stack([eye[[0, 1, 2]], eye[[2, 0, 1]], eye[[1, 4, 0]]])
        expected = [[1, 1, 0.5], [0.5, 1, 1], [1, 0, 1]]
        np.testing.assert_allclose(stability(beta_RKG).per_topic_RK, expected)

    def test_relabelling_and_gene_order_change_nothing(self):
        beta_RKG = replicates(4)
        rng = np.random.default_rng(1)
        orders = [rng.permutation(4) for _ in beta_RKG]
        shuffled = np.stack([beta[order] for beta, order in zip(beta_RKG, orders, strict=True)])
        found = stability(shuffled[:, :, rng.permutation(7)])
        expected = stability(beta_RKG)
        assert found.mean == pytest.approx(expected.mean, rel=1e-12)
        for r, order in enumerate(orders):
            np.testing.assert_allclose(found.per_topic_RK[r], expected.per_topic_RK[r][order])

    def test_needs_two_replicates(self):
        with pytest.raises(ValueError, match="1 are too few"):
            stability(replicates(0, n_replicates=1))
