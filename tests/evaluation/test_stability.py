"""Matching against all permutations, and agreement of replicates against loops."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.evaluation.stability import (
    consensus,
    correlations,
    little_support,
    match_topics,
    stability,
)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def best_permutation(a_KG, b_KG):
    def total(permutation):
        return sum(cosine(a, b_KG[j]) for a, j in zip(a_KG, permutation, strict=True))

    return max(permutations(range(len(a_KG))), key=total)


def replicates(seed, n_replicates=4, n_topics=4, n_genes=7):
    return np.random.default_rng(seed).dirichlet(np.ones(n_genes), (n_replicates, n_topics))


def noisy_replicates(seed, n_replicates=4, n_topics=4, n_genes=9, n_cells=25, noise=0.5):
    """Return replicates of the same topics in any order, with noise: (R, K, G) and (R, N, K)."""
    rng = np.random.default_rng(seed)
    beta_KG = rng.dirichlet(np.full(n_genes, 0.5), n_topics)
    theta_NK = rng.dirichlet(np.full(n_topics, 0.3), n_cells)
    share = rng.uniform(0, noise, (n_replicates, n_topics, 1))
    beta_RKG = (1 - share) * beta_KG + share * rng.dirichlet(np.full(n_genes, 0.5), share.shape[:2])
    own = rng.dirichlet(np.full(n_cells, 0.3), (n_replicates, n_topics)) * n_cells / n_topics
    theta_RKN = (1 - share) * theta_NK.T + share * own
    orders = [rng.permutation(n_topics) for _ in range(n_replicates)]
    beta_RKG = np.stack([beta[order] for beta, order in zip(beta_RKG, orders, strict=True)])
    theta_RKN = np.stack([theta[order] for theta, order in zip(theta_RKN, orders, strict=True)])
    return beta_RKG, theta_RKN.transpose(0, 2, 1)


def groups_by_loops(theta_RNK, least):
    """Return groups of (replicate, topic) by the definition."""
    n_replicates, _, n_topics = theta_RNK.shape
    groups = [[(r, k)] for r in range(n_replicates) for k in range(n_topics)]

    def similarity(a, b):
        values = [
            np.corrcoef(theta_RNK[r, :, k], theta_RNK[q, :, j])[0, 1] for r, k in a for q, j in b
        ]
        return sum(values) / len(values)

    while True:
        near = [
            (similarity(a, b), a, b)
            for a, b in combinations(groups, 2)
            if not {r for r, _ in a} & {r for r, _ in b}
        ]
        value, a, b = max(near, default=(-1, [], []))
        if value < least:
            return groups
        groups = [group for group in groups if group not in (a, b)] + [a + b]


class TestMatchTopics:
    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=40)
    def test_is_the_best_of_all_permutations(self, seed):
        a_KG, b_KG = replicates(seed, n_replicates=2)
        matching = match_topics(a_KG, b_KG)
        best = best_permutation(a_KG, b_KG)
        assert tuple(matching.permutation) == best
        np.testing.assert_allclose(
            matching.cosine, [cosine(a, b_KG[j]) for a, j in zip(a_KG, best, strict=True)]
        )

    def test_is_not_greedy(self):
        """The most similar pair is not matched if the other pairs lose more by it."""
        a_KG = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0]])
        b_KG = np.array([[0.9, math.sqrt(0.19), 0.0], [0.0, 1.0, 0.0]])
        matching = match_topics(a_KG, b_KG)
        np.testing.assert_allclose(matching.cosine, [0.9, 0.6])
        assert cosine(a_KG[1], b_KG[0]) > 0.98
        assert matching.permutation.tolist() == [0, 1]

    @given(st.permutations(range(6)))
    @settings(max_examples=30)
    def test_undoes_a_permutation_and_ignores_the_scale(self, order):
        beta_KG = replicates(0, 1, 6, 10)[0]
        scale_K1 = np.array([[1.0], [5], [0.1], [9], [1], [2]])
        matching = match_topics(scale_K1 * beta_KG, beta_KG[order])
        np.testing.assert_array_equal(beta_KG[order][matching.permutation], beta_KG)
        np.testing.assert_allclose(matching.cosine, 1)

    def test_refuses_different_shapes(self):
        with pytest.raises(ValueError, match=r"\(4, 7\) and \(3, 7\)"):
            match_topics(replicates(0)[0], replicates(0)[0][:3])


class TestStability:
    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=15)
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

    def test_a_topic_of_one_replicate_has_stability_zero(self):
        eye = np.eye(5)
        beta_RKG = np.stack([eye[[0, 1, 2]], eye[[2, 0, 1]], eye[[1, 4, 0]]])
        expected = [[1, 1, 0.5], [0.5, 1, 1], [1, 0, 1]]
        np.testing.assert_allclose(stability(beta_RKG).per_topic_RK, expected)

    def test_order_of_topics_genes_and_replicates_changes_nothing(self):
        beta_RKG = replicates(4)
        rng = np.random.default_rng(1)
        order_R, order_RK = rng.permutation(4)[:, None], [rng.permutation(4) for _ in range(4)]
        found = stability(beta_RKG[order_R, order_RK][:, :, rng.permutation(7)])
        expected = stability(beta_RKG)
        assert found.mean == pytest.approx(expected.mean, rel=1e-12)
        np.testing.assert_allclose(found.per_topic_RK, expected.per_topic_RK[order_R, order_RK])

    def test_needs_two_replicates(self):
        with pytest.raises(ValueError, match="needs at least 2, found 1"):
            stability(replicates(0, n_replicates=1))


class TestConsensus:
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.6, 0.9]))
    @settings(max_examples=25)
    def test_is_its_definition(self, seed, least):
        beta_RKG, theta_RNK = noisy_replicates(seed)
        found = consensus(beta_RKG, theta_RNK, min_correlation=least)
        expected = sorted(sorted(group) for group in groups_by_loops(theta_RNK, least))
        groups = [
            sorted(zip(*np.nonzero(found.member_RK == c), strict=True))
            for c in range(len(found.support_C))
        ]
        assert sorted(groups) == expected
        for c, group in enumerate(groups):
            mean_G = sum(beta_RKG[member] for member in group) / len(group)
            np.testing.assert_allclose(found.beta_CG[c], mean_G)
            tight = sum(cosine(beta_RKG[member], mean_G) for member in group) / len(group)
            assert found.cosine_C[c] == pytest.approx(tight)
            assert found.support_C[c] == len(group)
        # Ordered pairs of topics of one group, of all pairs with another replicate.
        n_pairs = sum(len(group) * (len(group) - 1) for group in groups)
        assert found.found_again == pytest.approx(n_pairs / (4 * 4 * 3))

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_is_an_ordered_partition(self, seed):
        found = consensus(*noisy_replicates(seed))
        np.testing.assert_allclose(found.beta_CG.sum(1), 1)
        assert (found.beta_CG >= 0).all()
        assert found.support_C.sum() == found.member_RK.size
        assert set(found.member_RK.ravel()) == set(range(len(found.support_C)))
        for member_K in found.member_RK:
            assert len(set(member_K)) == len(member_K)
        assert found.support_C.dtype.kind == found.member_RK.dtype.kind == "i"
        assert found.support_C.max() <= 4
        keys = list(zip(-found.support_C, -found.cosine_C.round(9), strict=True))
        assert keys == sorted(keys)
        np.testing.assert_array_equal(found.unstable, found.support_C == 1)
        assert 0 <= found.found_again <= 1

    def test_the_same_topics_in_any_order_have_full_support(self):
        rng = np.random.default_rng(0)
        beta_KG = replicates(3, n_topics=6, n_genes=12)[0]
        theta_NK = rng.dirichlet(np.full(6, 0.3), 50)
        orders = np.stack([np.arange(6), *(rng.permutation(6) for _ in range(4))])
        found = consensus(beta_KG[orders], theta_NK[:, orders].transpose(1, 0, 2))
        assert found.support_C.tolist() == [5] * 6
        np.testing.assert_allclose(found.cosine_C, 1)
        # Equally tight, so ordered by their first members: those of replicate 0.
        np.testing.assert_allclose(found.beta_CG, beta_KG)
        np.testing.assert_array_equal(found.member_RK, orders)
        assert not found.unstable.any()
        assert found.found_again == 1

    def test_a_topic_of_one_replicate_is_unstable(self):
        """Genes that topics share do not matter: all cosines are above 0.99."""
        rng = np.random.default_rng(1)
        beta_KG = 0.97 * rng.dirichlet(np.full(60, 0.2)) + 0.03 * rng.dirichlet(np.full(60, 0.1), 6)
        assert min(cosine(beta_KG[0], beta_G) for beta_G in beta_KG) > 0.99
        theta_NK = rng.dirichlet(np.full(6, 0.3), 80)
        topics = np.tile(np.arange(5), (4, 1))
        topics[2, 3] = 5
        found = consensus(beta_KG[topics], theta_NK[:, topics].transpose(1, 0, 2))
        assert found.support_C.tolist() == [4, 4, 4, 4, 3, 1]
        assert found.unstable.tolist() == [False] * 5 + [True]
        assert found.member_RK[2, 3] == 5
        np.testing.assert_allclose(found.beta_CG[5], beta_KG[5])
        assert found.found_again == pytest.approx((4 * 12 + 6) / 60)
        little = little_support(found.support_C, 4)
        assert little.tolist() == [False] * 5 + [True]

    def test_half_of_the_replicates_are_little_support(self):
        assert little_support(np.array([1, 2, 3, 4]), 4).tolist() == [True, True, False, False]
        assert little_support(np.array([1, 2]), 2).tolist() == [True, False]

    def test_a_topic_with_the_same_proportion_in_all_cells_is_not_found_again(self):
        beta_RKG, theta_RNK = noisy_replicates(0, n_topics=2, noise=0)
        theta_RNK[:, :, 0] = 0.3
        found = consensus(beta_RKG, theta_RNK)
        assert (found.support_C[found.member_RK[:, 0]] == 1).all()

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=20)
    def test_relabelling_and_order_of_replicates_genes_and_cells_change_nothing(self, seed):
        beta_RKG, theta_RNK = noisy_replicates(seed)
        rng = np.random.default_rng(seed)
        genes, cells, order_R = rng.permutation(9), rng.permutation(25), rng.permutation(4)
        order_RK = np.stack([rng.permutation(4) for _ in range(4)])
        there = (order_R[:, None], order_RK)
        theta_RKN = theta_RNK.transpose(0, 2, 1)[there][:, :, cells]
        expected = consensus(beta_RKG, theta_RNK)
        found = consensus(beta_RKG[there][:, :, genes], theta_RKN.transpose(0, 2, 1))
        np.testing.assert_array_equal(found.support_C, expected.support_C)
        np.testing.assert_allclose(found.cosine_C, expected.cosine_C)
        # Compare by topic: the numbers of unstable consensus topics may change.
        of_topic, was = found.member_RK, expected.member_RK[there]
        np.testing.assert_array_equal(found.support_C[of_topic], expected.support_C[was])
        np.testing.assert_allclose(found.beta_CG[of_topic], expected.beta_CG[was][:, :, genes])

    def test_20_replicates_of_40_topics_are_grouped(self):
        rng = np.random.default_rng(0)
        beta_KG = rng.dirichlet(np.full(1000, 0.05), 40)
        theta_NK = rng.dirichlet(np.full(40, 0.05), 500)
        orders = np.stack([rng.permutation(40) for _ in range(20)])
        theta_RNK = theta_NK[:, orders].transpose(1, 0, 2) + rng.normal(0, 0.01, (20, 500, 40))
        found = consensus(beta_KG[orders], theta_RNK)
        assert found.support_C.tolist() == [20] * 40
        found_K = np.empty(40, dtype=int)
        found_K[orders[0]] = found.member_RK[0]
        np.testing.assert_array_equal(found.member_RK, found_K[orders])
        again = consensus(beta_KG[orders], theta_RNK)
        for name in ("beta_CG", "support_C", "cosine_C", "member_RK"):
            assert getattr(again, name).tobytes() == getattr(found, name).tobytes()

    def test_bad_arguments_are_refused(self):
        beta_RKG, theta_RNK = noisy_replicates(0)
        with pytest.raises(
            ValueError, match="consensus compares replicates: it needs at least 2, found 1"
        ):
            consensus(beta_RKG[:1], theta_RNK[:1])
        for least in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match="between 0 and 1"):
                consensus(beta_RKG, theta_RNK, min_correlation=least)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_correlations_are_those_of_numpy_in_any_chunks(chunk, monkeypatch):
    _, theta_RNK = noisy_replicates(3)
    monkeypatch.setattr("topicell.evaluation.stability.CHUNK", chunk)
    topics_TN = theta_RNK.transpose(0, 2, 1).reshape(16, -1)
    np.testing.assert_allclose(
        correlations(theta_RNK.astype(np.float32)), np.corrcoef(topics_TN), atol=1e-6
    )
