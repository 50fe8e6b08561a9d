"""Registered models: how MLflow stores and loads them."""

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from faults import free_port, mlflow_server

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.model.loading import load_fit
from topicell.tracking.registry import CODE, REQUIRED, fetch_model, register
from topicell.tracking.store import client, experiment_id


@pytest.fixture(scope="module", params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def store(request, tmp_path_factory):
    """Return the address of an SQLite store, and then of a server."""
    folder = tmp_path_factory.mktemp("store")
    if request.param == "sqlite":
        yield TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        return
    with mlflow_server(folder) as port:
        yield TrackingConfig(uri=f"http://127.0.0.1:{port}")


@dataclass
class Run:
    """A run that ended."""

    store: TrackingConfig
    id: str
    folder: Path


@pytest.fixture(scope="module")
def run(store, fitted, tmp_path_factory):
    """Register the model of a run as topicell/champion."""
    folder = tmp_path_factory.mktemp("run")
    fitted.save(folder / "model")
    mlflow = client(store)
    run_id = mlflow.create_run(experiment_id(mlflow, store)).info.run_id
    mlflow.log_artifacts(run_id, str(folder / "model"), "model")
    mlflow.set_terminated(run_id, "FINISHED")
    tags = {"study": "k", "n_topics": "4"}
    assert register(store, run_id, folder, tags=tags) == "1"
    return Run(store, run_id, folder)


@pytest.fixture
def champion(run, tmp_path, monkeypatch):
    """Load the registered model without topicell, by MLflow."""
    import mlflow.pyfunc

    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.store.uri)
    return mlflow.pyfunc.load_model("models:/topicell@champion", dst_path=str(tmp_path))


@pytest.fixture(scope="module")
def frame(planted):
    counts = planted[0]
    return pd.DataFrame(counts.x.toarray(), index=counts.cells, columns=counts.genes)


@pytest.fixture
def new_cells(planted):
    """Write the planted cells to new.h5ad."""
    counts = planted[0]
    names = {"obs": pd.DataFrame(index=counts.cells), "var": pd.DataFrame(index=counts.genes)}
    anndata.AnnData(counts.x, **names).write_h5ad("new.h5ad")


def test_predictions_are_those_of_the_fit(champion, frame, planted, fitted):
    expected = fitted.transform(planted[0])
    for cells in (frame, frame.iloc[:, ::-1].assign(another_gene=0.5), frame.astype("int32")):
        pd.testing.assert_frame_equal(champion.predict(cells), expected, check_exact=True)
    settings = {"replicate": (fitted.selected + 1) % 3, "refine": True, "n_samples": 8, "seed": 5}
    few = planted[0][np.arange(20)]
    pd.testing.assert_frame_equal(
        champion.predict(frame[:20], params=settings),
        fitted.transform(few, **settings),
        check_exact=True,
    )
    outputs = champion.metadata.signature.outputs
    assert outputs.input_names() == fitted.topic_names
    assert set(outputs.numpy_types()) == set(expected.dtypes)


def test_the_signature_refuses_missing_genes_and_other_types(champion, frame):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=r"missing inputs \['gene_7'\]"):
        champion.predict(frame.drop(columns="gene_7"))
    with pytest.raises(MlflowException, match="Can not safely convert int64"):
        champion.predict(frame.astype("int64"))
    with pytest.raises(InputError, match="not whole"):
        champion.predict(np.log1p(frame))


def test_a_registered_model_holds_only_weights_and_code(run, tmp_path):
    from mlflow.artifacts import download_artifacts

    # Files in the current folder that MLflow would store with the model.
    for name in ("uv.lock", "pyproject.toml"):
        Path(name).write_text("")
    register(run.store, run.id, run.folder, name="stored", tags={})
    address = client(run.store).get_model_version_by_alias("stored", "champion").source
    folder = Path(
        download_artifacts(artifact_uri=address, dst_path=tmp_path, tracking_uri=run.store.uri)
    )
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        *("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "served.py"),
        *("artifacts/model/model.json", "artifacts/model/weights.safetensors"),
    }
    assert (folder / "served.py").read_text() == CODE.read_text()
    pins = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert pins == {name: version(name).partition("+")[0] for name in ("mlflow", *REQUIRED)}
    text = (folder / "MLmodel").read_text()
    assert str(run.folder) not in text
    assert str(CODE.parent) not in text
    flavor = yaml.safe_load(text)["flavors"]["python_function"]
    assert flavor["model_code_path"] == "served.py"
    assert "python_model" not in flavor


def test_registering_changes_only_the_models_of_a_run(run):
    from mlflow import active_run

    mlflow = client(run.store)
    assert active_run() is None
    before = mlflow.get_run(run.id).info
    assert before.status == "FINISHED"
    assert register(run.store, run.id, run.folder, name="second", tags={}) == "1"
    after = mlflow.get_run(run.id)
    assert (after.info.status, after.info.end_time) == (before.status, before.end_time)
    models = [mlflow.get_logged_model(output.model_id) for output in after.outputs.model_outputs]
    assert {"topicell", "second"} <= {model.name for model in models}
    assert {str(model.status) for model in models} == {"READY"}
    (second,) = (model for model in models if model.name == "second")
    assert second.source_run_id == run.id
    assert re.fullmatch(
        r'\[\{"name": "second", "version": "?1"?\}\]', second.tags["mlflow.modelVersions"]
    )


def test_registering_again_moves_the_alias(run, tmp_path, fitted):
    mlflow = client(run.store)
    other = mlflow.create_run(experiment_id(mlflow, run.store)).info.run_id
    for number, run_id in (("1", run.id), ("2", other), ("2", other), ("3", run.id)):
        # The run that the alias already names is not registered again.
        tags = {"study": number, "n_topics": "4"}
        assert register(run.store, run_id, run.folder, name="moved", tags=tags) == number
        found = mlflow.get_model_version_by_alias("moved", "champion")
        assert (str(found.version), found.tags, found.run_id) == (number, tags, run_id)
    for which in ("champion", "1"):
        fit = load_fit(fetch_model(f"moved/{which}", run.store, tmp_path / which))
        assert np.array_equal(fit.beta(), fitted.beta())


def test_a_model_that_cannot_be_stored_is_not_registered(run, tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException

    with pytest.raises(InputError, match="not a saved model"):
        register(run.store, run.id, tmp_path, name="none", tags={})
    monkeypatch.setattr("topicell.tracking.registry.CODE", tmp_path / "absent.py")
    with pytest.raises(MlflowException, match="does not exist"):
        register(run.store, run.id, run.folder, name="none", tags={})
    with pytest.raises(InputError, match="no such alias or version; aliases: none; latest"):
        fetch_model("none/champion", run.store, tmp_path)
    mlflow = client(run.store)
    found = mlflow.search_logged_models([experiment_id(mlflow, run.store)], "name = 'none'")
    assert [str(model.status) for model in found] == ["FAILED"]


@pytest.mark.usefixtures("new_cells")
def test_transform_by_a_registered_model_is_transform_by_its_run(run, run_here):
    tables = []
    for which in (f"run={run.id}", "model=topicell/champion", "model=topicell/1"):
        output = Path(f"{len(tables)}.csv")
        settings = ("input=new.h5ad", f"output={output}", f"tracking.uri={run.store.uri}")
        code, _, err = run_here("transform", which, *settings)
        assert (code, err) == (0, "")
        tables.append(output.read_bytes())
    assert tables[0] == tables[1] == tables[2]


@pytest.fixture(scope="module")
def other_models(run, tmp_path_factory):
    """Register a model that topicell did not make, and one without files."""
    mlflow, path = client(run.store), tmp_path_factory.mktemp("foreign") / "MLmodel"
    path.write_text("flavors:\n  python_function: {}\n")
    mlflow.log_artifact(run.id, str(path), "foreign")
    folder = mlflow.get_run(run.id).info.artifact_uri
    for name in ("foreign", "nowhere"):
        mlflow.create_registered_model(name)
        mlflow.create_model_version(name, f"{folder}/{name}", run.id)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "neither run nor model is set; give run=RUN_ID or model=NAME/ALIAS"),
        (["run=x", "model=topicell/champion"], "both run and model are set"),
        (["model=topicell"], "write NAME/ALIAS or NAME/VERSION"),
        (["model=models:/topicell@champion"], "as model=topicell/champion"),
        (["model=topicel/champion"], "no model 'topicel' is registered"),
        (["model=topicel/champion"], "registered models: foreign, "),
        (["model=topicell/best"], "aliases: champion; latest version: 1"),
        (["model=topicell/7"], "no such alias or version"),
        (["model=foreign/1"], "was not registered by topicell"),
        (["model=nowhere/1"], "cannot be read"),
        (["model=topicell/champion", "tracking.uri=http://127.0.0.1:{port}"], "cannot be read"),
        (["model=topicell/champion", "tracking.uri=sqlite:///no.db"], "does not exist:"),
        (["model=topicell/champion", "tracking.uri=ftp://x"], "tracking.uri"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("other_models", "new_cells")
def test_other_names_than_of_a_model_end_with_code_2_and_one_line(run, arguments, words, run_here):
    where = [argument.format(port=free_port()) for argument in arguments]
    settings = [f"tracking.uri={run.store.uri}", *where, "input=new.h5ad", "output=mapped.csv"]
    code, _, err = run_here("transform", *settings)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("topicell: ")
    assert words in err
    assert not Path("mapped.csv").exists()
