"""Counts that stay in their file are prepared as those in memory, to the last digit."""

from __future__ import annotations

import errno
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.config import DataConfig, Flavor, PreprocessConfig
from topicell.data import mapped, stored
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
    if mapped.is_mapped(found):
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


@pytest.fixture
def large(monkeypatch):
    """Let every file stay where it is."""
    monkeypatch.setattr(stored, "LARGE", 10)
    monkeypatch.setattr(stored, "N_ROWS", 90)


def assert_same_when_large(path, settings=None):
    """Prepare a large file, and compare with the same file in memory."""
    settings = settings or {"n_variable_genes": 60}
    config = PreprocessConfig(cache=False, **settings)
    data = DataConfig(name="file", path=str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = prepared(lambda: load(data), "", config)
        found = prepared(lambda: load_or_open(data), "", config)
    np.testing.assert_array_equal(
        found.layers["counts"].toarray(), expected.layers["counts"].toarray()
    )
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert {name: list(found.obsm[name].ravel()) for name in found.obsm} == {
        name: list(expected.obsm[name].ravel()) for name in expected.obsm
    }
    return found


def test_batches_without_a_kept_cell_are_ignored(tmp_path, large):
    adata = make()
    depth = np.asarray(adata.X.sum(1)).ravel()
    low = depth < int(np.quantile(depth, 0.1))
    kind = adata.obs["kind"].astype(str).to_numpy()
    kind[low] = "a shallow batch"
    adata.obs["kind"] = pd.Categorical(kind).add_categories(["unused"])
    adata.obs["gaps"] = pd.Categorical(np.where(low, None, kind))
    adata.obsm["X_umap"] = np.arange(800.0).reshape(-1, 2)
    path = h5ad(adata, tmp_path)
    for key in ("kind", "gaps"):
        found = assert_same_when_large(
            path,
            {
                "n_variable_genes": 60,
                "batch_key": key,
                "min_counts_per_cell": int(np.quantile(depth, 0.1)),
            },
        )
        assert mapped.is_mapped(found)
        assert "unused" not in found.obs["kind"].cat.categories


def test_a_large_file_of_columns_or_of_an_old_form_is_read_to_memory(tmp_path, large):
    assert not mapped.is_mapped(assert_same_when_large(of_columns(make(), tmp_path)))
    path = h5ad(make(), tmp_path)
    with h5py.File(path, "r+") as file:
        names = [name.encode() for name in make().obs_names]
        del file["obs"], file["var"]
        for name, index in (("obs", names), ("var", [f"G{i}".encode() for i in range(300)])):
            table = np.array([(n,) for n in index], dtype=[("index", "S8")])
            file.create_dataset(name, data=table)
    data = DataConfig(name="file", path=str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, about the old form
        assert not isinstance(load_or_open(data), StoredCounts)
    with pytest.raises(InputError, match="leave out backed=true"):
        load_or_open(DataConfig(name="file", path=str(path), backed=True))


def test_large_genes_in_rows_are_transposed_in_memory(tmp_path, large):
    path = h5ad(make().T.copy(), tmp_path)
    data = DataConfig(name="file", path=str(path), orientation="genes_rows")
    assert load_or_open(data).shape == (400, 300)


def test_a_large_file_with_counts_elsewhere_says_where(tmp_path, large):
    adata = make()
    adata.raw = adata
    adata.X = adata.X / 2
    path = h5ad(adata, tmp_path)
    found, _ = result(load_or_open, path, {})
    in_memory, _ = result(load, path, {})
    # The numbers of values differ: only a part of the file was read.
    for words in ("not whole (first: 0.5 in row 0, gene G5)", "; counts may be in layer 'raw'"):
        assert words in found
        assert words in in_memory


def test_reading_a_large_file_loses_nothing(tmp_path, large):
    adata = make()
    adata.layers["other"] = adata.X.copy()
    adata.obsp["distances"] = sp.eye(400, format="csr")
    path = h5ad(adata, tmp_path)
    found = read(path)
    assert "other" in found.layers
    assert "distances" in found.obsp


def test_zeros_of_a_dense_matrix_are_not_counted(tmp_path):
    adata = make()
    expected = adata.X.nnz
    size = stored.size_of(dense(adata, tmp_path), None)
    assert size.n_values == pytest.approx(expected, rel=0.1)
    assert size.dense_bytes == 400 * 300 * 4


def test_cells_that_were_prepared_before_can_be_prepared_again(tmp_path, monkeypatch):
    """The file of the cache is one that anndata reads: what users write from it is theirs."""
    monkeypatch.setattr(stored, "N_ROWS", 90)
    folder = tmp_path / "cache"
    data = DataConfig(name="file", path=str(h5ad(make(), tmp_path)), backed=True)
    config = PreprocessConfig(n_variable_genes=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = prepared(lambda: load_or_open(data), "a", config, folder=folder)
        (cached,) = folder.glob("*.h5ad")
        mine = tmp_path / "mine.h5ad"
        anndata.read_h5ad(cached).write_h5ad(mine)
        again = DataConfig(name="file", path=str(mine))
        for _ in range(2):
            found = prepared(lambda: load_or_open(again), "b", config, folder=folder)
            assert not mapped.is_mapped(found)
            counts = (of.layers["counts"].toarray() for of in (found, first))
            np.testing.assert_array_equal(*counts)
            assert found.shape == first.shape


def test_a_full_cache_is_replaced_by_a_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", 90)
    whole, tried = mapped.write, []

    def write(path, *arguments):
        tried.append(str(path))
        if len(tried) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, *arguments)

    monkeypatch.setattr(mapped, "write", write)
    data = DataConfig(name="file", path=str(h5ad(make(), tmp_path)), backed=True)
    config = PreprocessConfig(n_variable_genes=60)
    with pytest.warns(UserWarning, match="could not be cached"):
        found = prepared(lambda: load_or_open(data), "", config, folder=tmp_path / "cache")
    assert mapped.is_mapped(found)
    assert len(tried) == 2
    assert not tried[1].startswith(str(tmp_path / "cache"))


def test_empty_cells_have_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", 90)
    adata = make()
    x = adata.X.tolil()
    for row in (3, 200, 399):
        x[row] = 0
    adata.X = x.tocsr()
    adata.X.eliminate_zeros()
    path = h5ad(adata, tmp_path)
    assert_equal(path, {"n_variable_genes": 60, "min_counts_per_cell": 0})


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
