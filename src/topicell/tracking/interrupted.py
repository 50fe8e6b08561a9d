"""Finding the run to go on with, and the folders that MLflow is still to have."""

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
"""Where commands put their folders when they are told no other."""
FREE_KNOBS = ("tracking.", "train.progress", "train.checkpoint_every")
"""Settings that may differ when a run is gone on with: its results do not depend on them."""


def other_settings(record: Record, settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that are not those of a recorded run."""
    now = json.loads(json.dumps(dict(settings)))
    return [
        name
        for name, value in now.items()
        if record.params.get(name) != value and not name.startswith(FREE_KNOBS)
    ]


def require_same_settings(record: Record, settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run by other settings than its own."""
    for name in other_settings(record, settings):
        raise InputError(
            f"{name} = {settings[name]!r}, and the run in {folder} has "
            f"{record.params.get(name)!r}: go on with its own settings, or begin another run, "
            "without resume"
        )


def ended(folder: Path, settings: Mapping[str, Any]) -> Record | None:
    """The record of a run that has ended as it should; None if there is anything to go on with."""
    if not (folder / RECORD).exists():
        return None
    record = Record.read(folder)
    if record.status != "FINISHED":
        return None
    require_same_settings(record, settings, folder)
    return record


def last_of(root: Path, settings: Mapping[str, Any]) -> Path | None:
    """The folder under a root of the last run of these settings that has not ended."""
    for folder, record in _unfinished(root):
        if record.params and not other_settings(record, settings):
            return folder
    return None


def last_grid(root: Path, overrides: str) -> Path | None:
    """The folder under a root of the last grid of these overrides that has not ended."""
    for folder, record in _unfinished(root):
        if record.tags.get("topicell.overrides") == overrides:
            return folder
    return None


def named(run: str, config: TrackingConfig) -> Path:
    """The folder of a run that is named by its MLflow id or its folder.

    Raises
    ------
    InputError
        There is no such run, it has ended, or its folder is not on this machine.
    """
    folder = Path(run) if (Path(run) / RECORD).is_file() else _with_id(run, config)
    record = Record.read(folder)
    if record.status == "FINISHED" and (record.delivered or not record.store):
        raise InputError(f"resume = {run!r}: the run in {folder} has ended; nothing is left to do")
    return folder


def _with_id(run: str, config: TrackingConfig) -> Path:
    for root in ROOTS:
        for folder, record in records(Path(root)):
            if record.run_id == run:
                return folder
    if Path(run).is_dir():
        raise InputError(f"resume = {run!r}: no run was begun in this folder, it has no {RECORD}")
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
            f"resume = {run!r}: its folder, {folder}, is not on this machine; go on with it where "
            "it was begun"
        )
    return folder


def _unfinished(root: Path) -> Iterator[tuple[Path, Record]]:
    """Runs that have not ended, or not arrived, the last first; without those still at work."""
    found = [
        (record.started, folder, record)
        for folder, record in records(root)
        if record.status != "FINISHED" or (record.store and not record.delivered)
    ]
    for _, folder, record in sorted(found, key=lambda one: one[0], reverse=True):
        if not is_alive(folder):
            yield folder, record
