"""Measures of interpretability against loops, the code of scE2TM and values known by hand."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.cluster import contingency_matrix

from topicell.evaluation.interpretability import (
    over_representation,
    purity,
    set_coherence,
    unshared_genes,
)
from topicell.evaluation.ranking import diversity, top_genes

seeds = st.integers(0, 2**32 - 1)


def sets_and_topics(seed):
    """Return gene sets, some with unmodelled genes, and leading genes, some in no set."""
    rng = np.random.default_rng(seed)
    genes = [f"gene{g}" for g in range(12)]
    sets = {
        f"set{s}": rng.choice([*genes[:9], "unmodelled"], rng.integers(1, 7), replace=False)
        for s in range(rng.integers(1, 8))
    }
    return sets, [rng.permutation(genes)[:5].tolist() for _ in range(3)]


def coherence_by_loops(sets, leading):
    def p(*genes):
        return sum(all(gene in members for gene in genes) for members in sets.values()) / len(sets)

    total, n_pairs = 0.0, 0
    for g, h in combinations(leading, 2):
        n_pairs += 1
        if p(g, h) == 1:
            total += 1
        elif p(g, h) > 0:
            total += math.log(p(g, h) / (p(g) * p(h))) / -math.log(p(g, h))
    return total / n_pairs


@given(seeds)
def test_coherence_equals_loops(seed):
    sets, leading_K = sets_and_topics(seed)
    expected = [coherence_by_loops(sets, leading) for leading in leading_K]
    np.testing.assert_allclose(set_coherence(sets, leading_K), expected, atol=1e-12)


@given(seeds)
def test_coherence_depends_on_no_order(seed):
    sets, leading_K = sets_and_topics(seed)
    turned = dict(reversed([(name, genes[::-1]) for name, genes in sets.items()]))
    np.testing.assert_allclose(
        set_coherence(turned, [leading[::-1] for leading in leading_K]),
        set_coherence(sets, leading_K),
        atol=1e-12,
    )


def test_coherence_of_known_sets():
    sets = {"a": ["A", "B", "C"], "b": ["A", "B"], "c": ["C", "D"], "d": ["E"]}
    # A and B only occur together; C is in a half of the sets and with A in a quarter, as by chance.
    pairs = [["A", "B"], ["A", "C"], ["A", "E"], ["A", "unknown"]]
    np.testing.assert_allclose(set_coherence(sets, pairs), [1, 0, 0, 0], atol=1e-12)
    # D is in a quarter, always with C: log(0.25 / 0.125) / -log(0.25).
    np.testing.assert_allclose(set_coherence(sets, [["C", "D"]]), [0.5])


def test_coherence_of_genes_that_all_sets_have():
    assert set_coherence({"a": ["A", "B"], "b": ["A", "B"]}, [["A", "B"]]).tolist() == [1.0]


def test_coherence_refuses_what_has_no_pairs():
    with pytest.raises(ValueError, match="at least one gene set"):
        set_coherence({}, [["A", "B"]])
    with pytest.raises(ValueError, match="1 leading genes are too few"):
        set_coherence({"a": ["A"]}, [["A"]])


@given(seeds)
def test_unshared_genes_equal_counts(seed):
    beta_KG = np.random.default_rng(seed).dirichlet(np.full(9, 0.5), 4)
    genes_KT = top_genes(beta_KG, 3)
    counts = Counter(genes_KT.ravel().tolist())
    found = unshared_genes(genes_KT)
    assert found == pytest.approx(sum(n == 1 for n in counts.values()) / 12)
    assert found <= diversity(beta_KG, 3)


def test_unshared_genes_at_the_limits():
    assert unshared_genes(np.arange(6).reshape(2, 3)) == 1
    assert unshared_genes(np.tile(np.arange(3), (2, 1))) == 0


@given(seeds)
def test_purity_equals_the_contingency_table(seed):
    rng = np.random.default_rng(seed)
    topic_N, label_N = rng.integers(0, 5, 40), rng.integers(0, 3, 40)
    table = contingency_matrix(label_N, topic_N)
    found = purity(topic_N, np.array(["B", "NK", "T"])[label_N])
    assert found == pytest.approx(table.max(0).sum() / 40)
    # A divided topic is at least as pure.
    assert purity(topic_N * 2 + rng.integers(0, 2, 40), label_N) >= found - 1e-12


def test_purity_leaves_out_cells_without_a_label():
    labels = ["B", "B", "T", None, float("nan")]
    assert purity(np.array([0, 0, 0, 0, 1]), labels) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="needs cells with labels"):
        purity(np.array([0]), [None])


def test_over_representation_of_known_sets():
    assert over_representation([["a"], ["b"], ["c", "d"]]) == (4, 1.0, 4)
    assert over_representation([["a", "b"], ["a", "b"]]) == (4, 0.5, 2)
    number, uniqueness, quality = over_representation([[], []])
    assert (number, quality) == (0, 0)
    assert np.isnan(uniqueness)
