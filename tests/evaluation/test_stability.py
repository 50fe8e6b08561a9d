"""Matching against all permutations, and agreement of replicates against loops."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.evaluation.stability import consensus, match_topics, stability


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def best_permutation(a_KG, b_KG):
    def total(permutation):
        return sum(cosine(a, b_KG[j]) for a, j in zip(a_KG, permutation, strict=True))

    return max(permutations(range(len(a_KG))), key=total)


def replicates(seed, n_replicates=4, n_topics=4, n_genes=7):
    return np.random.default_rng(seed).dirichlet(np.ones(n_genes), (n_replicates, n_topics))


def noisy_replicates(seed, n_replicates=4, n_topics=4, n_genes=9, noise=0.5):
    """Return replicates of the same topics, in any order and with noise, shape (R, K, G)."""
    rng = np.random.default_rng(seed)
    beta_KG = rng.dirichlet(np.full(n_genes, 0.5), n_topics)
    share = rng.uniform(0, noise, (n_replicates, n_topics, 1))
    own = rng.dirichlet(np.full(n_genes, 0.5), (n_replicates, n_topics))
    beta_RKG = (1 - share) * beta_KG + share * own
    return np.stack([beta[rng.permutation(n_topics)] for beta in beta_RKG])


def groups_by_loops(beta_RKG, min_cosine):
    """Return groups of (replicate, topic) by the definition."""
    n_replicates, n_topics, _ = beta_RKG.shape
    groups = [[(r, k)] for r in range(n_replicates) for k in range(n_topics)]

    def least(group):
        nearest = [
            max([cosine(beta_RKG[r, k], beta_RKG[r, j]) for j in range(n_topics) if j != k])
            for r, k in group
        ]
        return sum(max(value, min_cosine) for value in nearest) / len(group)

    def similarity(a, b):
        values = [cosine(beta_RKG[i], beta_RKG[j]) for i in a for j in b]
        return sum(values) / len(values)

    while True:
        near = []
        for a, b in combinations(groups, 2):
            if not {r for r, _ in a} & {r for r, _ in b}:
                value = similarity(a, b)
                if value >= max(least(a), least(b)):
                    near.append((value, a, b))
        if not near:
            return groups
        _, a, b = max(near)
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
    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.8, 0.95]))
    @settings(max_examples=25)
    def test_is_its_definition(self, seed, min_cosine):
        beta_RKG = noisy_replicates(seed)
        found = consensus(beta_RKG, min_cosine=min_cosine)
        expected = sorted(sorted(group) for group in groups_by_loops(beta_RKG, min_cosine))
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

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_is_an_ordered_partition(self, seed):
        found = consensus(noisy_replicates(seed))
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

    def test_the_same_topics_in_any_order_have_full_support(self):
        rng = np.random.default_rng(0)
        beta_KG = replicates(3, n_topics=6, n_genes=12)[0]
        orders = np.stack([np.arange(6), *(rng.permutation(6) for _ in range(4))])
        found = consensus(beta_KG[orders])
        assert found.support_C.tolist() == [5] * 6
        np.testing.assert_allclose(found.cosine_C, 1)
        # Equally tight, so ordered by their first members: those of replicate 0.
        np.testing.assert_allclose(found.beta_CG, beta_KG)
        np.testing.assert_array_equal(found.member_RK, orders)
        assert not found.unstable.any()

    @pytest.mark.parametrize("beta_KG", [np.tile([0.5, 0.3, 0.2], (2, 1)), np.ones((1, 3)) / 3])
    def test_equal_topics_and_a_single_topic_have_full_support(self, beta_KG):
        found = consensus(np.stack([beta_KG] * 3))
        assert found.support_C.tolist() == [3] * len(beta_KG)

    @pytest.mark.parametrize("background", [0.0, 0.97])
    def test_a_topic_of_one_replicate_is_unstable(self, background):
        """Topics may be similar because they share genes."""
        rng = np.random.default_rng(1)
        shared_G = rng.dirichlet(np.full(60, 0.2))
        beta_KG = rng.dirichlet(np.full(60, 0.1), 6)
        beta_RKG = np.stack([beta_KG[:5]] * 4) * 0.98 + 0.02 * rng.dirichlet(np.ones(60), (4, 5))
        beta_RKG[2, 3] = beta_KG[5]
        beta_RKG = background * shared_G + (1 - background) * beta_RKG
        if background:
            assert min(cosine(beta_RKG[0, 0], beta_G) for beta_G in beta_RKG[0]) > 0.99
        found = consensus(beta_RKG)
        assert found.support_C.tolist() == [4, 4, 4, 4, 3, 1]
        assert found.unstable.tolist() == [False] * 5 + [True]
        assert found.member_RK[2, 3] == 5
        np.testing.assert_allclose(found.beta_CG[5], beta_RKG[2, 3])

    def test_nearest_topics_of_low_similarity_are_not_grouped(self):
        eye = np.eye(4)
        off = np.array([0.5, 0.0, 0.0, 0.5])
        # Topic 0 of replicate 0 has a cosine of 0.71 to topic 0 of replicate 1, 0 to the others.
        beta_RKG = np.stack([[off, eye[1]], eye[:2]])
        assert consensus(beta_RKG).support_C.tolist() == [2, 1, 1]
        assert consensus(beta_RKG, min_cosine=0.7).support_C.tolist() == [2, 2]

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=20)
    def test_relabelling_topics_and_order_of_replicates_and_genes_change_nothing(self, seed):
        beta_RKG = noisy_replicates(seed)
        rng = np.random.default_rng(seed)
        genes, order_R = rng.permutation(9), rng.permutation(4)
        order_RK = np.stack([rng.permutation(4) for _ in range(4)])
        there = (order_R[:, None], order_RK)
        expected, found = consensus(beta_RKG), consensus(beta_RKG[there][:, :, genes])
        np.testing.assert_array_equal(found.support_C, expected.support_C)
        np.testing.assert_allclose(found.cosine_C, expected.cosine_C)
        # Compare by topic: the numbers of unstable consensus topics may change.
        of_topic, was = found.member_RK, expected.member_RK[there]
        np.testing.assert_array_equal(found.support_C[of_topic], expected.support_C[was])
        np.testing.assert_allclose(found.beta_CG[of_topic], expected.beta_CG[was][:, :, genes])

    def test_20_replicates_of_40_topics_are_grouped(self):
        rng = np.random.default_rng(0)
        beta_KG = rng.dirichlet(np.full(1000, 0.05), 40)
        orders = np.stack([rng.permutation(40) for _ in range(20)])
        beta_RKG = 0.9 * beta_KG[orders] + 0.1 * rng.dirichlet(np.full(1000, 0.5), (20, 40))
        found = consensus(beta_RKG)
        assert found.support_C.tolist() == [20] * 40
        found_K = np.empty(40, dtype=int)
        found_K[orders[0]] = found.member_RK[0]
        np.testing.assert_array_equal(found.member_RK, found_K[orders])
        again = consensus(beta_RKG)
        for name in ("beta_CG", "support_C", "cosine_C", "member_RK"):
            assert getattr(again, name).tobytes() == getattr(found, name).tobytes()

    def test_bad_arguments_are_refused(self):
        with pytest.raises(
            ValueError, match="consensus compares replicates: it needs at least 2, found 1"
        ):
            consensus(replicates(0, n_replicates=1))
        for min_cosine in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match="between 0 and 1"):
                consensus(replicates(0), min_cosine=min_cosine)
