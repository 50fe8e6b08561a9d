"""What an outage of the tracking store costs a run, and whether all arrives once afterwards.

    python experiments/robustness/outages.py [--repeats 3] [--quick]

A real MLflow server behind a proxy that misbehaves, and a SQLite store that is locked; one run at a
time. The cost is the duration of the run minus that of a run whose store works, medians of several.
Afterwards ``topicell sync`` is interrupted once, and repeated until it ends.

It fails if anything is lost or doubled, if a run does not warn exactly once, or if the median cost
of a fault is above 10 s. ``--quick`` does not judge the cost: one difference of two durations says
little on a busy machine.
"""

from __future__ import annotations

import argparse
import math
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from common import SMALL, ended, faults, losses, runs, start

from topicell.config import TrackingConfig
from topicell.tracking.store import client

RUN = ("train", *SMALL, "train.epochs=400", "report=off", "hydra.run.dir=run")


def timed(folder: Path, *more: str) -> tuple[float, str]:
    """Seconds of a run, and what it said on standard error."""
    began = time.monotonic()
    code, _, err = ended(start(folder, *RUN, *more))
    assert code == 0, err
    return time.monotonic() - began, err


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat of three faults")
    arguments = parser.parse_args()
    tools = faults()
    tried = dict(list(tools.FAULTS.items())[: 3 if arguments.quick else None])
    repeats = 1 if arguments.quick else arguments.repeats
    limit = math.inf if arguments.quick else 10.0
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        (scratch / "server").mkdir()
        with tools.mlflow_server(scratch / "server") as port:
            well = f"tracking.uri=http://127.0.0.1:{port}"
            usual = statistics.median(timed(scratch / f"well-{i}", well)[0] for i in range(repeats))
            print(f"with a server that works: {usual:.1f} s")
            print(
                f"{'fault':<16}{'cost, s':>8}{'warnings':>10}{'lost':>6}{'doubled':>9}{'files':>7}"
            )
            for fault, after in tried.items():
                costs = []
                for i in range(repeats):
                    folder = scratch / f"{fault}-{i}"
                    experiment = f"{fault} {i}"
                    with tools.Proxy(port, fault.removesuffix(" later"), after) as proxy:
                        seconds, err = timed(
                            folder,
                            f"tracking.uri={proxy.uri}",
                            f"tracking.experiment='{experiment}'",
                        )
                    costs.append(seconds - usual)
                    warnings = err.count("warning: ")
                    with tools.Proxy(port, "vanishing", 5 + i) as proxy:
                        ended(start(folder, "sync", f"tracking.uri={proxy.uri}", "folders=run"))
                    code, _, err = ended(start(folder, "sync", well, "folders=run"))
                    assert code == 0, err
                    config = TrackingConfig(uri=f"http://127.0.0.1:{port}", experiment=experiment)
                    (run,) = runs(config)
                    assert run.info.status == "FINISHED"
                    lost, doubled, gone = losses(config, folder / "run")
                    bad += lost + doubled + gone + (warnings != 1)
                cost = statistics.median(costs)
                bad += cost > limit
                print(f"{fault:<16}{cost:>8.1f}{warnings:>10}{lost:>6}{doubled:>9}{gone:>7}")
        costs = []
        for i in range(repeats):
            folder = scratch / f"locked-{i}"
            path = folder / "mlflow.db"
            config = TrackingConfig(uri=f"sqlite:///{path}")
            client(config)
            usual, _ = timed(folder, "hydra.run.dir=before")
            holder = sqlite3.connect(path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            seconds, err = timed(folder)
            holder.execute("ROLLBACK")
            holder.close()
            costs.append(seconds - usual)
            assert ended(start(folder, "sync", "folders=run"))[0] == 0
            lost, doubled, gone = losses(config, folder / "run")
            bad += lost + doubled + gone + (err.count("warning: ") != 1)
        cost = statistics.median(costs)
        bad += cost > limit
        n = err.count("warning: ")
        print(f"{'SQLite, locked':<16}{cost:>8.1f}{n:>10}{lost:>6}{doubled:>9}{gone:>7}")
    raise SystemExit(int(bad > 0))


if __name__ == "__main__":
    main()
