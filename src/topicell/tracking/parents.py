"""Parent runs in MLflow: of a grid, of a sweep."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.tracking.delivery import (
    PARENT_KEY,
    PARENT_RUN,
    Delivery,
    Link,
    deliver,
    direct,
    located,
    undelivered,
)
from topicell.tracking.provenance import provenance, source_tags
from topicell.tracking.record import RECORD, BusyError, Journal, Record, is_alive, milliseconds
from topicell.tracking.store import (
    INTERRUPTED_SECONDS,
    LAST_SECONDS,
    Patience,
    client,
    experiment_id,
    has_run,
    problem_with,
    shown_uri,
)

if TYPE_CHECKING:
    from topicell.tracking.stored import NestedRun

log = logging.getLogger(__name__)


class Parent:
    """The run that the runs of a grid or a sweep are nested under.

    Like a run it is recorded in its folder first, and MLflow may have it later. With tracking off
    there is none, and every call does nothing. A store that goes away costs one warning.

    Parameters
    ----------
    config
        Store and experiment.
    run_id
        A run that was made before, to be read.
    """

    def __init__(self, config: TrackingConfig, run_id: str = "") -> None:
        self.config = config
        self._run_id = run_id if config.enabled else ""
        self._patience = Patience()
        self._delivery: Delivery | None = None
        self._journal: Journal | None = None
        self._link = Link(
            config,
            "the runs go on, their folders have everything, and `topicell sync` delivers it when "
            "MLflow is back",
        )

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        name: str,
        tags: Mapping[str, str],
        folder: Path,
        before: str = "",
    ) -> Parent:
        """Create the run, and tell the jobs of this process and of those that it starts.

        Parameters
        ----------
        config
            Store and experiment.
        name, tags
            Of the run.
        folder
            Of the grid or the sweep; where it has a record, that run is gone on with.
        before
            The id of a run that was made before, elsewhere, to go on with if the store has it.
        """
        parent = cls(config)
        if not config.enabled:
            return parent
        problem = problem_with(config)
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
            # A parent has none itself, whoever started this process.
            direct(record, config, nested=False)
        record.run_id = before or record.run_id
        record.write(folder)
        parent._journal = Journal(folder, shared=True)
        parent._delivery = Delivery(folder, record, config)
        parent._delivery.patience = parent._patience
        os.environ[PARENT_KEY] = record.key
        if problem is not None:
            parent._link.fail("take the parent run", problem)
        parent._attempt("take the parent run", parent._flush)
        if parent.run_id:
            os.environ[PARENT_RUN] = parent.run_id
        return parent

    @property
    def run_id(self) -> str:
        """The run's id in MLflow; empty if MLflow could not be reached."""
        return self._delivery.record.run_id if self._delivery else self._run_id

    @property
    def experiment(self) -> str:
        """The experiment's id; empty without MLflow."""
        found: list[str] = []
        self._attempt(
            "be read",
            lambda: found.append(
                self._patience.call(lambda: experiment_id(client(self.config), self.config))
            ),
        )
        return found[0] if found else ""

    @property
    def store(self) -> str:
        """The store, without a password; empty without MLflow."""
        return shown_uri(self.config) if self.run_id else ""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record what was searched; a value that is there already stays."""
        if self._delivery is not None:
            record = self._delivery.record
            record.params = dict(params) | record.params
            self._changed("take parameters")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the parent."""
        if self._delivery is not None:
            self._delivery.record.tags |= tags
            self._changed("take tags")

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics of the whole."""
        if self._journal is not None and values:
            self._journal.append({"step": step} | dict(values))
            self._attempt("take metrics", self._flush)

    def keep(self, names: tuple[str, ...]) -> None:
        """Store files and folders of its folder as artifacts of the parent."""
        if self._delivery is None:
            return
        delivery = self._delivery
        kept = delivery.record.artifacts
        kept += [name for name in names if name not in kept]
        delivery.record.write(delivery.folder)
        self._attempt("take artifacts", lambda: delivery.upload(names))

    def end_child(self, run_id: str, trial: int, status: str, tags: Mapping[str, str]) -> None:
        """End the run of a process that is gone, unless it ended itself.

        Without an id it is found by its trial: the process was killed before it could tell.
        """
        folder = self._folder_of(trial)
        if folder is not None and (folder / RECORD).exists():
            try:
                journal = Journal(folder)
            except BusyError:
                # Not gone yet: it ends its own record.
                return
            record = Record.read(folder)
            if record.status == "RUNNING":
                record.status, record.ended = status, milliseconds()
                record.tags |= tags
                record.write(folder)
            journal.close()
            if not record.delivered:
                self._attempt("end a run", lambda: deliver(folder, self.config, self._patience))
            return

        def send() -> None:
            store = client(self.config)
            found = [run_id]
            if not run_id:
                theirs = (
                    f"tags.`mlflow.parentRunId` = '{self.run_id}' and "
                    f"tags.`topicell.trial` = '{trial}'"
                )
                experiment = store.get_run(self.run_id).info.experiment_id
                found = [run.info.run_id for run in store.search_runs([experiment], theirs)]
            for one in found:
                # Of another store, where the study was begun with another one.
                if not has_run(store, one):
                    continue
                if store.get_run(one).info.status == "RUNNING":
                    for name, value in tags.items():
                        store.set_tag(one, name, value)
                    store.set_terminated(one, status)

        # On another machine, whose folder is not here.
        self._attempt("end a run", lambda: self._patience.call(send))

    def record_failure(
        self, trial: int, name: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        """A failed run for a trial that could not begin."""
        folder = self._folder_of(trial)
        if folder is None or (folder / RECORD).exists():
            return
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
        self._attempt("record a failed run", lambda: deliver(folder, self.config, self._patience))

    def nested_runs(self, curve: str) -> list[NestedRun]:
        """The runs under this one; none if the store cannot be read."""
        from topicell.tracking.stored import nested_runs

        found: list[NestedRun] = []
        self._attempt(
            "be read", lambda: found.extend(nested_runs(self.config, self.run_id, curve=curve))
        )
        return found

    def register(self, run_id: str, folder: Path, name: str, tags: Mapping[str, str]) -> str:
        """Register the model of one of the runs as the champion; its version, if that went well."""
        from topicell.tracking.registry import register
        from topicell.tracking.stored import fetch_run

        made: list[str] = []

        def send() -> None:
            with tempfile.TemporaryDirectory() as scratch:
                there = folder
                if not (folder / "model").is_dir():
                    # The run was made on another machine.
                    there, _ = fetch_run(run_id, self.config, Path(scratch), ("model",))
                made.append(register(self.config, run_id, there, name=name, tags=tags))

        try:
            self._attempt("register the model", send)
        except InputError as error:
            log.warning("the model of run %s could not be registered: %s", run_id, error)
        return made[0] if made else ""

    def try_again(self) -> None:
        """Give a store that was away another chance."""
        self._link.up = True
        self._patience.left = max(self._patience.left, INTERRUPTED_SECONDS)

    def finish(self, status: str) -> None:
        """End the parent run: FINISHED, FAILED or KILLED; and deliver what its runs kept aside."""
        os.environ.pop(PARENT_RUN, None)
        os.environ.pop(PARENT_KEY, None)
        if self._delivery is None or self._journal is None:
            return
        record, folder = self._delivery.record, self._delivery.folder
        record.status, record.ended = status, milliseconds()
        record.write(folder)
        self._link.up = True
        killed = status == "KILLED"
        self._patience.left = INTERRUPTED_SECONDS if killed else self._patience.left + LAST_SECONDS
        self._attempt("take all of the parent run", self._end)
        record.write(folder)
        self._journal.close()
        if not killed:
            self.deliver_runs()

    def deliver_runs(self) -> None:
        """Deliver what the runs under this one kept aside."""
        if self._delivery is None:
            return
        for folder in undelivered([self._delivery.folder]):
            # Those of other processes are theirs to deliver.
            if folder != self._delivery.folder and not is_alive(folder):
                self._attempt("take a run", partial(deliver, folder, self.config, self._patience))

    def _end(self) -> None:
        assert self._delivery is not None
        assert self._journal is not None
        # Those of other processes that worked on it, too; what is there already is not doubled.
        self._journal.read()
        self._delivery.send(self._journal.lines)
        self._delivery.end()

    def _flush(self) -> None:
        assert self._delivery is not None
        assert self._journal is not None
        self._delivery.send(self._journal.lines[self._delivery.record.sent :])

    def _changed(self, what: str) -> None:
        assert self._delivery is not None
        self._delivery.record.write(self._delivery.folder)
        self._attempt(what, self._delivery.describe)

    def _folder_of(self, trial: int) -> Path | None:
        return self._delivery.folder / str(trial) if self._delivery else None

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        if self.run_id or self._delivery is not None:
            self._link.attempt(what, action, self._delivery)
