"""Counts that stay in their file are prepared as those in memory, to the last digit."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.config import DataConfig, Flavor, PreprocessConfig
from topicell.data import stored
from topicell.data.preprocessing import prepared, preprocess
from topicell.data.reading import load, load_or_open, read
from topicell.data.stored import StoredCounts
from topicell.errors import InputError


def make(n_cells=400, n_genes=300, seed=0):
    """Return cells of four kinds and three batches; many rare genes have the same variance."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.3, 2.0, (4, n_genes)) + 0.05
    rates[:, -80:] = 0.004
    kind = rng.integers(4, size=n_cells)
    x = rng.poisson(rates[kind]).astype(np.float32)
    x[rng.integers(n_cells, size=30), rng.integers(n_genes, size=30)] += 60  # is clipped
    names = [f"MT-{i}" if i < 5 else f"G{i}" for i in range(n_genes)]
    obs = pd.DataFrame(
        {"kind": pd.Categorical([f"k{k}" for k in kind]), "batch": rng.integers(3, size=n_cells)},
        index=[f"c{i}" for i in range(n_cells)],
    )
    return anndata.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=names))


def h5ad(adata, folder):
    path = folder / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def of_columns(adata, folder):
    adata.X = adata.X.tocsc()
    return h5ad(adata, folder)


def dense(adata, folder):
    adata.X = adata.X.toarray()
    return h5ad(adata, folder)


def small_integers(adata, folder):
    adata.X = adata.X.astype(np.uint8)
    return h5ad(adata, folder)


def zarr(adata, folder):
    path = folder / "cells.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's and zarr's own, about their formats
        adata.write_zarr(path)
    return path


def result(load_it, path, settings):
    """Return the prepared cells or the error, and the warnings."""
    config = PreprocessConfig(cache=False, **settings)
    data = DataConfig(name="file", path=str(path), backed=load_it is load_or_open)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = prepared(lambda: load_it(data), "", config, seed=3)
        except InputError as error:
            found = str(error)
    return found, [str(w.message) for w in caught if w.category is UserWarning]


def assert_equal(path, settings):
    """Compare both ways; return the result of the file."""
    expected, warned = result(load, path, settings)
    found, warned_too = result(load_or_open, path, settings)
    assert sorted(warned_too) == sorted(warned)
    if isinstance(expected, str):
        assert found == expected
        return found
    assert not isinstance(found, str), found
    # In a file of its own there is no need for it.
    if expected.shape[0] and "topicell_mapped" in found.uns:
        assert (found.X.dtype, found.layers["counts"].dtype) == (np.float32, np.uint8)
    for x, y in ((found.X, expected.X), (found.layers["counts"], expected.layers["counts"])):
        np.testing.assert_array_equal(x.toarray(), y.toarray())
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    assert found.uns["topicell_source"] == expected.uns["topicell_source"]
    assert found.raw is None
    return found


@pytest.fixture(params=[37, 10_000])
def n_rows(request, monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", request.param)
    return request.param


SETTINGS = {
    "defaults": {"n_variable_genes": 60},
    "batches": {"n_variable_genes": 60, "batch_key": "batch"},
    "batches of text": {"n_variable_genes": 60, "batch_key": "kind"},
    "paper": {"n_variable_genes": 60, "flavor": Flavor.seurat_v3_paper, "batch_key": "batch"},
    # Most of the last genes have the same variance.
    "ties": {"n_variable_genes": 250},
    "all genes": {"n_variable_genes": None},
    "median": {"n_variable_genes": 60, "target_sum": None},
    "filters": {"n_variable_genes": 60, "min_counts_per_cell": 150, "min_cells_per_gene": 4},
    "no gene left out": {"n_variable_genes": 60, "drop_genes": []},
    "more genes than there are": {"n_variable_genes": 1000},
    "another flavour": {"n_variable_genes": 60, "flavor": Flavor.seurat},
    "no cell left": {"min_counts_per_cell": 10_000},
    "no gene left": {"min_cells_per_gene": 10_000},
    "no such column": {"batch_key": "sample"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_the_same_result(name, n_rows, tmp_path):
    settings = SETTINGS[name]
    path = h5ad(make(), tmp_path)
    if name == "another flavour":
        expected, warned = result(load, path, settings)
        found, warned_too = result(load_or_open, path, settings)
        assert len(warned_too) == len(warned) + 1
        assert "the whole file is read to memory" in warned_too[0]
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
        return
    found = assert_equal(path, settings)
    failed = name.startswith("no ") and name != "no gene left out"
    assert isinstance(found, str) == failed


@pytest.mark.parametrize("write", [of_columns, dense, small_integers, zarr])
def test_every_form_of_a_matrix_has_the_same_result(write, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", 90)
    path = write(make(), tmp_path)
    found = assert_equal(path, {"n_variable_genes": 60, "batch_key": "batch"})
    counts = make().X[:, [int(name[1:]) for name in found.var_names]]
    np.testing.assert_array_equal(found.layers["counts"].toarray(), counts.toarray())


def test_features_are_selected_and_named_and_repeated_values_are_added(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", 90)
    adata = make()
    adata.var["feature_types"] = np.where(np.arange(300) % 10, "Gene Expression", "Peaks")
    adata.var["gene_symbols"] = adata.var_names
    adata.var_names = [f"ENSG{i:011d}" for i in range(300)]
    x = adata.X
    x.indices[1] = x.indices[0]
    adata.X = sp.csr_matrix((x.data, x.indices, x.indptr), shape=x.shape)
    path = h5ad(adata, tmp_path)
    found = assert_equal(path, {"n_variable_genes": 60})
    assert all(int(name[1:]) % 10 for name in found.var_names)
    assert found.var["gene_ids"].str.startswith("ENSG").all()
    _, warned = result(load_or_open, path, {"n_variable_genes": 60})
    assert sum("X holds 1 values that repeat a cell and gene" in text for text in warned) == 1


def test_cells_that_loess_cannot_fit_have_the_same_warning(tmp_path):
    rng = np.random.default_rng(0)
    x = sp.csr_matrix((rng.random((60, 60)) < 0.05).astype(np.float32))
    path = h5ad(anndata.AnnData(x, var=pd.DataFrame(index=[f"G{i}" for i in range(60)])), tmp_path)
    assert_equal(path, {"n_variable_genes": 20})


@pytest.mark.parametrize(("value", "words"), [(0.5, "not whole"), (-1, "negative")])
def test_a_value_that_is_no_count_is_named_with_its_row(value, words, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", 90)
    adata = make()
    x = adata.X.toarray()
    x[211, 7] = value
    adata.X = sp.csr_matrix(x)
    path = h5ad(adata, tmp_path)
    found, _ = result(load_or_open, path, {})
    assert words in found
    assert "row 211, gene G7" in found
    assert str(path) in found


def test_genes_in_rows_of_a_stored_matrix_are_rejected(tmp_path):
    path = h5ad(make().T.copy(), tmp_path)
    found, _ = result(load_or_open, path, {})
    assert "genes seem to be in rows" in found
    data = DataConfig(name="file", path=str(path), backed=True, orientation="genes_rows")
    with pytest.raises(InputError, match="write it again with cells in rows"):
        load_or_open(data)


def test_a_large_matrix_stays_in_its_file_by_itself(tmp_path, monkeypatch):
    path = h5ad(make(), tmp_path)
    data = DataConfig(name="file", path=str(path))
    assert not isinstance(load_or_open(data), StoredCounts)
    monkeypatch.setattr(stored, "LARGE", make().X.nnz - 1)
    assert isinstance(load_or_open(data), StoredCounts)
    # Commands that need the cells read them.
    np.testing.assert_array_equal(read(path).X.toarray(), make().X.toarray())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = preprocess(load(data), PreprocessConfig(n_variable_genes=60), seed=3)
        found = prepared(
            lambda: load_or_open(data),
            "",
            PreprocessConfig(n_variable_genes=60, cache=False),
            seed=3,
        )
    assert list(found.var_names) == list(expected.var_names)
