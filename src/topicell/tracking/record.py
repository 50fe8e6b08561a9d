"""What a folder knows of its run: ``run.json`` and ``metrics.jsonl``.

The folder comes first. All that a run says of itself is written there before MLflow hears of it, so
a run can be gone on with, and delivered later, from its folder alone.
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
REPORT_ERROR = "topicell.report_error"
"""Tag of a finished run whose report failed; its value says why."""
_WRITING = threading.Lock()


def milliseconds() -> int:
    """The time as MLflow counts it."""
    return int(time.time() * 1000)


@dataclass(kw_only=True, slots=True)
class Record:
    """``run.json``: a run, or the parent of several, besides its metrics and artifacts."""

    name: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Names the run in a store whose answer, with the run's id, was never heard."""
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    started: int = field(default_factory=milliseconds)
    status: str = "RUNNING"
    ended: int | None = None
    artifacts: list[str] = field(default_factory=list)
    """Files and folders beside this one that MLflow is to have."""
    store: str = ""
    """The tracking store, without a password; empty where none is wanted."""
    experiment: str = ""
    artifact_location: str | None = None
    asked: bool = False
    """Whether the store was ever asked to create the run."""
    run_id: str = ""
    parent_id: str = ""
    parent_key: str = ""
    sent: int = 0
    """Lines of ``metrics.jsonl`` that the store is known to have."""
    delivered: bool = False
    """Whether the store has everything."""

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record of a folder.

        Raises
        ------
        InputError
            There is none, or it is none of ours.
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
        """Write it, whole or not at all."""
        # A call to the store that was given up notes in its thread that it asked.
        with (
            _WRITING,
            whole(folder / RECORD) as unfinished,
            unfinished.open("w", encoding="utf-8") as file,
        ):
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """What a process that was killed had written, and not yet given its name."""
    return [path for name in names for path in folder.glob(f".{name}-*")]


def clear(folder: Path, record: Record) -> None:
    """Take away what a killed process left beside its record; of a run that ended, its checkpoints.

    For who has the journal open: others may be at work.
    """
    with _WRITING, contextlib.suppress(OSError):
        # On a disk that takes nothing any more they stay, and hide no other error.
        for path in leftovers(folder, [RECORD]):
            path.unlink()
    if record.status == "FINISHED":
        # The model has the weights, and nothing is left to go on with.
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def records(root: Path) -> Iterator[tuple[Path, Record]]:
    """All records under a folder, each with its own folder; what is none of ours is passed over."""
    for path in sorted(root.rglob(RECORD)):
        try:
            yield path.parent, Record.read(path.parent)
        except InputError as error:
            warnings.warn(f"{error}; it is passed over", stacklevel=2)


class BusyError(InputError):
    """Another process works on the run."""


class Journal:
    """``metrics.jsonl``, kept open, and locked while its run is alive.

    Parameters
    ----------
    folder
        The run folder.
    shared
        Whether several processes may have it open, as those that work on one sweep.

    Raises
    ------
    BusyError
        Another process has it.
    InputError
        It is damaged.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self._file: BinaryIO = (folder / METRICS).open("a+b")
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise BusyError(
                f"{folder} is being worked on by another process; wait until that has ended"
            ) from error
        except OSError:
            # A file system without locks, as some of clusters: that runs do not meet is up to us.
            pass
        self._folder = folder
        self.lines: list[dict[str, Any]] = []
        self.read(mend=not shared)

    def read(self, *, mend: bool = False) -> None:
        """Read the lines, those of other processes too; `mend` takes a torn one away."""
        self._file.seek(0)
        whole, _, torn = self._file.read().rpartition(b"\n")
        if torn and mend:
            # The process was killed while it wrote the line.
            self._file.truncate(len(whole) + bool(whole))
        try:
            self.lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            self._file.close()
            raise InputError(f"{self._folder / METRICS} is damaged ({error})") from error

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line with its time."""
        timed = {"time": milliseconds(), **line}
        self._file.write(json.dumps(timed).encode() + b"\n")
        self._file.flush()
        self.lines.append(timed)

    def close(self) -> None:
        """Let others have it."""
        self._file.close()


def is_alive(folder: Path) -> bool:
    """Whether a process works on the run of a folder."""
    try:
        Journal(folder).close()
    except FileNotFoundError:
        return False
    except (InputError, OSError):
        # Or it cannot be gone on with for another reason.
        return True
    return False
