"""What the page's scripts read, read back: names, positions, proportions, groups, expression."""

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
    """Head and arrays, as `viewer.js` reads them."""
    block = gzip.decompress(base64.b64decode(text))
    size = int.from_bytes(block[:4], "little")
    head = json.loads(block[4 : 4 + size])
    arrays = {}
    for name, place in head["arrays"].items():
        dtype = np.dtype(place["type"]).newbyteorder("<")
        # JavaScript refuses arrays that do not begin at a multiple of their items' size.
        assert place["offset"] % dtype.itemsize == 0
        arrays[name] = np.frombuffer(block, dtype, place["length"], place["offset"])
    return head, arrays


@pytest.fixture(scope="module")
def given():
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
def read(given):
    return unpacked(viewer.pack(**given))


def test_names(read):
    head, _ = read
    assert (head["n"], head["cells"], head["genes"]) == (N, CELLS, GENES)
    assert head["topics"] == ["a", "b", "c"]
    assert head["mapped"] == GENES[::-1]


def test_proportions_are_within_half_a_step_topic_by_topic(given, read):
    theta_KN = read[1]["theta"].reshape(K, N) / 255
    np.testing.assert_allclose(theta_KN.T, given["theta_NK"], atol=0.5 / 255 + 1e-12)
    np.testing.assert_allclose(read[1]["beta"].reshape(G, K).T, given["beta_KG"], rtol=1e-6)


def test_maps_keep_their_shape(given, read):
    """One scale for both directions, the middle of the map in the middle."""
    for space, xy_N2 in given["maps"].items():
        there_N2 = read[1][f"umap_{space}"].reshape(N, 2) / 65535
        low, high = xy_N2.min(0), xy_N2.max(0)
        expected = (xy_N2 - (low + high) / 2) / (high - low).max() + 0.5
        np.testing.assert_allclose(there_N2, expected, atol=1 / 65535)


def test_groups(given, read):
    (grouping,) = read[0]["categories"]
    codes_N = given["categories"][0]["codes"]
    assert grouping == {
        "name": "kind",
        "names": ["x", "y"],
        "colors": ["#333333", "#444444"],
        "sizes": [int((codes_N == 0).sum()), int((codes_N == 1).sum())],
    }
    there_N = read[1]["category_0"]
    assert (there_N[codes_N < 0] == viewer.NO_CATEGORY).all()
    assert (there_N[codes_N >= 0] == codes_N[codes_N >= 0]).all()


def expression_of(read, gene):
    """Values of a gene in all cells, as the page shows them."""
    head, arrays = read
    at = head["mapped"].index(gene)
    values_N = np.zeros(head["n"])
    part = slice(arrays["gene_start"][at], arrays["gene_start"][at + 1])
    values_N[arrays["gene_cells"][part]] = arrays["gene_values"][part]
    return values_N / 255 * arrays["gene_greatest"][at]


def test_expression(given, read):
    for g, gene in enumerate(GENES):
        x_N = given["expression_NG"][:, g].toarray().ravel()
        values_N = expression_of(read, gene)
        np.testing.assert_allclose(values_N, x_N, atol=x_N.max() / 255)
        # What is expressed at all is not lost to rounding.
        assert ((values_N > 0) == (x_N > 0)).all()


def test_of_too_much_expression_the_first_genes_are_kept(given, monkeypatch):
    size_G = np.diff(sp.csc_matrix(given["expression_NG"]).indptr)
    monkeypatch.setattr(viewer, "MAX_EXPRESSION", int(size_G[-4:].sum()))
    read = unpacked(viewer.pack(**given))
    assert read[0]["mapped"] == GENES[::-1][:4]
    assert read[0]["genes"] == GENES
    for gene in GENES[-4:]:
        x_N = given["expression_NG"][:, GENES.index(gene)].toarray().ravel()
        np.testing.assert_allclose(expression_of(read, gene), x_N, atol=x_N.max() / 255)


def test_no_expression_no_genes(given):
    nothing = sp.csr_matrix((N, G), dtype=np.float32)
    read = unpacked(viewer.pack(**given | {"expression_NG": nothing}))
    assert read[0]["mapped"] == GENES[::-1]
    assert not read[1]["gene_values"].size
    assert (expression_of(read, GENES[0]) == 0).all()


def test_dense_expression_is_the_same(given):
    dense = given["expression_NG"].toarray()
    assert viewer.pack(**given | {"expression_NG": dense}) == viewer.pack(**given)


def test_cells_in_one_place_are_mapped(given):
    same = {space: np.zeros((N, 2)) for space in ("counts", "topics")}
    read = unpacked(viewer.pack(**given | {"maps": same}))
    assert set(read[1]["umap_counts"]) == {32768}
