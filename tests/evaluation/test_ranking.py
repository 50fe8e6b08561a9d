"""Rankings of genes and counts of topics against loops and values known by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.evaluation.ranking import (
    RANKINGS,
    diversity,
    dominant_topics,
    effective_topics,
    exclusivity,
    frex,
    gene_scores,
    lift,
    relevance,
    top_genes,
    used_topics,
)

seeds = st.integers(0, 2**32 - 1)


def topics(seed, n_topics=4, n_genes=9):
    return np.random.default_rng(seed).dirichlet(np.full(n_genes, 0.5), n_topics)


def cells(seed, n_cells=30, n_topics=5):
    return np.random.default_rng(seed).dirichlet(np.full(n_topics, 0.3), n_cells)


def topics_and_frequency(seed):
    """Return topics and the share of each gene; some topics or all cells lack a gene."""
    rng = np.random.default_rng(seed)
    beta_KG, frequency_G = topics(seed), rng.dirichlet(np.ones(9))
    beta_KG[rng.random((4, 9)) < 0.1] = 0
    frequency_G[rng.random(9) < 0.1] = 0
    return beta_KG, frequency_G


def lift_by_loops(beta_KG, frequency_G):
    return [[b / p if p else 0 for b, p in zip(row, frequency_G, strict=True)] for row in beta_KG]


def relevance_by_loops(beta_KG, frequency_G, weight):
    def value(b, p):
        if not (b and p):
            return -math.inf
        return weight * math.log(b) + (1 - weight) * math.log(b / p)

    return [[value(b, p) for b, p in zip(row, frequency_G, strict=True)] for row in beta_KG]


def frex_by_loops(beta_KG, weight):
    n_topics, n_genes = beta_KG.shape
    exclusive = [
        [beta_KG[k][g] / sum(beta_KG[j][g] for j in range(n_topics)) for g in range(n_genes)]
        for k in range(n_topics)
    ]

    def rank(row, g):
        return sum(value <= row[g] for value in row) / len(row)

    return [
        [
            1 / (weight / rank(exclusive[k], g) + (1 - weight) / rank(beta_KG[k], g))
            for g in range(n_genes)
        ]
        for k in range(n_topics)
    ]


class TestTopGenes:
    @given(
        st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4),
        st.integers(1, 9),
    )
    @settings(max_examples=40)
    def test_is_a_stable_descending_sort(self, score, n):
        expected = [sorted(range(6), key=lambda g, row=row: (-row[g], g))[:n] for row in score]
        found = top_genes(np.array(score), n)
        assert found.tolist() == expected
        assert found.shape == (len(score), min(n, 6))

    def test_minus_infinity_is_last(self):
        assert top_genes(np.array([[-np.inf, 0.0, np.inf]]), 3).tolist() == [[2, 1, 0]]

    def test_unsigned_scores_do_not_wrap(self):
        assert top_genes(np.array([[0, 2, 1]], dtype=np.uint8), 3).tolist() == [[1, 2, 0]]


class TestLiftAndRelevance:
    @given(seeds, st.sampled_from([0.0, 0.3, 0.6, 1.0]))
    @settings(max_examples=40)
    def test_are_their_definitions(self, seed, weight):
        beta_KG, p_G = topics_and_frequency(seed)
        np.testing.assert_allclose(lift(beta_KG, p_G), lift_by_loops(beta_KG, p_G))
        expected = relevance_by_loops(beta_KG, p_G, weight)
        np.testing.assert_allclose(relevance(beta_KG, p_G, weight), expected, atol=1e-12)

    def test_values_known_by_hand(self):
        beta_KG, p_G = np.array([[0.5, 0.5, 0.0]]), np.array([0.25, 0.5, 0.25])
        np.testing.assert_allclose(lift(beta_KG, p_G), [[2, 1, 0]])
        expected = [[0.6 * math.log(0.5) + 0.4 * math.log(2), 0.6 * math.log(0.5), -math.inf]]
        np.testing.assert_allclose(relevance(beta_KG, p_G), expected)
        # A topic that equals the share of each gene.
        np.testing.assert_allclose(lift(p_G[None], p_G), 1)
        np.testing.assert_allclose(relevance(p_G[None], p_G, 0.0), 0, atol=1e-12)

    def test_a_gene_without_counts_is_last(self):
        beta_KG, p_G = np.array([[0.6, 0.3, 0.1]]), np.array([0.0, 0.9, 0.1])
        assert lift(beta_KG, p_G)[0, 0] == 0
        for weight in (0.0, 0.6, 1.0):
            assert relevance(beta_KG, p_G, weight)[0, 0] == -math.inf

    @given(seeds)
    @settings(max_examples=30)
    def test_relevance_ranks_as_probability_at_one_and_as_lift_at_zero(self, seed):
        beta_KG, p_G = topics(seed), np.random.default_rng(seed).dirichlet(np.ones(9))
        equal_G = np.full(9, 1 / 9)
        for score_KG, other_KG in [
            (relevance(beta_KG, p_G, 1), beta_KG),
            (relevance(beta_KG, p_G, 0), lift(beta_KG, p_G)),
            (relevance(beta_KG, equal_G), beta_KG),
            (lift(beta_KG, equal_G), beta_KG),
        ]:
            np.testing.assert_array_equal(top_genes(score_KG, 9), top_genes(other_KG, 9))

    @pytest.mark.parametrize("measure", [lift, relevance])
    def test_refuse_shapes_that_do_not_fit(self, measure):
        # Without the check, one frequency in all, or one for each topic, gives a wrong number.
        for frequency in (np.ones(1), np.ones((4, 1)), np.ones((4, 9)), np.ones(8)):
            with pytest.raises(ValueError, match=r"\(K, G\) and \(G,\)"):
                measure(topics(0), frequency)


class TestGeneScores:
    def test_are_the_values_of_each_function(self):
        beta_KG, p_G = topics_and_frequency(1)
        expected = {
            "probability": beta_KG,
            "lift": lift(beta_KG, p_G),
            "relevance": relevance(beta_KG, p_G, 0.6),
            "frex": frex(beta_KG, 0.5),
        }
        assert tuple(expected) == RANKINGS
        for by, score_KG in expected.items():
            np.testing.assert_array_equal(gene_scores(beta_KG, by, p_G), score_KG)
        for by, measure in [
            ("relevance", relevance(beta_KG, p_G, 0.2)),
            ("frex", frex(beta_KG, 0.2)),
        ]:
            np.testing.assert_array_equal(gene_scores(beta_KG, by, p_G, 0.2), measure)

    @pytest.mark.parametrize("by", RANKINGS)
    def test_relabelling_topics_and_permuting_genes(self, by):
        beta_KG, p_G = topics_and_frequency(2)
        rng = np.random.default_rng(0)
        relabel, order = rng.permutation(4), rng.permutation(9)
        shuffled = gene_scores(beta_KG[relabel][:, order], by, p_G[order])
        np.testing.assert_allclose(shuffled, gene_scores(beta_KG, by, p_G)[relabel][:, order])

    @pytest.mark.parametrize("by", RANKINGS)
    def test_markers_lead_except_by_probability(self, by):
        """Genes 0 and 1 lead every topic by probability, as ribosomal genes do."""
        rng = np.random.default_rng(0)
        markers_KT = np.arange(2, 14).reshape(4, 3)
        beta_KG = rng.uniform(0.5, 1, (4, 40))
        beta_KG[:, :2] = [60, 50]
        np.put_along_axis(beta_KG, markers_KT, [[30, 28, 26]], axis=1)
        beta_KG /= beta_KG.sum(1, keepdims=True)
        ranked = top_genes(gene_scores(beta_KG, by, beta_KG.mean(0)), 3)
        if by == "probability":
            assert (ranked[:, :2] == [0, 1]).all()
        else:
            np.testing.assert_array_equal(np.sort(ranked), markers_KT)

    def test_the_scores_are_a_copy(self):
        beta_KG = topics(0)
        assert not np.shares_memory(gene_scores(beta_KG, "probability"), beta_KG)

    def test_bad_arguments_are_refused(self):
        beta_KG, p_G = topics(0), np.full(9, 1 / 9)
        with pytest.raises(ValueError, match="'loft': must be one of probability, lift, relevance"):
            gene_scores(beta_KG, "loft", p_G)
        for by in ("lift", "relevance"):
            with pytest.raises(ValueError, match=f"{by} needs frequency_G"):
                gene_scores(beta_KG, by)
            with pytest.raises(ValueError, match=r"\(K, G\) and \(G,\)"):
                gene_scores(beta_KG, by, p_G[:-1])
        for by in ("probability", "lift"):
            with pytest.raises(ValueError, match=f"{by} has no weight"):
                gene_scores(beta_KG, by, p_G, 0.5)
        for by, weight in product(("relevance", "frex"), (-0.1, 1.1, math.nan)):
            with pytest.raises(ValueError, match="between 0 and 1"):
                gene_scores(beta_KG, by, p_G, weight)
        for by in RANKINGS:
            with pytest.raises(ValueError, match=r"\(K, G\)"):
                gene_scores(beta_KG[0], by, p_G)


class TestFrex:
    @given(seeds, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    @settings(max_examples=30)
    def test_is_its_definition(self, seed, weight):
        beta_KG = topics(seed)
        np.testing.assert_allclose(frex(beta_KG, weight), frex_by_loops(beta_KG, weight))

    def test_ties_share_the_higher_rank(self):
        # One topic: exclusivity is 1 for all genes, so the frequency decides.
        found = frex(np.array([[0.4, 0.25, 0.25, 0.1]]))
        ranks = [1, 0.75, 0.75, 0.25]
        np.testing.assert_allclose(found, [[2 / (1 + 1 / rank) for rank in ranks]])

    def test_weight_is_that_of_exclusivity(self):
        # Gene 0 is frequent in both topics; gene 2 is rare, and only in topic 0.
        beta_KG = np.array([[0.6, 0.3, 0.1, 0.0], [0.6, 0.1, 0.0, 0.3]])
        assert top_genes(frex(beta_KG, 0.0), 1)[0, 0] == 0
        assert top_genes(frex(beta_KG, 1.0), 1)[0, 0] == 2

    def test_a_gene_of_no_topic_is_last(self):
        beta_KG = np.array([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]])
        np.testing.assert_allclose(frex(beta_KG)[:, 2], 1 / 3)


class TestExclusivity:
    @pytest.mark.parametrize("n", [1, 4, 9, 50])
    def test_is_its_definition(self, n):
        beta_KG = topics(6)
        scores = frex_by_loops(beta_KG, 0.5)
        expected = []
        for beta_G, score_G in zip(beta_KG, scores, strict=True):
            best = sorted(range(9), key=lambda g, row=beta_G: -row[g])[:n]
            expected.append(sum(score_G[g] for g in best) / len(best))
        np.testing.assert_allclose(exclusivity(beta_KG, n), expected)

    def test_topics_with_own_genes_have_more(self):
        distinct_KG = np.kron(np.eye(3), [0.5, 0.3, 0.2])
        similar_KG = np.tile(np.linspace(1, 0.1, 9) / np.linspace(1, 0.1, 9).sum(), (3, 1))
        similar_KG[:, :3] += np.eye(3) * 1e-3
        assert exclusivity(distinct_KG, 3).min() > exclusivity(similar_KG[:, ::-1], 3).max()
        order = [2, 0, 1]
        np.testing.assert_allclose(
            exclusivity(similar_KG[order], 3), exclusivity(similar_KG, 3)[order]
        )


class TestDiversity:
    @given(seeds, st.integers(1, 12))
    @settings(max_examples=30)
    def test_is_its_definition(self, seed, n):
        beta_KG = topics(seed)
        lists = [sorted(range(9), key=lambda g, row=row: -row[g])[:n] for row in beta_KG]
        expected = len({g for genes in lists for g in genes}) / sum(map(len, lists))
        assert diversity(beta_KG, n) == expected
        assert 1 / 4 <= diversity(beta_KG, n) <= 1

    def test_extremes(self):
        assert diversity(np.kron(np.eye(3), np.ones(25)), 25) == 1
        assert diversity(np.tile(topics(0)[0], (4, 1)), 5) == 1 / 4
        # Few genes: all of them are top genes of all topics.
        assert diversity(topics(0)) == 1 / 4


class TestTopicsOfCells:
    @given(seeds, st.sampled_from([0.0, 0.01, 0.1, 0.3]))
    @settings(max_examples=30)
    def test_are_their_definitions(self, seed, share):
        theta_NK = cells(seed)
        dominant = [max(range(5), key=lambda k, row=row: row[k]) for row in theta_NK]
        assert dominant_topics(theta_NK).tolist() == dominant
        used = sum(dominant.count(k) / len(dominant) > share for k in range(5))
        assert used_topics(theta_NK, share) == used
        mean = [sum(row[k] for row in theta_NK) / len(theta_NK) for k in range(5)]
        entropy = -sum(m * math.log(m) for m in mean)
        assert effective_topics(theta_NK) == pytest.approx(math.exp(entropy))
        assert 1 <= effective_topics(theta_NK) <= 5 + 1e-12

    @pytest.mark.parametrize("n_cells", [100, 300, 700, 1100])
    def test_one_per_cent_is_not_more_than_one_per_cent(self, n_cells):
        dominant = np.zeros(n_cells, dtype=int)
        dominant[: n_cells // 100] = 1
        assert used_topics(np.eye(3)[dominant]) == 1
        dominant[n_cells // 100] = 1
        assert used_topics(np.eye(3)[dominant]) == 2

    def test_equal_proportions_go_to_the_first_topic(self):
        assert dominant_topics(np.array([[0.5, 0.5], [0.2, 0.8]])).tolist() == [0, 1]

    def test_effective_topics_extremes(self):
        assert effective_topics(np.eye(6)) == pytest.approx(6)
        assert effective_topics(np.eye(6)[[2, 2, 2]]) == 1
        assert effective_topics(np.eye(6)[[0, 3]]) == pytest.approx(2)

    def test_relabelling_topics_and_copies_and_order_of_cells_change_nothing(self):
        theta_NK = cells(8)
        copies = np.vstack([theta_NK] * 3)
        for other in (theta_NK[:, [3, 1, 4, 0, 2]], copies, theta_NK[::-1]):
            assert used_topics(other) == used_topics(theta_NK)
            assert effective_topics(other) == pytest.approx(effective_topics(theta_NK), rel=1e-12)
