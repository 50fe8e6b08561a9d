"""The types that cellxgene reads."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.export.cellxgene import readable, shown_cells

N = 6
INDEX = [f"c{i}" for i in range(N)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.array([1, None] * 3, dtype="Int64"), np.array([1.0, np.nan] * 3)),
        (pd.array(range(N), dtype="Int8"), np.arange(N, dtype="int8")),
        (pd.array([True, None] * 3, dtype="boolean"), pd.Categorical(["True", None] * 3)),
        (pd.array([True, False] * 3, dtype="boolean"), np.array([True, False] * 3)),
        (pd.array([0.5, None] * 3, dtype="Float64"), np.array([0.5, np.nan] * 3)),
        (np.arange(N) + 2**40, np.array([str(2**40 + i) for i in range(N)], dtype=object)),
        (pd.array([2**40, None] * 3, dtype="Int64"), pd.Categorical([str(2**40), None] * 3)),
        (np.array(list("abcabc"), dtype=object), np.array(list("abcabc"), dtype=object)),
        (pd.array(["a", None] * 3, dtype="string"), pd.Categorical(["a", None] * 3)),
        (pd.Categorical(["b", None, "a"] * 2), pd.Categorical(["b", None, "a"] * 2)),
        (np.arange(N) * 1.5, np.arange(N) * 1.5),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_columns_get_types_that_cellxgene_reads(values, expected):
    found = readable(pd.DataFrame({"it": values}, index=INDEX))
    pd.testing.assert_frame_equal(found, pd.DataFrame({"it": expected}, index=INDEX))


def test_complex_numbers_are_left_out():
    frame = pd.DataFrame({"it": np.arange(N) * 1j, "other": range(N)}, index=INDEX)
    assert list(readable(frame)) == ["other"]


@pytest.mark.parametrize("with_raw", [True, False])
def test_all_genes_are_in_columns_and_only_maps_are_embeddings(with_raw):
    x = sp.random(N, 5, 0.5, format="csr", random_state=0, dtype=np.float64)
    adata = anndata.AnnData(
        x,
        obs=pd.DataFrame(index=INDEX),
        var=pd.DataFrame(index=list("ABCDE")),
        obsm={
            "X_umap_counts": np.arange(2.0 * N).reshape(N, 2),
            "X_umap_topics": np.full((N, 2), np.nan),
            "X_lda": np.ones((N, 3)),
        },
    )
    if with_raw:
        adata.raw = adata
        adata = adata[:, :2].copy()
    shown = shown_cells(adata)
    assert isinstance(shown.X, sp.csc_matrix)
    assert shown.X.dtype == np.float32
    assert shown.var_names.tolist() == list("ABCDE")
    np.testing.assert_allclose(shown.X.toarray(), x.toarray(), rtol=1e-6)
    assert set(shown.obsm) == {"X_umap_counts", "X_umap_topics"}
