"""The record of a run in its folder: ``run.json`` and ``metrics.jsonl``.

Everything is written to the folder before it is sent to MLflow, so a run can be resumed, and
delivered later, from its folder alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from topicell.errors import InputError
from topicell.files import whole

RECORD = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoint"
RUN_ERROR = "topicell.error"
"""Tag of a failed run; its value says why."""
REPORT_ERROR = "topicell.report_error"
"""Tag of a finished run whose report failed; its value says why."""
_WRITING = threading.Lock()
"""A run and the thread that delivers it write the same file."""


def milliseconds() -> int:
    """Return the time in MLflow's unit."""
    return int(time.time() * 1000)


@dataclass(kw_only=True, slots=True)
class Record:
    """Hold ``run.json``: a run, or the parent of several, without its metrics and artifacts.

    A thread that delivers the run writes it too: replace its dictionaries and lists, change none.
    """

    name: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies the run in a store whose answer, with the run's id, was lost."""
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    started: int = field(default_factory=milliseconds)
    status: str = "RUNNING"
    ended: int | None = None
    artifacts: list[str] = field(default_factory=list)
    """Files and folders in the run folder that are delivered."""
    store: str = ""
    """The tracking store without its password; empty if tracking is off."""
    experiment: str = ""
    artifact_location: str | None = None
    asked: bool = False
    """Whether the store was ever asked to create the run."""
    run_id: str = ""
    parent_id: str = ""
    parent_key: str = ""
    sent: int = 0
    """Number of lines of ``metrics.jsonl`` that the store has."""
    delivered: bool = False
    """Whether the store has everything."""

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of a folder.

        Raises
        ------
        InputError
            There is none, or the file is not a record.
        """
        path = folder / RECORD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(cls)}
            return cls(**{name: value for name, value in found.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not the record of a run ({type(error).__name__}: {error})"
            ) from error

    def write(self, folder: Path) -> None:
        """Write ``run.json`` completely or not at all."""
        with (
            _WRITING,
            whole(folder / RECORD) as unfinished,
            unfinished.open("w", encoding="utf-8") as file,
        ):
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the unfinished files of a process that was killed while it wrote these names."""
    return [path for name in names for path in folder.glob(f".{name}-*")]


def clear(folder: Path, record: Record) -> None:
    """Remove unfinished records, and the checkpoints of a run that ended.

    The caller must hold the lock of the journal.
    """
    with _WRITING, contextlib.suppress(OSError):
        # A disk that fails must not hide the error of the run.
        for path in leftovers(folder, [RECORD]):
            path.unlink()
    if record.status == "FINISHED":
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def records(root: Path) -> Iterator[tuple[Path, Record]]:
    """Yield all records under a folder, with their folders; warn of other files of that name."""
    for path in sorted(root.rglob(RECORD)):
        try:
            yield path.parent, Record.read(path.parent)
        except InputError as error:
            warnings.warn(f"{error}; it is ignored", stacklevel=2)


class BusyError(InputError):
    """Say that another process works on the run."""


class Journal:
    """Keep ``metrics.jsonl`` open, and locked while the run is alive.

    Parameters
    ----------
    folder
        The run folder.
    shared
        Whether several processes may have it open, such as those of one sweep.

    Raises
    ------
    BusyError
        Another process has it open.
    InputError
        The file is damaged.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.shared = shared
        self._file: BinaryIO = (folder / METRICS).open("a+b")
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise BusyError(
                f"{folder} is in use by another process; wait until that process has ended"
            ) from error
        except OSError:
            # Some file systems of clusters have no locks.
            pass
        self._folder = folder
        # The thread of the system metrics appends lines too, in the same order everywhere.
        self._appending = threading.Lock()
        self.lines: list[dict[str, Any]] = []
        self.read()

    def read(self) -> None:
        """Read the lines, those of other processes too; remove an incomplete one."""
        self._file.seek(0)
        complete, _, incomplete = self._file.read().rpartition(b"\n")
        if incomplete and not self.shared:
            # The process was killed while it wrote the line.
            self._file.truncate(len(complete) + bool(complete))
        try:
            self.lines = [json.loads(line) for line in complete.splitlines()]
        except ValueError as error:
            self._file.close()
            raise InputError(f"{self._folder / METRICS} is damaged ({error})") from error

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a line and its time."""
        with self._appending:
            timed = {"time": milliseconds(), **line}
            self._file.write(json.dumps(timed).encode() + b"\n")
            self._file.flush()
            self.lines.append(timed)

    def close(self) -> None:
        """Close the file, which releases the lock."""
        self._file.close()


def is_alive(folder: Path) -> bool:
    """Return whether a process works on the run of a folder."""
    try:
        Journal(folder).close()
    except FileNotFoundError:
        return False
    except (InputError, OSError):
        # A folder that cannot be read cannot be resumed either.
        return True
    return False
