"""Many processes on one store, many points in one run, many runs in one sweep.

    python experiments/robustness/load.py [--processes 8] [--trials 200] [--points 50000] [--quick]

Three times: processes that start together on a store that does not exist yet, and on a server; a
run of many metric points; and a sweep of many trials with its report. Nothing may be lost, and no
process may report that a database is locked. The report of the sweep must take less than a minute,
which ``--quick`` does not judge.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import time
from pathlib import Path

from common import SMALL, ended, faults, losses, recorded, runs, start

from topicell.config import TrackingConfig


def together(folder: Path, n: int, store: str, n_epochs: int) -> tuple[float, int, int, int]:
    """Processes that start at once: (seconds, points, lost or doubled, words of locks)."""
    began = time.monotonic()
    processes = [
        start(
            folder,
            "train",
            *SMALL,
            f"train.epochs={n_epochs}",
            "report=off",
            f"seed={seed}",
            f"hydra.run.dir=run-{seed}",
            f"tracking.uri={store}",
        )
        for seed in range(n)
    ]
    ends = [ended(process) for process in processes]
    seconds = time.monotonic() - began
    assert all(code == 0 for code, _, _ in ends), ends
    config = TrackingConfig(uri=store)
    assert len(runs(config)) == n
    assert {run.info.status for run in runs(config)} == {"FINISHED"}
    folders = [folder / f"run-{seed}" for seed in range(n)]
    bad = sum(sum(losses(config, run)) for run in folders)
    said = sum("locked" in err or "warning: MLflow" in err for _, _, err in ends)
    return seconds, sum(len(recorded(run)) for run in folders), bad, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true", help="3 processes, 8 trials, 2,000 points")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.processes, arguments.trials, arguments.points = 3, 8, 2000
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        n = arguments.processes

        store = f"sqlite:///{scratch}/first/mlflow.db"
        seconds, points, lost, said = together(scratch / "first", n, store, 200)
        connection = sqlite3.connect(scratch / "first" / "mlflow.db")
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        connection.close()
        print(
            f"{n} processes at once on a new SQLite store: {seconds:.0f} s, {points} points, "
            f"{lost} lost or doubled, {said} of locks; integrity {sound}",
            flush=True,
        )
        bad += lost + said + (sound != "ok")

        (scratch / "server").mkdir()
        with faults().mlflow_server(scratch / "server") as port:
            found = together(scratch / "served", n, f"http://127.0.0.1:{port}", 200)
        print(
            f"{n} processes at once on a server: {found[0]:.0f} s, {found[1]} points, {found[2]} "
            f"lost or doubled, {found[3]} of locks",
            flush=True,
        )
        bad += found[2] + found[3]

        folder = scratch / "long"
        n_epochs = arguments.points // 17 + 1
        more = ["train.batch_size=192", f"train.epochs={n_epochs}", "hydra.run.dir=run"]
        began = time.monotonic()
        code, _, err = ended(start(folder, "train", *SMALL, *more, "report=off"))
        assert code == 0, err
        config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        lost = sum(losses(config, folder / "run"))
        print(
            f"a run of {len(recorded(folder / 'run'))} points: {time.monotonic() - began:.0f} s, "
            f"{lost} lost or doubled",
            flush=True,
        )
        bad += lost

        folder = scratch / "sweep"
        sweep = ["-m", "sweep=topics", f"sweep.n_trials={arguments.trials}", "sweep.pruner=none"]
        space = ["model.n_topics=range(2,31)", "train.learning_rate=tag(log,interval(0.02,0.2))"]
        more = ["train.epochs=5", "train.batch_size=64", "evaluate.n_splits=1"]
        began = time.monotonic()
        code, _, err = ended(start(folder, "train", *sweep, *SMALL, *more, *space))
        assert code == 0, err
        seconds = time.monotonic() - began
        config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        found = runs(config)
        (parent,) = (run for run in found if "mlflow.parentRunId" not in run.data.tags)
        nested = len(found) - 1
        lost = sum(
            sum(losses(config, path.parent))
            for path in folder.glob("sweeps/*/*/run.json")
            if json.loads(path.read_text())["status"] == "FINISHED"
        )
        began = time.monotonic()
        code, _, err = ended(start(folder, "report", f"run={parent.info.run_id}"))
        assert code == 0, err
        took = time.monotonic() - began
        print(
            f"a sweep of {arguments.trials} trials: {seconds:.0f} s, {nested} nested runs, {lost} "
            f"points or files lost or doubled; its report {took:.0f} s"
        )
        bad += lost + (nested != arguments.trials) + (took > 60 and not arguments.quick)
    raise SystemExit(int(bad > 0))


if __name__ == "__main__":
    main()
