"""From a folder to MLflow: everything, and once, however often it is sent.

A live run sends what it has every few seconds; what could not be sent is in the folder, and is
delivered when the run ends, when its sweep ends, or by ``topicell sync``. Nothing is doubled by
sending it again: a run is found by its key, MLflow knows a point by its name, step, time and value,
and parameters, tags and artifacts by their names.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from topicell.config import TrackingConfig, as_dict
from topicell.errors import InputError
from topicell.tracking.record import (
    METRICS,
    Journal,
    Record,
    clear,
    milliseconds,
    records,
)
from topicell.tracking.store import (
    Call,
    Patience,
    Unreachable,
    client,
    experiment_id,
    first_line,
    has_run,
    log_params,
    open_store,
    remember_away,
    shown_uri,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PARENT_RUN = "TOPICELL_PARENT_RUN_ID"
"""Environment variable by which the jobs of a multirun find their parent run."""
PARENT_KEY = "TOPICELL_PARENT_KEY"
"""And its key, where MLflow could not be reached to have an id of it."""
KEY = "topicell.key"
"""Tag that holds the key of a run."""
DESCRIPTION = "summary.md"
TAG_LENGTH = 5000
"""MLflow's limit on the value of a tag."""
RECORDS = ("config.yaml", METRICS)
NO_METRICS = ("dataset", "split", "status")
"""Lines of ``metrics.jsonl`` that hold something else."""


class Delivery:
    """The way of one folder to MLflow.

    Parameters
    ----------
    folder, record
        The folder, and its record, which is written whenever something has arrived.
    config
        The store; its password is nowhere else.

    Every method raises `topicell.tracking.store.Unreachable` when `patience` is at its end.
    """

    def __init__(self, folder: Path, record: Record, config: TrackingConfig) -> None:
        self.folder = folder
        self.record = record
        self.config = config
        self.patience = Patience()
        self.begun = False
        """Whether the store has the run."""
        # One call over all attempts: a second beside one that still runs could make a second run.
        self._creation = Call(self._found_or_created)

    @property
    def store(self) -> MlflowClient:
        """A client of the store."""
        return client(self.config)

    def begin(self) -> None:
        """Have the run in the store, with its parameters, its tags and its data set."""
        record = self.record
        if record.run_id and not self.patience.call(lambda: has_run(self.store, record.run_id)):
            # Deleted there, or of another store that had this address: it is made anew.
            record.run_id, record.sent = "", 0
            self._creation = Call(self._found_or_created)
        if not record.run_id:
            record.run_id = self.patience.call(self._creation)
            record.write(self.folder)
        if record.parent_key and record.parent_id:
            parent = record.parent_id
            if not self.patience.call(lambda: has_run(self.store, parent)):
                # Of another store: there it is found by its key.
                record.parent_id = ""
        self.describe()
        self.begun = True

    def describe(self) -> None:
        """Send parameters and tags."""
        record, run_id = self.record, self.record.run_id

        def send() -> None:
            from mlflow.entities import RunTag

            store = self.store
            there = store.get_run(run_id)
            log_params(
                store,
                run_id,
                {k: v for k, v in record.params.items() if k not in there.data.params},
            )
            tags = {name: value[:TAG_LENGTH] for name, value in self._tags().items()}
            news = [RunTag(k, v) for k, v in tags.items() if there.data.tags.get(k) != v]
            for first in range(0, len(news), 100):
                store.log_batch(run_id, tags=news[first : first + 100])
            if there.info.status != record.status and record.status == "RUNNING":
                store.update_run(run_id, status="RUNNING")

        self.patience.call(send)

    def send(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Send lines of the journal that were not sent before: the first ones that were not."""
        run_id = self.record.run_id
        for line in lines:
            if "dataset" in line:
                self.patience.call(partial(self._log_dataset, line["dataset"]))
        points = [point for line in lines for point in _points(line)]
        for first in range(0, len(points), 1000):
            some = points[first : first + 1000]
            self.patience.call(partial(self._log_metrics, run_id, some))
        self.record.sent += len(lines)

    def upload(self, names: Sequence[str]) -> None:
        """Send artifacts: files, and folders with all that is in them."""
        for name in names:
            for path in _files(self.folder / name):
                where = path.relative_to(self.folder).parent.as_posix()
                self.patience.call(
                    partial(self._log_artifact, path, None if where == "." else where),
                    n_bytes=path.stat().st_size,
                )

    def end(self) -> None:
        """Send what comes last: tags, artifacts and how the run ended."""
        record = self.record
        self.describe()
        names = record.artifacts
        if record.status == "KILLED":
            # What it has of the others is unfinished, and stays in the folder.
            names = [name for name in names if name in RECORDS]
        self.upload(names)
        self.terminate(record.status)
        # A run whose parent is not there yet is nested under it later.
        record.delivered = not record.parent_key or bool(record.parent_id)
        record.write(self.folder)

    def terminate(self, status: str) -> None:
        """Say how the run ended, and when."""
        self.patience.call(
            lambda: self.store.set_terminated(self.record.run_id, status, self.record.ended)
        )

    def _log_metrics(self, run_id: str, points: Sequence[Any]) -> None:
        self.store.log_batch(run_id, metrics=points)

    def _log_artifact(self, path: Path, where: str | None) -> None:
        self.store.log_artifact(self.record.run_id, str(path), where)

    def _found_or_created(self) -> str:
        record, store = self.record, self.store
        experiment = experiment_id(store, self.config)
        if record.asked:
            # The answer to an earlier call may be all that was lost.
            found = _with_key(store, experiment, record.key)
            if found:
                return found
        record.asked = True
        record.write(self.folder)
        made = store.create_run(
            experiment, start_time=record.started, run_name=record.name, tags=self._tags()
        )
        return str(made.info.run_id)

    def _tags(self) -> dict[str, str]:
        record = self.record
        tags = record.tags | {KEY: record.key, "topicell.folder": str(self.folder.absolute())}
        if record.parent_key and not record.parent_id:
            experiment = experiment_id(self.store, self.config)
            record.parent_id = _with_key(self.store, experiment, record.parent_key)
        if record.parent_id:
            tags["mlflow.parentRunId"] = record.parent_id
        summary = self.folder / DESCRIPTION
        if summary.exists() and record.run_id:
            tags["mlflow.note.content"] = _served(summary.read_text("utf-8"), record.run_id)
        return tags

    def _log_dataset(self, dataset: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest, source = dataset["digest"], dataset["source"]
        kind = "http" if source.startswith("https://") else "local"
        # MLflow keeps 36 characters of a digest; the whole one is a tag.
        entity = Dataset(
            name=dataset["name"],
            digest=digest[:36],
            source_type=kind,
            source=json.dumps({"url" if kind == "http" else "uri": source}),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self.store.log_inputs(self.record.run_id, datasets=[DatasetInput(entity, tags)])
        self.store.set_tag(self.record.run_id, "topicell.data_digest", digest)


class Link:
    """What a live process has of a store that may fail: nothing that is recorded depends on it.

    The first failure is warned of, and the store left alone from then on; `up` gives it another
    chance.

    Parameters
    ----------
    config
        The store.
    instead
        What the warning says of those that it does without.
    """

    def __init__(self, config: TrackingConfig, instead: str) -> None:
        self.config = config
        self.up = True
        self._instead = instead
        self._warned = False

    def attempt(
        self, what: str, action: Callable[[], object], delivery: Delivery | None = None
    ) -> None:
        """Do something with the store, which is first to have the run of `delivery`."""
        from mlflow.exceptions import MlflowException

        if not self.up:
            return
        try:
            if delivery is not None and not delivery.begun:
                open_store(self.config)
                delivery.begin()
            action()
        except (Unreachable, MlflowException, OSError, InputError) as error:
            # Also where a store that could be opened before cannot be any more.
            self.fail(what, error)

    def fail(self, what: str, error: Exception) -> None:
        """Leave the store alone, as other runs of this process will for a while."""
        remember_away(self.config)
        self.leave(f"could not {what} ({first_line(error)})")

    def leave(self, why: str) -> None:
        """Leave the store alone."""
        self.up = False
        if not self._warned:
            log.warning("MLflow at %s %s; %s", shown_uri(self.config), why, self._instead)
        self._warned = True


def deliver(folder: Path, config: TrackingConfig | None, patience: Patience) -> str:
    """Deliver the whole of a folder whose process has ended; the run's id in the store.

    Parameters
    ----------
    folder
        A run folder, or that of a grid or a sweep.
    config
        The store, or None to take the one that the record names.
    patience
        How long to wait for it.

    Raises
    ------
    InputError
        A process works on the run, or the record's store cannot be told from it.
    Unreachable
        The store did not take it all; what it took is not sent again.
    """
    journal = Journal(folder)
    try:
        record = Record.read(folder)
        clear(folder, record)
        config = store_of(record, config)
        _require_place(record, config)
        # It may be another store than before, or the same at another address.
        record.store, record.asked = located(config), True
        if record.status == "RUNNING":
            record.status, record.ended = "KILLED", record.ended or _last_sign(folder)
        delivery = Delivery(folder, record, config)
        delivery.patience = patience
        try:
            open_store(config)
            delivery.begin()
            delivery.send(journal.lines[record.sent :])
            delivery.end()
        finally:
            record.write(folder)
        return record.run_id
    finally:
        journal.close()


def undelivered(roots: Sequence[Path]) -> list[Path]:
    """Folders with a record that a store is still to have, parents before their runs."""
    found = []
    for root in roots:
        for folder, record in records(root):
            if record.store and not record.delivered:
                found.append((bool(record.parent_key), record.started, folder))
    return [folder for _, _, folder in sorted(found)]


def store_of(record: Record, config: TrackingConfig | None) -> TrackingConfig:
    """Where a record is to go: to the store asked for, else to its own."""
    asked = config is not None and (config.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    if not asked and "***" in record.store:
        raise InputError(
            f"the tracking store {record.store} has a password, which is kept nowhere: give "
            "tracking.uri=… in full"
        )
    return TrackingConfig(
        uri=config.uri if asked and config is not None else record.store,
        experiment=record.experiment,
        artifact_location=record.artifact_location,
    )


def _require_place(record: Record, config: TrackingConfig) -> None:
    """Refuse to make a store anew where its whole folder is gone: it was moved, with the run."""
    path = Path(located(config).removeprefix("sqlite:///"))
    same = located(config) == record.store and record.store.startswith("sqlite:///")
    if same and not path.parent.is_dir():
        raise InputError(
            f"the tracking store {record.store} is no longer there; tracking.uri=… says where it "
            "is now"
        )


def direct(record: Record, config: TrackingConfig, *, nested: bool = True) -> None:
    """Say where a record goes: the store, the experiment and, if `nested`, the parent run."""
    record.store = located(config)
    record.experiment = config.experiment
    record.artifact_location = as_dict(config.artifact_location)
    if nested:
        record.parent_id = os.environ.get(PARENT_RUN, "")
        record.parent_key = os.environ.get(PARENT_KEY, "")


def located(config: TrackingConfig) -> str:
    """The store without a password, and wherever it is asked from."""
    uri = tracking_uri(config)
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return shown_uri(config)


def _with_key(store: MlflowClient, experiment: str, key: str) -> str:
    found = store.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def _points(line: Mapping[str, Any]) -> Iterator[Any]:
    """The metrics of a line, as MLflow's; those of an epoch have it as their step."""
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
    """The summary with its picture where the server gives it out."""
    text, mark, rest = summary.rpartition("](")
    if not mark or not rest.rstrip().endswith(")"):
        return summary
    picture = rest.rstrip().removesuffix(")")
    where = urlencode({"path": picture, "run_uuid": run_id})
    return f"{text}](get-artifact?{where})\n"


def _last_sign(folder: Path) -> int:
    """When a process that is gone wrote last."""
    try:
        return int((folder / METRICS).stat().st_mtime * 1000)
    except OSError:
        return milliseconds()
