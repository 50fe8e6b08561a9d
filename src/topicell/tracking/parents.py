"""The run that the runs of a grid or a sweep are nested under."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.tracking.delivery import (
    INTERRUPTED_SECONDS,
    LAST_SECONDS,
    PARENT_KEY,
    PARENT_RUN,
    Delivery,
    deliver,
    direct,
    undelivered,
)
from topicell.tracking.provenance import provenance, source_tags
from topicell.tracking.record import RECORD, BusyError, Journal, Record, is_alive, milliseconds
from topicell.tracking.store import (
    Unreachable,
    client,
    failed_lately,
    first_line,
    has_run,
    located,
    prepare,
    shown_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from topicell.tracking.stored import NestedRun

log = logging.getLogger(__name__)

T = TypeVar("T")


class Parent:
    """Record the parent run of a grid or a sweep.

    Like a run it is recorded in its folder and delivered from there. With tracking off there is
    none, and every call does nothing.

    Parameters
    ----------
    config
        Store and experiment.
    run_id
        A stored parent run, to be read.
    """

    def __init__(self, config: TrackingConfig, run_id: str = "") -> None:
        self.config = config
        self._run_id = run_id if config.enabled else ""
        self._delivery: Delivery | None = None

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        name: str,
        tags: Mapping[str, str],
        folder: Path,
        before: str = "",
    ) -> Parent:
        """Create the run, and tell its id to the jobs of this process and of those it starts.

        Parameters
        ----------
        config
            Store and experiment.
        name, tags
            Of the run.
        folder
            The folder of the grid or the sweep; a run that is recorded there goes on.
        before
            The id of a run to go on with if the store has it, which was made from another folder.
        """
        parent = cls(config)
        if not config.enabled:
            return parent
        # A bad address is refused before anything is written; the delivery warns of a failure.
        with suppress(Unreachable):
            prepare(config)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RECORD).exists():
            record = Record.read(folder)
            kind = record.tags.get("topicell.kind", "run")
            if kind != tags["topicell.kind"]:
                raise InputError(
                    f"{folder} holds a {kind}, not a {tags['topicell.kind']}; choose another folder"
                )
            record.status, record.ended, record.delivered = "RUNNING", None, False
            record.tags |= tags
            record.store = located(config)
        else:
            record = Record(name=name, tags=source_tags() | provenance() | dict(tags))
            # A parent has no parent, whoever started this process.
            direct(record, config, nested=False)
        record.run_id = before or record.run_id
        record.write(folder)
        os.environ[PARENT_KEY] = record.key
        parent._delivery = Delivery(
            folder,
            record,
            Journal(folder, shared=True),
            config,
            "the runs continue, their folders hold all results, and `topicell sync` delivers "
            "them later",
        )
        parent._delivery.begin()
        if record.run_id:
            os.environ[PARENT_RUN] = record.run_id
        return parent

    @property
    def run_id(self) -> str:
        """Return the run's id in MLflow; empty if MLflow does not have the run."""
        return self._delivery.record.run_id if self._delivery else self._run_id

    @property
    def experiment(self) -> str:
        """Return the id of the experiment; empty without MLflow."""
        if self._delivery is not None:
            return self._delivery.experiment
        return self._ask(
            lambda: str(client(self.config).get_run(self.run_id).info.experiment_id), ""
        )

    @property
    def store(self) -> str:
        """Return the address of the store without its password; empty without MLflow."""
        return shown_uri(self.config) if self.run_id else ""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record what is searched; a value that was recorded before stays."""
        if self._delivery is not None:
            self._delivery.record.params = dict(params) | self._delivery.record.params
            self._write()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the parent."""
        if self._delivery is not None:
            self._delivery.record.tags = self._delivery.record.tags | dict(tags)
            self._write()

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics of the grid or the sweep."""
        if self._delivery is not None and values:
            self._delivery.journal.append({"step": step} | dict(values))
            self._delivery.warn()

    def keep(self, names: tuple[str, ...]) -> None:
        """Deliver files and subfolders of the folder as artifacts, when the parent ends."""
        if self._delivery is not None:
            kept = self._delivery.record.artifacts
            self._delivery.record.artifacts = [*kept, *(n for n in names if n not in kept)]
            self._write()

    def end_child(self, run_id: str, trial: int, status: str, tags: Mapping[str, str]) -> None:
        """End the run of a process that is gone, unless it ended itself.

        Parameters
        ----------
        run_id
            Its id; empty if the process was killed before it told its id.
        trial
            The number of its trial.
        status, tags
            How it ended.
        """
        if self._delivery is None:
            return
        folder = self._delivery.folder / str(trial)
        if not (folder / RECORD).exists():
            # It ran on another machine.
            if not failed_lately(self.config):
                self._ask(lambda: end_run(client(self.config), run_id, status, tags), None)
            return
        try:
            with closing(Journal(folder)):
                record = Record.read(folder)
                if record.status == "RUNNING":
                    record.status, record.ended = status, milliseconds()
                    record.tags |= tags
                    record.write(folder)
        except BusyError:
            # The process is not gone yet, and ends its own record.
            return
        if not record.delivered:
            self._deliver(folder)

    def record_failure(
        self, trial: int, name: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        """Record a failed run for a trial that could not begin."""
        if self._delivery is None or (self._delivery.folder / str(trial) / RECORD).exists():
            return
        folder = self._delivery.folder / str(trial)
        folder.mkdir(exist_ok=True)
        record = Record(
            name=name,
            params=dict(params),
            tags=source_tags() | provenance() | dict(tags),
            status="FAILED",
            ended=milliseconds(),
        )
        direct(record, self.config)
        record.write(folder)
        self._deliver(folder)

    def nested_runs(self, curve: str) -> list[NestedRun]:
        """Return the runs under this one; none if the store cannot be read."""
        from topicell.tracking.stored import nested_runs

        return self._ask(lambda: nested_runs(self.config, self.run_id, curve=curve), [])

    def register(self, run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> str:
        """Register the model of one of the runs as the champion; return its version, if it has one.

        A run that was made on another machine is fetched from the store.
        """
        from topicell.tracking.registry import register
        from topicell.tracking.stored import fetch_run

        def send() -> str:
            with tempfile.TemporaryDirectory() as scratch:
                there = folder
                if not (folder / "model").is_dir():
                    there, _ = fetch_run(run_id, self.config, Path(scratch), ("model",))
                return register(self.config, run_id, there, name=name, tags=tags)

        return self._ask(send, "")

    def finish(self, status: str) -> None:
        """End the parent, FINISHED, FAILED or KILLED, and deliver what its runs still have.

        RUNNING leaves that to other processes that work on the same sweep.
        """
        os.environ.pop(PARENT_RUN, None)
        os.environ.pop(PARENT_KEY, None)
        if self._delivery is None:
            return
        delivery, last = self._delivery, status in ("FINISHED", "FAILED")
        if status != "RUNNING":
            delivery.record.status, delivery.record.ended = status, milliseconds()
            self._write()
        delivery.end(delivery.left + LAST_SECONDS if last else INTERRUPTED_SECONDS)
        delivery.journal.close()
        if last:
            self.deliver_runs()

    def deliver_runs(self) -> None:
        """Deliver what the runs under this one still have."""
        if self._delivery is None:
            return
        for folder in undelivered([self._delivery.folder]):
            # Other processes deliver their own runs.
            if folder != self._delivery.folder and not is_alive(folder):
                self._deliver(folder)

    def _deliver(self, folder: Path) -> None:
        if not failed_lately(self.config):
            self._ask(lambda: deliver(folder, self.config, LAST_SECONDS), "")

    def _write(self) -> None:
        assert self._delivery is not None
        self._delivery.record.write(self._delivery.folder)
        self._delivery.warn()

    def _ask(self, ask: Callable[[], T], nothing: T) -> T:
        """Return the answer of the store; if there is none, warn and return `nothing`."""
        if not self.run_id:
            return nothing
        from mlflow.exceptions import MlflowException

        try:
            return ask()
        except (MlflowException, OSError, InputError, Unreachable) as error:
            if self._delivery is None or isinstance(error, InputError):
                log.warning("MLflow at %s: %s", shown_uri(self.config), first_line(error))
            else:
                self._delivery.warn(error)
            return nothing


def end_run(store: MlflowClient, run_id: str, status: str, tags: Mapping[str, str]) -> None:
    """End a run in the store, unless it ended itself or is a run of another store."""
    if run_id and has_run(store, run_id) and store.get_run(run_id).info.status == "RUNNING":
        for name, value in tags.items():
            store.set_tag(run_id, name, value)
        store.set_terminated(run_id, status)
