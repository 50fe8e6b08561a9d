"""Prepared cells that stay in a file."""

from __future__ import annotations

import itertools

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.counts import LateRows
from topicell.data import mapped


def written(path, x_NG, n_parts=3):
    """Write counts in parts; return the log-normalised values."""
    y_NG = x_NG.copy()
    y_NG.data = np.log1p(y_NG.data).astype(np.float32)
    n_cells, n_genes = x_NG.shape
    obs = pd.DataFrame(
        {"kind": pd.Categorical(["a", "b"] * (n_cells // 2))},
        index=[f"c{i}" for i in range(n_cells)],
    )
    outline = anndata.AnnData(
        obs=obs,
        var=pd.DataFrame({"gene_ids": "E"}, index=[f"g{i}" for i in range(n_genes)]),
        uns={"source": {"name": "cells"}},
        obsm={"X_pca": np.arange(2.0 * n_cells).reshape(-1, 2)},
    )
    edges = np.linspace(0, n_cells, n_parts + 1).astype(int)
    parts = ((x_NG[a:b], y_NG[a:b]) for a, b in itertools.pairwise(edges))
    mapped.write(path, outline, parts, x_NG.nnz, int(x_NG.data.max(initial=0)))
    return y_NG


def counts(n_cells=60, n_genes=30, greatest=90, seed=0):
    rng = np.random.default_rng(seed)
    x_NG = rng.poisson(0.4, (n_cells, n_genes)) * rng.integers(1, 5, (n_cells, n_genes))
    x_NG[3, 4] = greatest
    return sp.csr_matrix(x_NG.astype(np.float32))


@pytest.mark.parametrize(
    ("greatest", "kind"), [(255, np.uint8), (256, np.uint16), (2**16, np.uint32)]
)
def test_what_is_mapped_is_what_was_written_and_what_anndata_reads(greatest, kind, tmp_path):
    x_NG = counts(greatest=greatest)
    y_NG = written(tmp_path / "a.h5ad", x_NG)
    found = mapped.read(tmp_path / "a.h5ad")
    (tmp_path / "b.h5ad").write_bytes((tmp_path / "a.h5ad").read_bytes())
    other = anndata.read_h5ad(tmp_path / "b.h5ad")
    for adata in (found, other):
        assert adata.layers["counts"].dtype == kind
        np.testing.assert_array_equal(adata.layers["counts"].toarray(), x_NG.toarray())
        np.testing.assert_array_equal(adata.X.toarray(), y_NG.toarray())
        pd.testing.assert_frame_equal(adata.obs, other.obs)
        assert list(adata.var["gene_ids"]) == ["E"] * 30
        assert adata.uns["source"] == {"name": "cells"}
        assert adata.obsm["X_pca"].shape == (60, 2)
    assert mapped.is_own(tmp_path / "a.h5ad")
    assert mapped.is_mapped(found)
    # Cells that a user writes again are ordinary ones.
    other.write_h5ad(tmp_path / "c.h5ad")
    assert not mapped.is_own(tmp_path / "c.h5ad")
    assert not mapped.is_mapped(other)
    assert not mapped.is_mapped(found.copy())


def test_the_matrices_are_mapped_once_and_outlive_the_file(tmp_path):
    path = tmp_path / "a.h5ad"
    x_NG = counts()
    written(path, x_NG)
    found = mapped.read(path)
    matrices = (found.X, found.layers["counts"])
    for array in (array for x in matrices for array in (x.data, x.indices, x.indptr)):
        base = array
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)
    with h5py.File(path) as file:
        assert file["X/indices"].id.get_offset() == file["layers/counts/indices"].id.get_offset()
    # Changes are this process's own.
    before = path.read_bytes()
    found.layers["counts"].data[:] = 0
    assert path.read_bytes() == before
    again = mapped.read(path)
    path.unlink()
    np.testing.assert_array_equal(again.layers["counts"].toarray(), x_NG.toarray())


def test_cells_without_any_count(tmp_path):
    written(tmp_path / "a.h5ad", sp.csr_matrix((4, 3), dtype=np.float32))
    found = mapped.read(tmp_path / "a.h5ad")
    assert (found.shape, found.X.nnz, found.layers["counts"].nnz) == ((4, 3), 0, 0)


def test_an_unfinished_file_is_refused(tmp_path):
    x_NG = counts()
    with pytest.raises(AssertionError):
        mapped.write(
            tmp_path / "a.h5ad",
            anndata.AnnData(obs=pd.DataFrame(index=list("ab"))),
            [(x_NG[:1], x_NG[:1])],
            x_NG.nnz,
            9,
        )


@pytest.mark.parametrize("kind", [np.float32, np.uint8, np.uint16])
def test_late_rows_are_the_rows_of_the_matrix(kind, monkeypatch):
    monkeypatch.setattr("topicell.counts.CHUNK", 7)
    whole = counts().astype(kind)
    expected = whole.toarray().astype(np.float32)
    rows = LateRows(whole)
    index = np.random.default_rng(1).permutation(60)[:40]
    for late, dense in ((rows, expected), (rows.of(index), expected[index])):
        assert (late.shape, late.nnz) == (dense.shape, int((dense > 0).sum()))
        for select in (slice(3, 9), np.array([5, 2, 2]), np.arange(len(dense)) % 3 == 0):
            for found in (late[select], late.of(select).read()):
                assert found.dtype == np.float32
                np.testing.assert_array_equal(found.toarray(), dense[select])
        np.testing.assert_array_equal(late.read().toarray(), dense)
        np.testing.assert_array_equal(sp.vstack(list(late.chunks())).toarray(), dense)
        for axis in (0, 1):
            np.testing.assert_array_equal(late.sum(axis), dense.sum(axis, dtype=np.float64))
    assert rows.of(index).of(slice(2, 5)).read().toarray().tolist() == expected[index][2:5].tolist()
    assert LateRows(whole, np.zeros(0, int)).sum(0).tolist() == [0.0] * 30


def test_late_rows_in_memory_are_not_copied():
    x_NG = counts()
    assert LateRows(x_NG).read() is x_NG or np.shares_memory(LateRows(x_NG).read().data, x_NG.data)


def test_totals_do_not_overflow():
    x_NG = sp.csr_matrix(np.full((300, 2), 255, dtype=np.uint8))
    assert LateRows(x_NG).sum(0).tolist() == [300 * 255.0] * 2
    assert LateRows(x_NG).sum(1).tolist() == [510.0] * 300
