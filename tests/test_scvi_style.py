"""`AmortizedLDA` takes what code for scvi-tools passes: signatures, mapping, one warning."""

import importlib.util
import inspect
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

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
"""Of scvi-tools 1.4.2."""


def parameters(method):
    return [name for name in inspect.signature(method).parameters if name != "self"]


def theirs():
    """The signatures of scvi-tools, and what its trainers, plans and splitters take by keyword."""
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


@pytest.fixture(scope="module")
def cells():
    x = np.random.default_rng(0).negative_binomial(5, 0.3, size=(60, 20)).astype(np.float32)
    adata = anndata.AnnData(x, obs=pd.DataFrame(index=[f"c{i}" for i in range(60)]))
    AmortizedLDA.setup_anndata(adata)
    return adata


@pytest.fixture
def asked(monkeypatch):
    """What `train` asks of the training proper, which is not run."""
    found = {}

    class Fit:
        cells = None

    def instead(training, valid, model, config, *, seed, start):
        found.update(training=training, valid=valid, config=config)
        return Fit()

    monkeypatch.setattr(scvi_style, "train", instead)
    return found


@pytest.mark.slow
def test_every_argument_of_scvi_tools_is_taken_in_its_place():
    signatures, known = theirs()
    for name, expected in signatures.items():
        ours = inspect.signature(getattr(AmortizedLDA, name)).parameters
        keywords = (inspect.Parameter.KEYWORD_ONLY,)
        placed = [p for p in ours if p != "self" and ours[p].kind not in keywords]
        # Ours alone stand behind, and by keyword.
        assert placed == expected, name
    own = {*parameters(AmortizedLDA.train)}
    for kind, mapped in (
        ("trainer", own | {*scvi_style.TRAINER, *scvi_style.TRAINER_WITHOUT_EFFECT}),
        ("plan", {*scvi_style.PLAN, *scvi_style.PLAN_WITHOUT_EFFECT}),
        ("splitter", own | {"external_indexing", *scvi_style.SPLITTER_WITHOUT_EFFECT}),
    ):
        assert known.get(kind, set()) <= mapped, kind


def test_arguments_with_an_equivalent_are_mapped(cells, asked):
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
    config = asked["config"]
    assert (config.epochs, config.batch_size, config.max_steps) == (7, 16, None)
    assert (config.learning_rate, config.device, config.progress) == (1e-3, Device.cpu, False)
    assert config.kl_annealing.warmup_epochs == 4
    assert config.kl_annealing.min_weight == 1e-6
    assert (config.early_stopping.enabled, config.early_stopping.patience) == (True, 5)
    # There in nats of the 48 training cells together.
    assert config.early_stopping.min_delta == pytest.approx(0.1)
    assert list(asked["valid"].cells) == [f"c{i}" for i in range(6)]
    assert list(asked["training"].cells) == [f"c{i}" for i in range(6, 54)]


def test_plans_and_trainers_may_come_as_configurations(cells, asked):
    class Plan:
        def to_kwargs(self):
            return {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 27, "lr": 0.5}

    model = AmortizedLDA(cells, n_topics=3)
    model.train(batch_size=6, plan_config=Plan(), plan_kwargs={"optim_kwargs": {"lr": 0.3}})
    # 54 training cells are nine steps an epoch.
    assert asked["config"].kl_annealing.warmup_epochs == 3
    assert asked["config"].learning_rate == 0.3
    model.train(lr=0.2, plan_kwargs={"n_epochs_kl_warmup": None, "optim_kwargs": {"lr": 0.3}})
    assert asked["config"].learning_rate == 0.2
    assert asked["config"].kl_annealing.shape is AnnealingShape.constant
    model.train(batch_size=None, trainer_config={"max_steps": 5}, max_steps=6)
    assert (asked["config"].batch_size, asked["config"].max_steps) == (54, 6)
    assert model.test_indices is not None
    assert len(model.train_indices) == 54


def test_arguments_without_effect_are_named_in_one_warning(cells, asked):
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
    told = str(warned[0].message)
    for name in ("devices", "blocked", "eps", "num_workers", "callbacks", "gradient_clip_val"):
        assert name in told
    for name in ("pin_memory", "logger", "precision", "check_val"):
        # These ask for what is done anyway.
        assert name not in told
    assert "all parameters are trained" in told
    with pytest.warns(UserWarning, match=r"batch_key \(the model has no batches\)") as warned:
        AmortizedLDA.setup_anndata(cells, batch_key="batch", labels_key=None)
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
def test_a_typo_is_an_error_that_names_the_nearest(cells, asked, method, arguments, near):
    with pytest.raises(TypeError, match=f"did you mean '{near}'" if near else "learning_rate"):
        getattr(AmortizedLDA(cells, n_topics=3), method)(**arguments)


def test_typos_of_class_methods_and_the_constructor_name_the_nearest(cells):
    with pytest.raises(TypeError, match="did you mean 'batch_key'"):
        AmortizedLDA.setup_anndata(cells, bach_key="x")
    with pytest.raises(TypeError, match="did you mean 'n_topics'"):
        AmortizedLDA(cells, n_topic=3)
    with pytest.raises(TypeError, match="did you mean 'accelerator'"):
        AmortizedLDA.load("x", acelerator="cpu")


def test_a_gpu_that_is_not_there_and_other_accelerators_are_bad_input(cells, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = AmortizedLDA(cells, n_topics=3)
    for arguments in ({"accelerator": "gpu", "devices": 1}, {"use_gpu": True}):
        with pytest.raises(InputError, match="accelerator = 'gpu': torch sees no CUDA device"):
            model.train(**arguments)
    for accelerator in ("mps", "tpu", "gpus"):
        with pytest.raises(InputError, match="give auto, cpu or gpu"):
            model.train(accelerator=accelerator)


def test_code_for_scvi_tools_runs(cells, tmp_path, capsys):
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
    model.save(str(tmp_path / "models"), "first_", save_anndata=True, compression="gzip")
    with pytest.raises(InputError, match="exists"):
        model.save(tmp_path / "models", "first_", False)
    loaded = AmortizedLDA.load(tmp_path / "models", None, "cpu", "auto", "first_")
    assert loaded.get_elbo() == model.get_elbo()
    with pytest.warns(UserWarning, match=r"save_kwargs \(weights are written as safetensors\)"):
        model.save(tmp_path / "other", save_kwargs={"pickle_protocol": 4})
    loaded.view_anndata_setup()
    assert "60 cells × 20 genes" in capsys.readouterr().out
