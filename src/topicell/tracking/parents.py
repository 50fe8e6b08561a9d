"""Parent runs in MLflow: of a grid, of a sweep."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from topicell.config import InputError, TrackingConfig
from topicell.tracking.provenance import provenance, source_tags
from topicell.tracking.store import (
    client,
    experiment_id,
    first_line,
    log_params,
    shown_uri,
    tried,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from topicell.tracking.stored import NestedRun

log = logging.getLogger(__name__)

PARENT_RUN = "TOPICELL_PARENT_RUN_ID"
"""Environment variable by which the jobs of a multirun find their parent run."""
CREATE = "create the parent run"
NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")


class Parent:
    """The run that the runs of a grid or a sweep are nested under.

    With tracking off there is none, and every call does nothing. A store that goes away costs one
    warning.

    Parameters
    ----------
    config
        Store and experiment.
    run_id
        A run that was made before.
    """

    def __init__(self, config: TrackingConfig, run_id: str = "") -> None:
        self.config = config
        self.run_id = run_id if config.enabled else ""
        self._reachable = True

    @classmethod
    def start(
        cls, config: TrackingConfig, name: str, tags: Mapping[str, str], before: str = ""
    ) -> Parent:
        """Create the run, and tell the jobs of this process and of those that it starts.

        Parameters
        ----------
        config
            Store and experiment.
        name, tags
            Of the run.
        before
            A run that was made before, to go on with if the store has it.
        """
        parent = cls(config)
        if not config.enabled:
            return parent
        from mlflow.exceptions import MlflowException

        store = client(config)

        def create() -> None:
            try:
                if before:
                    store.update_run(before, status="RUNNING")
                    parent.run_id = before
                    return
            except MlflowException as error:
                # Gone, or deleted: there is a new one then.
                if error.error_code not in NO_SUCH_RUN:
                    raise
            run = store.create_run(
                experiment_id(store, config),
                run_name=name,
                tags=source_tags() | provenance() | dict(tags),
            )
            parent.run_id = str(run.info.run_id)

        parent._attempt(CREATE, create)
        if parent.run_id:
            os.environ[PARENT_RUN] = parent.run_id
        return parent

    @property
    def experiment(self) -> str:
        """The experiment's id; empty without MLflow."""
        found: list[str] = []
        self._attempt(
            "be read", lambda: found.append(experiment_id(client(self.config), self.config))
        )
        return found[0] if found else ""

    @property
    def store(self) -> str:
        """The store, without a password; empty without MLflow."""
        return shown_uri(self.config) if self.run_id else ""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record what was searched; a value that is there already stays."""

        def send() -> None:
            store = client(self.config)
            there = store.get_run(self.run_id).data.params
            log_params(store, self.run_id, {k: v for k, v in params.items() if k not in there})

        self._attempt("log parameters", send)

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics of the whole."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._attempt(
            "log metrics", lambda: client(self.config).log_batch(self.run_id, metrics=metrics)
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the parent."""

        def send() -> None:
            for name, value in tags.items():
                client(self.config).set_tag(self.run_id, name, value[:5000])

        self._attempt("set tags", send)

    def keep(self, folder: Path, names: tuple[str, ...]) -> None:
        """Store files and folders as artifacts of the parent."""

        def send() -> None:
            store = client(self.config)
            for name in names:
                path = folder / name
                if path.is_dir():
                    store.log_artifacts(self.run_id, str(path), artifact_path=name)
                elif path.exists():
                    store.log_artifact(self.run_id, str(path))

        self._attempt("keep artifacts", send)

    def end_child(self, run_id: str, trial: int, status: str, tags: Mapping[str, str]) -> None:
        """End the run of a process that is gone, unless it ended itself.

        Without an id it is found by its trial: the process was killed before it could tell.
        """

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
                if not _has(store, one):
                    continue
                if store.get_run(one).info.status == "RUNNING":
                    for name, value in tags.items():
                        store.set_tag(one, name, value)
                    store.set_terminated(one, status)

        self._attempt("end a run", send)

    def record_failure(
        self, name: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        """A failed run for a job that could not begin."""
        made: list[str] = []

        def create() -> None:
            store = client(self.config)
            run = store.create_run(
                experiment_id(store, self.config),
                run_name=name,
                tags=source_tags()
                | provenance()
                | dict(tags)
                | {"mlflow.parentRunId": self.run_id},
            )
            made.append(str(run.info.run_id))

        self._attempt("record a failed run", create)
        if made:
            store, (run_id,) = client(self.config), made
            self._attempt("log parameters", lambda: log_params(store, run_id, params))
            self._attempt("end a run", lambda: store.set_terminated(run_id, "FAILED"))

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
        self._reachable = True

    def finish(self, status: str) -> None:
        """End the parent run: FINISHED, FAILED or KILLED."""
        os.environ.pop(PARENT_RUN, None)
        # No run should be said to be running for ever.
        self.try_again()
        self._attempt(
            "end the parent run", lambda: client(self.config).set_terminated(self.run_id, status)
        )

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        if not self.config.enabled or not self._reachable:
            return
        if not self.run_id and what != CREATE:
            return
        error = tried(action)
        if error is not None:
            # Without a run there is nothing that the other calls could do.
            self._reachable = False
            log.warning(
                "MLflow at %s could not %s (%s); the runs go on, and their folders have everything",
                shown_uri(self.config),
                what,
                first_line(error),
            )


def _has(store: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        store.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in NO_SUCH_RUN:
            raise
        return False
    return True
