"""Runs that were interrupted: which one to resume, and whether its settings are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.tracking.record import RECORD, Record, is_alive, records
from topicell.tracking.store import client, first_line, require_store, shown_uri

ROOTS = ("runs", "multiruns", "sweeps", "evaluations")
"""Default places of the folders that commands make."""
FREE_SETTINGS = (
    "tracking.",
    "train.progress",
    "train.checkpoint_every",
    "train.replicates_per_device",
    "preprocess.dask",
)
"""Settings that may change when a run is resumed, because its results do not depend on them."""


def other_settings(record: Record, settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that differ from those of a recorded run."""
    now = json.loads(json.dumps(dict(settings)))
    return [
        name
        for name, value in now.items()
        if record.params.get(name) != value and not name.startswith(FREE_SETTINGS)
    ]


def require_same_settings(record: Record, settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume a run with other settings than its own."""
    for name in other_settings(record, settings):
        raise InputError(
            f"{name} = {settings[name]!r}, and the run in {folder} has "
            f"{record.params.get(name)!r}: resume it with its own settings, or start a new run "
            "without resume"
        )


def ended(folder: Path, settings: Mapping[str, Any]) -> Record | None:
    """Return the record of a run that finished; None if there is something to resume."""
    if not (folder / RECORD).exists():
        return None
    record = Record.read(folder)
    if record.status != "FINISHED":
        return None
    require_same_settings(record, settings, folder)
    return record


def last_of(root: Path, settings: Mapping[str, Any]) -> Path | None:
    """Return the folder under `root` of the last unfinished run with these settings."""
    for folder, record in _unfinished(root):
        if record.params and not other_settings(record, settings):
            return folder
    return None


def last_grid(root: Path, overrides: str) -> Path | None:
    """Return the folder under `root` of the last unfinished grid with these overrides."""
    for folder, record in _unfinished(root):
        if record.tags.get("topicell.overrides") == overrides:
            return folder
    return None


def named(run: str, config: TrackingConfig) -> Path:
    """Return the folder of a run that is named by its MLflow id or its folder.

    Raises
    ------
    InputError
        There is no such run, it has ended, or its folder is not on this machine.
    """
    folder = Path(run) if (Path(run) / RECORD).is_file() else _with_id(run, config)
    record = Record.read(folder)
    if record.status == "FINISHED" and (record.delivered or not record.store):
        raise InputError(f"resume = {run!r}: the run in {folder} has already ended")
    return folder


def _with_id(run: str, config: TrackingConfig) -> Path:
    for root in ROOTS:
        for folder, record in records(Path(root)):
            if record.run_id == run:
                return folder
    if Path(run).is_dir():
        raise InputError(
            f"resume = {run!r}: this folder has no {RECORD}, so no run was started in it"
        )
    from mlflow.exceptions import MlflowException

    require_store(config)
    try:
        tags = client(config).get_run(run).data.tags
    except MlflowException as error:
        raise InputError(
            f"resume = {run!r}: neither a run folder nor a run that {shown_uri(config)} knows "
            f"({first_line(error)})"
        ) from error
    folder = Path(tags.get("topicell.folder", ""))
    if not (folder / RECORD).is_file():
        raise InputError(
            f"resume = {run!r}: its folder, {folder}, is not on this machine; resume it on the "
            "machine where it was started"
        )
    return folder


def _unfinished(root: Path) -> Iterator[tuple[Path, Record]]:
    """Yield runs that did not finish or are not delivered, and are not at work; the last first."""
    found = [
        (record.started, folder, record)
        for folder, record in records(root)
        if record.status != "FINISHED" or (record.store and not record.delivered)
    ]
    for _, folder, record in sorted(found, key=lambda one: one[0], reverse=True):
        if not is_alive(folder):
            yield folder, record
