"""Where a run is recorded: its folder always, MLflow beside it.

`RunFolder` is the null twin of `MLflowRun`: both take the same calls, so that a run does not ask
which one it was given. What MLflow has, the folder has: either can be read without the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from topicell.config import ExternalConfig, RunConfig, TrackingConfig, as_dict, dotted
from topicell.errors import InputError
from topicell.tracking.delivery import RECORDS, Delivery, Link, direct, located
from topicell.tracking.interrupted import require_same_settings
from topicell.tracking.provenance import source_tags
from topicell.tracking.record import (
    RECORD,
    REPORT_ERROR,
    Journal,
    Record,
    clear,
    leftovers,
    milliseconds,
)
from topicell.tracking.store import (
    INTERRUPTED_SECONDS,
    LAST_SECONDS,
    Patience,
    is_away,
    problem_with,
)

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
RUN_FOLDER_KNOB = "hydra.run.dir=FOLDER (of a grid: hydra.sweep.dir=FOLDER)"
BATCH_SECONDS = 2.0
"""How long metrics wait to be sent together."""
BATCH_PAUSE = 20
"""And how many times as long as the last batch took: a slow store slows no run by more than 5 %."""


class Tracker(Protocol):
    """The calls that a run makes."""

    directory: Path

    @property
    def measured(self) -> Mapping[str, dict[str, list[float]]]:
        """What `log_split` recorded before the run was interrupted, by the seed of the split."""

    @property
    def run_id(self) -> str:
        """The run's id in MLflow, if it has one."""

    def start(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
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
    """The run folder alone: ``config.yaml``, ``metrics.jsonl`` and ``run.json`` beside artifacts.

    A run that is gone on with is recorded as if it had never stopped: what was recorded of an epoch
    before is not recorded again.

    Parameters
    ----------
    directory
        The run folder; made if it does not exist.
    knob
        How a user chooses it, for messages.
    resume
        Go on with the run that is there, if there is one.

    Attributes
    ----------
    measured
        What `log_split` recorded before the run was interrupted, by the seed of the split.

    Raises
    ------
    InputError
        The folder cannot be written to, or holds a file that the run would write.
    """

    def __init__(
        self, directory: Path, knob: str = RUN_FOLDER_KNOB, *, resume: bool = False
    ) -> None:
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
        self.record: Record | None = None
        self.journal: Journal | None = None
        self.measured: dict[str, dict[str, list[float]]] = {}
        self.run_id = ""
        self._recorded: dict[int | None, set[str]] = {}
        self._started = False
        if resume and (directory / RECORD).exists():
            # First the lock: whoever has it may be writing the record.
            self._open_journal()
            self.record = Record.read(directory)
            return
        taken = [name for name in (*RECORDS, RECORD, *ARTIFACTS) if (directory / name).exists()]
        if taken:
            raise InputError(
                f"run folder {directory} holds {taken[0]} already, and nothing is written over; "
                f"choose another with {knob}"
            )

    def start(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        """Write ``config.yaml`` and ``run.json``; go on with the run that has them already.

        Raises
        ------
        InputError
            The run that is there has other settings or other data.
        """
        if self.record is not None:
            self._go_on(config, tags)
            self._started = True
            if not (self.directory / "config.yaml").exists():
                self._write_settings(config, tags)
            return
        # First what a run is gone on with by: it may be killed between any two lines.
        self.record = Record(
            name=config.tracking.run_name or config.title,
            params=json.loads(json.dumps(dotted(config))),
            tags=source_tags() | dict(tags),
            artifacts=[*ARTIFACTS, *RECORDS],
        )
        self.record.write(self.directory)
        self._open_journal()
        self._started = True
        self._write_settings(config, tags)

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

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Append what was measured on a split."""
        if seed not in self.measured:
            self._append({"split": seed} | {name: list(value) for name, value in values.items()})

    def log_summary(self, text: str, picture: str) -> None:
        """Write ``summary.md``."""
        shown = f"\n![The topics on a map of the cells]({picture})\n" if picture else ""
        (self.directory / "summary.md").write_text(text + shown, encoding="utf-8")

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Append how the run ended, and let others have the folder."""
        self.end(status, tags)
        self.close()

    def close(self) -> None:
        """Let others have the folder."""
        if self.journal is not None:
            self.journal.close()

    def end(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Append how the run ended; nothing if it never started, or ended before."""
        if not self._started or self.record is None or self.record.status != "RUNNING":
            return
        self.record.status, self.record.ended = status, milliseconds()
        self.record.tags |= tags or {}
        try:
            self._append({"status": status} | ({"tags": dict(tags)} if tags else {}))
            self.record.write(self.directory)
        except OSError:
            # A full disk, say, which may be why the run failed: what MLflow hears is true.
            if status == "FINISHED":
                self.record.status, self.record.ended = "RUNNING", None
                raise
        clear(self.directory, self.record)

    def _write_settings(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        import yaml

        lines = "".join(f"# {name}: {value}\n" for name, value in tags.items())
        text = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)
        (self.directory / "config.yaml").write_text(lines + text, encoding="utf-8")

    def _go_on(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        record = self.record
        assert record is not None
        require_same_settings(record, dotted(config), self.directory)
        digest = "topicell.prepared_digest"
        if record.tags.get(digest) != tags.get(digest):
            raise InputError(
                f"resume: the data are not those that the run in {self.directory} was begun with; "
                "begin another run, without resume"
            )
        for name in ("topicell.version", "topicell.git_commit", "device"):
            if record.tags.get(name) != tags.get(name):
                warnings.warn(
                    f"the run was begun with {name} = {record.tags.get(name)} and goes on with "
                    f"{tags.get(name)}: its last digits may differ",
                    stacklevel=2,
                )
        resumed = int(record.tags.get("topicell.resumed", 0)) + 1
        record.tags["topicell.resumed"] = str(resumed)
        for name in ("topicell.error", REPORT_ERROR):
            record.tags.pop(name, None)
        record.status, record.ended, record.delivered = "RUNNING", None, False
        # What an unfinished run left is made again, and its own.
        made = [self.directory / name for name in ARTIFACTS]
        for path in (*made, *leftovers(self.directory, (*ARTIFACTS, RECORD))):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        record.write(self.directory)

    def _open_journal(self) -> None:
        self.journal = Journal(self.directory)
        for line in self.journal.lines:
            if "split" in line:
                values = {k: v for k, v in line.items() if k not in ("time", "split")}
                self.measured[line["split"]] = values
            elif "status" not in line:
                names = self._recorded.setdefault(line.get("epoch"), set())
                names.update(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        assert self.journal is not None
        self.journal.append(line)


class MLflowRun:
    """A run in MLflow, and its folder.

    A tracking store that fails never ends the run, nor holds it for more than ten seconds in all:
    one warning says so, the folder has everything, and it is delivered when the store is back, by
    the run itself when it ends or by ``topicell sync``.

    Parameters
    ----------
    folder
        The run folder.
    config
        Store, experiment and name.
    """

    def __init__(self, folder: RunFolder, config: TrackingConfig) -> None:
        self._left_alone = is_away(config)
        self._problem = None if self._left_alone else problem_with(config)
        self.folder = folder
        self.directory = folder.directory
        self.config = config
        self.measured = folder.measured
        self._delivery: Delivery | None = None
        self._link = Link(
            config,
            "the run goes on, its folder has everything, and `topicell sync "
            f"folders={os.path.relpath(folder.directory)}` delivers it when MLflow is back",
        )
        self._sent = time.monotonic()
        self._took = 0.0

    @property
    def run_id(self) -> str:
        """The run's id in MLflow; empty if MLflow could not be reached."""
        return self.folder.record.run_id if self.folder.record else ""

    def start(self, config: RunConfig | ExternalConfig, tags: Mapping[str, str]) -> None:
        """Create the run, nested under the parent of a multirun, with every knob as parameter."""
        self.folder.start(config, tags)
        record = self.folder.record
        assert record is not None
        if not record.store:
            direct(record, self.config)
        record.store = located(self.config)
        record.write(self.directory)
        self._delivery = Delivery(self.directory, record, self.config)
        if self._left_alone:
            self._link.leave("was away a moment ago")
        elif self._problem is not None:
            self._link.fail("take the run", self._problem)
        self._link.attempt("take the run", self._flush, self._delivery)

    def log_dataset(self, name: str, source: str, digest: str) -> None:
        """Record the data set as an input of the run, in context ``training``."""
        self.folder.log_dataset(name, source, digest)

    def log_metrics(self, values: Mapping[str, float], epoch: int | None = None) -> None:
        """Keep metrics for the next batch; those of an epoch have it as their step."""
        self.folder.log_metrics(values, epoch)
        if time.monotonic() - self._sent > max(BATCH_SECONDS, BATCH_PAUSE * self._took):
            began = time.monotonic()
            self._link.attempt("take metrics", self._flush)
            self._took = time.monotonic() - began

    def log_split(self, seed: str, values: Mapping[str, Sequence[float]]) -> None:
        """Keep it in the folder; MLflow receives ``scores.csv`` at the end."""
        self.folder.log_split(seed, values)

    def log_summary(self, text: str, picture: str) -> None:
        """Keep it in the folder; it becomes the description of the run."""
        self.folder.log_summary(text, picture)

    def finish(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Send what waits, upload the artifacts and the records, and end the run."""
        self.folder.end(status, tags)
        delivery = self._delivery
        if delivery is None or delivery.record.delivered:
            self.folder.close()
            return
        killed = status == "KILLED"
        delivery.patience = Patience(
            INTERRUPTED_SECONDS if killed else LAST_SECONDS + delivery.patience.left
        )

        # However often it failed before, but for a store that another run just found away.
        self._link.up = not self._left_alone or not is_away(self.config)
        try:
            if killed and delivery.record.status != status:
                # It was interrupted while it was delivered: the run itself is whole.
                whole = delivery.record.status
                self._link.attempt("take all of the run", lambda: delivery.terminate(whole))
            else:
                self._link.attempt("take all of the run", self._end, delivery)
        finally:
            with contextlib.suppress(OSError):
                delivery.record.write(self.directory)
            self.folder.close()

    def _end(self) -> None:
        assert self._delivery is not None
        self._flush()
        self._delivery.end()

    def _flush(self) -> None:
        assert self._delivery is not None
        assert self.folder.journal is not None
        self._delivery.send(self.folder.journal.lines[self._delivery.record.sent :])
        self._sent = time.monotonic()


def open_tracker(
    config: TrackingConfig,
    directory: Path,
    knob: str = RUN_FOLDER_KNOB,
    *,
    resume: bool = False,
) -> Tracker:
    """The tracker that a configuration asks for, on a run folder that `knob` chooses."""
    folder = RunFolder(directory, knob, resume=resume)
    return MLflowRun(folder, config) if config.enabled else folder
