"""The tracker of a run: its folder, and the delivery of the folder to MLflow.

A run makes the same calls whether it is delivered or not. A call returns when the folder has its
data. MLflow receives everything, so either can be read without the other.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from topicell.config import ExternalConfig, RunConfig, TrackingConfig, as_dict, dotted
from topicell.errors import InputError
from topicell.tracking.delivery import (
    INTERRUPTED_SECONDS,
    LAST_SECONDS,
    RECORDS,
    Delivery,
    direct,
)
from topicell.tracking.interrupted import require_same_settings
from topicell.tracking.provenance import DIFF, ENVIRONMENT, source_tags, write_provenance
from topicell.tracking.record import (
    RECORD,
    REPORT_ERROR,
    RUN_ERROR,
    Journal,
    Record,
    clear,
    leftovers,
    milliseconds,
)
from topicell.tracking.store import Unreachable, located, prepare
from topicell.tracking.system import SystemMetrics

ARTIFACTS = (
    "report.html",
    "figures",
    "topics",
    "cells",
    "scores.csv",
    "summary.md",
    "MODEL_CARD.md",
    "adata.h5ad",
    "model",
)
"""Files and folders of a run besides its records."""
RUN_FOLDER_SETTING = "hydra.run.dir=FOLDER (in a grid: hydra.sweep.dir=FOLDER)"


class Tracker(Protocol):
    """The calls that a run makes."""

    directory: Path

    @property
    def measured(self) -> Mapping[str, dict[str, list[float]]]:
        """Return the values that `log_split` recorded before an interruption, by split seed."""

    @property
    def run_id(self) -> str:
        """Return the run's id in MLflow, if it has one."""

    def start(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        """Record every setting, and which code runs."""

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Record the input data."""

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Record metrics of an epoch, or of the whole run."""

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Record the measures of one split of the cells, one value per replicate."""

    def log_summary(self, text: str, picture: str) -> None:
        """Record the summary in Markdown, above a picture of the artifacts."""

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """End the run, FINISHED, FAILED or KILLED, and deliver what is not delivered yet."""


class RunFolder:
    """Record a run in its folder, and deliver the folder to MLflow.

    The folder holds ``config.yaml``, ``metrics.jsonl`` and ``run.json`` beside the artifacts. A run
    that is resumed is recorded as if it had never stopped: what was recorded of an epoch before is
    not recorded again.

    Parameters
    ----------
    directory
        The run folder; it is made if it does not exist.
    setting
        The setting that chooses the folder, for messages.
    resume
        Resume the run in the folder, if there is one.
    tracking
        Store, experiment and name in MLflow; None to record in the folder only.
    tags
        Tags of the run besides those that it gives itself, without passwords.

    Attributes
    ----------
    measured
        What `log_split` recorded before the run was interrupted, by the seed of the split.

    Raises
    ------
    InputError
        The folder cannot be written to, or holds a file that the run would write, or there can be
        no store at the address given.
    """

    def __init__(
        self,
        directory: Path,
        setting: str = RUN_FOLDER_SETTING,
        *,
        resume: bool = False,
        tracking: TrackingConfig | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.tags = dict(tags or {})
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise InputError(
                f"run folder {directory} cannot be written to ({error.strerror}); choose another "
                f"with {setting}"
            ) from error
        self.record: Record | None = None
        self.journal: Journal | None = None
        self.measured: dict[str, dict[str, list[float]]] = {}
        self.tracking = tracking
        self._delivery: Delivery | None = None
        self._system: SystemMetrics | None = None
        self._recorded: dict[int | None, set[str]] = {}
        self._started = False
        if resume and (directory / RECORD).exists():
            # The lock comes first: its owner may be writing the record.
            self._open_journal()
            self.record = Record.read(directory)
        else:
            names = (*RECORDS, DIFF, RECORD, *ARTIFACTS)
            taken = [name for name in names if (directory / name).exists()]
            if taken:
                raise InputError(
                    f"run folder {directory} already holds {taken[0]}, which is not overwritten; "
                    f"choose another with {setting}"
                )
        if tracking is not None:
            # A bad address is refused before anything is computed; `start` warns of a failure.
            with suppress(Unreachable):
                prepare(tracking)

    @property
    def run_id(self) -> str:
        """Return the run's id in MLflow; empty if MLflow does not have the run."""
        return self.record.run_id if self.record else ""

    def start(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        """Write ``config.yaml`` and ``run.json``, or resume the run; then begin to deliver it.

        Raises
        ------
        InputError
            The run to resume has other settings or other data.
        """
        tags = {**tags, **self.tags}
        if self.record is not None:
            self._resume(self.record, config, tags)
        else:
            # A run can be resumed by its record, and may be killed between any two lines.
            self.record = Record(
                name=config.tracking.run_name or config.title,
                params=json.loads(json.dumps(dotted(config))),
                tags=source_tags() | dict(tags),
                artifacts=[*ARTIFACTS, *RECORDS, DIFF],
            )
            self._direct(self.record)
            self.record.write(self.directory)
            self._open_journal()
        self._started = True
        if not (self.directory / "config.yaml").exists():
            self._write_settings(config, tags)
        # A resumed run keeps the code and the packages with which it was started.
        if not (self.directory / ENVIRONMENT).exists():
            write_provenance(self.directory)
        if self.tracking is not None:
            assert self.journal is not None
            instead = (
                "the run continues, its folder holds all results, and `topicell sync "
                f"folders={os.path.relpath(self.directory)}` delivers them later"
            )
            self._delivery = Delivery(
                self.directory, self.record, self.journal, self.tracking, instead
            )
            self._delivery.begin()
            if self.tracking.system_metrics is not None:
                self._system = SystemMetrics(self.journal, self.tracking.system_metrics)
                self._system.begin()

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Append the input data to ``metrics.jsonl``, as its first line."""
        known = self._recorded.setdefault(None, set())
        if "dataset" not in known:
            known.add("dataset")
            self._append({"dataset": {"name": name, "source": source, "digest": digest}})

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Append a line to ``metrics.jsonl``; the metrics of an epoch carry its number."""
        known = self._recorded.setdefault(epoch, set())
        news = {name: value for name, value in values.items() if name not in known}
        if news:
            known.update(news)
            self._append(({} if epoch is None else {"epoch": epoch}) | news)
        if self._delivery is not None:
            self._delivery.warn()

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Append the measures of a split; MLflow receives them in ``scores.csv``."""
        if seed not in self.measured:
            self._append({"split": seed} | {name: list(value) for name, value in values.items()})

    def log_summary(self, text: str, picture: str) -> None:
        """Write ``summary.md``, the description of the run in MLflow."""
        shown = f"\n![The topics on a map of the cells]({picture})\n" if picture else ""
        (self.directory / "summary.md").write_text(text + shown, encoding="utf-8")

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Record how the run ended, deliver everything, and release the folder.

        When an interrupt ends this call, ``finish("KILLED")`` ends the delivery.
        """
        if self._system is not None:
            self._system.end()
        self._end(status, tags)
        delivery, record = self._delivery, self.record
        try:
            if delivery is not None and record is not None and not record.delivered:
                if status == "KILLED":
                    # A run that ended before the interrupt has its own status.
                    delivery.end(INTERRUPTED_SECONDS, hurry=record.status != status)
                else:
                    delivery.end(delivery.left + LAST_SECONDS)
        finally:
            if self.journal is not None:
                self.journal.close()

    def _end(self, status: str, tags: Mapping[str, str] | None) -> None:
        """Append how the run ended; do nothing if it never started, or ended before."""
        if not self._started or self.record is None or self.record.status != "RUNNING":
            return
        self.record.status, self.record.ended = status, milliseconds()
        self.record.tags = self.record.tags | dict(tags or {})
        try:
            self._append({"status": status} | ({"tags": dict(tags)} if tags else {}))
            self.record.write(self.directory)
        except OSError:
            # On a full disk, for example, which may be why the run failed: MLflow is told anyway.
            if status == "FINISHED":
                self.record.status, self.record.ended = "RUNNING", None
                raise
        clear(self.directory, self.record)

    def _write_settings(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        import yaml

        lines = "".join(f"# {name}: {' '.join(value.split())}\n" for name, value in tags.items())
        text = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)
        (self.directory / "config.yaml").write_text(lines + text, encoding="utf-8")

    def _resume(
        self, record: Record, config: RunConfig | ExternalConfig, tags: Mapping[str, str]
    ) -> None:
        require_same_settings(record, dotted(config), self.directory)
        digest = "topicell.prepared_digest"
        if record.tags.get(digest) != tags.get(digest):
            raise InputError(
                f"resume: the data differ from those of the run in {self.directory}; start a new "
                "run without resume"
            )
        for name in ("topicell.version", "topicell.git_commit", "device"):
            if record.tags.get(name) != tags.get(name):
                warnings.warn(
                    f"the run was started with {name} = {record.tags.get(name)} and continues "
                    f"with {tags.get(name)}: the last digits of its results may differ",
                    stacklevel=3,
                )
        resumed = int(record.tags.get("topicell.resumed", 0)) + 1
        record.tags["topicell.resumed"] = str(resumed)
        for name in (RUN_ERROR, REPORT_ERROR):
            record.tags.pop(name, None)
        record.status, record.ended, record.delivered = "RUNNING", None, False
        record.artifacts = [*ARTIFACTS, *RECORDS, DIFF]
        self._direct(record)
        # Artifacts of the unfinished run are made again.
        made = [self.directory / name for name in ARTIFACTS]
        unfinished = leftovers(self.directory, (*ARTIFACTS, RECORD, *RECORDS, DIFF))
        for path in (*made, *unfinished):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        record.write(self.directory)

    def _direct(self, record: Record) -> None:
        """Set where the record is delivered; a resumed run keeps its experiment and parent."""
        if self.tracking is not None:
            if not record.store:
                direct(record, self.tracking)
            record.store = located(self.tracking)

    def _open_journal(self) -> None:
        self.journal = Journal(self.directory)
        for line in self.journal.lines:
            if "split" in line:
                values = {k: v for k, v in line.items() if k not in ("time", "split")}
                self.measured[line["split"]] = values
            elif not {"status", "step"} & line.keys():
                names = self._recorded.setdefault(line.get("epoch"), set())
                names.update(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self.journal is not None
        self.journal.append(line)


def open_tracker(
    config: TrackingConfig,
    directory: Path,
    setting: str = RUN_FOLDER_SETTING,
    *,
    resume: bool = False,
    tags: Mapping[str, str] | None = None,
) -> RunFolder:
    """Return the tracker that a configuration asks for, on a run folder that `setting` chooses."""
    tracking = config if config.enabled else None
    return RunFolder(directory, setting, resume=resume, tracking=tracking, tags=tags)
