"""Fit the same cells from memory and from a file that is mapped to memory.

    python experiments/scale/disk.py CELLS.h5ad [--replicates 1 4] [--repeats 3] [--epochs N]

The cells are prepared once, in parts, and stored. Then, alternately, each in a process of its own:
the counts are copied to memory as float32 (``memory``); they are mapped (``mapped``); they are
mapped after the system was asked to forget the file (``cold``). Printed: seconds of the fit, cells
per second and replicate, largest resident memory, and the validation perplexity, which must be
equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

WAYS = ("memory", "mapped", "cold")


def prepare(cells: Path, store: Path) -> None:
    """Write the prepared cells of a file."""
    from topicell.config import DataConfig, PreprocessConfig
    from topicell.data import preprocessing
    from topicell.data.reading import load_or_open

    warnings.simplefilter("ignore")
    config = DataConfig(name="file", path=str(cells), backed=True)
    preprocessing._choose(load_or_open(config), PreprocessConfig(), store)


def fit(store: Path, way: str, n_replicates: int, n_epochs: int | None) -> dict[str, float]:
    """Fit the stored cells and return what is printed."""
    from topicell.config import ModelConfig, SplitConfig, TrainConfig
    from topicell.counts import LateRows
    from topicell.data import mapped
    from topicell.data.cells import PreparedCells
    from topicell.data.preprocessing import split
    from topicell.model.training import train
    from topicell.outputs import peak_mib

    if way == "cold":
        with store.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    adata = mapped.read(store)
    if way == "memory":
        adata.layers["counts"] = LateRows(adata.layers["counts"].copy()).read()
    cells = PreparedCells(adata)
    parts = cells.divided(split(adata, SplitConfig()))
    if way == "memory":
        for name, part in parts.items():
            parts[name] = type(part)(part.x, part.cells, part.genes)
    # Without the search, whose time does not depend on the number of cells.
    config = TrainConfig(n_replicates=n_replicates, epochs=n_epochs, search=False, progress=False)
    began = time.perf_counter()
    found = train(parts["train"], parts["valid"], ModelConfig(), config)
    seconds = time.perf_counter() - began
    last = found.history[-1]
    n_passed = parts["train"].n_cells * n_replicates * len(found.history)
    return {
        "seconds": seconds,
        "cells_per_second": n_passed / seconds,
        "epoch_cells_per_second": last["speed/cells_per_second"],
        "mib": peak_mib(),
        "perplexity": last["valid/perplexity"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cells", type=Path)
    parser.add_argument("--replicates", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        way, n_replicates = asked.child
        print(json.dumps(fit(asked.cells, way, int(n_replicates), asked.epochs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.h5ad"
        began = time.perf_counter()
        prepare(asked.cells, store)
        size = store.stat().st_size / 1e6
        print(f"prepared in {time.perf_counter() - began:.0f} s, {size:.0f} MB", flush=True)
        for n_replicates in asked.replicates:
            found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(asked.repeats):
                for way in WAYS:
                    command = [sys.executable, __file__, str(store)]
                    command += ["--child", way, str(n_replicates)]
                    command += [] if asked.epochs is None else ["--epochs", str(asked.epochs)]
                    out = subprocess.run(command, check=True, capture_output=True, text=True)
                    found[way].append(json.loads(out.stdout.splitlines()[-1]))
            for way in WAYS:
                medians = {
                    name: statistics.median(of_run[name] for of_run in found[way])
                    for name in found[way][0]
                }
                words = ", ".join(f"{name} {value:,.2f}" for name, value in medians.items())
                print(f"R = {n_replicates}, {way}: {words}", flush=True)
            assert len({of_run["perplexity"] for runs in found.values() for of_run in runs}) == 1


if __name__ == "__main__":
    main()
