"""`AmortizedLDA` runs code for scvi-tools: signatures, mapped arguments, results, the tutorial."""

import importlib.util
import inspect
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch

import topicell
from topicell import AmortizedLDA, InputError, scvi_style
from topicell.config import AnnealingShape, Device

SIGNATURES = {
    "__init__": "adata n_topics n_hidden cell_topic_prior topic_feature_prior",
    "setup_anndata": "adata layer kwargs",
    "train": "max_epochs accelerator device train_size validation_size shuffle_set_split "
    "batch_size early_stopping lr training_plan datasplitter_kwargs plan_config plan_kwargs "
    "trainer_config trainer_kwargs",
    "get_latent_representation": "adata indices batch_size n_samples",
    "get_feature_by_topic": "n_samples",
    "get_elbo": "adata indices batch_size",
    "get_perplexity": "adata indices batch_size",
    "save": "dir_path prefix overwrite save_anndata save_kwargs legacy_mudata_format datamodule "
    "anndata_write_kwargs",
    "load": "dir_path adata accelerator device prefix backup_url datamodule "
    "allowed_classes_names_list",
    "view_anndata_setup": "adata hide_state_registries",
}
"""The signatures of scvi-tools 1.4.2."""


def parameters(method):
    return [name for name in inspect.signature(method).parameters if name != "self"]


def theirs():
    """Return the signatures of scvi-tools, and keywords of its trainers, plans and splitters."""
    if importlib.util.find_spec("scvi") is None:
        return {name: text.split() for name, text in SIGNATURES.items()}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch
        import scvi
    model = scvi.model.AmortizedLDA
    found = {name: parameters(getattr(model, name)) for name in SIGNATURES}
    assert found == {name: text.split() for name, text in SIGNATURES.items()}
    trainers = (lightning.pytorch.Trainer.__init__, scvi.train.Trainer.__init__)
    known = {
        "trainer": {name for trainer in trainers for name in parameters(trainer)},
        "plan": {*parameters(scvi.train.PyroTrainingPlan.__init__)} - {"pyro_module"},
        "splitter": {*parameters(scvi.dataloaders.DataSplitter.__init__)} - {"adata_manager"},
    }
    return found, {kind: names - {"kwargs"} for kind, names in known.items()}


def synthetic(seed=0):
    """Return 60 cells × 20 genes with counts of a negative binomial."""
    x = np.random.default_rng(seed).negative_binomial(5, 0.3, size=(60, 20)).astype(np.float32)
    return anndata.AnnData(x, obs=pd.DataFrame(index=[f"c{i}" for i in range(60)]))


@pytest.fixture(scope="module")
def cells():
    adata = synthetic()
    AmortizedLDA.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module")
def trained(cells):
    model = AmortizedLDA(cells, n_topics=5)
    model.train(max_epochs=2, batch_size=256, lr=0.01)
    return model


@pytest.fixture
def passed(monkeypatch):
    """Return the arguments that `train` passes to the training function, which does not run."""
    found = {}

    class Fit:
        cells = None

    def instead(training, valid, model, config, *, seed, start):
        found.update(training=training, valid=valid, model=model, config=config)
        return Fit()

    monkeypatch.setattr(scvi_style, "train", instead)
    return found


@pytest.mark.slow
def test_every_argument_of_scvi_tools_has_its_position():
    signatures, known = theirs()
    for name, expected in signatures.items():
        ours = inspect.signature(getattr(AmortizedLDA, name)).parameters
        keywords = (inspect.Parameter.KEYWORD_ONLY,)
        placed = [p for p in ours if p != "self" and ours[p].kind not in keywords]
        # Arguments that only topicell has are keywords.
        assert placed == expected, name
    own = {*parameters(AmortizedLDA.train)}
    for kind, mapped in (
        ("trainer", own | {*scvi_style.TRAINER, *scvi_style.TRAINER_WITHOUT_EFFECT}),
        ("plan", {*scvi_style.PLAN, *scvi_style.PLAN_WITHOUT_EFFECT}),
        ("splitter", own | {"external_indexing", *scvi_style.SPLITTER_WITHOUT_EFFECT}),
    ):
        assert known.get(kind, set()) <= mapped, kind


def test_arguments_with_an_equivalent_are_mapped(cells, passed):
    AmortizedLDA(cells, n_topics=3).train(
        7,
        "cpu",
        1,
        0.8,
        0.1,
        False,
        16,
        True,
        plan_kwargs={"lr": 1e-3, "n_epochs_kl_warmup": 4, "min_kl_weight": 0.0},
        early_stopping_patience=5,
        early_stopping_min_delta=4.8,
        max_steps=-1,
        enable_progress_bar=False,
    )
    config = passed["config"]
    assert (config.epochs, config.batch_size, config.max_steps) == (7, 16, None)
    assert (config.learning_rate, config.device, config.progress) == (1e-3, Device.cpu, False)
    assert config.kl_annealing.warmup_epochs == 4
    assert config.kl_annealing.min_weight == 1e-6
    assert (config.early_stopping.enabled, config.early_stopping.patience) == (True, 5)
    # scvi-tools gives it in nats of all 48 training cells.
    assert config.early_stopping.min_delta == pytest.approx(0.1)
    assert list(passed["valid"].cells) == [f"c{i}" for i in range(6)]
    assert list(passed["training"].cells) == [f"c{i}" for i in range(6, 54)]


def test_plans_and_trainers_may_come_as_configurations(cells, passed):
    class Plan:
        def to_kwargs(self):
            return {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 27, "lr": 0.5}

    model = AmortizedLDA(cells, n_topics=3)
    model.train(batch_size=6, plan_config=Plan(), plan_kwargs={"optim_kwargs": {"lr": 0.3}})
    # 54 training cells are nine steps an epoch.
    assert passed["config"].kl_annealing.warmup_epochs == 3
    assert passed["config"].learning_rate == 0.3
    model.train(lr=0.2, plan_kwargs={"n_epochs_kl_warmup": None, "optim_kwargs": {"lr": 0.3}})
    assert passed["config"].learning_rate == 0.2
    assert passed["config"].kl_annealing.shape is AnnealingShape.constant
    model.train(batch_size=None, trainer_config={"max_steps": 5}, max_steps=6)
    assert (passed["config"].batch_size, passed["config"].max_steps) == (54, 6)
    assert model.test_indices is not None
    assert len(model.train_indices) == 54


def test_arguments_without_effect_are_named_in_one_warning(cells, passed):
    model = AmortizedLDA(cells, n_topics=3)
    with pytest.warns(UserWarning, match="have no effect") as warned:
        model.train(
            devices=2,
            plan_kwargs={"blocked": ["x"], "optim_kwargs": {"lr": 0.1, "eps": 1e-8}},
            datasplitter_kwargs={"num_workers": 4, "pin_memory": False},
            trainer_config={"callbacks": [object()]},
            gradient_clip_val=1.0,
            logger=False,
            precision="32-true",
            check_val_every_n_epoch=1,
        )
    assert len(warned) == 1
    assert warned[0].filename == __file__
    message = str(warned[0].message)
    for name in ("devices", "blocked", "eps", "num_workers", "callbacks", "gradient_clip_val"):
        assert name in message
    for name in ("pin_memory", "logger", "precision", "check_val"):
        # These have no effect because topicell does this by default.
        assert name not in message
    assert "all parameters are trained" in message
    with pytest.warns(UserWarning, match=r"sample_key \(the model has no samples\)") as warned:
        AmortizedLDA.setup_anndata(cells, sample_key="donor", labels_key=None)
    assert len(warned) == 1
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("method", "arguments", "near"),
    [
        ("train", {"max_epoch": 3}, "max_epochs"),
        ("train", {"acelerator": "cpu"}, "accelerator"),
        ("train", {"plan_kwargs": {"n_epoch_kl_warmup": 3}}, "n_epochs_kl_warmup"),
        ("train", {"plan_kwargs": {"optim_kwargs": {"learning_rate": 1, "lrr": 3}}}, ""),
        ("train", {"datasplitter_kwargs": {"external_index": []}}, "external_indexing"),
        ("train", {"trainer_config": {"early_stoping_patience": 3}}, "early_stopping_patience"),
        ("get_latent_representation", {"n_sample": 3}, "n_samples"),
        ("get_elbo", {"indexes": [1]}, "indices"),
        ("save", {"dir_path": "x", "overwrit": True}, "overwrite"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_typo_is_an_error_that_names_the_nearest(cells, passed, method, arguments, near):
    with pytest.raises(TypeError, match=f"did you mean '{near}'" if near else "learning_rate"):
        getattr(AmortizedLDA(cells, n_topics=3), method)(**arguments)


def test_typos_of_class_methods_and_the_constructor_name_the_nearest(cells):
    with pytest.raises(TypeError, match="did you mean 'batch_key'"):
        AmortizedLDA.setup_anndata(cells, bach_key="x")
    with pytest.raises(TypeError, match="did you mean 'n_topics'"):
        AmortizedLDA(cells, n_topic=3)
    with pytest.raises(TypeError, match="did you mean 'accelerator'"):
        AmortizedLDA.load("x", acelerator="cpu")


def test_a_missing_gpu_and_other_accelerators_are_refused(cells, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = AmortizedLDA(cells, n_topics=3)
    for arguments in ({"accelerator": "gpu", "devices": 1}, {"use_gpu": True}):
        with pytest.raises(InputError, match="accelerator = 'gpu': torch sees no CUDA device"):
            model.train(**arguments)
    for accelerator in ("mps", "tpu", "gpus"):
        with pytest.raises(InputError, match="give auto, cpu or gpu"):
            model.train(accelerator=accelerator)


def test_code_for_scvi_tools_runs(cells):
    model = AmortizedLDA(cells, n_topics=3)
    model.train(
        max_epochs=2,
        accelerator="auto",
        devices=1,
        plan_kwargs={"lr": 1e-3},
        early_stopping=True,
        enable_progress_bar=False,
    )
    assert model.get_latent_representation(cells, None, 32, 10).shape == (60, 3)


def test_parts_can_be_indices_and_training_continues():
    adata = synthetic()
    AmortizedLDA.setup_anndata(adata)
    model = AmortizedLDA(adata, n_topics=5, cell_topic_prior=1.5, topic_feature_prior=1.5)
    assert not model.is_trained
    rows = np.random.default_rng(0).permutation(60)
    train, valid, test = rows[:30], rows[30:45], rows[45:]
    for n_lines, parts in ((1, [train, valid]), (2, [train, valid, test])):
        model.train(max_steps=1, max_epochs=2, datasplitter_kwargs={"external_indexing": parts})
        assert model.history["elbo_train"].index.tolist() == list(range(n_lines))
    assert model.is_trained
    assert set(model.fit_.held_out.cells) == {f"c{row}" for row in valid}
    with pytest.raises(InputError, match="distinct"):
        model.train(datasplitter_kwargs={"external_indexing": [train, train]})


def test_vector_priors_reach_the_model(cells, passed):
    AmortizedLDA(
        cells, n_topics=5, cell_topic_prior=[1.5] * 5, topic_feature_prior=np.full(20, 1.5)
    ).train()
    assert passed["model"].cell_topic_prior == [1.5] * 5
    assert passed["model"].topic_gene_prior == [1.5] * 20
    with pytest.raises(InputError, match="4 numbers for 5 topics"):
        AmortizedLDA(cells, n_topics=5, cell_topic_prior=[1.0] * 4)


def test_results_are_proportions_with_names(trained, cells):
    genes = trained.get_feature_by_topic()
    assert genes.shape == (20, 5)
    assert np.allclose(genes.sum(axis=0), 1)
    assert genes.index.tolist() == cells.var_names.tolist()
    proportions = trained.get_latent_representation(cells)
    assert proportions.shape == (60, 5)
    assert ((proportions >= 0) & (proportions <= 1)).to_numpy().all()
    assert np.allclose(proportions.sum(axis=1), 1)
    assert proportions.columns.tolist() == [f"topic_{k}" for k in range(5)]
    some = trained.get_latent_representation(indices=[5, 3, 17])
    assert some.index.tolist() == ["c5", "c3", "c17"]
    assert np.allclose(some, proportions.iloc[[5, 3, 17]], atol=1e-6)
    halves = np.split(np.arange(60), 2)
    assert trained.get_elbo(indices=halves[0]) != trained.get_elbo(indices=halves[1])


def test_another_anndata_has_results(trained):
    other = synthetic(seed=1)
    AmortizedLDA.setup_anndata(other)
    assert trained.get_latent_representation(other).shape == (60, 5)
    assert np.isfinite(trained.get_elbo(other))
    assert 1 < trained.get_perplexity(other) < 20 * 1.2


def test_elbo_and_perplexity_have_the_right_sign_and_size(trained, cells):
    """scvi-tools 1.3.2 and later return the reciprocal perplexity and the negated ELBO."""
    elbo, perplexity = trained.get_elbo(), trained.get_perplexity()
    assert elbo < 0
    assert perplexity == pytest.approx(np.exp(-elbo * cells.n_obs / cells.X.sum()))
    assert perplexity > 1
    assert trained.history["elbo_train"].iloc[-1, 0] == pytest.approx(elbo, rel=0.1)


def test_save_and_load(trained, cells, tmp_path, capsys):
    trained.save(str(tmp_path / "models"), "first_", save_anndata=True, compression="gzip")
    with pytest.raises(InputError, match="exists"):
        trained.save(tmp_path / "models", "first_", False)
    trained.save(tmp_path / "models", "first_", overwrite=True, save_anndata=True)
    loaded = AmortizedLDA.load(tmp_path / "models", None, "cpu", "auto", "first_")
    assert loaded.history_["elbo_train"].equals(trained.history_["elbo_train"])
    assert loaded.get_feature_by_topic().equals(trained.get_feature_by_topic())
    ours, theirs = (m.get_latent_representation(n_samples=6000) for m in (trained, loaded))
    assert (ours.to_numpy() == theirs.to_numpy()).all()
    loaded.view_anndata_setup()
    assert "60 cells × 20 genes" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"save_kwargs \(weights are written as safetensors\)"):
        trained.save(tmp_path / "lean", save_kwargs={"pickle_protocol": 4})
    with pytest.raises(InputError, match="without its AnnData"):
        AmortizedLDA.load(tmp_path / "lean")
    assert AmortizedLDA.load(tmp_path / "lean", adata=cells).get_elbo() == trained.get_elbo()


def test_mistakes_are_refused():
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
# Warnings of scanpy and umap about calls of the tutorial.
@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
@pytest.mark.filterwarnings("ignore:.*(default backend for|implementation of) leiden:FutureWarning")
@pytest.mark.filterwarnings("ignore:Tensorflow not installed")
@pytest.mark.filterwarnings("ignore:n_jobs value")
def test_the_cells_of_the_tutorial_run(facs_folder, monkeypatch):
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
    # The tutorial has metric="hellinger". scanpy uses scikit-learn for less than 4,096 cells, which
    # does not have it: it is the Euclidean distance of √θ.
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


def test_batches_of_setup_anndata_are_those_of_the_model(tmp_path):
    adata = synthetic()
    with pytest.raises(InputError, match="batch_key = 'lab': obs has no such column"):
        AmortizedLDA.setup_anndata(adata, batch_key="lab")
    adata.obs["lab"] = np.where(np.arange(60) % 2, "a", "b")
    AmortizedLDA.setup_anndata(adata, batch_key="lab")
    model = AmortizedLDA(adata, n_topics=3, n_hidden=8)
    model.train(max_epochs=2, enable_progress_bar=False)
    assert model.fit_.batches == ("a", "b")
    model.save(tmp_path / "model")
    loaded = AmortizedLDA.load(tmp_path / "model", synthetic_with(adata.obs))
    theta = model.get_latent_representation(n_samples=64)
    assert loaded.get_latent_representation(n_samples=64).equals(theta)
    assert np.isfinite([loaded.get_elbo(), loaded.get_perplexity(indices=[1, 2, 3])]).all()


def synthetic_with(obs):
    adata = synthetic()
    adata.obs = obs
    return adata
