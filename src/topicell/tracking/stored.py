"""Runs that were stored: their folder, their metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from topicell.config import InputError, TrackingConfig
from topicell.tracking.store import client, first_line, require_store, shown_uri


def fetch_run(
    run: str, config: TrackingConfig, destination: Path, artifacts: Sequence[str]
) -> tuple[Path, str]:
    """The folder of a stored run and its run id (empty for a folder that MLflow does not know).

    Parameters
    ----------
    run
        An MLflow run id, or the path of a run folder.
    config
        The store.
    destination
        Where the artifacts of an MLflow run are copied to.
    artifacts
        Which artifacts are needed.

    Raises
    ------
    InputError
        There is no such run, it lacks an artifact, or the store cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    folder, run_id = Path(run), ""
    if not folder.is_dir():
        require_store(config)
        store = client(config)
        folder, run_id = destination, run
        try:
            kind = store.get_run(run).data.tags.get("topicell.kind", "run")
            if kind != "run":
                raise InputError(f"run = {run!r} is the parent of a {kind}: name one of its runs")
            there = {item.path for item in store.list_artifacts(run)}
            for name in there & set(artifacts):
                store.download_artifacts(run, name, str(destination))
        except MlflowException as error:
            unknown = error.error_code == "RESOURCE_DOES_NOT_EXIST"
            problem = (
                f"neither a folder nor a run in {shown_uri(config)}; `topicell ui` lists the runs"
                if unknown
                else f"{shown_uri(config)} cannot be read ({first_line(error)})"
            )
            raise InputError(f"run = {run!r}: {problem}") from error
    missing = [name for name in artifacts if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"run = {run!r} has no {' and no '.join(missing)}: not a run folder, or it did not end"
        )
    return folder, run_id


def store_artifacts(run_id: str, config: TrackingConfig, directory: Path) -> None:
    """Add the files of a folder to the artifacts of a stored run."""
    client(config).log_artifacts(run_id, str(directory))


def read_metrics(folder: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    """The metrics by epoch and the final metrics of a run folder."""
    history: list[dict[str, float]] = []
    final: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "epoch" in record:
            history.append(record)
        elif not {"dataset", "status"} & record.keys():
            final |= record
    return history, final
