"""Data for the scripts of the page: unpacked, they are those of the run."""

import base64
import gzip
import json

import numpy as np
import pytest
import scipy.sparse as sp

from topicell.report import viewer

N, G, K = 50, 12, 3
CELLS = [f"cell é{i}" for i in range(N)]
GENES = [f"GENE{i}" for i in range(G)]


def unpacked(text):
    """Return head and arrays, as `viewer.js` reads them."""
    block = gzip.decompress(base64.b64decode(text))
    size = int.from_bytes(block[:4], "little")
    head = json.loads(block[4 : 4 + size])
    arrays = {}
    for name, place in head["arrays"].items():
        dtype = np.dtype(place["type"]).newbyteorder("<")
        # JavaScript needs arrays to start at a multiple of the size of their items.
        assert place["offset"] % dtype.itemsize == 0
        arrays[name] = np.frombuffer(block, dtype, place["length"], place["offset"])
    return head, arrays


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    expression = sp.random(N, G, density=0.3, format="csr", random_state=0, dtype=np.float32)
    expression.data *= 5
    return {
        "cells": CELLS,
        "genes": GENES,
        "topics": ["a", "b", "c"],
        "colors": ["#000000", "#111111", "#222222"],
        "theta_NK": rng.dirichlet(np.ones(K), N),
        "beta_KG": rng.dirichlet(np.ones(G), K),
        "maps": {"counts": rng.normal(size=(N, 2)) * [10, 1], "topics": rng.normal(size=(N, 2))},
        "categories": [
            {
                "name": "kind",
                "names": ["x", "y"],
                "colors": ["#333333", "#444444"],
                "codes": np.arange(N) % 3 - 1,
            }
        ],
        "expression_NG": expression,
        "order_G": np.arange(G)[::-1],
        "differential": {"lfc": np.full((G, K), np.nan)},
    }


@pytest.fixture(scope="module")
def packed(inputs):
    return unpacked(viewer.pack(**inputs))


def test_names_are_unchanged(packed):
    head, _ = packed
    assert (head["n"], head["cells"], head["genes"]) == (N, CELLS, GENES)
    assert head["topics"] == ["a", "b", "c"]
    assert head["mapped"] == GENES[::-1]


def test_proportions_are_within_half_a_step_topic_by_topic(inputs, packed):
    theta_KN = packed[1]["theta"].reshape(K, N) / 255
    np.testing.assert_allclose(theta_KN.T, inputs["theta_NK"], atol=0.5 / 255 + 1e-12)
    np.testing.assert_allclose(packed[1]["beta"].reshape(G, K).T, inputs["beta_KG"], rtol=1e-6)


def test_maps_keep_their_shape(inputs, packed):
    """Both directions have one scale, and the middle of the map is in the middle."""
    for space, xy_N2 in inputs["maps"].items():
        there_N2 = packed[1][f"umap_{space}"].reshape(N, 2) / 65535
        low, high = xy_N2.min(0), xy_N2.max(0)
        expected = (xy_N2 - (low + high) / 2) / (high - low).max() + 0.5
        np.testing.assert_allclose(there_N2, expected, atol=1 / 65535)


def test_groups_have_names_sizes_and_codes(inputs, packed):
    (grouping,) = packed[0]["categories"]
    codes_N = inputs["categories"][0]["codes"]
    assert grouping == {
        "name": "kind",
        "names": ["x", "y"],
        "colors": ["#333333", "#444444"],
        "sizes": [int((codes_N == 0).sum()), int((codes_N == 1).sum())],
    }
    there_N = packed[1]["category_0"]
    assert (there_N[codes_N < 0] == viewer.NO_CATEGORY).all()
    assert (there_N[codes_N >= 0] == codes_N[codes_N >= 0]).all()


def expression_of(packed, gene):
    """Return the values of a gene in all cells, as the page computes them."""
    head, arrays = packed
    at = head["mapped"].index(gene)
    values_N = np.zeros(head["n"])
    part = slice(arrays["gene_start"][at], arrays["gene_start"][at + 1])
    values_N[arrays["gene_cells"][part]] = arrays["gene_values"][part]
    return values_N / 255 * arrays["gene_greatest"][at]


def test_expression_is_within_a_255th_of_the_greatest_value(inputs, packed):
    for g, gene in enumerate(GENES):
        x_N = inputs["expression_NG"][:, g].toarray().ravel()
        values_N = expression_of(packed, gene)
        np.testing.assert_allclose(values_N, x_N, atol=x_N.max() / 255)
        # A small positive value is not rounded to 0.
        assert ((values_N > 0) == (x_N > 0)).all()


def test_too_much_expression_is_cut_after_the_first_genes(inputs, monkeypatch):
    size_G = np.diff(sp.csc_matrix(inputs["expression_NG"]).indptr)
    monkeypatch.setattr(viewer, "MAX_EXPRESSION", int(size_G[-4:].sum()))
    packed = unpacked(viewer.pack(**inputs))
    assert packed[0]["mapped"] == GENES[::-1][:4]
    assert packed[0]["genes"] == GENES
    for gene in GENES[-4:]:
        x_N = inputs["expression_NG"][:, GENES.index(gene)].toarray().ravel()
        np.testing.assert_allclose(expression_of(packed, gene), x_N, atol=x_N.max() / 255)


def test_zero_expression_is_packed(inputs):
    nothing = sp.csr_matrix((N, G), dtype=np.float32)
    packed = unpacked(viewer.pack(**inputs | {"expression_NG": nothing}))
    assert packed[0]["mapped"] == GENES[::-1]
    assert not packed[1]["gene_values"].size
    assert (expression_of(packed, GENES[0]) == 0).all()


def test_dense_and_sparse_expression_give_the_same_data(inputs):
    dense = inputs["expression_NG"].toarray()
    assert viewer.pack(**inputs | {"expression_NG": dense}) == viewer.pack(**inputs)


def test_cells_in_one_place_are_in_the_middle(inputs):
    same = {space: np.zeros((N, 2)) for space in ("counts", "topics")}
    packed = unpacked(viewer.pack(**inputs | {"maps": same}))
    assert set(packed[1]["umap_counts"]) == {32768}
