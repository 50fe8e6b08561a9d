"""Stored runs: their folder, their metrics, their report."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.tracking.delivery import LAST_SECONDS, deliver
from topicell.tracking.record import RECORD, REPORT_ERROR, Journal, Record
from topicell.tracking.store import Unreachable, client, first_line, require_store, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_KINDS = ("multirun", "sweep")
"""Kinds of runs that other runs are nested under."""


def kind_of(run: str, config: TrackingConfig) -> str:
    """Return the kind of a run id or folder: ``run``, ``evaluation``, ``multirun`` or ``sweep``.

    An unknown id is of kind ``run``; `fetch_run` raises the error.
    """
    if Path(run).is_dir():
        return "sweep" if (Path(run) / "sweep.json").exists() else "run"
    from mlflow.exceptions import MlflowException

    require_store(config)
    try:
        return str(client(config).get_run(run).data.tags.get("topicell.kind", "run"))
    except MlflowException:
        return "run"


def fetch_run(
    run: str,
    config: TrackingConfig,
    destination: Path,
    artifacts: Sequence[str],
    optional: Sequence[str] = (),
) -> tuple[Path, str]:
    """Return the folder of a stored run and its run id, which is empty if a folder was named.

    Parameters
    ----------
    run
        An MLflow run id, or the path of a run folder.
    config
        The store.
    destination
        The folder for a copy of the artifacts of an MLflow run.
    artifacts, optional
        The names of the artifacts to copy; `optional` ones may not exist.

    Raises
    ------
    InputError
        There is no such run, it lacks an artifact, or the store cannot be reached.
    """
    folder, run_id = Path(run), ""
    if not folder.is_dir():
        from mlflow.exceptions import MlflowException

        require_store(config)
        store = client(config)
        folder, run_id = destination, run
        try:
            kind = store.get_run(run).data.tags.get("topicell.kind", "run")
            if kind in PARENT_KINDS and "sweep.json" not in artifacts:
                raise InputError(f"run = {run!r} is the parent of a {kind}: name one of its runs")
            there = {item.path for item in store.list_artifacts(run)}
            for name in there & {*artifacts, *optional}:
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
            f"run = {run!r} has no {' and no '.join(missing)}: it is not a run folder, or the run "
            "did not finish"
        )
    return folder, run_id


def store_artifacts(run_id: str, config: TrackingConfig, directory: Path) -> None:
    """Add the files of a folder to the artifacts of a stored run."""
    client(config).log_artifacts(run_id, str(directory))


def replace_report(run: str, run_id: str, config: TrackingConfig, made: Path) -> None:
    """Give a stored run its new report, and remove the tag that the first one failed.

    Parameters
    ----------
    run
        How the user named the run: by its id in MLflow, or by its folder.
    run_id
        Its id in MLflow; empty if it was named by its folder.
    config
        The store.
    made
        The folder of the new report.
    """
    folder = Path(run)
    if run_id:
        tags = client(config).get_run(run_id).data.tags
        store_artifacts(run_id, config, made)
        if REPORT_ERROR not in tags:
            return
        client(config).delete_tag(run_id, REPORT_ERROR)
        folder = Path(tags.get("topicell.folder", ""))
    # The folder may be on another machine, or gone.
    if not (folder / RECORD).is_file():
        return
    record = Record.read(folder)
    if REPORT_ERROR not in record.tags or run_id not in ("", record.run_id):
        return
    with contextlib.closing(Journal(folder)):
        shutil.copytree(made, folder, dirs_exist_ok=True)
        del record.tags[REPORT_ERROR]
        deliver_again = record.delivered and not run_id
        record.delivered = record.delivered and not deliver_again
        record.write(folder)
    if deliver_again:
        try:
            deliver(folder, config, LAST_SECONDS)
        except (InputError, Unreachable) as error:
            warnings.warn(
                f"MLflow has not received the new report ({error}); `topicell sync "
                f"folders={folder}` delivers it",
                stacklevel=2,
            )


def read_dataset(folder: Path) -> dict[str, str]:
    """Return name, source and digest of the data of a run folder.

    Raises
    ------
    InputError
        The run ended before its data were recorded.
    """
    with (folder / "metrics.jsonl").open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            if "dataset" in line:
                found: dict[str, str] = line["dataset"]
                return found
    raise InputError(f"{folder / 'metrics.jsonl'} names no data: the run did not finish")


def read_tags(folder: Path) -> dict[str, str]:
    """Return the tags of a run folder, which name the code, the device and the data.

    The artifacts in MLflow do not include ``run.json``; for them, the comments at the head of
    ``config.yaml`` have the same tags.
    """
    if (folder / RECORD).exists():
        return Record.read(folder).tags
    lines = (folder / "config.yaml").read_text().splitlines()
    return dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))


def read_metrics(folder: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return the metrics by epoch and the final metrics of a run folder."""
    history: list[dict[str, float]] = []
    final: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        record.pop("time", None)
        if "epoch" in record:
            history.append(record)
        elif not {"dataset", "split", "status", "step"} & record.keys():
            final |= record
    return history, final


@dataclass(frozen=True, slots=True)
class NestedRun:
    """Hold a stored run of a grid or a sweep."""

    run_id: str
    name: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    values: Mapping[str, Mapping[str, Sequence[float]]]
    """The values of ``scores.csv`` by metric and split, one per replicate."""
    curve: Mapping[int, float]
    """A metric by epoch."""
    seconds: float | None
    ended: str


def nested_runs(config: TrackingConfig, parent_id: str, *, curve: str) -> list[NestedRun]:
    """Return the runs under a parent, in the order in which they began.

    Parameters
    ----------
    config
        The store.
    parent_id
        The parent run.
    curve
        The metric to read by epoch.
    """
    store = client(config)
    experiment = store.get_run(parent_id).info.experiment_id
    nested, token, runs = f"tags.mlflow.parentRunId = '{parent_id}'", None, []
    while token != "":
        page = store.search_runs([experiment], nested, page_token=token)
        runs += page
        token = page.token or ""
    runs.sort(key=lambda run: (run.info.start_time, run.info.run_id))
    return [_nested_run(store, run, curve) for run in runs]


def _nested_run(store: MlflowClient, run: Any, curve: str) -> NestedRun:
    info = run.info
    values: dict[str, dict[str, list[float]]] = {}
    if any(item.path == "scores.csv" for item in store.list_artifacts(info.run_id)):
        with tempfile.TemporaryDirectory() as scratch:
            values = read_scores(Path(store.download_artifacts(info.run_id, "scores.csv", scratch)))
    ended = ""
    if info.end_time:
        ended = datetime.fromtimestamp(info.end_time / 1000, UTC).isoformat(timespec="seconds")
    return NestedRun(
        run_id=info.run_id,
        name=info.run_name,
        status=info.status,
        params=run.data.params,
        tags=run.data.tags,
        values=values,
        curve={point.step: point.value for point in store.get_metric_history(info.run_id, curve)},
        seconds=(info.end_time - info.start_time) / 1000 if info.end_time else None,
        ended=ended,
    )


def read_scores(path: Path) -> dict[str, dict[str, list[float]]]:
    """Return the values of ``scores.csv`` by metric and split."""
    values: dict[str, dict[str, list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            of_split = values.setdefault(row["metric"], {}).setdefault(row["split"], [])
            of_split.append(float(row["value"]))
    return values
