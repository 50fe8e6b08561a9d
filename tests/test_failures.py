"""Without memory a run fails in one line that names the setting to change; a sweep goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from topicell.sweep.search import _how

RUN = (
    *("data=simulated", "data.simulation.n_cells=200", "data.simulation.n_genes=50"),
    *("model.n_hidden=8", "train.n_replicates=1", "train.epochs=2", "evaluate.n_splits=1"),
    "report=off",
)
WITHOUT_GPU_MEMORY = """
import sys
import torch
from topicell.cli import main
from topicell.model.engines import Optimizer

step = Optimizer.step

def fail(self, batch, **keywords):
    if self.program.n_topics > 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\\nSee docs")
    step(self, batch, **keywords)

Optimizer.step = fail
main(sys.argv[1:])
"""
FORKED = """
# Fork the workers of a sweep from this process, so that their steps fail too.
import multiprocessing
from multiprocessing.context import ForkContext

multiprocessing.get_context = lambda *_: ForkContext()
"""
WITHOUT_MEMORY = """
import resource, sys
from topicell.cli import main

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
main(sys.argv[1:])
"""
CONVERTED_INTERRUPT = """
import os, signal, sys
from topicell import report
from topicell.cli import main

def convert(*_, **__):
    # As compiled code does while it converts an argument.
    try:
        os.kill(os.getpid(), signal.NUMBER)
        while True:
            pass
    except KeyboardInterrupt:
        raise TypeError("incompatible function arguments") from None

report.write = convert
main(sys.argv[1:])
"""


def test_a_killed_worker_is_explained():
    assert "which often means that memory is full: lower sweep.n_jobs" in _how(-signal.SIGKILL)
    assert _how(-signal.SIGSEGV) == "was killed by signal 11"
    assert _how(3) == "ended with code 3"


def test_a_full_gpu_is_named_with_the_setting_to_lower(started):
    process = started("train", *RUN, "model.n_topics=4", "tracking=off", program=WITHOUT_GPU_MEMORY)
    assert process.wait(600) == 1
    (line,) = process.stderr.splitlines()
    assert "the GPU's memory is full" in line
    assert "lower train.batch_size, train.n_replicates or model.n_hidden" in line
    (record,) = Path().glob("runs/*/*/run.json")
    assert "the GPU's memory is full" in json.loads(record.read_text())["tags"]["topicell.error"]


@pytest.mark.linux
def test_full_memory_is_named_with_the_setting_to_lower(started):
    large = ["data.simulation.n_cells=10000", "data.simulation.n_genes=4000"]
    process = started("train", *RUN, *large, "tracking=off", program=WITHOUT_MEMORY)
    assert process.wait(600) == 1
    (line,) = process.stderr.splitlines()
    assert "memory is full" in line
    assert "preprocess.n_variable_genes" in line


@pytest.mark.slow
def test_a_sweep_goes_on_when_trials_run_out_of_memory(started):
    sweep = ["-m", "sweep=topics", "model.n_topics=2,3,4", "sweep.sampler=grid", "sweep.n_jobs=1"]
    sweep += ["sweep.n_trials=3", "sweep.pruner=none", "tracking=off"]
    process = started("train", *RUN, *sweep, program=FORKED + WITHOUT_GPU_MEMORY)
    assert process.wait(600) == 0, process.stderr
    assert "failed: the GPU's memory is full" in process.stderr
    (found,) = Path().glob("sweeps/*/sweep.json")
    trials = json.loads(found.read_text())["trials"]
    assert [trial["state"] for trial in trials].count("COMPLETE") == 2
    (failed,) = (trial for trial in trials if trial["state"] == "FAIL")
    assert "lower train.batch_size" in failed["error"]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_became_another_error_ends_with_code_130(number, started):
    reported = [setting for setting in RUN if setting != "report=off"]
    program = CONVERTED_INTERRUPT.replace("NUMBER", number)
    process = started("train", *reported, "tracking=off", "hydra.run.dir=run", program=program)
    assert process.wait(600) == 130, process.stderr
    assert process.stderr.splitlines()[-1] == "topicell: interrupted"
    assert json.loads(Path("run/run.json").read_text())["status"] == "KILLED"
