"""A run says before reading that memory will not be enough."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell import memory
from topicell.data import stored
from topicell.data.reading import read
from topicell.memory import Size

LARGE = Size(1_000_000, 20_000, 700_000_000)


@pytest.fixture
def path(tmp_path):
    x = sp.csr_matrix(np.arange(40.0).reshape(8, 5) % 3)
    names = (pd.DataFrame(index=list("abcdefgh")), pd.DataFrame(index=[f"G{i}" for i in range(5)]))
    adata = anndata.AnnData(x, *names)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def write_10x(path, n_values):
    with h5py.File(path, "w") as file:
        file["matrix/shape"] = np.array([20_000, 1_000_000])
        file.create_dataset("matrix/data", (n_values,), "i4")
        file["matrix/barcodes"] = np.array([b"A"])


def test_the_size_of_a_file_is_known_without_reading_it(path, tmp_path):
    n_values = anndata.read_h5ad(path).X.nnz
    assert stored.size_of(path, None) == stored.size_of(path, "X") == Size(8, 5, n_values)
    assert stored.size_of(path, "no such layer") is None
    adata = anndata.read_h5ad(path)
    adata.layers["counts"] = adata.X.toarray()
    adata.write_h5ad(path)
    assert stored.size_of(path, None) == Size(8, 5, n_values, dense_bytes=320)
    write_10x(tmp_path / "a.h5", 700_000_000)
    assert stored.size_of(tmp_path / "a.h5", None) == LARGE
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    assert stored.size_of(tmp_path / "b.h5", None) is None


def test_a_shortage_names_both_numbers_and_the_setting(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 8 * 2**30)
    assert not memory.shortage(LARGE, in_parts=True, fix="")
    for can_stay, start in ((True, "topicell train with"), (False, "write them as h5ad")):
        fix = stored.how_to_fit(LARGE, in_parts=False, can_stay=can_stay)
        assert fix.startswith(start)
        words = memory.shortage(LARGE, in_parts=False, fix=fix)
        need = memory.needed(LARGE, in_parts=False) / 2**30
        assert f"need about {need:.1f} GiB of memory, but 8.0 GiB are free; {fix}" in words
        assert words.startswith("1,000,000 cells × 20,000 genes with 700,000,000 non-zero counts")
    monkeypatch.setattr(memory, "free", lambda: 2**30)
    fix = stored.how_to_fit(LARGE, in_parts=True, can_stay=True)
    assert memory.shortage(LARGE, in_parts=True, fix=fix).endswith("; " + fix)
    # Columns that are stored one by one are all read.
    columns = Size(100_000, 20_000, 1_000_000_000, by_rows=False)
    assert memory.needed(columns, in_parts=True) == memory.needed(columns, in_parts=False)
    assert memory.needed(Size(8, 5, 0, dense_bytes=2**40), in_parts=False) > 2**40
    monkeypatch.setattr(memory, "free", lambda: None)
    assert not memory.shortage(LARGE, in_parts=False, fix="")


def test_free_memory_is_the_smallest_limit(tmp_path, monkeypatch):
    of_machine = memory.free()
    assert of_machine is None or of_machine > 2**20
    names = ("max", "current", "inactive_file")
    monkeypatch.setattr(memory, "CGROUPS", ((str(tmp_path), *names), ("/no/such", *names)))
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 500000\n")
    (tmp_path / "max").write_text("5000000\n")
    (tmp_path / "current").write_text("1000000\n")
    assert memory.free() == 4_500_000
    (tmp_path / "max").write_text("max\n")
    assert memory.free() == pytest.approx(of_machine, rel=0.5)


def test_a_file_that_needs_more_memory_is_read_with_a_warning(path, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: memory.BASE)
    with pytest.warns(UserWarning, match=r"8 cells × 5 genes .* need about 0\.7 GiB of memory"):
        assert read(path).n_obs == 8
