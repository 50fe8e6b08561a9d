"""The model registry: store the model of a run under a name and an alias, and fetch it again."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.tracking.store import client, first_line, is_server, require_store, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from topicell.model.fit import TopicFit

CODE = Path(__file__).with_name("served.py")
REQUIRED = ("topicell", "torch", "pyro-ppl", "numpy", "scipy", "pandas", "safetensors")
"""Libraries whose versions a model pins, besides mlflow.

topicell is not in a package index: if MLflow builds an environment for the model,
``PIP_FIND_LINKS`` must name the folder of its wheel.
"""


def register(
    config: TrackingConfig,
    run_id: str,
    folder: Path,
    *,
    name: str = "topicell",
    alias: str = "champion",
    tags: Mapping[str, str],
) -> str:
    """Register the model of a run as a new version, and move the alias to it.

    Nothing is done if the alias names the model of this run already. The run may have ended.

    The stored MLflow model is an output of the run: the saved fit, the code that loads it, a
    signature that names the genes, and pinned requirements; no pickle.

    Parameters
    ----------
    config
        The store.
    run_id
        The run that made the model.
    folder
        Its run folder, with ``model/`` as written by `TopicFit.save`.
    name, alias
        Of the registered model, which is made if it does not exist, and of the new version.
    tags
        Of the version.

    Returns
    -------
    str
        The number of the version.

    Raises
    ------
    InputError
        The folder holds no saved model.
    MlflowException
        The store cannot be reached, or rejects the run, the name or the alias.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    from topicell.model.loading import load_fit

    fit = load_fit(folder / "model")
    store = client(config)
    # MLflow logs that it waits for a version that it has already.
    logging.getLogger("mlflow.store.model_registry").setLevel(logging.WARNING)
    before = _champion(store, name, alias)
    if before is not None and before.run_id == run_id:
        return str(before.version)
    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    experiment = store.get_run(run_id).info.experiment_id
    model = store.create_logged_model(experiment, name, source_run_id=run_id, tags=dict(tags))
    status = "FAILED"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model"
            _save(fit, folder / "model", path, model)
            store.log_model_artifacts(model.model_id, str(path))
        status = "READY"
    finally:
        store.finalize_logged_model(model.model_id, status)
    store.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    # MLflow would look up models:/ID in the store that is set for the whole process.
    made = store.create_model_version(
        name, model.artifact_location, run_id, tags=dict(tags), model_id=model.model_id
    )
    if not is_server(config):
        # A server sets this tag itself, and the UI shows it beside the run.
        versions = json.dumps([{"name": name, "version": made.version}])
        store.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions})
    store.set_registered_model_alias(name, alias, str(made.version))
    return str(made.version)


def _champion(store: MlflowClient, name: str, alias: str) -> Any:
    """Return the version that an alias names; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return store.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # Stores differ in the error for an alias that does not exist.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _save(fit: TopicFit, weights: Path, path: Path, logged: Any) -> None:
    """Write the MLflow model of a fit that is saved in the folder `weights`."""
    # MLflow would add the lock file of a project in the current folder.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    with warnings.catch_warnings():
        # MLflow warns of its own type hints.
        warnings.simplefilter("ignore")
        from mlflow.models import Model, ModelSignature
        from mlflow.pyfunc import save_model
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        Schema([ColSpec("double", str(gene)) for gene in fit.genes]),
        Schema([ColSpec("float", topic) for topic in fit.topic_names]),
        ParamSchema(
            [
                ParamSpec("replicate", "long", fit.selected),
                ParamSpec("refine", "boolean", False),
                ParamSpec("n_samples", "long", 256),
                ParamSpec("seed", "long", 0),
            ]
        ),
    )
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=logged.source_run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    with warnings.catch_warnings():
        # The signature is not inferred, and an example would publish cells.
        warnings.filterwarnings("ignore", ".*input example was not provided")
        save_model(
            path,
            mlflow_model=model,
            python_model=CODE,
            artifacts={"fit": str(weights)},
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIRED],
            signature=signature,
        )
    # Paths on this machine mean nothing on another one.
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = CODE.name
    flavor["artifacts"]["fit"]["uri"] = flavor["artifacts"]["fit"]["path"]
    model.save(path / "MLmodel")


def fetch_model(model: str, config: TrackingConfig, destination: Path) -> Path:
    """Copy the saved fit of a registered model, for `topicell.model.loading.load_fit`.

    Parameters
    ----------
    model
        ``NAME/ALIAS`` or ``NAME/VERSION``.
    config
        The store.
    destination
        The folder to copy into.

    Returns
    -------
    Path
        The copy.

    Raises
    ------
    InputError
        There is no such model or version, it is not one of topicell's, or the store cannot be
        read.
    """
    if not re.fullmatch(r"[^/:@]+/[\w-]+", model):
        raise InputError(
            f"model = {model!r}: write NAME/ALIAS or NAME/VERSION, as model=topicell/champion"
        )
    require_store(config)
    import yaml
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    store = client(config)

    def download(address: str) -> Path:
        given = {"dst_path": str(destination), "tracking_uri": store.tracking_uri}
        return Path(download_artifacts(artifact_uri=address, **given))

    try:
        address = _address(store, model, config)
        described = yaml.safe_load(download(f"{address}/MLmodel").read_text())
        try:
            path = PurePosixPath(
                described["flavors"]["python_function"]["artifacts"]["fit"]["path"]
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"model = {model!r} was not registered by topicell; name a model that was"
            ) from error
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"model = {model!r}: its weights, {path}, are outside the folder of the model"
            )
        return download(f"{address}/{path}")
    except (MlflowException, OSError) as error:
        raise InputError(
            f"model = {model!r}: {shown_uri(config)} cannot be read ({first_line(error)})"
        ) from error


def _address(store: MlflowClient, model: str, config: TrackingConfig) -> str:
    """Return the address of the files of a registered version."""
    from mlflow.exceptions import MlflowException

    name, _, which = model.partition("/")
    try:
        registered = store.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        there = ", ".join(sorted(found.name for found in store.search_registered_models()))
        raise InputError(
            f"model = {model!r}: no model {name!r} is registered in {shown_uri(config)}; "
            f"registered models: {there or 'none'}"
        ) from error
    number = str(registered.aliases.get(which, which))
    latest = max((int(found.version) for found in registered.latest_versions), default=0)
    # Each kind of store has another error for a version that is no number.
    if number.isdecimal():
        try:
            return str(store.get_model_version_download_uri(name, number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    raise InputError(
        f"model = {model!r}: {name!r} has no such alias or version; aliases: "
        f"{', '.join(sorted(registered.aliases)) or 'none'}; latest version: {latest or 'none'}"
    )
