"""The table of models: each can be named, its settings are checked, and one row adds a model."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from topicell.cli.train import conf_folder
from topicell.config import ModelConfig, TrainConfig
from topicell.errors import InputError
from topicell.model.external.library import Fitted, fit_library
from topicell.model.points import PointFit
from topicell.model.registry import MODELS, ModelSpec, model_spec, require_model


def test_every_model_has_a_configuration_file_of_its_name():
    for name in MODELS:
        path = conf_folder() / "model" / f"{name}.yaml"
        assert yaml.safe_load(path.read_text())["kind"] == name


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"model.kind = 'prodlad': .*did you mean 'prodlda'\?"):
        model_spec("prodlad")


@pytest.mark.parametrize(
    "setting",
    [
        {"learning_rate": 0.01},
        {"batch_size": 64},
        {"max_steps": 3},
        {"checkpoint_every": 3},
        {"n_hidden": 64},
        {"init": "random"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_model_refuses_settings_without_effect(setting):
    ((name, value),) = setting.items()
    group = "train" if hasattr(TrainConfig(), name) else "model"
    for kind in MODELS:
        configs = ModelConfig(kind=kind), TrainConfig()
        setattr(configs[group == "train"], name, value)
        if MODELS[kind].settings is None:
            require_model(*configs)
            continue
        message = f"{group}.{name} = {value!r}: model.kind={kind} has no such setting"
        with pytest.raises(InputError, match=re.escape(message)):
            require_model(*configs)
    require_model(ModelConfig(kind="sklearn_nmf", n_topics=7), TrainConfig(epochs=3))


def test_a_model_is_added_by_one_row(run_here, monkeypatch):
    """The command line, the tables, MLflow and the page know it."""

    def clusters(x_NG, settings):
        """Gene proportions of groups of cells, in their order."""
        groups = np.array_split(np.arange(x_NG.shape[0]), settings.n_topics)
        weight_KG = np.stack([np.asarray(x_NG[g].sum(0)).ravel() + 1 for g in groups])
        return Fitted(weight_KG, lambda x: np.asarray(x @ weight_KG.T) + 1)

    spec = ModelSpec(
        name="toy",
        title="a toy with {n_topics} topics",
        fit=partial(fit_library, clusters, 1),
        restore=PointFit.restored,
        settings=frozenset({"model.kind", "model.n_topics", "train.n_replicates"}),
    )
    monkeypatch.setitem(MODELS, "toy", spec)
    settings = [
        *("data=simulated", "data.simulation.n_cells=60", "data.simulation.n_genes=40"),
        *("preprocess.n_variable_genes=null", "model.n_topics=3", "train.n_replicates=2"),
        "report.dpi=10",
    ]
    code, out, _ = run_here("train", *settings, "model.kind=toy", "--cfg", "job")
    assert code == 0
    assert "kind: toy" in out
    code, _, err = run_here("train", *settings, "model.kind=toy", "hydra.run.dir=toy")
    assert code == 0, err
    assert "a toy with 3 topics" in Path("toy/report.html").read_text(encoding="utf-8")
    (run,) = MlflowClient("sqlite:///mlflow.db").search_runs(["1"])
    assert run.data.params["model.kind"] == "toy"
    arguments = ("run=toy", "input=toy/adata.h5ad", "output=mapped.csv", "n_samples=8")
    assert run_here("transform", *arguments)[0] == 0
    code, _, err = run_here("train", *settings, "model.kind=toy", "model.n_hidden=3")
    assert (code, "model.kind=toy has no such setting" in err) == (2, True)
