"""The tracking store: its address, a client of it, its creation, its experiment."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import re
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.redaction import without_password
from topicell.signals import held_interrupts

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

ATTEMPTS = 3
PATIENCE_SECONDS = 4.5
"""How long a run waits, all in all, for a store that does not do its part."""
LAST_SECONDS = 3.0
"""And how long again when it ends."""
INTERRUPTED_SECONDS = 1.5
"""And when it was interrupted."""
PROBE_SECONDS = 3.0
"""And how long when a database is opened."""
AWAY_SECONDS = 60.0
"""How long a store that was found away is left alone by the next runs of a process."""
FREE_SECONDS = 0.5
"""What any call may take: only what is beyond it counts as waiting."""
BYTES_PER_SECOND = 10_000_000
"""An upload that is not slower than this does not count as waiting either."""
ADDRESS = (
    "write http://HOST:PORT or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, with / ? # @ in a "
    "password as %2F %3F %23 %40"
)
NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
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
    try:
        _ = urlsplit(uri).port
    except ValueError as error:
        # Its text may quote a piece of a password.
        raise InputError(f"tracking.uri: is no address; {ADDRESS}") from error
    return uri


def shown_uri(config: TrackingConfig) -> str:
    """The tracking store without a password, for messages."""
    return without_password(tracking_uri(config))


def is_server(config: TrackingConfig) -> bool:
    """Whether the store is a tracking server, which has a UI of its own."""
    return tracking_uri(config).startswith(("http://", "https://"))


def client(config: TrackingConfig) -> MlflowClient:
    """A client of the store, which `open_store` has made if it is a local one."""
    # A dead server must not hold a finished training for minutes (the defaults wait 247 s).
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking_uri(config)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        create_store(path)
        uri = f"sqlite:///{path}"
    return _open(uri)


def open_store(config: TrackingConfig) -> None:
    """Do what the first call of a store has to wait for, so that no later one does.

    Importing MLflow and opening a database is this machine's work, which may take its time; that a
    database is locked or away is found out first.

    Raises
    ------
    Unreachable
        It is.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    uri = tracking_uri(config)
    try:
        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///")).absolute()
            create_store(path)
            with contextlib.closing(sqlite3.connect(path, timeout=PROBE_SECONDS)) as connection:
                connection.execute("BEGIN IMMEDIATE")
            client(config)
        else:
            if _is_database(uri):
                # This machine's work, too, which is not to be counted against the database.
                with warnings.catch_warnings():
                    # SQLAlchemy's deprecations inside mlflow are not the user's.
                    warnings.simplefilter("ignore")
                    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
            opening = Call(lambda: _connect(config))
            opening.begin()
            if not opening.wait(PROBE_SECONDS):
                raise Unreachable("no answer in time")
            opening.result()
    except (ImportError, ValueError, ArgumentError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"tracking.uri: is no address of a database whose driver is installed; {ADDRESS}"
        ) from error
    except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error) as error:
        raise Unreachable(first_line(error)) from error


def problem_with(config: TrackingConfig) -> Unreachable | None:
    """What keeps a store from being opened, if anything does.

    Raises
    ------
    InputError
        The setting is wrong: nothing was, or will be, recorded.
    """
    try:
        open_store(config)
    except Unreachable as problem:
        return problem
    return None


def _connect(config: TrackingConfig) -> None:
    uri = tracking_uri(config)
    if _is_database(uri):
        # MLflow would try for minutes, under a lock that all stores of the process wait for.
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    client(config)


def _is_database(uri: str) -> bool:
    return not uri.startswith(("http://", "https://", "databricks"))


def _open(uri: str) -> MlflowClient:
    with warnings.catch_warnings():
        # Pydantic's and SQLAlchemy's deprecations inside mlflow are not the user's.
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        # Its migrations announce themselves line by line, and every retry does too.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # What it could not do is raised as well, and said by us.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
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
        if error.errno == errno.ENOSPC:
            # Nothing that another setting would mend.
            raise
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


def has_run(store: MlflowClient, run_id: str) -> bool:
    """Whether a run is there, and not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(store.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code not in NO_SUCH_RUN:
            raise
        return False


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


class Unreachable(Exception):  # noqa: N818 it may be slow, full or locked just as well
    """The store did not do its part, in the time there was."""


class Patience:
    """A time that may be spent waiting for a store, over any number of calls.

    Each call is made in a thread that is given up when the time is over: whatever it hangs in (a
    socket, a lock of twenty seconds, retries inside MLflow), the run does not.
    """

    def __init__(
        self, seconds: float = PATIENCE_SECONDS, bytes_per_second: int = BYTES_PER_SECOND
    ) -> None:
        self.left = seconds
        self.bytes_per_second = bytes_per_second

    def call(self, action: Callable[[], T] | Call[T], *, n_bytes: int = 0) -> T:
        """The result of a call; one that fails at once is tried again.

        A `Call` that was given up before, or whose wait was interrupted, is not made a second time
        beside the first.

        MLflow selects and then inserts: of two processes that record the same thing at once (the
        data set of two trials), one is refused and finds the row when it asks again.

        Raises
        ------
        Unreachable
            It failed each time, or the time is over.
        """
        from mlflow.exceptions import MlflowException

        call = action if isinstance(action, Call) else Call(action)
        free = FREE_SECONDS + n_bytes / self.bytes_per_second
        began = time.monotonic()
        try:
            for attempt in range(ATTEMPTS):
                if attempt:
                    time.sleep(0.1 * 2**attempt)
                call.begin()
                if not call.wait(free + self.left - (time.monotonic() - began)):
                    raise Unreachable("no answer in time")
                if not isinstance(call.error, (MlflowException, OSError, sqlite3.Error)):
                    return call.result()
            assert call.error is not None
            raise Unreachable(first_line(call.error)) from call.error
        finally:
            self.left = max(self.left - max(time.monotonic() - began - free, 0), 0)


_AWAY: dict[str, float] = {}
"""When each store was last found away, by this process."""


def remember_away(config: TrackingConfig) -> None:
    """Spare the next runs of this process the time that this one waited in vain."""
    _AWAY[tracking_uri(config)] = time.monotonic()


def is_away(config: TrackingConfig) -> bool:
    """Whether the store was found away a moment ago."""
    when = _AWAY.get(tracking_uri(config))
    return when is not None and time.monotonic() - when < AWAY_SECONDS


class Call(Generic[T]):
    """What is done in a thread of its own, once: who stops waiting for it may wait again."""

    def __init__(self, action: Callable[[], T]) -> None:
        self.error: BaseException | None = None
        self._action = action
        self._result: list[T] = []
        self._ended = threading.Event()
        self._ended.set()

    def begin(self) -> None:
        """Do it, or do it again if it failed; nothing while it is being done or once it is."""
        # If an interrupt struck while the thread starts, nobody would know whether it did.
        with held_interrupts():
            if self._result or not self._ended.is_set():
                return
            self.error = None
            self._ended.clear()
            # It must not keep the process alive that gave it up.
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._result.append(self._action())
        except BaseException as error:
            self.error = error
        finally:
            self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after so many seconds at most."""
        return self._ended.wait(max(seconds, 0))

    def result(self) -> T:
        """What it gave; what it raised is raised."""
        if self.error is not None:
            raise self.error
        return self._result[0]


def first_line(error: BaseException) -> str:
    """What an error says, without the details that follow or that libraries wrap around it."""
    text = without_password(str(error).partition("\n")[0])
    cause = re.search(r"Caused by \w+\((.*)\)", text)
    if cause:
        text = re.sub(r"^HTTPS?Connection(Pool)?\(.*?\): ", "", cause[1].strip("()'\""))
    return re.sub(r"^\([\w.]+Error\) ", "", text)
