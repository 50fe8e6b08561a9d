"""The Python interface: fit, load and preprocess with settings by name, on any matrix."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import topicell
from topicell import InputError
from topicell.config import Init


def synthetic():
    """Return 200 cells × 60 genes with counts of a negative binomial."""
    x = np.random.default_rng(0).negative_binomial(5, 0.3, size=(200, 60)).astype(np.float32)
    return anndata.AnnData(sp.csr_matrix(x), obs=pd.DataFrame(index=[str(i) for i in range(200)]))


def test_fit_is_the_same_for_every_form_of_the_counts(tmp_path):
    adata = synthetic()
    settings = {"n_topics": 3, "n_replicates": 1, "epochs": 2, "progress": False, "n_hidden": 8}
    expected = topicell.fit(adata, **settings)
    assert expected.cell_topics().index.tolist() == adata.obs_names.tolist()
    dense = adata.copy()
    dense.X = adata.X.toarray()
    layered = adata.copy()
    layered.layers["umi"] = adata.X.astype(np.int64)
    layered.X = np.log1p(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    fits = [
        topicell.fit(dense, **settings),
        topicell.fit(layered, layer="umi", **settings),
        topicell.fit(backed, **settings),
    ]
    backed.file.close()
    for fit in fits:
        assert fit.cell_topics().equals(expected.cell_topics())
    expected.save(tmp_path / "model")
    loaded = topicell.load(tmp_path / "model")
    assert loaded.transform(adata).equals(expected.transform(adata))


def test_fit_refuses_an_unknown_setting_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'learning_rate'"):
        topicell.fit(synthetic(), learning_rat=0.1)
    with pytest.raises(InputError, match="valid_share"):
        topicell.fit(synthetic(), valid_share=1.0)


def test_settings_of_model_and_training_both_reach_the_fit():
    fit = topicell.fit(
        synthetic(), n_topics=3, n_replicates=2, epochs=1, init=Init.kmeans, progress=False
    )
    assert fit.n_replicates == 2
    assert fit.model.init is Init.kmeans


def test_public_names_have_docstrings():
    assert set(topicell.__all__) <= set(dir(topicell))
    for name in topicell.__all__:
        assert getattr(topicell, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = topicell.nothing


def test_preprocess_takes_the_settings_of_its_configuration():
    adata = topicell.load_dataset("simulated")
    prepared = topicell.preprocess(adata, drop_genes=[], n_variable_genes=100)
    assert prepared.shape == (2000, 100)
    with pytest.raises(InputError, match="did you mean 'n_variable_genes'"):
        topicell.preprocess(adata, drop_genes=[], n_variable_gene=100)


def test_preprocess_takes_counts_from_any_layer(tmp_path):
    adata = synthetic()
    expected = topicell.preprocess(adata, drop_genes=[], n_variable_genes=None)
    assert (expected.layers["counts"] != adata.X).nnz == 0
    layered = adata.copy()
    layered.layers["umi"], layered.X = adata.X.copy(), np.log1p(adata.X)
    layered.raw = adata
    for layer in ("umi", "raw"):
        again = topicell.preprocess(layered, drop_genes=[], layer=layer, n_variable_genes=None)
        assert (again.layers["counts"] != adata.X).nnz == 0
        assert (again.X != expected.X).nnz == 0
    assert (np.log1p(adata.X) != layered.X).nnz == 0
    with pytest.raises(InputError, match="log-normalised"):
        topicell.preprocess(layered, drop_genes=[])
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert topicell.preprocess(backed, drop_genes=[], n_variable_genes=None).shape == (200, 60)
    backed.file.close()
