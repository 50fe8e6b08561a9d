"""Several processes make one run: the fit of a single process, up to rounding.

Processes are started by torchrun, and by the Slurm scripts of the documentation with a replacement
of srun.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from topicell.cli import main
from topicell.config import ModelConfig, TrainConfig
from topicell.errors import InputError
from topicell.model.loading import load_fit
from topicell.model.ranks import Ranks
from topicell.model.registry import require_together
from topicell.run import require_same_cells
from topicell.tracking.record import CHECKPOINTS

RUN = (
    *("train", "data=simulated", "data.simulation.n_cells=300", "data.simulation.n_genes=60"),
    *("data.simulation.n_topics=3", "preprocess.n_variable_genes=null", "model.n_topics=3"),
    *("model.n_hidden=8", "train.n_replicates=4", "train.epochs=4", "evaluate.n_splits=2"),
    *("evaluate.n_gap_cells=20", "report=off"),
    "train.early_stopping.enabled=true",
)
SLURM = Path(__file__).parent.parent / "docs" / "slurm"


def environment(folder):
    """Return the environment of a process that has a cache of its own."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return os.environ | {
        "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(temporary)
    }  # fmt: skip


def started(n_processes, folder, *arguments, tracking="off"):
    """Start a command in several processes."""
    command = [sys.executable, "-W", "ignore", "-m"]
    if n_processes > 1:
        command += ["torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(n_processes), "-m"]
    command.append("topicell")
    return subprocess.Popen(
        [*command, *RUN, f"tracking={tracking}", f"hydra.run.dir={folder}/run", *arguments],
        cwd=folder, env=environment(folder), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the folder of the run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    process = started(1, folder)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return folder / "run"


def curve(run):
    """Return the ELBO of the training cells after each epoch of the first split."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["train/elbo"] for line in lines if "train/elbo" in line]


def require_same_run(found, expected):
    """Compare scores, curves and topics of two runs."""
    ours, theirs = (pd.read_csv(run / "scores.csv") for run in (found, expected))
    pd.testing.assert_frame_equal(ours, theirs, rtol=2e-3, atol=2e-3)
    assert len(curve(found)) == 4
    np.testing.assert_allclose(curve(found), curve(expected), rtol=1e-4)
    our_fit, their_fit = load_fit(found / "model"), load_fit(expected / "model")
    assert our_fit.n_replicates == 4
    assert our_fit.selected == their_fit.selected
    np.testing.assert_allclose(our_fit.beta(), their_fit.beta(), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_processes", "per_process"),
    [(2, None), (3, None), (2, 4), (4, 2)],
    ids=["replicates", "unequal", "cells", "both"],
)
def test_several_processes_give_the_run_of_one(n_processes, per_process, alone, tmp_path):
    more = [] if per_process is None else [f"train.replicates_per_device={per_process}"]
    process = started(n_processes, tmp_path, *more, tracking="local")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.count("run folder") == 1
    require_same_run(tmp_path / "run", alone)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)]


@pytest.mark.slow
@pytest.mark.parametrize("per_process", [None, 4], ids=["replicates", "cells"])
def test_several_processes_fit_batches_and_learned_priors_as_one(per_process, tmp_path):
    parts = (
        *("model.batch_key=dominant_topic", "model.prevalence=dominant_topic"),
        *("model.prior=correlated", "model.background=true", "evaluate.n_splits=1"),
        "model.batch_topic_scale=0.1",
    )
    runs = []
    for n_processes in (1, 2):
        folder = tmp_path / str(n_processes)
        folder.mkdir()
        more = [] if per_process is None or n_processes == 1 else [
            f"train.replicates_per_device={per_process}"
        ]  # fmt: skip
        process = started(n_processes, folder, *parts, *more)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        runs.append(folder / "run")
    require_same_run(*reversed(runs))


def followers(torchrun):
    """Return the processes that torchrun has started, but for the first."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"RANK=0" not in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    ]


LONG = ("train.epochs=60", "evaluate.n_splits=1")
"""Settings of a run that lasts long enough to end a process during the fit."""


@pytest.fixture(scope="module")
def long_alone(tmp_path_factory):
    """Return the training curve of a longer run of one process."""
    folder = tmp_path_factory.mktemp("long")
    process = started(1, folder, *LONG)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return curve(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_before", "per_process", "n_later"),
    [(2, 4, 1), (2, 4, 2), (2, 2, 2), (1, 4, 2)],
    ids=["cells-one", "cells-cells", "replicates-cells", "one-cells"],
)
def test_a_process_that_dies_ends_the_run_and_resume_continues_it(
    n_before, per_process, n_later, long_alone, tmp_path
):
    # One process also keeps its state during an epoch.
    every = "train.checkpoint_every=1" if n_before > 1 else "train.checkpoint_every=0.01s"
    before = f"train.replicates_per_device={per_process}"
    process = started(n_before, tmp_path, *LONG, every, before)
    checkpoints = tmp_path / "run" / CHECKPOINTS
    end = time.monotonic() + 300
    while not list(checkpoints.rglob("step-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    (victim,) = followers(process) if n_before > 1 else [process.pid]
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == (1 if n_before > 1 else -signal.SIGKILL), err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] in (("FAILED", "KILLED") if n_before > 1 else ("RUNNING",))
    reached = len(curve(tmp_path / "run"))

    later = ["resume=true", "train.replicates_per_device=4"]
    process = started(n_later, tmp_path, *LONG, every, *later)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "FINISHED"
    assert not checkpoints.exists()
    assert reached < 60
    np.testing.assert_allclose(curve(tmp_path / "run"), long_alone, rtol=1e-3)


def test_processes_divide_all_replicates_and_cells_once():
    refused = []
    for n_replicates in range(1, 6):
        for per_process in (None, 1, 2, 3):
            for size in range(1, 13):
                try:
                    shares = [
                        Ranks(rank, size).share(n_replicates, per_process) for rank in range(size)
                    ]
                except InputError:
                    refused.append((n_replicates, per_process, size))
                    continue
                part = np.arange(17)
                pairs = [(r, cell) for s in shares for r in s.mine for cell in s.cells(part)]
                assert sorted(pairs) == [(r, cell) for r in range(n_replicates) for cell in part]
    for n_replicates, per_process, size in refused:
        # The number of processes is no multiple of that of groups of replicates.
        groups = math.ceil(n_replicates / (per_process or 1))
        assert size > 1
        assert size % (groups if per_process else min(groups, size))
    assert (4, None, 2) not in refused
    assert (4, 3, 1) not in refused
    assert (4, None, 6) in refused


@pytest.mark.parametrize(
    ("size", "model", "train", "message"),
    [
        (3, {}, {"n_replicates": 2}, "start a multiple of 2 processes"),
        (2, {"kind": "sklearn_nmf"}, {}, "several processes cannot fit it"),
        (2, {"dropout": 0.1}, {}, "need model.dropout=0"),
        (2, {}, {"engine": "pyro"}, "need train.engine=fused"),
        (4, {}, {"n_replicates": 1, "batch_size": 7}, "use train.batch_size=8 or more"),
    ],
)
def test_what_several_processes_cannot_fit_is_refused(size, model, train, message):
    configs = ModelConfig(**model), TrainConfig(**train)
    require_together(*configs, Ranks())
    with pytest.raises(InputError, match=message):
        require_together(*configs, Ranks(0, size))


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, ["-m", "seed=1,2"], "make one run together"),
        ({"WORLD_SIZE": "2"}, [], "RANK and MASTER_ADDR and MASTER_PORT are not set"),
    ],
)
def test_processes_that_cannot_make_a_run_end_at_once(
    variables, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        main([*RUN, "tracking=off", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_processes_with_other_genes_are_refused():
    cells = SimpleNamespace(adata=AnnData(np.zeros((4, 3), dtype=np.float32)))
    same = SimpleNamespace(everyone=lambda value: [value, value])
    require_same_cells(cells, same)
    other = SimpleNamespace(everyone=lambda value: [value, (4, 3, "others")])
    with pytest.raises(InputError, match="different cells or genes"):
        require_same_cells(cells, other)


SRUN = """#!/usr/bin/env python3
import os, subprocess, sys
n_tasks = int(os.environ["SLURM_NTASKS"])
command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
variables = lambda i: {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
tasks = [subprocess.Popen(command, env=os.environ | variables(i)) for i in range(n_tasks)]
sys.exit(max(task.wait() for task in tasks))
"""


def submitted(script, folder, *arguments, **variables):
    """Run a Slurm script as a job with two tasks; srun starts them on this machine."""
    programs = folder / "bin"
    programs.mkdir()
    texts = {
        "srun": SRUN,
        "scontrol": "#!/bin/sh\necho 127.0.0.1\n",
        "topicell": f'#!/bin/sh\nexec {sys.executable} -W ignore -m topicell "$@"\n',
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    given = {
        "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "40321", "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "node1",
    }  # fmt: skip
    return subprocess.run(
        ["bash", SLURM / script, *arguments],
        cwd=folder, env=environment(folder) | given | variables, text=True, capture_output=True,
        timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_slurm_script_of_a_run_makes_one_run(alone, tmp_path):
    settings = [*RUN[1:], "tracking=off", f"hydra.run.dir={tmp_path}/run"]
    done = submitted("run.sbatch", tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    require_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_the_slurm_script_of_a_sweep_starts_workers_of_one_study(tmp_path):
    done = submitted(
        "sweep.sbatch", tmp_path, *RUN[1:], "train.n_replicates=2", "evaluate.n_splits=1",
        "model.n_topics=choice(2,3)", "sweep.sampler=grid", "sweep.n_trials=2",
        "tracking=off", f"hydra.sweep.dir={tmp_path}/sweep", TOPICELL_STUDY=f"sqlite:///{tmp_path}/study.db",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import optuna

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/study.db")
    assert study.n_trials == 2
