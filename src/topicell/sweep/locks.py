"""Who may work on a study: one process, or several that were all asked to share it.

A lock goes with the process that holds it, however that ends. Of a file it is an advisory lock of
the operating system on a file beside it; in PostgreSQL, an advisory lock of the database.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from topicell.errors import InputError


class Locks(ABC):
    """The lock on a study, and a brief one around each decision of those who share it."""

    def __init__(self, study: str) -> None:
        self.study = study

    def hold(self, *, shared: bool) -> bool:
        """Take the lock until `release`; whether nobody else has it.

        Raises
        ------
        InputError
            Another process works on the study and does not share it, or we do not.
        """
        if self._try(shared=False):
            if shared:
                self._share()
            return True
        if shared and self._try(shared=True):
            return False
        raise InputError(
            f"sweep.study = {self.study!r}: another process works on it; wait for it, name another "
            "study, or start all of them with sweep.join=true"
        )

    @abstractmethod
    def _try(self, *, shared: bool) -> bool:
        """Take the lock if it is free."""

    @abstractmethod
    def _share(self) -> None:
        """Turn an exclusive lock into a shared one."""

    @abstractmethod
    def briefly(self) -> contextlib.AbstractContextManager[None]:
        """Be the only one for as long as a decision takes."""

    @abstractmethod
    def release(self) -> None:
        """Give the lock back."""


class FileLocks(Locks):
    """Locks beside the file of the storage."""

    def __init__(self, path: Path, study: str) -> None:
        super().__init__(study)
        name = hashlib.sha256(study.encode()).hexdigest()[:16]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held: IO[str] = path.with_name(f".{path.name}.{name}.lock").open("a+")
            self._brief: IO[str] = path.with_name(f".{path.name}.brief.lock").open("a+")
        except OSError as error:
            raise InputError(
                f"sweep.storage: {path.parent} cannot be written to ({error.strerror}); choose "
                "another with sweep.storage=sqlite:///FILE"
            ) from error

    def _try(self, *, shared: bool) -> bool:
        try:
            fcntl.flock(self._held, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise InputError(
                f"sweep.storage: {self._held.name} cannot be locked ({error.strerror}); choose "
                "another file system, or PostgreSQL"
            ) from error
        return True

    def _share(self) -> None:
        fcntl.flock(self._held, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def briefly(self) -> Iterator[None]:
        """See `Locks.briefly`."""
        fcntl.flock(self._brief, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._brief, fcntl.LOCK_UN)

    def release(self) -> None:
        """See `Locks.release`."""
        self._held.close()
        self._brief.close()


class DatabaseLocks(Locks):
    """Advisory locks of PostgreSQL, on a connection of their own."""

    def __init__(self, url: str, study: str) -> None:
        super().__init__(study)
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError

        # The brief lock is one for all studies of the database: its tables are made under it.
        self._keys = [
            int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
            for name in (f"topicell {study}", "topicell brief")
        ]
        try:
            self._engine = create_engine(url, isolation_level="AUTOCOMMIT")
            self._connection: Any = self._engine.connect()
        except ImportError as error:
            raise InputError(
                f"sweep.storage: its driver is not installed ({error}); write "
                "postgresql+psycopg://… and pip install 'psycopg[binary]'"
            ) from error
        except ValueError as error:
            # It may quote a piece of the password.
            raise InputError(
                "sweep.storage: is no address of a database; write "
                "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, with / ? # @ in a password as "
                "%2F %3F %23 %40"
            ) from error
        except SQLAlchemyError as error:
            first = str(error).partition("\n")[0]
            raise InputError(
                f"sweep.storage: the database cannot be reached ({first}); check the address and "
                "that the server runs"
            ) from error

    def _call(self, function: str, key: int) -> Any:
        from sqlalchemy import text

        return self._connection.execute(text(f"SELECT {function}(:key)"), {"key": key}).scalar()

    def _try(self, *, shared: bool) -> bool:
        suffix = "_shared" if shared else ""
        return bool(self._call(f"pg_try_advisory_lock{suffix}", self._keys[0]))

    def _share(self) -> None:
        self._call("pg_advisory_lock_shared", self._keys[0])
        self._call("pg_advisory_unlock", self._keys[0])

    @contextlib.contextmanager
    def briefly(self) -> Iterator[None]:
        """See `Locks.briefly`."""
        self._call("pg_advisory_lock", self._keys[1])
        try:
            yield
        finally:
            self._call("pg_advisory_unlock", self._keys[1])

    def release(self) -> None:
        """See `Locks.release`."""
        self._connection.close()
        # The pool would keep the connection, and with it the lock.
        self._engine.dispose()


def locks_of(url: str, study: str) -> Locks:
    """The locks that belong to a storage.

    Raises
    ------
    InputError
        It is no storage that can be locked.
    """
    for prefix in ("sqlite:///", "journal:"):
        if url.startswith(prefix):
            path = Path(url.removeprefix(prefix).partition("?")[0])
            return FileLocks(path.resolve(), study)
    if url.startswith("postgresql"):
        return DatabaseLocks(url, study)
    raise InputError(
        f"sweep.storage = {url.partition('://')[0]!r}…: give sqlite:///FILE, journal:FILE or "
        "postgresql+psycopg://USER@HOST/DATABASE"
    )
