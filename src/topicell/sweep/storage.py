"""Where a study is stored, and the locks on it.

The study lock is held for a session: by one process, or by several that all set ``sweep.join``.
The decision lock is held while one of them opens the study or takes a trial, so that the budget is
exact. Optuna has no such locks. These are advisory locks of the operating system on files beside
the storage, or of PostgreSQL: they are released when their process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from topicell.errors import InputError
from topicell.redaction import without_password

HEARTBEAT_SECONDS = 10
STALE_SECONDS = 60
"""The process of a trial that recorded no heartbeat for this long has ended."""
ADDRESSES = (
    "give sqlite:///FILE, journal:FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, with "
    "/ ? # @ in a password as %2F %3F %23 %40"
)


def open_storage(
    url: str, on_stale: Callable[[optuna.Study, FrozenTrial], None] | None = None
) -> RDBStorage | JournalStorage:
    """Open Optuna's storage.

    Parameters
    ----------
    url
        Its address.
    on_stale
        Called for each trial that Optuna fails because it recorded no heartbeat.

    Raises
    ------
    InputError
        The kind of storage is unknown, its driver is not installed, or it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    scheme, path = _parts(url)
    with _input_errors(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        if scheme == "journal":
            return JournalStorage(JournalFileBackend(str(path)))
        sqlite = {"connect_args": {"timeout": 60}}
        return RDBStorage(
            url,
            engine_kwargs=sqlite if scheme == "sqlite" else {"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=STALE_SECONDS,
            heartbeat_stale_trial_callback=on_stale,
        )


def close_storage(storage: RDBStorage | JournalStorage) -> None:
    """Close the connections of a storage."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


class Locks(ABC):
    """The study lock and the decision lock of one study."""

    def __init__(self, study: str) -> None:
        self.study = study

    def hold(self, *, shared: bool) -> bool:
        """Take the study lock; return whether no other process has it.

        Raises
        ------
        InputError
            Another process has it, and not both processes share it.
        """
        if self._try(shared=False):
            if shared:
                self._share()
            return True
        if shared and self._try(shared=True):
            return False
        raise InputError(
            f"sweep.study = {self.study!r}: another process works on this study; wait until it "
            "ends, name another study, or start all processes with sweep.join=true"
        )

    @abstractmethod
    def decision(self) -> contextlib.AbstractContextManager[None]:
        """Hold the decision lock; wait for it."""

    @abstractmethod
    def release(self) -> None:
        """Release the study lock."""

    @abstractmethod
    def _try(self, *, shared: bool) -> bool:
        """Return whether the study lock was free, and take it if so."""

    @abstractmethod
    def _share(self) -> None:
        """Turn the exclusive study lock into a shared one."""


class FileLocks(Locks):
    """Locks on files beside the storage."""

    def __init__(self, path: Path, study: str) -> None:
        super().__init__(study)
        name = hashlib.sha256(study.encode()).hexdigest()[:16]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._study: IO[str] = path.with_name(f".{path.name}.{name}.lock").open("a+")
        self._decision: IO[str] = path.with_name(f".{path.name}.brief.lock").open("a+")

    @contextlib.contextmanager
    def decision(self) -> Iterator[None]:
        """See `Locks.decision`."""
        fcntl.flock(self._decision, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._decision, fcntl.LOCK_UN)

    def release(self) -> None:
        """See `Locks.release`."""
        self._study.close()
        self._decision.close()

    def _try(self, *, shared: bool) -> bool:
        try:
            fcntl.flock(self._study, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise InputError(
                f"sweep.storage: {self._study.name} cannot be locked ({error.strerror}); choose "
                "another file system, or PostgreSQL"
            ) from error
        return True

    def _share(self) -> None:
        fcntl.flock(self._study, fcntl.LOCK_SH)


class DatabaseLocks(Locks):
    """Locks of PostgreSQL, on a connection of their own."""

    def __init__(self, url: str, study: str) -> None:
        super().__init__(study)
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        # All studies of a database have the same decision lock: it also guards Optuna's tables.
        self._study, self._decision = (
            int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
            for name in (f"topicell {study}", "topicell brief")
        )
        # A pool would keep the connection, and the lock, after it is closed.
        engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._connection = engine.connect()

    @contextlib.contextmanager
    def decision(self) -> Iterator[None]:
        """See `Locks.decision`."""
        self._call("pg_advisory_lock", self._decision)
        try:
            yield
        finally:
            self._call("pg_advisory_unlock", self._decision)

    def release(self) -> None:
        """See `Locks.release`."""
        from sqlalchemy.exc import SQLAlchemyError

        # The server notices some time after it that a connection was closed.
        with contextlib.suppress(SQLAlchemyError):
            self._call("pg_advisory_unlock_all")
        self._connection.close()

    def _try(self, *, shared: bool) -> bool:
        return bool(self._call(f"pg_try_advisory_lock{'_shared' * shared}", self._study))

    def _share(self) -> None:
        self._call("pg_advisory_lock_shared", self._study)
        self._call("pg_advisory_unlock", self._study)

    def _call(self, function: str, *key: int) -> Any:
        from sqlalchemy import func, select

        return self._connection.execute(select(getattr(func, function)(*key))).scalar()


def open_locks(url: str, study: str) -> Locks:
    """Open the locks of a study.

    Raises
    ------
    InputError
        The kind of storage has no locks, or it cannot be opened.
    """
    scheme, path = _parts(url)
    with _input_errors(url):
        if path is not None:
            return FileLocks(path.resolve(), study)
        if scheme.startswith("postgresql"):
            return DatabaseLocks(url, study)
    raise InputError(f"sweep.storage = {scheme!r}…: unknown kind of storage; {ADDRESSES}")


def _parts(url: str) -> tuple[str, Path | None]:
    """Return the scheme of an address, and the file that it names."""
    for scheme, prefix in (("sqlite", "sqlite:///"), ("journal", "journal:")):
        if url.startswith(prefix):
            return scheme, Path(url.removeprefix(prefix).partition("?")[0])
    return url.partition(":")[0], None


@contextlib.contextmanager
def _input_errors(url: str) -> Iterator[None]:
    """Turn the errors of an address, a driver, a file or a server into `InputError`."""
    from sqlalchemy.exc import SQLAlchemyError

    scheme, path = _parts(url)
    # Not the whole address: a password that is not escaped cannot be told from the rest.
    start = f"sweep.storage = {scheme if path is None else str(path)!r}"
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{start}: its driver is not installed ({error}); write postgresql+psycopg://… and "
            "pip install 'psycopg[binary]'"
        ) from error
    except ValueError as error:
        # Its text can quote a part of the password.
        raise InputError(f"{start} cannot be opened (it is not a storage); {ADDRESSES}") from error
    except (SQLAlchemyError, OSError) as error:
        first = without_password(str(error)).partition("\n")[0]
        raise InputError(f"{start} cannot be opened ({first}); {ADDRESSES}") from error
