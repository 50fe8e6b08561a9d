"""Shared code of these studies: runs in separate processes, and checks of their results."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from topicell.config import TrackingConfig
from topicell.tracking.store import client, experiment_id

CHECKOUT = Path(__file__).parents[2]
SMALL = (
    "data=simulated",
    "data.simulation.n_cells=240",
    "data.simulation.n_genes=60",
    "data.simulation.n_topics=3",
    "model.n_topics=3",
    "model.n_hidden=16",
    "train.n_replicates=2",
    "train.batch_size=16",
    "train.early_stopping.enabled=false",
    "evaluate.n_samples=16",
)
"""Arguments of a run that takes one or two seconds, without imports."""
BYTES = (
    "cells/cell_topics.csv",
    "topics/gene_topics.csv",
    "topics/top_genes.csv",
    "model/weights.safetensors",
    "scores.csv",
)
"""Files that must have the same bytes for any number of interruptions of a run."""


def faults() -> ModuleType:
    """Import the server and the proxy of the tests."""
    spec = importlib.util.spec_from_file_location("faults", CHECKOUT / "tests" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start ``topicell ARGUMENTS`` in a folder, as a user does."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "topicell", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process; return its exit code, standard output and standard error."""
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def recorded(run: Path) -> list[tuple[str, int, float, int]]:
    """Return the points of a run folder: name, step, value, time."""
    return list(_points(run))


def _points(run: Path) -> Iterator[tuple[str, int, float, int]]:
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if not {"dataset", "split", "status"} & line.keys():
            when, step = line.pop("time"), line.pop("epoch", line.pop("step", 0))
            for name, value in line.items():
                yield name, step, value, when


def stored(config: TrackingConfig, run_id: str) -> list[tuple[str, int, float, int]]:
    """Return the points that MLflow has of a run."""
    store = client(config)
    return [
        (point.key, point.step, point.value, point.timestamp)
        for name in store.get_run(run_id).data.metrics
        for point in store.get_metric_history(run_id, name)
    ]


def runs(config: TrackingConfig) -> list:
    """Return all runs of an experiment."""
    store = client(config)
    found: list = []
    token = None
    while token != "":
        page = store.search_runs([experiment_id(store, config)], page_token=token)
        found += page
        token = page.token or ""
    return found


def files(config: TrackingConfig, run_id: str, path: str = "") -> Iterator[str]:
    """Yield the artifacts that MLflow has of a run."""
    for item in client(config).list_artifacts(run_id, path or None):
        if item.is_dir:
            yield from files(config, run_id, item.path)
        else:
            yield item.path


def local_files(run: Path) -> set[str]:
    """Return the artifacts of a run folder."""
    own = {"run.json", "topicell.log"}
    return {
        path.relative_to(run).as_posix()
        for path in run.rglob("*")
        if path.is_file() and path.name not in own
    }


def losses(config: TrackingConfig, run: Path) -> tuple[int, int, int]:
    """Return the numbers of lost points, doubled points and lost artifacts after delivery."""
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    here, there = recorded(run), stored(config, run_id)
    lost = len(set(here) - set(there))
    steps = [point[:2] for point in there]
    doubled = len(steps) - len(set(steps))
    return lost, doubled, len(local_files(run) - set(files(config, run_id)))
