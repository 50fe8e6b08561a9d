"""The tracking store: its address, a client of it, its creation, its experiment."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from topicell.config import InputError, TrackingConfig, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient


ATTEMPTS = 3
SLOW_SECONDS = 1.0
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


def tracking_uri(config: TrackingConfig) -> str:
    """The tracking store: as configured, else the environment's, else SQLite in this folder."""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in SCHEMES:
        raise InputError(
            f"tracking.uri = {without_password(uri)!r}: not a store that MLflow knows; give "
            "sqlite:///FILE, postgresql://…, or http://HOST:PORT (tracking=off does without)"
        )
    return uri


def shown_uri(config: TrackingConfig) -> str:
    """The tracking store without a password, for messages."""
    return without_password(tracking_uri(config))


def is_server(config: TrackingConfig) -> bool:
    """Whether the store is a tracking server, which has a UI of its own."""
    return tracking_uri(config).startswith(("http://", "https://"))


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


def require_store(config: TrackingConfig) -> None:
    """Refuse to read a local store that is not there."""
    uri = tracking_uri(config)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise InputError(
            f"{uri} does not exist here: `topicell train` makes it; name another store with "
            "tracking.uri=…"
        )


def log_params(store: MlflowClient, run_id: str, params: Mapping[str, object]) -> None:
    """Record parameters, as many at a time and as long as MLflow takes."""
    from mlflow.entities import Param

    made = [Param(name, str(value)[:6000]) for name, value in params.items()]
    for first in range(0, len(made), 100):
        store.log_batch(run_id, params=made[first : first + 100])


def tried(action: Callable[[], object]) -> Exception | None:
    """Call the store; what went wrong, if it went wrong each time.

    MLflow selects and then inserts: of two processes that record the same thing at once (the data
    set of two trials), one is refused and finds the row when it asks again.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(ATTEMPTS):
        started = time.monotonic()
        try:
            action()
        except (MlflowException, OSError) as error:
            # A store that does not answer has been waited for long enough.
            if attempt == ATTEMPTS - 1 or time.monotonic() - started > SLOW_SECONDS:
                return error
            time.sleep(0.1 * 2**attempt)
        else:
            return None
    raise AssertionError("unreachable")


def first_line(error: Exception) -> str:
    """What an error says, without the details that follow."""
    return str(error).partition("\n")[0]
