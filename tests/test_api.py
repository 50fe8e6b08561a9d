"""The Python face: the tutorial's own cells, and what scvi-tools' tests of this model ask for."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

import topicell
from topicell import AmortizedLDA, InputError
from topicell.config import Init


def synthetic(n_cells=200, n_genes=60, seed=0):
    """Negative-binomial counts of two batches, as scvi-tools' tests draw them."""
    generator = np.random.default_rng(seed)
    x = generator.negative_binomial(5, 0.3, size=(n_cells, n_genes)).astype(np.float32)
    adata = anndata.AnnData(
        sp.csr_matrix(x), obs=pd.DataFrame(index=[str(i) for i in range(n_cells)])
    )
    adata.obs["batch"] = pd.Categorical(["a", "b"] * (n_cells // 2))
    return adata


@pytest.fixture(scope="module")
def trained():
    adata = synthetic()
    AmortizedLDA.setup_anndata(adata)
    model = AmortizedLDA(adata, n_topics=5)
    model.train(max_epochs=2, batch_size=256, lr=0.01)
    return adata, model


def test_one_step_is_one_line_of_history():
    adata = synthetic()
    AmortizedLDA.setup_anndata(adata)
    model = AmortizedLDA(adata, n_topics=5, cell_topic_prior=1.5, topic_feature_prior=1.5)
    assert not model.is_trained
    model.train(max_steps=1, max_epochs=2)
    assert len(model.history["elbo_train"]) == 1


def test_parts_may_be_given_by_index_and_training_goes_on():
    adata = synthetic()
    AmortizedLDA.setup_anndata(adata)
    model = AmortizedLDA(adata, n_topics=5, cell_topic_prior=1.5, topic_feature_prior=1.5)
    rows = np.random.default_rng(0).permutation(200)
    train, valid, test = rows[:80], rows[80:140], rows[140:]
    for parts in ([train, valid], [train, valid, test]):
        model.train(max_steps=1, max_epochs=2, datasplitter_kwargs={"external_indexing": parts})
    assert len(model.history["elbo_train"]) == 2
    assert model.history["elbo_train"].index.tolist() == [0, 1]
    assert set(model.fit_.held_out.cells) == {str(row) for row in valid}
    with pytest.raises(InputError, match="distinct"):
        model.train(datasplitter_kwargs={"external_indexing": [train, train]})


def test_vector_priors():
    adata = synthetic()
    AmortizedLDA.setup_anndata(adata)
    settings = {"max_epochs": 1, "batch_size": 256, "lr": 0.01}
    scalar = AmortizedLDA(adata, n_topics=5, cell_topic_prior=1.5, topic_feature_prior=1.5)
    vector = AmortizedLDA(
        adata, n_topics=5, cell_topic_prior=[1.5] * 5, topic_feature_prior=np.full(60, 1.5)
    )
    for model in (scalar, vector):
        model.train(**settings)
    assert scalar.get_feature_by_topic().equals(vector.get_feature_by_topic())
    with pytest.raises(InputError, match="4 numbers for 5 topics"):
        AmortizedLDA(adata, n_topics=5, cell_topic_prior=[1.0] * 4)


def test_shapes_names_and_simplex(trained):
    adata, model = trained
    genes = model.get_feature_by_topic()
    assert genes.shape == (60, 5)
    assert np.allclose(genes.sum(0), 1)
    assert genes.index.tolist() == adata.var_names.tolist()
    cells = model.get_latent_representation(adata)
    assert cells.shape == (200, 5)
    assert ((cells >= 0) & (cells <= 1)).to_numpy().all()
    assert np.allclose(cells.sum(1), 1)
    assert cells.columns.tolist() == [f"topic_{k}" for k in range(5)]


def test_held_out_anndata(trained):
    _, model = trained
    other = synthetic(seed=1)
    AmortizedLDA.setup_anndata(other)
    assert model.get_latent_representation(other).shape == (200, 5)
    assert np.isfinite(model.get_elbo(other))
    assert 1 < model.get_perplexity(other) < 60 * 1.2


def test_a_subset_keeps_its_own_names_and_values(trained):
    _, model = trained
    whole = model.get_latent_representation()
    some = model.get_latent_representation(indices=[5, 3, 17])
    assert some.index.tolist() == ["5", "3", "17"]
    assert np.allclose(some, whole.iloc[[5, 3, 17]], atol=1e-6)
    assert model.get_elbo(indices=np.arange(100)) != model.get_elbo(indices=np.arange(100, 200))


def test_elbo_and_perplexity_have_the_right_sign_and_size(trained):
    """scvi-tools 1.3.2 and later return the reciprocal perplexity and the negated ELBO."""
    adata, model = trained
    elbo, perplexity = model.get_elbo(), model.get_perplexity()
    assert elbo < 0
    counts = adata.X.sum()
    assert perplexity == pytest.approx(np.exp(-elbo * adata.n_obs / counts))
    assert perplexity > 1
    assert model.history["elbo_train"].iloc[-1, 0] == pytest.approx(elbo, rel=0.05)


def test_save_and_load(trained, tmp_path):
    adata, model = trained
    model.save(tmp_path / "model", save_anndata=True)
    with pytest.raises(InputError, match="exists"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True, save_anndata=True)
    loaded = AmortizedLDA.load(tmp_path / "model")
    assert loaded.history_["elbo_train"].equals(model.history_["elbo_train"])
    assert loaded.get_feature_by_topic().equals(model.get_feature_by_topic())
    ours, theirs = (m.get_latent_representation(n_samples=6000) for m in (model, loaded))
    assert (ours.to_numpy() == theirs.to_numpy()).all()
    model.save(tmp_path / "lean")
    with pytest.raises(InputError, match="without its AnnData"):
        AmortizedLDA.load(tmp_path / "lean")
    assert AmortizedLDA.load(tmp_path / "lean", adata=adata).get_elbo() == model.get_elbo()


def test_mistakes_are_named():
    adata = synthetic()
    with pytest.raises(InputError, match="setup_anndata"):
        AmortizedLDA(adata)
    AmortizedLDA.setup_anndata(adata)
    model = AmortizedLDA(adata, n_topics=3)
    with pytest.raises(InputError, match=r"train\(\) first"):
        model.get_latent_representation()
    with pytest.raises(InputError, match="train_size"):
        model.train(train_size=0.8, validation_size=0.4)
    adata.X = adata.X * 0.3
    with pytest.raises(InputError, match="not whole"):
        AmortizedLDA.setup_anndata(adata)


@pytest.mark.slow
# What scanpy and umap say of the tutorial's own calls.
@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
@pytest.mark.filterwarnings("ignore:.*default backend for leiden:FutureWarning")
@pytest.mark.filterwarnings("ignore:Tensorflow not installed")
@pytest.mark.filterwarnings("ignore:n_jobs value")
def test_the_tutorials_cells_as_they_stand(facs_folder, monkeypatch):
    monkeypatch.setenv("TOPICELL_DATA", str(facs_folder))
    adata = topicell.load_dataset("pbmc_facs")

    adata.layers["counts"] = adata.X.copy()  # preserve counts
    sc.pp.normalize_total(adata, target_sum=10e4)
    sc.pp.log1p(adata)
    adata.raw = adata  # freeze the state in `.raw`
    adata = adata[:, ~adata.var_names.str.startswith("MT-")]
    sc.pp.highly_variable_genes(
        adata, flavor="seurat_v3", layer="counts", n_top_genes=1000, subset=True
    )
    n_topics = 10

    AmortizedLDA.setup_anndata(adata, layer="counts")
    model = AmortizedLDA(adata, n_topics=n_topics)
    model.train()

    topic_prop = model.get_latent_representation()
    assert topic_prop.shape == (3774, 10)
    adata.obsm["X_LDA"] = topic_prop
    for i in range(n_topics):
        adata.obs[f"LDA_topic_{i}"] = topic_prop[[f"topic_{i}"]]

    sc.tl.pca(adata, svd_solver="arpack")
    sc.pp.neighbors(adata, n_pcs=30, n_neighbors=20)
    sc.tl.umap(adata)
    sc.tl.leiden(adata, key_added="leiden_scVI", resolution=0.8)
    adata.obsm["raw_counts_umap"] = adata.obsm["X_umap"].copy()
    assert adata.obsm["raw_counts_umap"].shape == (3774, 2)
    # scanpy hands fewer than 4,096 cells to scikit-learn, which does not know the tutorial's
    # metric="hellinger": for these 3,774 it is spelled out, Euclidean distance on √θ.
    adata.obsm["X_LDA"] = np.sqrt(topic_prop)
    sc.pp.neighbors(adata, use_rep="X_LDA", n_neighbors=20)
    sc.tl.umap(adata)
    adata.obsm["topic_space_umap"] = adata.obsm["X_umap"].copy()
    assert adata.obsm["topic_space_umap"].shape == (3774, 2)

    feature_by_topic = model.get_feature_by_topic()
    assert feature_by_topic.shape == (1000, 10)
    rank_by_topic = pd.DataFrame()
    for i in range(n_topics):
        topic_name = f"topic_{i}"
        topic = feature_by_topic[topic_name].sort_values(ascending=False)
        rank_by_topic[topic_name] = topic.index
        rank_by_topic[f"{topic_name}_prop"] = topic.values
    assert rank_by_topic.head().shape == (5, 20)

    assert model.get_elbo() > -1880
    assert 1 < model.get_perplexity() < 108


def test_fit_works_on_any_matrix_and_layer(tmp_path):
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


def test_fit_names_a_setting_it_does_not_have():
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


def test_public_names_are_there_and_importing_is_cheap():
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
