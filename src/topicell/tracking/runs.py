"""Where a run is recorded: its folder always, MLflow beside it.

`RunFolder` is the null twin of `MLflowRun`: both take the same calls, so that a run does not ask
which one it was given. What MLflow has, the folder has: either can be read without the other.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from topicell.config import (
    GivenConfig,
    InputError,
    RunConfig,
    TrackingConfig,
    as_dict,
    dotted,
)
from topicell.tracking.parents import PARENT_RUN
from topicell.tracking.provenance import source_tags
from topicell.tracking.store import client, experiment_id, first_line, log_params, shown_uri, tried

log = logging.getLogger(__name__)


ARTIFACTS = (
    "report.html",
    "figures",
    "topics",
    "cells",
    "scores.csv",
    "summary.md",
    "adata.h5ad",
    "model",
)
"""What a run leaves in its folder besides the records kept here."""
RECORDS = ("config.yaml", "metrics.jsonl")
RUN_FOLDER_KNOB = "hydra.run.dir=FOLDER (of a grid: hydra.sweep.dir=FOLDER)"
TAG_LENGTH = 5000
"""MLflow's limit on the value of a tag."""
BATCH_SECONDS = 2.0
"""How long metrics wait to be sent together."""


class Tracker(Protocol):
    """The calls that a run makes."""

    directory: Path
    run_id: str

    def start(self, config: RunConfig | GivenConfig, tags: Mapping[str, str]) -> None:
        """Record every resolved knob, and where the code came from."""

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Record the input data."""

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Record metrics of an epoch, or of the whole run."""

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Record what was measured on one split of the cells, one value a replicate."""

    def log_summary(self, text: str, picture: str) -> None:
        """Record what was found in a few lines of Markdown, above a picture of the artifacts."""

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Deliver what waits, keep the artifacts, and end the run: FINISHED, FAILED or KILLED."""


class RunFolder:
    """The run folder alone: ``config.yaml`` and ``metrics.jsonl`` beside the artifacts.

    Parameters
    ----------
    directory
        The run folder; made if it does not exist.
    knob
        How a user chooses it, for messages.

    Raises
    ------
    InputError
        The folder cannot be written to, or holds a file that the run would write.
    """

    run_id = ""

    def __init__(self, directory: Path, knob: str = RUN_FOLDER_KNOB) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise InputError(
                f"run folder {directory} cannot be written to ({error.strerror}); choose another "
                f"with {knob}"
            ) from error
        taken = [name for name in (*RECORDS, *ARTIFACTS) if (directory / name).exists()]
        if taken:
            raise InputError(
                f"run folder {directory} holds {taken[0]} already, and nothing is written over; "
                f"choose another with {knob}"
            )

    def start(self, config: RunConfig | GivenConfig, tags: Mapping[str, str]) -> None:
        """Write ``config.yaml``."""
        import yaml

        lines = "".join(f"# {name}: {value}\n" for name, value in tags.items())
        text = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)
        (self.directory / "config.yaml").write_text(lines + text, encoding="utf-8")

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Append the input data to ``metrics.jsonl``, as its first line."""
        self._append({"dataset": {"name": name, "source": source, "digest": digest}})

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Append a line to ``metrics.jsonl``; the metrics of an epoch carry its number."""
        self._append(({} if epoch is None else {"epoch": epoch}) | dict(values))

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Append what was measured on a split."""
        self._append({"split": seed} | {name: list(value) for name, value in values.items()})

    def log_summary(self, text: str, picture: str) -> None:
        """Write ``summary.md``."""
        shown = f"\n![The topics on a map of the cells]({picture})\n" if picture else ""
        (self.directory / "summary.md").write_text(text + shown, encoding="utf-8")

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Append how the run ended."""
        self._append({"status": status} | ({"tags": dict(tags)} if tags else {}))

    def _append(self, line: Mapping[str, Any]) -> None:
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


class MLflowRun:
    """A run in MLflow, and its folder.

    A tracking store that fails after the run was created never ends the run: one warning says
    so, and the folder has everything.

    Parameters
    ----------
    folder
        The run folder.
    config
        Store, experiment and name.
    """

    def __init__(self, folder: RunFolder, config: TrackingConfig) -> None:
        self.folder = folder
        self.directory = folder.directory
        self.config = config
        self.run_id = ""
        self._client = client(config)
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        self._reachable = True

    def start(self, config: RunConfig | GivenConfig, tags: Mapping[str, str]) -> None:
        """Create the run, nested under the parent of a multirun, with every knob as parameter."""
        parent = os.environ.get(PARENT_RUN)
        nested = {"mlflow.parentRunId": parent} if parent else {}

        def create() -> None:
            self.run_id = self._client.create_run(
                experiment_id(self._client, self.config),
                run_name=self.config.run_name or config.title,
                tags=source_tags() | dict(tags) | nested,
            ).info.run_id

        self._attempt("create the run", create)
        self._attempt(
            "log parameters", lambda: log_params(self._client, self.run_id, dotted(config))
        )
        self.folder.start(config, dict(tags) | {"run": self.run_id})

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Record the data set as an input of the run, in context ``training``."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self.folder.log_dataset(name, source, digest)
        kind = "http" if source.startswith("https://") else "local"
        # MLflow keeps 36 characters of a digest; the whole one is a tag.
        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type=kind,
            source=json.dumps({"url" if kind == "http" else "uri": source}),
        )

        def log_input() -> None:
            tags = [InputTag("mlflow.data.context", "training")]
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])
            self._client.set_tag(self.run_id, "topicell.data_digest", digest)

        self._attempt("log the data set", log_input)

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Keep metrics for the next batch; those of an epoch have it as their step."""
        from mlflow.entities import Metric

        self.folder.log_metrics(values, epoch)
        now = int(time.time() * 1000)
        self._waiting += [
            Metric(name, float(value), now, epoch or 0) for name, value in values.items()
        ]
        if time.monotonic() - self._sent > BATCH_SECONDS:
            self._flush()

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Keep it in the folder; MLflow receives ``scores.csv`` at the end."""
        self.folder.log_split(seed, values)

    def log_summary(self, text: str, picture: str) -> None:
        """Make it the description of the run; the server gives out the picture."""
        self.folder.log_summary(text, picture)
        where = urlencode({"path": picture, "run_uuid": self.run_id})
        shown = f"\n![The topics on a map of the cells](get-artifact?{where})\n" if picture else ""
        self._attempt(
            "describe the run",
            lambda: self._client.set_tag(self.run_id, "mlflow.note.content", text + shown),
        )

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Send what waits, upload the artifacts and the records, and end the run."""

        def keep_artifacts() -> None:
            for name in (*ARTIFACTS, *RECORDS):
                path = self.directory / name
                if path.is_dir():
                    self._client.log_artifacts(self.run_id, str(path), artifact_path=name)
                elif path.exists():
                    self._client.log_artifact(self.run_id, str(path))

        def tag() -> None:
            for name, value in (tags or {}).items():
                self._client.set_tag(self.run_id, name, value[:TAG_LENGTH])

        self.folder.finish(status, tags)
        if not self.run_id:
            return
        self._flush()
        self._attempt("tag the run", tag)
        self._attempt("keep the artifacts", keep_artifacts)
        # Even if the store refused something before: no run should be said to be running for ever.
        self._reachable = True
        self._attempt("end the run", lambda: self._client.set_terminated(self.run_id, status))

    def _flush(self) -> None:
        def send() -> None:
            while self._waiting:
                self._client.log_batch(self.run_id, metrics=self._waiting[:1000])
                del self._waiting[:1000]

        self._attempt("log metrics", send)
        self._sent = time.monotonic()

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        if not self._reachable:
            return
        error = tried(action)
        if error is not None:
            self._reachable = False
            log.warning(
                "MLflow at %s could not %s (%s); the run goes on, and its folder %s has everything",
                shown_uri(self.config),
                what,
                first_line(error),
                self.directory,
            )


def open_tracker(config: TrackingConfig, directory: Path, knob: str = RUN_FOLDER_KNOB) -> Tracker:
    """The tracker that a configuration asks for, on a run folder that `knob` chooses."""
    folder = RunFolder(directory, knob)
    return MLflowRun(folder, config) if config.enabled else folder
