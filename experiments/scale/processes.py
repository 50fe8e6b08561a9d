"""Fit the same cells by one process and by several, started by torchrun.

    python experiments/scale/processes.py CELLS.h5ad [--processes 2] [--repeats 3]
        [--least X] [SETTING=VALUE ...]

Ways, alternately: one process; several that divide the replicates; several that divide the cells
of each mini-batch. Each process has one thread. Printed are medians of the seconds of the fit,
their ratio to one process, and the validation perplexity, which must be equal within 0.1 %. With
--least X it fails if dividing the replicates is less than X times faster than one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def fit(n_processes: int, settings: list[str]) -> tuple[float, float]:
    """Run the command and return seconds of the fit and validation perplexity."""
    command = [sys.executable, "-W", "ignore", "-m"]
    if n_processes > 1:
        command += ["torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(n_processes), "-m"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["topicell", "train", *settings, f"hydra.run.dir={folder}/run"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    last: dict[str, float] = {}
    for line in lines:
        last |= json.loads(line)
    return last["speed/fit_seconds"], last["valid/perplexity"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cells", type=Path)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--least", type=float, default=0.0)
    asked = parser.parse_intermixed_args()
    settings = [
        "data=file", f"data.path={asked.cells.resolve()}", "report=off", "tracking=off",
        "evaluate.differential_expression=false", *asked.settings,
    ]  # fmt: skip
    n_processes = asked.processes
    ways = {
        "one process": (1, []),
        f"{n_processes} processes, divided replicates": (n_processes, []),
        f"{n_processes} processes, divided cells": (
            n_processes,
            ["train.replicates_per_device=1000"],
        ),
    }
    fit(1, [*settings, "train.epochs=1"])  # prepare the cells
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(asked.repeats):
        for way, (number, more) in ways.items():
            found[way].append(fit(number, [*settings, *more]))
    ratios = {}
    (_, expected), *_ = found["one process"]
    for way, runs in found.items():
        seconds = statistics.median(seconds for seconds, _ in runs)
        ratios[way] = statistics.median(
            alone / together
            for (alone, _), (together, _) in zip(found["one process"], runs, strict=True)
        )
        perplexity = runs[0][1]
        print(f"{way}: {seconds:.1f} s, {ratios[way]:.2f} ×, perplexity {perplexity:.3f}")
        assert abs(perplexity / expected - 1) < 1e-3
    assert ratios[f"{n_processes} processes, divided replicates"] >= asked.least


if __name__ == "__main__":
    main()
