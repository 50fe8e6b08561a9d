"""When the store fails, the run warns and ends well, and `topicell sync` delivers it once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from faults import FAULTS, Proxy, mlflow_server

from topicell.config import TrackingConfig
from topicell.tracking.store import client, create_store, experiment_id

RUN = (
    *("train", "data=simulated", "data.simulation.n_cells=240", "data.simulation.n_genes=60"),
    *("data.simulation.n_topics=3", "model.n_topics=3", "model.n_hidden=16"),
    *("train.n_replicates=2", "train.epochs=12", "train.batch_size=32"),
    *("train.early_stopping.enabled=false", "evaluate.n_samples=16", "report=off"),
    "hydra.run.dir=run",
)

BREAKS = (("vanishing", 2), ("vanishing", 9), ("deaf", 3), ("500", 12), ("vanishing", 16))
"""The fault of each delivery, and the number of requests before it."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder) as port:
        yield port


@pytest.fixture(scope="module")
def runs(server, start_process, tmp_path_factory):
    """Run with each fault, all at the same time: return (process, folder) by fault."""
    proxies, runs = [], {}
    try:
        for fault, after in FAULTS.items():
            proxies.append(Proxy(server, fault.removesuffix(" later"), after))
            folder = tmp_path_factory.mktemp(fault.replace(" ", "_"))
            tracking = [
                f"tracking.uri={proxies[-1].uri}",
                f"tracking.experiment='{fault}'",
            ]
            runs[fault] = (start_process(*RUN, *tracking, cwd=folder), folder)
        for process, _ in runs.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(600)
        yield runs
    finally:
        for process, _ in runs.values():
            process.end()
        for proxy in proxies:
            proxy.close()


def expected(folder):
    """Return all points in a run folder: (name, step, value, time)."""
    found = set()
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if {"dataset", "split", "status"} & line.keys():
            continue
        when, step = line.pop("time"), line.pop("epoch", line.pop("step", 0))
        found |= {(name, step, value, when) for name, value in line.items()}
    return found


def assert_delivered_once(config, folder):
    """Check that the store has one run with everything in the folder, each point once."""
    store = client(config)
    (run,) = store.search_runs([experiment_id(store, config)])
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    points = [
        (point.key, point.step, point.value, point.timestamp)
        for name in run.data.metrics
        for point in store.get_metric_history(run_id, name)
    ]
    assert len(points) == len(set(points))
    assert set(points) == expected(folder)
    record = json.loads((folder / "run.json").read_text())
    assert run.data.params == {name: str(value) for name, value in record["params"].items()}
    assert run.data.tags["topicell.key"] == record["key"]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "simulated"
    assert "get-artifact" not in run.data.tags["mlflow.note.content"]
    assert record["run_id"] == run_id
    assert record["delivered"]
    scratch = folder.parent / "fetched"
    scratch.mkdir(exist_ok=True)
    names = [item.path for item in store.list_artifacts(run_id)]
    assert len(names) == len(set(names))
    for name in names:
        got = Path(store.download_artifacts(run_id, name, str(scratch)))
        files = [path for path in got.rglob("*") if path.is_file()] if got.is_dir() else [got]
        for path in files:
            assert path.read_bytes() == (folder / path.relative_to(scratch)).read_bytes()
    kept = {"config.yaml", "metrics.jsonl", "adata.h5ad", "model", "cells", "topics", "scores.csv"}
    assert kept <= set(names)
    shutil.rmtree(scratch)


def assert_complete(process, folder):
    """Check that the run ended well with one warning, and that its folder has everything."""
    assert process.returncode == 0, process.stderr
    warnings = [line for line in process.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1, process.stderr
    assert "MLflow at " in warnings[0]
    assert "`topicell sync folders=run` delivers them later" in warnings[0]
    assert "not delivered; run topicell sync folders=run" in process.stdout
    epochs = {step for name, step, _, _ in expected(folder) if name == "train/elbo"}
    assert epochs == set(range(12))
    for name in ("adata.h5ad", "model/weights.safetensors", "cells/cell_topics.csv", "scores.csv"):
        assert (folder / name).stat().st_size
    assert not json.loads((folder / "run.json").read_text())["delivered"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_with_a_failing_server_warns_and_is_delivered_once(
    fault, runs, server, start_process
):
    process, place = runs[fault]
    assert_complete(process, place / "run")
    good = TrackingConfig(uri=f"http://127.0.0.1:{server}", experiment=fault)

    def sync(uri):
        process = start_process("sync", f"tracking.uri={uri}", "folders=run", cwd=place)
        try:
            return process.wait(90), process.stdout, process.stderr
        finally:
            process.end()

    # The delivery fails too, for each fault after another number of requests.
    kind, after = BREAKS[list(FAULTS).index(fault) % len(BREAKS)]
    with Proxy(server, kind, after) as proxy:
        code, _, err = sync(proxy.uri)
    assert code == 1
    assert "fix this, then run topicell sync again" in err
    assert len(err.splitlines()) == 1
    assert not json.loads((place / "run" / "run.json").read_text())["delivered"]
    code, out, err = sync(good.uri)
    assert code == 0, err
    assert "1 of 1 runs delivered" in out
    assert_delivered_once(good, place / "run")
    assert sync(good.uri)[:2] == (0, "all runs are delivered\n")
    assert_delivered_once(good, place / "run")


def test_a_run_with_a_locked_database_warns_and_is_delivered_once(topicell, tmp_path):
    create_store(tmp_path / "mlflow.db")
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    process = topicell(*RUN, cwd=tmp_path)
    assert_complete(process, tmp_path / "run")
    while_locked = topicell("sync", "folders=run", cwd=tmp_path)
    assert while_locked.returncode == 1
    assert "database is locked" in while_locked.stderr
    holder.execute("ROLLBACK")
    holder.close()
    done = topicell("sync", "folders=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_delivered_once(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"), tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a small disk can be mounted by root alone: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Fill the disk of a folder."""
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass


def test_a_run_with_a_store_on_a_full_disk_warns_and_is_delivered_once(
    topicell, small_disk, tmp_path
):
    create_store(small_disk / "mlflow.db")
    store = TrackingConfig(uri=f"sqlite:///{small_disk}/mlflow.db")
    experiment = client(store)
    experiment.create_experiment("topicell", artifact_location=str(tmp_path / "artifacts"))
    fill(small_disk)
    process = topicell(*RUN, f"tracking.uri={store.uri}", cwd=tmp_path)
    assert_complete(process, tmp_path / "run")
    (small_disk / "ballast").unlink()
    done = topicell("sync", "folders=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_delivered_once(store, tmp_path / "run")
    # On this disk no empty store can be created either.
    fill(small_disk)
    process = topicell(
        *RUN, f"tracking.uri=sqlite:///{small_disk}/new/mlflow.db", "hydra.run.dir=run2",
        cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "`topicell sync folders=run2` delivers them later" in process.stderr


def test_a_run_on_a_full_disk_fails_and_advises_resume(topicell, small_disk, tmp_path):
    fill(small_disk)
    os.truncate(small_disk / "ballast", 1_900_000)
    large = [*RUN[:-1], "data.simulation.n_cells=4000", "train.epochs=2", "tracking=off"]
    process = topicell(*large, f"hydra.run.dir={small_disk}/run", cwd=tmp_path)
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1
    assert "the disk is full" in process.stderr
    assert "add resume=true to the command" in process.stderr
    (small_disk / "ballast").unlink()


def test_the_runs_of_a_sweep_are_delivered_with_their_parent(server, topicell, tmp_path):
    sweep = [*RUN[:-1], "train.epochs=3", "-m", "sweep=topics", "model.n_topics=2,3"]
    sweep += ["sweep.n_trials=2", "sweep.sampler=grid", "sweep.n_jobs=1", "evaluate.n_splits=1"]
    sweep += ["tracking.experiment=sweep", "sweep.register=null"]
    with Proxy(server, "refused") as proxy:
        uri = f"tracking.uri={proxy.uri}"
        done = topicell(*sweep, uri, cwd=tmp_path, quick_workers=True, draft=True)
    assert done.returncode == 0, done.stderr
    config = TrackingConfig(uri=f"http://127.0.0.1:{server}", experiment="sweep")
    synced = topicell("sync", f"tracking.uri={config.uri}", cwd=tmp_path)
    assert synced.returncode == 0, synced.stderr
    assert "3 of 3 runs delivered" in synced.stdout
    store = client(config)
    found = store.search_runs([experiment_id(store, config)])
    (parent,) = (run for run in found if "mlflow.parentRunId" not in run.data.tags)
    assert parent.data.tags["topicell.kind"] == "sweep"
    assert {"report.html", "sweep.json"} <= {
        item.path for item in store.list_artifacts(parent.info.run_id)
    }
    assert "by_n_topics/valid/perplexity_folded" in parent.data.metrics
    nested = [run for run in found if run is not parent]
    assert len(nested) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}


def test_a_killed_run_is_delivered_as_killed(started, topicell, tmp_path):
    process = started(*RUN, "train.epochs=3000", cwd=tmp_path)
    end = time.monotonic() + 600
    journal = tmp_path / "run" / "metrics.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < end
        time.sleep(0.02)
    alive = topicell("sync", "folders=run", cwd=tmp_path)
    assert "the run is not finished" in alive.stdout
    process.kill()
    process.wait(600)
    done = topicell("sync", "folders=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    store = client(config)
    (run,) = store.search_runs([experiment_id(store, config)])
    assert run.info.status == "KILLED"
    curve = store.get_metric_history(run.info.run_id, "train/elbo")
    assert len(curve) == len([1 for name, *_ in expected(tmp_path / "run") if name == "train/elbo"])
