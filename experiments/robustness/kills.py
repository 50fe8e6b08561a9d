"""Runs that are killed at random moments, and gone on with until they end; and interrupts.

    python experiments/robustness/kills.py [--kills 100] [--interrupts 20] [--seed 0] [--quick]

Each run is killed with SIGKILL at moments drawn over its whole length, imports apart, and started
again with ``resume=true``, up to eight times; then it may end. What it then has must be, byte for
byte, what a run has that nothing befell, and MLflow must have every point and artifact once.
Interrupts strike the main job, report included; they must end it with code 130 within 5 s (with
``--quick``, which also runs on busy machines, 20 s).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from common import BYTES, SMALL, ended, losses, runs, start

from topicell.config import TrackingConfig
from topicell.tracking.store import create_store

EVERY = (*SMALL, "train.epochs=60", "train.checkpoint_every=1", "evaluate.n_splits=2", "report=off")


def command(*more: str) -> tuple[str, ...]:
    return ("train", *EVERY, "hydra.run.dir=run", *more)


def killed(n_kills: int, seed: int, scratch: Path) -> dict[str, int]:
    """Counts of what was tried and what was lost."""
    generator = random.Random(seed)
    template = scratch / "template.db"
    create_store(template)
    whole = scratch / "whole"
    whole.mkdir()
    shutil.copy(template, whole / "mlflow.db")
    began = time.monotonic()
    assert ended(start(whole, *command()))[0] == 0
    seconds = time.monotonic() - began
    counts = dict.fromkeys(
        ("kills", "runs", "bytes that differ", "points lost", "points doubled", "files lost"), 0
    )
    while counts["kills"] < n_kills:
        folder = scratch / f"run-{counts['runs']}"
        folder.mkdir()
        shutil.copy(template, folder / "mlflow.db")
        for attempt in range(8):
            process, began = start(folder, *command("resume=true")), time.monotonic()
            try:
                process.wait(generator.uniform(0.4, 0.95) * seconds)
                if not attempt:
                    # The machine is less busy than before, so that no kill would come in time.
                    seconds = min(seconds, time.monotonic() - began)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                counts["kills"] += 1
        code, _, err = ended(start(folder, *command("resume=true")))
        assert code == 0, err
        config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        (run,) = runs(config)
        assert run.info.status == "FINISHED"
        lost, doubled, gone = losses(config, folder / "run")
        counts["runs"] += 1
        counts["points lost"] += lost
        counts["points doubled"] += doubled
        counts["files lost"] += gone
        counts["bytes that differ"] += sum(
            (folder / "run" / name).read_bytes() != (whole / "run" / name).read_bytes()
            for name in BYTES
        )
    return counts


def interrupted(n: int, seed: int, scratch: Path) -> list[float]:
    """Seconds from the signal to the end of the main job, at moments over its whole length."""
    generator = random.Random(seed)
    began = time.monotonic()
    folder = scratch / "main"
    assert ended(start(folder, "train"))[0] == 0
    length = time.monotonic() - began
    found: list[float] = []
    while len(found) < n:
        process, began = start(folder, "train"), time.monotonic()
        try:
            process.wait(generator.uniform(0.2, 0.95) * length)
            process.communicate()
            length = min(length, time.monotonic() - began)
            continue
        except subprocess.TimeoutExpired:
            pass
        struck = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM if len(found) % 2 else signal.SIGINT)
        code, _, err = ended(process)
        found.append(time.monotonic() - struck)
        # A signal ends the process by itself after the run has ended, while Python shuts down.
        assert code in (130, -signal.SIGINT, -signal.SIGTERM), (code, err)
    made = runs(TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"))
    statuses = {run.info.status for run in made}
    assert statuses <= {"FINISHED", "KILLED"}, statuses
    assert len({run.data.tags["topicell.key"] for run in made}) == len(made), "a run is there twice"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--interrupts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="5 kills, 1 interrupt")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.kills, arguments.interrupts = 5, 1
    with tempfile.TemporaryDirectory() as scratch:
        counts = killed(arguments.kills, arguments.seed, Path(scratch))
        print(", ".join(f"{name} {n}" for name, n in counts.items()), flush=True)
        seconds = interrupted(arguments.interrupts, arguments.seed, Path(scratch))
        print(
            f"interrupts {len(seconds)}: median {statistics.median(seconds):.2f} s, longest "
            f"{max(seconds):.2f} s"
        )
    bad = sum(n for name, n in counts.items() if name not in ("kills", "runs"))
    raise SystemExit(int(bad > 0 or max(seconds) > (20 if arguments.quick else 5)))


if __name__ == "__main__":
    main()
