"""Coherence against loops over cells and pairs, gensim and values known by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.evaluation.coherence import npmi, umass


def npmi_by_loops(x_NG, genes_KT):
    cells = [{g for g, count in enumerate(counts) if count > 0} for counts in x_NG.toarray()]

    def p(*genes):
        return sum(all(g in cell for g in genes) for cell in cells) / len(cells)

    def value(g, h):
        if p(g, h) == 0:
            return -1
        if p(g, h) == 1:
            return 1
        return math.log(p(g, h) / (p(g) * p(h))) / -math.log(p(g, h))

    pairs = [list(combinations(genes, 2)) for genes in genes_KT]
    return [sum(value(g, h) for g, h in topic) / len(topic) for topic in pairs]


def umass_by_loops(x_NG, genes_KT):
    cells = [{g for g, count in enumerate(counts) if count > 0} for counts in x_NG.toarray()]

    def n_cells(*genes):
        return sum(all(g in cell for g in genes) for cell in cells)

    result = []
    for genes in genes_KT:
        values = []
        for m in range(1, len(genes)):
            for lower in range(m):
                n = n_cells(genes[lower])
                both = n_cells(genes[m], genes[lower])
                values.append(math.log((both + 1) / n) if n else 0.0)
        result.append(sum(values) / len(values))
    return result


def corpus(seed, mean=0.7):
    """Return counts of rare to common genes, and the top genes of each topic."""
    rng = np.random.default_rng(seed)
    x_NG = rng.poisson(mean * rng.exponential(1.0, 9), (12, 9))
    x_NG[:, 0] = 0
    x_NG[:, 1:3] += 1
    genes_KT = np.stack([rng.permutation(9)[:5] for _ in range(4)])
    return sp.csr_matrix(x_NG), genes_KT


def coherence_by_gensim(measure, x_NG, genes_KT, epsilon, monkeypatch):
    """Return gensim's coherence; a cell is a document with each of its genes once.

    gensim adds `epsilon`, by default 1e-12, to the share of cells with both genes of a pair.
    """
    from gensim.corpora import Dictionary
    from gensim.models.coherencemodel import CoherenceModel
    from gensim.topic_coherence import direct_confirmation_measure

    monkeypatch.setattr(direct_confirmation_measure, "EPSILON", epsilon)
    names = np.array([f"gene {g}" for g in range(x_NG.shape[1])])
    cells = [names[counts > 0].tolist() for counts in x_NG.toarray()]
    dictionary = Dictionary([names.tolist()])
    model = CoherenceModel(
        topics=names[genes_KT].tolist(),
        texts=cells,
        corpus=[dictionary.doc2bow(cell) for cell in cells],
        dictionary=dictionary,
        coherence=measure,
        # Longer than any document, so that genes of one cell are in one window.
        window_size=len(names) + 1,
        processes=1,
    )
    return model.get_coherence_per_topic()


@pytest.mark.parametrize(("measure", "oracle"), [(npmi, npmi_by_loops), (umass, umass_by_loops)])
class TestBoth:
    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=40)
    def test_is_its_definition(self, measure, oracle, seed):
        x_NG, genes_KT = corpus(seed)
        np.testing.assert_allclose(measure(x_NG, genes_KT), oracle(x_NG, genes_KT), atol=1e-12)

    def test_only_presence_matters(self, measure, oracle):
        x_NG, genes_KT = corpus(0)
        np.testing.assert_array_equal(measure(x_NG * 7.0, genes_KT), measure(x_NG, genes_KT))
        stored_zeros = x_NG.astype(np.float32)
        stored_zeros.data[::3] = 0
        expected = oracle(stored_zeros, genes_KT)
        np.testing.assert_allclose(measure(stored_zeros, genes_KT), expected, atol=1e-12)

    def test_order_of_genes_and_cells_changes_nothing(self, measure, oracle):
        x_NG, genes_KT = corpus(1)
        rng = np.random.default_rng(0)
        genes, cells, topics = (rng.permutation(n) for n in (9, 12, 4))
        found = measure(x_NG[cells][:, genes], np.argsort(genes)[genes_KT[topics]])
        np.testing.assert_allclose(found, measure(x_NG, genes_KT)[topics], rtol=1e-12)

    def test_genes_of_one_topic_have_more_than_mixed_genes(self, measure, oracle):
        rng = np.random.default_rng(0)
        topic_N = rng.integers(4, size=300)
        x_NG = rng.poisson(np.where(np.arange(16) // 4 == topic_N[:, None], 1.0, 0.1))
        true_KT = np.arange(16).reshape(4, 4)
        values = measure(sp.csr_matrix(x_NG), np.vstack([true_KT, true_KT.T]))
        assert values[:4].min() > values[4:].max()

    def test_bad_arguments_are_refused(self, measure, oracle):
        x_NG, genes_KT = corpus(3)
        with pytest.raises(ValueError, match="1 top genes are too few"):
            measure(x_NG, genes_KT[:, :1])
        with pytest.raises(ValueError, match="at least one cell"):
            measure(x_NG[:0], genes_KT)


class TestNpmi:
    def test_values_known_by_hand(self):
        # The same cells have genes 0 and 1, the others gene 2; 3 is independent; all have 4 and 5.
        x_NG = sp.csr_matrix(
            [[1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 1, 0, 1, 1]]
        )
        pairs = np.array([[0, 1], [0, 2], [0, 3], [4, 5], [0, 4]])
        np.testing.assert_allclose(npmi(x_NG, pairs), [1, -1, 0, 1, 0], atol=1e-12)

    def test_genes_of_all_cells_have_the_value_of_genes_of_the_same_cells(self):
        """Two genes with the same cells have 1, whether these are one cell or all cells."""
        for n_cells in range(1, 9):
            both = (np.arange(8) < n_cells).astype(int)
            x_NG = sp.csr_matrix(np.stack([both, both], axis=1))
            assert npmi(x_NG, np.array([[0, 1]]))[0] == pytest.approx(1)

    def test_copies_of_cells_and_order_of_top_genes_change_nothing(self):
        x_NG, genes_KT = corpus(4)
        found = npmi(sp.vstack([x_NG, x_NG]), genes_KT[:, ::-1])
        np.testing.assert_allclose(found, npmi(x_NG, genes_KT), atol=1e-12)

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_is_between_minus_one_and_one(self, seed):
        assert (np.abs(npmi(*corpus(seed))) <= 1 + 1e-12).all()

    @pytest.mark.extras("gensim")
    @pytest.mark.parametrize("seed", range(3))
    def test_agrees_with_gensim(self, seed, monkeypatch):
        """gensim's epsilon adds log(p q) / log(epsilon) to a pair that no cell has.

        No gene is in all cells: for such a pair gensim returns -1 instead of the limit 1.
        """
        rng = np.random.default_rng(seed)
        x_NG = rng.random((40, 12)) < rng.uniform(0.05, 0.8, 12)
        # Every gene is in some cell: gensim computes 0/0 otherwise.
        x_NG[:2] = [np.arange(12) % 2 == 0, np.arange(12) % 2 == 1]
        x_NG = sp.csr_matrix(x_NG.astype(int))
        genes_KT = np.stack([rng.permutation(12)[:6] for _ in range(5)])
        p_G = np.asarray(x_NG.mean(0)).ravel()
        together_GG = (x_NG.T @ x_NG).toarray() > 0
        excess_K = [
            np.mean(
                [
                    math.log(p_G[g] * p_G[h]) / math.log(1e-12) * (not together_GG[g, h])
                    for g, h in combinations(genes, 2)
                ]
            )
            for genes in genes_KT
        ]
        assert max(excess_K) > 0
        found = coherence_by_gensim("c_npmi", x_NG, genes_KT, 1e-12, monkeypatch)
        np.testing.assert_allclose(npmi(x_NG, genes_KT) + excess_K, found, atol=1e-9)


class TestUmass:
    @pytest.mark.extras("gensim")
    @pytest.mark.parametrize("seed", range(3))
    def test_agrees_with_gensim(self, seed, monkeypatch):
        """The paper adds a count of 1, a share of 1/N, where gensim adds 1e-12."""
        x_NG, genes_KT = corpus(seed)
        found = coherence_by_gensim("u_mass", x_NG, genes_KT, 1 / x_NG.shape[0], monkeypatch)
        np.testing.assert_allclose(umass(x_NG, genes_KT), found, atol=1e-12)

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_is_between_never_and_always_together(self, seed):
        """The bounds are log(2), of one cell with both genes, and log(1/N), of none."""
        x_NG, genes_KT = corpus(seed)
        values = umass(x_NG, genes_KT)
        assert (values <= math.log(2) + 1e-12).all()
        assert (values >= -math.log(x_NG.shape[0]) - 1e-12).all()

    def test_copies_of_cells_make_the_added_one_vanish(self):
        x_NG, _ = corpus(6, mean=3)
        n, genes = 10_000, [3, 4, 5]
        present = (x_NG.toarray() > 0)[:, genes]
        present[0] = True
        pairs = [(0, 1), (0, 2), (1, 2)]
        limit = np.mean(
            [
                math.log((present[:, h] & present[:, g]).sum() / present[:, g].sum())
                for g, h in pairs
            ]
        )
        copies = sp.csr_matrix(np.tile(present, (n, 1)).astype(int))
        assert umass(copies, np.array([[0, 1, 2]]))[0] == pytest.approx(limit, abs=1e-3)

    def test_values_known_by_hand(self):
        x_NG = sp.csr_matrix([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]])
        pairs = np.array([[0, 1], [1, 0], [2, 0], [0, 2]])
        expected = [math.log(3 / 4), math.log(3 / 2), 0, math.log(1 / 4)]
        np.testing.assert_allclose(umass(x_NG, pairs), expected)
