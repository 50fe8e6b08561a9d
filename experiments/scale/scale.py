"""Seconds and peak memory of the whole command by phase, for files of 700 to a million cells.

    python experiments/scale/scale.py [--cells 700 7000 30000 100000] [--genes 33000]
        [--folder FOLDER] [--label NAME] [--starts N] [SETTING=VALUE ...]

For each number of cells, `make` writes a file with the statistics of real cells, once, and
`topicell train data=file` reads it in a process of its own. Of two starts (--starts), the last
counts: the first compiles functions that are cached. Each phase has its seconds and the largest
resident memory in it; lines are added to FOLDER/scale.csv, and FOLDER/scale.png shows all of them.
The memory that the run foresees (``estimated``) must be right within 30 %.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PHASES = {
    "load": "read",
    "data": "preprocess",
    "fit": "fit",
    "topic proportions of the cells": "scores",
    "measures": "scores",
    "amortization gap": "scores",
    "differential expression": "scores",
    "map of the cells by counts": "embedding",
    "map of the cells by topics": "embedding",
    "figures": "figures",
    "page": "page",
    "tables": "artifacts",
    "adata.h5ad": "artifacts",
    "delivery to MLflow": "artifacts",
}
"""Phase of each step of a run; all other work, mostly imports, is ``rest``."""
INTERVAL = 0.02
"""Seconds between two samples of the memory."""
WITHIN = 0.3
"""Largest relative error of the memory that a run foresees."""
ROWS = 20_000
"""Cells that are drawn at a time."""


def make(path: Path, n_cells: int, n_genes: int | None) -> None:
    """Write cells of `pbmc_facs`, drawn with replacement and thinned, in chunks.

    Each count is kept with probability 0.85. With `n_genes`, further genes are copies of the first
    ones that keep counts with probability 0.1.
    """
    import h5py
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

    import topicell

    cells = topicell.load_dataset("pbmc_facs")
    x_NG = sp.csr_matrix(cells.layers["counts"])
    names = cells.var_names.astype(str).tolist()
    keep_G = np.full(len(names), 0.85)
    if n_genes:
        more = n_genes - len(names)
        x_NG = sp.hstack([x_NG, x_NG[:, :more]]).tocsr()
        names += [f"{name}-like" for name in names[:more]]
        keep_G = np.append(keep_G, np.full(more, 0.1))
    rng = np.random.default_rng(0)
    picked_N = rng.integers(0, x_NG.shape[0], n_cells)
    kinds = cells.obs[cells.uns["topicell_source"]["label_key"]].astype(str).to_numpy()
    obs = pd.DataFrame(
        {"kind": pd.Categorical(kinds[picked_N])}, index=[f"cell{i}" for i in range(n_cells)]
    )
    empty = AnnData(
        sp.csr_matrix((n_cells, len(names)), dtype=np.float32), obs, pd.DataFrame(index=names)
    )
    unfinished = path.with_suffix(".unfinished")
    empty.write_h5ad(unfinished)
    with h5py.File(unfinished, "r+") as file:
        group, n_stored, indptr = file["X"], 0, [np.zeros(1, np.int64)]
        for name, kind in (("data", "f4"), ("indices", "i4")):
            del group[name]
            group.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1 << 20,))
        for first in range(0, n_cells, ROWS):
            x_BG = x_NG[picked_N[first : first + ROWS]].tocsr()
            x_BG.data = rng.binomial(x_BG.data.astype(int), keep_G[x_BG.indices])
            x_BG.eliminate_zeros()
            for name, values in (("data", x_BG.data), ("indices", x_BG.indices)):
                group[name].resize((n_stored + x_BG.nnz,))
                group[name][n_stored:] = values
            indptr.append(x_BG.indptr[1:].astype(np.int64) + n_stored)
            n_stored += x_BG.nnz
        del group["indptr"]
        group.create_dataset("indptr", data=np.concatenate(indptr))
    unfinished.rename(path)


class Meter:
    """Seconds and peak memory of the phases of this process, which can be nested."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak: dict[str, float] = {}
        self._stack = ["rest"]
        self._since = time.perf_counter()
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, daemon=True).start()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count time and memory for a phase; an inner phase interrupts an outer one."""
        self._switch(lambda: self._stack.append(PHASES.get(name, "rest")))
        try:
            yield
        finally:
            self._switch(self._stack.pop)

    def stop(self) -> dict[str, tuple[float, float]]:
        """Return seconds and MiB by phase."""
        self._switch(lambda: None)
        return {name: (self.seconds[name], self.peak.get(name, 0.0)) for name in self.seconds}

    def _switch(self, change: Callable[[], Any]) -> None:
        with self._lock:
            now, phase = time.perf_counter(), self._stack[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
            self._since = now
            change()

    def _sample(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        while True:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            with self._lock:
                phase = self._stack[-1]
                self.peak[phase] = max(self.peak.get(phase, 0.0), resident)
            time.sleep(INTERVAL)


def measure(arguments: list[str], out: Path) -> None:
    """Run a command in this process and write its phases, total time and peak memory."""
    began = time.perf_counter()
    meter = Meter()
    from topicell import progress

    real = progress.step

    @contextlib.contextmanager
    def step(name: str, *arguments: Any, **named: Any) -> Iterator[Any]:
        main_thread = threading.current_thread() is threading.main_thread()
        known = main_thread and name in PHASES
        # Time of a step that is no phase is that of the phase around it.
        with (
            meter.phase(name) if known else contextlib.nullcontext(),
            real(name, *arguments, **named) as shown,
        ):
            yield shown

    # Before the modules that import it by name.
    vars(progress)["step"] = step
    from topicell import outputs, run
    from topicell.cli import main
    from topicell.data import reading

    for module, name, phase in ((run, "fit_parts", "fit"), (run, "load_or_open", "load")):
        setattr(module, name, _timed(meter, getattr(module, name), phase))
    assert run.load_or_open.__wrapped__ is reading.load_or_open
    sys.argv = ["topicell", *arguments]
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    assert not code, code
    phases = meter.stop()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # getrusage also counts the memory of the process that started this one.
    phases["whole"] = (time.perf_counter() - began, outputs.peak_mib())
    phases["processor"] = (usage.ru_utime + usage.ru_stime, outputs.peak_mib())
    out.write_text(json.dumps(phases))


def foreseen(path: Path, settings: list[str]) -> float:
    """Return the memory that the run foresees, MiB."""
    from topicell import memory
    from topicell.data import stored

    size = stored.size_of(path, None)
    assert size is not None
    in_parts = "data.backed=true" in settings or size.n_values > stored.LARGE
    return memory.needed(size, in_parts=in_parts) / 2**20


def _timed(meter: Meter, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        with meter.phase(phase):
            return function(*arguments, **named)

    return timed


def draw(table: Path) -> None:
    """Draw seconds and memory by phase of the last label, and the whole runs of earlier labels."""
    import pandas as pd
    from matplotlib.figure import Figure

    rows = pd.read_csv(table).sort_values("cells", kind="stable")
    rows = rows[rows["genes"] == rows["genes"].iloc[0]]
    *earlier, last = dict.fromkeys(pd.read_csv(table)["label"])
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, column, unit in zip(panels, ("seconds", "mib"), ("seconds", "MiB"), strict=True):
        for phase, values in rows[rows["label"] == last].groupby("phase", sort=False):
            if phase == "estimated" and column == "seconds":
                continue
            style: dict[str, Any] = {"lw": 1.2, "marker": "o", "ms": 3}
            if phase in ("whole", "processor", "estimated"):
                style |= {"color": "black", "ls": "-" if phase == "whole" else ":", "lw": 1.8}
            if phase != "processor" or column == "seconds":
                name = "processor; right: estimate" if phase == "processor" else phase
                panel.loglog(values["cells"], values[column], label=name, **style)
        for label, marker in zip(earlier, "sD^v", strict=False):
            values = rows[(rows["label"] == label) & (rows["phase"] == "whole")]
            panel.loglog(values["cells"], values[column], marker, color="crimson",
                         mfc="none", label=f"whole, {label}")  # fmt: skip
        panel.set(xlabel="cells", ylabel=unit, title=f"{last}: {unit} by phase")
        panel.grid(which="major", color="0.9")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(table.with_suffix(".png"), dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[700, 7_000, 30_000, 100_000])
    parser.add_argument("--genes", type=int, help="number of genes; by default those of pbmc_facs")
    parser.add_argument("--folder", type=Path, default=Path("scale"))
    parser.add_argument("--label", default="now", help="name of these lines in the table")
    parser.add_argument("--starts", type=int, default=2, help="the last one counts")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked, settings = parser.parse_known_args()
    if asked.child:
        measure(settings, asked.child)
        return
    folder = asked.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "scale.csv"
    if not table.exists():
        table.write_text("label,cells,genes,settings,phase,seconds,mib\n")
    for n_cells in asked.cells:
        genes = asked.genes or 16_791
        path = folder / f"cells-{n_cells}-{genes}.h5ad"
        if not path.exists():
            make(path, n_cells, asked.genes)
        phases: dict[str, tuple[float, float]] = {}
        for _ in range(asked.starts):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                out = Path(scratch) / "phases.json"
                command = [sys.executable, __file__, "--child", str(out), "train", "data=file"]
                command += [f"data.path={path}", f"hydra.run.dir={scratch}/run", *settings]
                command += ["preprocess.cache=false", "train.progress=false"]
                subprocess.run(command, check=True, cwd=scratch)
                phases = json.loads(out.read_text())
        phases["estimated"] = (0.0, foreseen(path, settings))
        off = phases["estimated"][1] / phases["whole"][1] - 1
        if abs(off) > WITHIN:
            raise SystemExit(f"the estimate of the memory is off by {off:.0%}")
        with table.open("a", newline="") as file:
            lines = csv.writer(file)
            for phase, (seconds, mib) in phases.items():
                given = " ".join(settings)
                lines.writerow(
                    [asked.label, n_cells, genes, given, phase, round(seconds, 2), round(mib)]
                )
        print(f"{n_cells:>9,} cells × {genes:,} genes: ", end="")
        print(", ".join(f"{k} {s:.1f} s {m:.0f} MiB" for k, (s, m) in phases.items()), flush=True)
    draw(table)


if __name__ == "__main__":
    main()
