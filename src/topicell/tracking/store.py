"""The tracking store: its address, its creation, a client of it, its experiment."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sqlite3
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.redaction import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

AWAY_SECONDS = 60.0
"""How long a process does not wait again for a store that failed."""
ADDRESS = (
    "write http://HOST:PORT or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, with / ? # @ in a "
    "password as %2F %3F %23 %40"
)
NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
SQLITE = "sqlite:///"

_FAILED: dict[str, float] = {}
"""When each store failed last in this process."""


class Unreachable(Exception):  # noqa: N818 the store may also be slow, full or locked
    """The store did not take what it was sent, or not in time."""


def tracking_uri(config: TrackingConfig) -> str:
    """Return the address of the store: configured, from the environment, or SQLite in this folder.

    Raises
    ------
    InputError
        MLflow has no store at such an address.
    """
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in SCHEMES:
        raise InputError(
            f"tracking.uri = {without_password(uri)!r}: MLflow does not support such a store; give "
            "sqlite:///FILE, postgresql://… or http://HOST:PORT, or use tracking=off"
        )
    try:
        _ = urlsplit(uri).port
    except ValueError as error:
        # The text of the error may quote a part of a password.
        raise InputError(f"tracking.uri: is not a valid address; {ADDRESS}") from error
    return uri


def shown_uri(config: TrackingConfig) -> str:
    """Return the address of the store without its password."""
    return without_password(tracking_uri(config))


def located(config: TrackingConfig) -> str:
    """Return the address of the store without its password, valid in any folder."""
    path = sqlite_path(config)
    return f"{SQLITE}{path}" if path else shown_uri(config)


def sqlite_path(config: TrackingConfig) -> Path | None:
    """Return the absolute path of a SQLite store; None for another store."""
    uri = tracking_uri(config)
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def is_server(config: TrackingConfig) -> bool:
    """Return whether the store is a tracking server, which has a UI of its own."""
    return tracking_uri(config).startswith(("http://", "https://"))


def client(config: TrackingConfig) -> MlflowClient:
    """Return a client of the store; a SQLite store is created if it does not exist."""
    return _open(prepare(config))


def prepare(config: TrackingConfig) -> str:
    """Do on this machine what a client needs: import MLflow, create a SQLite store.

    Nothing here waits for a server.

    Returns
    -------
    str
        The address of the store, for MLflow.

    Raises
    ------
    InputError
        There can be no store at this address.
    Unreachable
        The SQLite store cannot be created now.
    """
    # The defaults retry a dead server for 247 s.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking_uri(config)
    _import(uri)
    if (path := sqlite_path(config)) is not None:
        create_store(path)
        return f"{SQLITE}{path}"
    if is_database(uri):
        _require_driver(uri)
    return uri


def is_database(uri: str) -> bool:
    """Return whether MLflow opens the store as a database."""
    return not uri.startswith(("http://", "https://", "databricks"))


def _require_driver(uri: str) -> None:
    import sqlalchemy

    try:
        sqlalchemy.create_engine(uri)
    except (ImportError, ValueError, sqlalchemy.exc.ArgumentError) as error:
        raise InputError(
            f"tracking.uri: is not the address of a database whose driver is installed; {ADDRESS}"
        ) from error


def _import(uri: str) -> None:
    """Import what a client of a store needs: imports in a thread could meet those of the run."""
    with warnings.catch_warnings():
        # Pydantic and SQLAlchemy warn of deprecations inside MLflow, which users cannot change.
        warnings.simplefilter("ignore")
        kind = "sqlalchemy" if is_database(uri) else "rest"
        importlib.import_module(f"mlflow.store.tracking.{kind}_store")
    # Migrations are logged line by line, errors and retries besides being raised.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _open(uri: str) -> MlflowClient:
    _import(uri)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(uri)


def create_store(path: Path) -> None:
    """Create a SQLite store, completely or not at all, also if several processes ask at once.

    MLflow itself creates its tables on first use without a lock: processes that start together
    leave the file broken.

    Raises
    ------
    InputError
        The file cannot be created there.
    Unreachable
        MLflow cannot create its tables, or the disk is full.
    """
    from filelock import FileLock
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from topicell.errors import disk_is_full

    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.exists():
                return
            unfinished = path.with_name(f".{path.name}.unfinished")
            unfinished.unlink(missing_ok=True)
            _open(f"{SQLITE}{unfinished}").search_experiments(max_results=1)
            connection = sqlite3.connect(unfinished)
            # Readers (the UI) and writers (the runs of a sweep) do not wait for each other.
            connection.execute("PRAGMA journal_mode=wal")
            connection.close()
            unfinished.replace(path)
    except OSError as error:
        if disk_is_full(error):
            # Another setting would not help.
            raise Unreachable(first_line(error)) from error
        raise InputError(
            f"tracking.uri: {path} cannot be created ({error}); choose another store, or use "
            "tracking=off"
        ) from error
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        raise Unreachable(first_line(error)) from error


def experiment_id(store: MlflowClient, config: TrackingConfig) -> str:
    """Return the id of the experiment; a new one keeps its artifacts beside a SQLite store."""
    from mlflow.exceptions import MlflowException

    found = store.get_experiment_by_name(config.experiment)
    if found is None:
        location, path = config.artifact_location, sqlite_path(config)
        if location is None and path is not None:
            location = str(path.parent / "mlartifacts")
        try:
            return str(store.create_experiment(config.experiment, artifact_location=location))
        except MlflowException:
            # Another process may have created it meanwhile.
            found = store.get_experiment_by_name(config.experiment)
            if found is None:
                raise
    return str(found.experiment_id)


def has_run(store: MlflowClient, run_id: str) -> bool:
    """Return whether the store has a run that is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(store.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code not in NO_SUCH_RUN:
            raise
        return False


def require_store(config: TrackingConfig) -> None:
    """Refuse to read a SQLite store that does not exist."""
    path = sqlite_path(config)
    if path is not None and not path.exists():
        raise InputError(
            f"{tracking_uri(config)} does not exist: `topicell train` creates it; name another "
            "store with tracking.uri=…"
        )


def note_failure(config: TrackingConfig, *, failed: bool) -> None:
    """Remember whether a store failed when this process used it last."""
    _FAILED.pop(tracking_uri(config), None)
    if failed:
        _FAILED[tracking_uri(config)] = time.monotonic()


def failed_lately(config: TrackingConfig) -> bool:
    """Return whether a store failed shortly before, so that it is not useful to wait again."""
    when = _FAILED.get(tracking_uri(config))
    return when is not None and time.monotonic() - when < AWAY_SECONDS


def first_line(error: BaseException) -> str:
    """Return the message of an error, without the text that libraries add before and after it."""
    text = without_password(str(error).partition("\n")[0])
    cause = re.search(r"Caused by \w+\((.*)\)", text)
    if cause:
        text = re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", cause[1].strip("()'\""))
    return re.sub(r"^\([\w.]+Error\) ", "", text)
