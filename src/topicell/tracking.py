"""Where a run is recorded: its folder always, MLflow beside it. The only mlflow module.

`RunFolder` is the null twin of `MLflowRun`: both take the same calls, so that a run does not ask
which one it was given. What MLflow has, the folder has: either can be read without the other.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from topicell.config import (
    GivenConfig,
    InputError,
    RunConfig,
    TrackingConfig,
    as_dict,
    dotted,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PARENT_RUN = "TOPICELL_PARENT_RUN_ID"
"""Environment variable by which the jobs of a multirun find their parent run."""
ARTIFACTS = ("report.html", "figures", "topics", "cells", "adata.h5ad", "model")
"""What a run leaves in its folder besides the records kept here."""
RECORDS = ("config.yaml", "metrics.jsonl")
RUN_FOLDER_KNOB = "hydra.run.dir=FOLDER (of a grid: hydra.sweep.dir=FOLDER)"
BATCH_SECONDS = 2.0
"""How long metrics wait to be sent together."""
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


class Tracker(Protocol):
    """The calls that a run makes."""

    directory: Path
    run_id: str

    def start(self, config: RunConfig | GivenConfig, tags: Mapping[str, str]) -> None:
        """Record every resolved knob, and where the code came from."""

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Record the input data."""

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Record metrics of an epoch, or of the whole run."""

    def finish(self, status: str) -> None:
        """Deliver what waits, keep the artifacts, and end the run: FINISHED, FAILED or KILLED."""


class RunFolder:
    """The run folder alone: ``config.yaml`` and ``metrics.jsonl`` beside the artifacts.

    Parameters
    ----------
    directory
        The run folder; made if it does not exist.
    knob
        How a user chooses it, for messages.

    Raises
    ------
    InputError
        The folder cannot be written to, or holds a file that the run would write.
    """

    run_id = ""

    def __init__(self, directory: Path, knob: str = RUN_FOLDER_KNOB) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise InputError(
                f"run folder {directory} cannot be written to ({error.strerror}); choose another "
                f"with {knob}"
            ) from error
        taken = [name for name in (*RECORDS, *ARTIFACTS) if (directory / name).exists()]
        if taken:
            raise InputError(
                f"run folder {directory} holds {taken[0]} already, and nothing is written over; "
                f"choose another with {knob}"
            )

    def start(self, config: RunConfig | GivenConfig, tags: Mapping[str, str]) -> None:
        """Write ``config.yaml``."""
        import yaml

        lines = "".join(f"# {name}: {value}\n" for name, value in tags.items())
        text = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)
        (self.directory / "config.yaml").write_text(lines + text)

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Append the input data to ``metrics.jsonl``, as its first line."""
        self._append({"dataset": {"name": name, "source": source, "digest": digest}})

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Append a line to ``metrics.jsonl``; the metrics of an epoch carry its number."""
        self._append(({} if epoch is None else {"epoch": epoch}) | dict(values))

    def finish(self, status: str) -> None:
        """Append how the run ended."""
        self._append({"status": status})

    def _append(self, line: Mapping[str, Any]) -> None:
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class MLflowRun:
    """A run in MLflow, and its folder.

    A tracking store that fails after the run was created never ends the run: one warning says
    so, and the folder has everything.

    Parameters
    ----------
    folder
        The run folder.
    config
        Store, experiment and name.
    """

    def __init__(self, folder: RunFolder, config: TrackingConfig) -> None:
        self.folder = folder
        self.directory = folder.directory
        self.config = config
        self.run_id = ""
        self._client = client(config)
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        self._reachable = True

    def start(self, config: RunConfig | GivenConfig, tags: Mapping[str, str]) -> None:
        """Create the run, nested under the parent of a multirun, with every knob as parameter."""
        from mlflow.entities import Param

        parent = os.environ.get(PARENT_RUN)
        nested = {"mlflow.parentRunId": parent} if parent else {}

        def create() -> None:
            self.run_id = self._client.create_run(
                experiment_id(self._client, self.config),
                run_name=self.config.run_name or config.title,
                tags=_source_tags() | dict(tags) | nested,
            ).info.run_id
            params = [Param(name, str(value)) for name, value in dotted(config).items()]
            for first in range(0, len(params), 100):
                self._client.log_batch(self.run_id, params=params[first : first + 100])

        self._attempt("create the run", create)
        self.folder.start(config, dict(tags) | {"run": self.run_id})

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Record the data set as an input of the run, in context ``training``."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self.folder.log_dataset(name, source, digest)
        kind = "http" if source.startswith("https://") else "local"
        # MLflow keeps 36 characters of a digest; the whole one is a tag.
        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type=kind,
            source=json.dumps({"url" if kind == "http" else "uri": source}),
        )

        def log_input() -> None:
            tags = [InputTag("mlflow.data.context", "training")]
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])
            self._client.set_tag(self.run_id, "topicell.data_digest", digest)

        self._attempt("log the data set", log_input)

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Keep metrics for the next batch; those of an epoch have it as their step."""
        from mlflow.entities import Metric

        self.folder.log_metrics(values, epoch)
        now = int(time.time() * 1000)
        self._waiting += [
            Metric(name, float(value), now, epoch or 0) for name, value in values.items()
        ]
        if time.monotonic() - self._sent > BATCH_SECONDS:
            self._flush()

    def finish(self, status: str) -> None:
        """Send what waits, upload the artifacts and the records, and end the run."""

        def keep_artifacts() -> None:
            for name in (*ARTIFACTS, *RECORDS):
                path = self.directory / name
                if path.is_dir():
                    self._client.log_artifacts(self.run_id, str(path), artifact_path=name)
                elif path.exists():
                    self._client.log_artifact(self.run_id, str(path))

        self.folder.finish(status)
        self._flush()
        self._attempt("keep the artifacts", keep_artifacts)
        self._attempt("end the run", lambda: self._client.set_terminated(self.run_id, status))

    def _flush(self) -> None:
        def send() -> None:
            while self._waiting:
                self._client.log_batch(self.run_id, metrics=self._waiting[:1000])
                del self._waiting[:1000]

        self._attempt("log metrics", send)
        self._sent = time.monotonic()

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        from mlflow.exceptions import MlflowException

        if not self._reachable:
            return
        try:
            action()
        except (MlflowException, OSError) as error:
            self._reachable = False
            log.warning(
                "MLflow at %s could not %s (%s); the run goes on, and its folder %s has everything",
                shown_uri(self.config),
                what,
                _first_line(error),
                self.directory,
            )


def open_tracker(config: TrackingConfig, directory: Path, knob: str = RUN_FOLDER_KNOB) -> Tracker:
    """The tracker that a configuration asks for, on a run folder that `knob` chooses."""
    folder = RunFolder(directory, knob)
    return MLflowRun(folder, config) if config.enabled else folder


def tracking_uri(config: TrackingConfig) -> str:
    """The tracking store: as configured, else the environment's, else SQLite in this folder."""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in SCHEMES:
        raise InputError(
            f"tracking.uri = {uri!r}: not a store that MLflow knows; give sqlite:///FILE, "
            "postgresql://…, or http://HOST:PORT (tracking=off does without)"
        )
    return uri


def shown_uri(config: TrackingConfig) -> str:
    """The tracking store without a password, for messages."""
    uri = tracking_uri(config)
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    address = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:***@{address}").geturl()


def client(config: TrackingConfig) -> MlflowClient:
    """A client of the store; a local SQLite store is created first, once, under a lock."""
    # A dead server must not hold a finished training for minutes (the defaults wait 247 s).
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking_uri(config)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        create_store(path)
        uri = f"sqlite:///{path}"
    return _open(uri)


def _open(uri: str) -> MlflowClient:
    with warnings.catch_warnings():
        # Pydantic's and SQLAlchemy's deprecations inside mlflow are not the user's.
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        # Its migrations announce themselves line by line, and every retry does too.
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        return MlflowClient(uri)


def create_store(path: Path) -> None:
    """Create a SQLite store, whole or not at all, however many processes ask at once.

    MLflow itself creates its tables on first use without a lock: processes that start together
    leave the file broken for good.
    """
    from filelock import FileLock

    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.exists():
                return
            unfinished = path.with_name(f".{path.name}.unfinished")
            unfinished.unlink(missing_ok=True)
            _open(f"sqlite:///{unfinished}").search_experiments(max_results=1)
            connection = sqlite3.connect(unfinished)
            # Readers (the UI) and writers (the runs of a sweep) do not wait for each other.
            connection.execute("PRAGMA journal_mode=wal")
            connection.close()
            unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"tracking.uri: {path} cannot be created ({error}); choose another store, or "
            "tracking=off"
        ) from error


def experiment_id(store: MlflowClient, config: TrackingConfig) -> str:
    """The experiment's id; a new experiment keeps its artifacts beside a SQLite store."""
    from mlflow.exceptions import MlflowException

    found = store.get_experiment_by_name(config.experiment)
    if found is not None:
        return str(found.experiment_id)
    location = config.artifact_location
    uri = tracking_uri(config)
    if location is None and uri.startswith("sqlite:///"):
        location = str(Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts")
    try:
        return str(store.create_experiment(config.experiment, artifact_location=location))
    except MlflowException:
        # Another process may have made it since we looked.
        found = store.get_experiment_by_name(config.experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def start_parent(config: TrackingConfig, name: str, overrides: str) -> str:
    """Create the parent run of a multirun and tell its jobs, through the environment."""
    store = client(config)
    tags = _source_tags() | provenance() | {"topicell.kind": "multirun"}
    tags["topicell.overrides"] = overrides
    run = store.create_run(experiment_id(store, config), run_name=name, tags=tags)
    os.environ[PARENT_RUN] = run.info.run_id
    return str(run.info.run_id)


def finish_parent(config: TrackingConfig, run_id: str, status: str) -> None:
    """End the parent run of a multirun; a store that is gone by then costs a warning."""
    from mlflow.exceptions import MlflowException

    os.environ.pop(PARENT_RUN, None)
    try:
        client(config).set_terminated(run_id, status)
    except (MlflowException, OSError) as error:
        log.warning("the parent run %s could not be ended (%s)", run_id, _first_line(error))


def fetch_run(
    run: str, config: TrackingConfig, destination: Path, artifacts: Sequence[str]
) -> tuple[Path, str]:
    """The folder of a stored run and its run id (empty for a folder that MLflow does not know).

    Parameters
    ----------
    run
        An MLflow run id, or the path of a run folder.
    config
        The store.
    destination
        Where the artifacts of an MLflow run are copied to.
    artifacts
        Which artifacts are needed.

    Raises
    ------
    InputError
        There is no such run, it lacks an artifact, or the store cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    folder, run_id = Path(run), ""
    if not folder.is_dir():
        _require_store(config)
        store = client(config)
        folder, run_id = destination, run
        try:
            kind = store.get_run(run).data.tags.get("topicell.kind", "run")
            if kind != "run":
                raise InputError(f"run = {run!r} is the parent of a {kind}: name one of its runs")
            there = {item.path for item in store.list_artifacts(run)}
            for name in there & set(artifacts):
                store.download_artifacts(run, name, str(destination))
        except MlflowException as error:
            unknown = error.error_code == "RESOURCE_DOES_NOT_EXIST"
            problem = (
                f"neither a folder nor a run in {shown_uri(config)}; `topicell ui` lists the runs"
                if unknown
                else f"{shown_uri(config)} cannot be read ({_first_line(error)})"
            )
            raise InputError(f"run = {run!r}: {problem}") from error
    missing = [name for name in artifacts if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"run = {run!r} has no {' and no '.join(missing)}: not a run folder, or it did not end"
        )
    return folder, run_id


def store_artifacts(run_id: str, config: TrackingConfig, directory: Path) -> None:
    """Add the files of a folder to the artifacts of a stored run."""
    client(config).log_artifacts(run_id, str(directory))


def read_metrics(folder: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The metrics by epoch and the final metrics of a run folder."""
    history: list[dict[str, float]] = []
    final: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "epoch" in record:
            history.append(record)
        elif not {"dataset", "status"} & record.keys():
            final |= record
    return history, final


def is_server(config: TrackingConfig) -> bool:
    """Whether the store is a tracking server, which has a UI of its own."""
    return tracking_uri(config).startswith(("http://", "https://"))


def ui_command(config: TrackingConfig, host: str, port: int) -> list[str]:
    """The command that serves MLflow's own UI on the store, light and without telemetry."""
    _require_store(config)
    # Through the environment: a command line is seen by everybody on the machine, and the
    # address of a database may hold a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = tracking_uri(config)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", host]
    return [*command, "--port", str(port)]


def _require_store(config: TrackingConfig) -> None:
    uri = tracking_uri(config)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise InputError(
            f"{uri} does not exist here: `topicell train` makes it; name another store with "
            "tracking.uri=…"
        )


def ui_address(config: TrackingConfig, host: str, port: int) -> str:
    """The address of the experiment's table of runs in the machine-learning view."""
    _require_store(config)
    experiment = experiment_id(client(config), config)
    server = tracking_uri(config).rstrip("/") if is_server(config) else f"http://{host}:{port}"
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def provenance() -> dict[str, str]:
    """Tags that say which code made a run: version, and commit where it runs from a checkout."""
    tags = {
        "topicell.version": version("topicell"),
        "topicell.started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # An installed topicell may lie inside somebody's repository without being part of it.
    if _git("ls-files", "--error-unmatch", __file__):
        tags["topicell.git_commit"] = _git("rev-parse", "HEAD")
        tags["topicell.git_dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _source_tags() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {
        "mlflow.user": user,
        "mlflow.source.name": "topicell train",
        "mlflow.source.type": "LOCAL",
    }
