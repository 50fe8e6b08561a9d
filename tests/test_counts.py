"""Counts of every form, and values that are refused."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.counts import MAX_COUNT, Counts, as_counts, ids_of
from topicell.errors import InputError

X = np.array([[0, 3, 1], [2, 0, 0]], dtype=float)


def make(x=X, **layers):
    adata = anndata.AnnData(
        np.asarray(x, dtype=np.float32),
        obs=pd.DataFrame(index=["a", "b"]),
        var=pd.DataFrame(index=["g", "h", "i"]),
    )
    for name, layer in layers.items():
        adata.layers[name] = layer
    return adata


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.coo_matrix])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.int32, np.uint8])
def test_every_form_of_matrix_gives_the_same_counts(form, dtype):
    counts = as_counts(form(X.astype(dtype)), "X")
    assert counts.dtype == np.float32
    assert (counts.toarray() == X).all()
    assert counts.nnz == 3


def test_duplicate_entries_are_added_and_the_input_is_not_changed():
    x = sp.csr_matrix((np.ones(2), np.array([1, 1]), np.array([0, 2])), shape=(1, 2))
    assert as_counts(x, "X").toarray().tolist() == [[0, 2]]
    assert x.nnz == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "1 values are NaN"),
        (np.inf, "infinite"),
        (-1, "negative"),
        (0.5, "not whole"),
        (MAX_COUNT * 4, "above"),
    ],
)
def test_a_value_that_is_no_count_is_refused_with_its_position(value, words):
    x = X.copy()
    x[1, 2] = value
    with pytest.raises(InputError, match=words) as error:
        Counts.of(make(x))
    assert "X: " in str(error.value)
    assert "row 1, gene i" in str(error.value)


def test_log_normalised_values_are_refused_with_the_layers_of_counts():
    adata = make(np.log1p(X * 1.7), umi=X)
    adata.raw = make()
    with pytest.raises(InputError) as error:
        Counts.of(adata)
    assert "log-normalised" in str(error.value)
    assert "layer 'umi'" in str(error.value)
    assert "layer 'raw'" in str(error.value)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.zeros((0, 3)), "empty"),
        (np.zeros((2, 2, 2)), "3 dimensions"),
        (np.array([["a"]]), "not numbers"),
    ],
)
def test_other_arrays_are_refused(matrix, words):
    with pytest.raises(InputError, match=words):
        as_counts(matrix, "X")


def test_the_counts_layer_is_used_before_x_and_a_setting_selects_a_layer():
    adata = make(np.log1p(X), counts=X, other=2 * X)
    assert (Counts.of(adata).x.toarray() == X).all()
    assert (Counts.of(adata, "other").x.toarray() == 2 * X).all()
    with pytest.raises(InputError, match="layers here: counts, other"):
        Counts.of(adata, "umi")
    with pytest.raises(InputError, match="no raw"):
        Counts.of(adata, "raw")


def test_a_backed_file_gives_the_same_counts(tmp_path):
    adata = anndata.AnnData(sp.csr_matrix(X), obs=make().obs, var=make().var)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert (Counts.of(backed).x.toarray() == X).all()
    backed.file.close()


def test_genes_are_matched_by_name():
    counts = Counts.of(make())
    reordered = counts.with_genes(["i", "g"])
    assert (reordered.x.toarray() == X[:, [2, 0]]).all()
    with pytest.raises(InputError, match="1 of the model's 2 genes are not in the data \\(z\\)"):
        counts.with_genes(["g", "z"])
    filled = counts.with_genes(["z", "g"], fill_missing=True)
    assert (filled.x.toarray() == np.column_stack([[0, 0], X[:, 0]])).all()
    with pytest.raises(InputError, match="same kind"):
        counts.with_genes(["y", "z"], fill_missing=True)


def test_a_subset_keeps_its_own_names():
    subset = Counts.of(make())[np.array([1])]
    assert subset.cells.tolist() == ["b"]
    assert (subset.x.toarray() == X[[1]]).all()


def test_missing_identifiers_of_genes_are_text():
    adata = make()
    assert Counts.of(adata).ids is None
    for ids in (["E1", None, "E3"], pd.Categorical(["E1", None, "E3"])):
        adata.var["gene_ids"] = ids
        assert ids_of(adata.var).tolist()[::2] == ["E1", "E3"]
        assert all(type(identifier) is str for identifier in Counts.of(adata).ids)
