"""The one way from a run folder to MLflow.

A `Delivery` sends a folder in a thread of its own: what is new every few seconds, and everything at
the end. The run writes to its folder only and never calls the store, so a store that hangs holds up
the thread. The run waits for the thread twice, when it starts and when it ends, until a deadline.
What is not delivered by then is delivered when the sweep ends, or by ``topicell sync``.

Sending twice does no harm: a run is found by its key, MLflow identifies a point by its name, step,
time and value, and parameters, tags and artifacts by their names.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from topicell.config import TrackingConfig, as_dict
from topicell.errors import InputError
from topicell.progress import step
from topicell.signals import held_interrupts
from topicell.tracking.provenance import DIFF, ENVIRONMENT
from topicell.tracking.record import (
    METRICS,
    REPORT_ERROR,
    RUN_ERROR,
    Journal,
    Record,
    clear,
    records,
)
from topicell.tracking.store import (
    AWAY_SECONDS,
    SQLITE,
    Unreachable,
    experiment_id,
    failed_lately,
    first_line,
    has_run,
    is_database,
    located,
    note_failure,
    prepare,
    shown_uri,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

log = logging.getLogger(__name__)

PARENT_RUN = "TOPICELL_PARENT_RUN_ID"
"""Environment variable with the id of the parent run, for the jobs of a multirun."""
PARENT_KEY = "TOPICELL_PARENT_KEY"
"""Environment variable with the key of the parent run, which the store may not have yet."""
KEY = "topicell.key"
"""Tag with the key of a run."""
DESCRIPTION = "summary.md"
TAG_LENGTH, PARAM_LENGTH, POINTS, ENTRIES = 5000, 6000, 1000, 100
"""MLflow's limits: characters of a tag and a parameter, points and others in a request."""
RECORDS = ("config.yaml", METRICS, ENVIRONMENT)
"""Records that every run has; `DIFF` is one only if there are uncommitted changes."""
NO_METRICS = ("dataset", "split", "status")
"""Lines of ``metrics.jsonl`` that hold something else."""

START_SECONDS = 4.5
"""Deadline of a run that starts: seconds that it waits for a store that is late."""
LAST_SECONDS = 3.0
"""Deadline of a run that ends, besides what it did not use when it started."""
INTERRUPTED_SECONDS = 1.5
"""Deadline of a run that was interrupted."""
BATCH_SECONDS = 2.0
"""Pause between two looks for something new to send."""
ATTEMPTS = 3
FREE_SECONDS = 0.5
"""Duration of a call that is not late."""
OPEN_SECONDS = 10.0
"""The same of opening a store, which is mostly work of this machine."""
LOCK_SECONDS = 3.0
"""Wait for the lock of a SQLite store, for which MLflow would wait 20 s."""
BYTES_PER_SECOND = 10_000_000
"""Rate of an upload that is not late."""


class Delivery:
    """Send the folder of a run, or of the parent of several, to MLflow.

    Parameters
    ----------
    folder, record, journal
        The folder, and what it says of the run; the thread writes to the record what the store has.
    config
        The store. Its password is kept nowhere else.
    instead
        What happens without the store, for the warning.
    bytes_per_second
        Rate of an upload that is not late.

    Attributes
    ----------
    problem
        Why the store does not have what it should have; None if all is well.
    experiment
        The id of the experiment, once the store has the run.
    left
        Seconds that are left until the deadline.
    """

    def __init__(
        self,
        folder: Path,
        record: Record,
        journal: Journal,
        config: TrackingConfig,
        instead: str = "",
        *,
        bytes_per_second: int = BYTES_PER_SECOND,
    ) -> None:
        self.folder, self.record, self.journal, self.config = folder, record, journal, config
        self.problem: Exception | None = None
        self.experiment = ""
        self._instead = instead
        self._bytes_per_second = bytes_per_second
        self._left_alone = False
        self.left = START_SECONDS
        self._warned = False
        # Set by the run.
        self._closing = threading.Event()
        self._hurry = False
        self._abandoned = False
        # Set by the thread.
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._ready, self._done = threading.Event(), threading.Event()
        self._files_sent, self._n_files = 0, 0
        self._clock = (0.0, math.inf, 0.0)
        self._address = ""
        self._opened: MlflowClient | None = None
        self._described: object = None
        self._writing = threading.Lock()

    def begin(self) -> None:
        """Start to send, and wait until the store has the run, or until the deadline."""
        self._left_alone = failed_lately(self.config)
        if self._left_alone:
            self.problem = Unreachable("it failed shortly before")
        elif self._started():
            self._wait(self._ready)
        self.warn()

    def end(self, seconds: float, *, hurry: bool = False) -> None:
        """Send everything, and wait until the store has it, or until the deadline.

        It may be called again after an interrupt ended the wait.

        Parameters
        ----------
        seconds
            The deadline.
        hurry
            Leave out artifacts that are not sent yet.
        """
        self.left, self._hurry = seconds, hurry
        self._closing.set()
        # However often the store failed, unless other runs of this process just found that it does.
        skipped = self._left_alone and failed_lately(self.config)
        if not skipped and self._started() and not self._wait(self._done):
            with self._writing:
                self._abandoned = True
        self.warn()

    def warn(self, error: Exception | None = None) -> None:
        """Warn if the store failed, but only once."""
        error = error or self.problem
        if error is not None and not self._warned and self._instead:
            self._warned = True
            where, why = shown_uri(self.config), first_line(error)
            log.warning("MLflow at %s could not take the run (%s); %s", where, why, self._instead)

    def _started(self) -> bool:
        """Start the thread if it was not; return whether it was."""
        if self._thread.ident is None:
            try:
                self._address = prepare(self.config)
            except (Unreachable, InputError) as error:
                self._fail(error)
                return False
            # An interrupt while the thread starts would hide whether it did.
            with held_interrupts():
                self._thread.start()
        return True

    def _wait(self, event: threading.Event) -> bool:
        """Wait for the thread as long as its calls are not late by more than what is left."""
        before = self._late()
        with step("delivery to MLflow", unit="files") as shown:
            while not event.wait(0.05):
                shown.total = self._n_files or None
                shown.advance(self._files_sent - shown.n)
                if self._late() - before > self.left:
                    self.left = 0.0
                    self._fail(Unreachable("no answer in time"))
                    return False
        self.left = max(self.left - (self._late() - before), 0.0)
        return True

    def _late(self) -> float:
        """Return the seconds that calls have taken beyond what they may, the present one too."""
        late, began, free = self._clock
        return late + max(time.monotonic() - began - free, 0.0)

    def _fail(self, error: Exception) -> None:
        self.problem = error
        note_failure(self.config, failed=True)

    # What follows runs in the thread.

    def _work(self) -> None:
        while not self._abandoned:
            last = self._closing.is_set()
            try:
                self._send(last=last)
            except Exception as error:
                # Whatever it is, the run must go on; the run warns of it.
                self._opened = None
                self._fail(error)
            else:
                self.problem = None
                note_failure(self.config, failed=False)
            self._ready.set()
            if last:
                break
            self._closing.wait(AWAY_SECONDS if self.problem else BATCH_SECONDS)
        self._done.set()

    def _send(self, *, last: bool) -> None:
        """Send what the store does not have yet; with `last`, everything and how the run ended."""
        from mlflow import MlflowClient

        if last or self._opened is None:
            self._call(self._require_answer, attempts=1)
        if self._opened is None:
            self._opened = self._call(partial(MlflowClient, self._address), OPEN_SECONDS)
            self._call(self._find_or_create)
            self._described = None
        if last:
            self._call(self._find_parent)
        self._call(self._describe)
        self._send_lines(last=last)
        if last and self.record.status != "RUNNING":
            self._complete()

    def _call(
        self, action: Callable[[], T], free: float = FREE_SECONDS, attempts: int = ATTEMPTS
    ) -> T:
        """Do something with the store; try again if it fails.

        MLflow looks for a row and then inserts it: of two processes that record the same thing at
        once (the data set of two trials), one is refused, and finds the row when it tries again.
        """
        for attempt in range(1, attempts + 1):
            if self._abandoned:
                raise Unreachable("no answer in time")
            self._clock = (self._clock[0], time.monotonic(), free)
            try:
                return action()
            except Exception:
                if attempt == attempts:
                    raise
                time.sleep(0.1 * 2**attempt)
            finally:
                self._clock = (self._late(), math.inf, 0.0)
        raise AssertionError

    @property
    def _store(self) -> MlflowClient:
        assert self._opened is not None
        return self._opened

    def _require_answer(self) -> None:
        """Fail if a database is locked, deleted or away.

        MLflow would go on writing to a deleted file. It would try to connect for minutes, under a
        lock for which all stores of the process wait.
        """
        if self._address.startswith(SQLITE):
            uri = f"{Path(self._address.removeprefix(SQLITE)).as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        elif is_database(self._address):
            import sqlalchemy

            engine = sqlalchemy.create_engine(self._address)
            try:
                engine.connect().close()
            finally:
                engine.dispose()

    def _note(self, **values: Any) -> None:
        """Write to the record what the store has."""
        with self._writing:
            if self._abandoned:
                # Another process may have the folder by now.
                raise Unreachable("no answer in time")
            for name, value in values.items():
                setattr(self.record, name, value)
            self.record.write(self.folder)

    def _find_or_create(self) -> None:
        """Find the run in the store, or create it."""
        record, store = self.record, self._store
        if record.run_id and not has_run(store, record.run_id):
            # It was deleted, or this is another store: the run is created again.
            self._note(run_id="", sent=0)
        self.experiment = experiment_id(store, self.config)
        if not record.run_id:
            # An earlier answer of the store may be all that was lost.
            run_id = self._with_key(record.key) if record.asked else ""
            if not run_id:
                self._note(asked=True)
                self._find_parent()
                made = store.create_run(
                    self.experiment,
                    start_time=record.started,
                    run_name=record.name,
                    tags=self._tags(),
                )
                run_id = str(made.info.run_id)
            self._note(run_id=run_id)
        else:
            self.experiment = str(store.get_run(record.run_id).info.experiment_id)

    def _find_parent(self) -> None:
        """Find the parent in this store, by its id or by its key."""
        record = self.record
        if record.parent_key and not (record.parent_id and has_run(self._store, record.parent_id)):
            record.parent_id = self._with_key(record.parent_key)

    def _with_key(self, key: str) -> str:
        found = self._store.search_runs([self.experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else ""

    def _tags(self) -> dict[str, str]:
        record = self.record
        tags = record.tags | {KEY: record.key, "topicell.folder": str(self.folder.absolute())}
        if record.parent_id:
            tags["mlflow.parentRunId"] = record.parent_id
        summary = self.folder / DESCRIPTION
        if summary.exists() and record.run_id:
            tags["mlflow.note.content"] = _served(summary.read_text("utf-8"), record.run_id)
        return {name: value[:TAG_LENGTH] for name, value in tags.items()}

    def _describe(self) -> None:
        """Send parameters and tags, and that the run goes on if it ended before."""
        from mlflow.entities import Param, RunTag

        record, store, run_id = self.record, self._store, self.record.run_id
        tags, running = self._tags(), record.status == "RUNNING"
        wanted = (tags, record.params, running)
        if wanted == self._described:
            return
        there = store.get_run(run_id)
        params = [
            Param(name, str(value)[:PARAM_LENGTH])
            for name, value in record.params.items()
            if name not in there.data.params
        ]
        news = [RunTag(k, v) for k, v in tags.items() if there.data.tags.get(k) != v]
        for first in range(0, max(len(params), len(news)), ENTRIES):
            some = slice(first, first + ENTRIES)
            store.log_batch(run_id, params=params[some], tags=news[some])
        for name in {RUN_ERROR, REPORT_ERROR} & there.data.tags.keys() - tags.keys():
            # Of an attempt before this one.
            store.delete_tag(run_id, name)
        if running and there.info.status != "RUNNING":
            store.update_run(run_id, status="RUNNING")
        self._described = wanted

    def _send_lines(self, *, last: bool) -> None:
        """Send the lines of the journal that were not sent before."""
        record = self.record
        if last and self.journal.shared:
            # Other processes wrote lines too, between ours.
            self.journal.read()
            record.sent = 0
        lines = self.journal.lines[record.sent :]
        for line in lines:
            if "dataset" in line:
                self._call(partial(self._log_dataset, line["dataset"]))
        points = [point for line in lines for point in _points(line)]
        for first in range(0, len(points), POINTS):
            some = points[first : first + POINTS]
            self._call(partial(self._store.log_batch, record.run_id, metrics=some))
        record.sent += len(lines)
        if last:
            self._note()

    def _log_dataset(self, dataset: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest, source = dataset["digest"], dataset["source"]
        kind = "http" if source.startswith("https://") else "local"
        # MLflow keeps 36 characters of a digest; a tag holds all.
        entity = Dataset(
            name=dataset["name"],
            digest=digest[:36],
            source_type=kind,
            source=json.dumps({"url" if kind == "http" else "uri": source}),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self._store.log_inputs(self.record.run_id, datasets=[DatasetInput(entity, tags)])
        self._store.set_tag(self.record.run_id, "topicell.data_digest", digest)

    def _complete(self) -> None:
        """Send the artifacts and how the run ended."""
        record, store = self.record, self._store
        names, complete = record.artifacts, True
        if record.status == "KILLED":
            # Other artifacts are unfinished, and stay in the folder.
            names = [name for name in names if name in (*RECORDS, DIFF)]
        paths = [path for name in names for path in _files(self.folder / name)]
        self._n_files = len(paths)
        for self._files_sent, path in enumerate(paths):
            if self._hurry:
                complete = False
                break
            where = path.relative_to(self.folder).parent.as_posix()
            self._call(
                partial(
                    store.log_artifact, record.run_id, str(path), None if where == "." else where
                ),
                FREE_SECONDS + path.stat().st_size / self._bytes_per_second,
            )
        self._call(partial(store.set_terminated, record.run_id, record.status, record.ended))
        # A run whose parent the store does not have yet is nested under it later.
        self._note(delivered=complete and bool(record.parent_id or not record.parent_key))


def deliver(
    folder: Path,
    config: TrackingConfig | None,
    seconds: float,
    bytes_per_second: int = BYTES_PER_SECOND,
) -> str:
    """Deliver a folder whose process has ended; return the id of the run in the store.

    Parameters
    ----------
    folder
        The folder of a run, of a grid, or of a sweep.
    config
        The store, or None for the one that the record names.
    seconds
        The deadline.
    bytes_per_second
        Rate of an upload that is not late.

    Raises
    ------
    InputError
        A process works on the run, or the record does not say which store it belongs to.
    Unreachable
        The store did not take everything; a later call goes on from there.
    """
    with closing(Journal(folder)) as journal:
        record = Record.read(folder)
        clear(folder, record)
        config = store_of(record, config)
        _require_place(record, config)
        # The store may be another one than before, or have another address.
        record.store, record.asked = located(config), True
        if record.status == "RUNNING":
            # Its process is gone, and wrote this line last.
            last = journal.lines[-1]["time"] if journal.lines else record.started
            record.status, record.ended = "KILLED", last
        record.write(folder)
        delivery = Delivery(folder, record, journal, config, bytes_per_second=bytes_per_second)
        delivery.end(seconds)
        if isinstance(delivery.problem, InputError):
            raise delivery.problem
        if delivery.problem is not None:
            raise Unreachable(first_line(delivery.problem)) from delivery.problem
        return record.run_id


def undelivered(roots: Sequence[Path]) -> list[Path]:
    """Return the folders that a store does not have yet, parents before their runs."""
    found = [
        (bool(record.parent_key), record.started, folder)
        for root in roots
        for folder, record in records(root)
        if record.store and not record.delivered
    ]
    return [folder for _, _, folder in sorted(found)]


def store_of(record: Record, config: TrackingConfig | None) -> TrackingConfig:
    """Return where a record is delivered: to the store asked for, else to its own."""
    asked = config is not None and (config.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    if not asked and "***" in record.store:
        raise InputError(
            f"the tracking store {record.store} has a password, which topicell does not store: "
            "give the full address with tracking.uri=…"
        )
    return TrackingConfig(
        uri=config.uri if asked and config is not None else record.store,
        experiment=record.experiment,
        artifact_location=record.artifact_location,
    )


def _require_place(record: Record, config: TrackingConfig) -> None:
    """Refuse to create a store again whose folder is gone: it was moved, with the run in it."""
    path = sqlite_path(config)
    if path is not None and located(config) == record.store and not path.parent.is_dir():
        raise InputError(
            f"the tracking store {record.store} is no longer there; give its new address with "
            "tracking.uri=…"
        )


def direct(record: Record, config: TrackingConfig, *, nested: bool = True) -> None:
    """Set where a record is delivered: store, experiment and, if `nested`, parent run."""
    record.store = located(config)
    record.experiment = config.experiment
    record.artifact_location = as_dict(config.artifact_location)
    if nested:
        record.parent_id = os.environ.get(PARENT_RUN, "")
        record.parent_key = os.environ.get(PARENT_KEY, "")


def _points(line: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the metrics of a line as MLflow's; the epoch is the step."""
    from mlflow.entities import Metric

    if any(name in line for name in NO_METRICS):
        return
    step = int(line.get("epoch", line.get("step", 0)))
    for name, value in line.items():
        if name not in ("time", "epoch", "step"):
            yield Metric(name, float(value), int(line["time"]), step)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(inner for inner in path.rglob("*") if inner.is_file())
    return [path] if path.is_file() else []


def _served(summary: str, run_id: str) -> str:
    """Return the summary with the address of its picture on the tracking server."""
    text, mark, rest = summary.rpartition("](")
    if not mark or not rest.rstrip().endswith(")"):
        return summary
    picture = rest.rstrip().removesuffix(")")
    where = urlencode({"path": picture, "run_uuid": run_id})
    return f"{text}](get-artifact?{where})\n"
