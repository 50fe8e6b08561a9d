"""What runs die of is named in one line, with the setting to turn; a sweep goes on."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path

import pytest
import torch

from topicell.errors import failure
from topicell.sweep.search import _how

RUN = (
    "data=simulated",
    "data.simulation.n_cells=200",
    "data.simulation.n_genes=50",
    "model.n_hidden=8",
    "train.n_replicates=1",
    "train.epochs=2",
    "evaluate.n_splits=1",
    "report=off",
)
STARVED = """
import sys
import torch
from topicell.cli import main
from topicell.model.engines import Optimizer

step = Optimizer.step

def starved(self, batch, **keywords):
    if self.program.n_topics > 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\\nSee docs")
    step(self, batch, **keywords)

Optimizer.step = starved
main(sys.argv[1:])
"""
FORKED = """
# The workers of a sweep are forked from a process, and starve as it does.
import multiprocessing
from multiprocessing.context import ForkContext

multiprocessing.get_context = lambda *_: ForkContext()
"""
HUNGRY = """
import resource, sys
from topicell.cli import main

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
main(sys.argv[1:])
"""


STRUCK = """
import os, signal, sys
from topicell import report
from topicell.cli import main

def struck(*_, **__):
    # As compiled code does whose argument was being converted.
    try:
        os.kill(os.getpid(), signal.NUMBER)
        while True:
            pass
    except KeyboardInterrupt:
        raise TypeError("incompatible function arguments") from None

report.write = struck
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "lower train.batch_size"),
        (MemoryError("Unable to allocate 9 GiB"), "lower train.n_replicates"),
        (OSError(errno.ENOSPC, "No space left on device"), "add resume=true"),
        (RuntimeError("HDF5: No space left on device"), "add resume=true"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (KeyError(), "KeyError: no message"),
    ],
)
def test_a_failure_is_one_line_with_the_knob(error, words):
    assert words in failure(error)
    assert "\n" not in failure(error)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("Unable to allocate 9 GiB"), "memory is full (Unable to allocate 9 GiB)"),
        (
            OSError(errno.ENOSPC, "No space left"),
            "the disk is full ([Errno 28] No space left); free disk space and run the command "
            "again",
        ),
    ],
)
def test_other_commands_name_no_setting_of_train(error, says):
    assert failure(error, trains=False) == says


def test_a_process_that_the_system_killed_is_explained():
    assert "which often means that memory is full: lower sweep.n_jobs" in _how(-signal.SIGKILL)
    assert _how(-signal.SIGSEGV) == "was killed by signal 11"
    assert _how(3) == "ended with code 3"


def test_a_gpu_without_memory_is_named_with_the_knob(started):
    one = started("train", *RUN, "model.n_topics=4", "tracking=off", program=STARVED)
    assert one.wait(600) == 1
    (line,) = one.stderr.splitlines()
    assert "the GPU's memory is full" in line
    assert "lower train.batch_size, train.n_replicates or model.n_hidden" in line
    (record,) = Path().glob("runs/*/*/run.json")
    assert "the GPU's memory is full" in json.loads(record.read_text())["tags"]["topicell.error"]


def test_a_machine_without_memory_is_named_with_the_knob(started):
    large = ["data.simulation.n_cells=40000", "data.simulation.n_genes=4000"]
    one = started("train", *RUN, *large, "tracking=off", program=HUNGRY)
    assert one.wait(600) == 1
    (line,) = one.stderr.splitlines()
    assert "memory is full" in line
    assert "preprocess.n_variable_genes" in line


@pytest.mark.slow
def test_a_sweep_goes_on_when_trials_run_out_of_memory(started):
    sweep = ["-m", "sweep=topics", "model.n_topics=2,3,4", "sweep.sampler=grid", "sweep.n_jobs=1"]
    sweep += ["sweep.n_trials=3", "sweep.pruner=none", "tracking=off"]
    one = started("train", *RUN, *sweep, program=FORKED + STARVED)
    assert one.wait(600) == 0, one.stderr
    assert "failed: the GPU's memory is full" in one.stderr
    (found,) = Path().glob("sweeps/*/sweep.json")
    trials = json.loads(found.read_text())["trials"]
    assert [trial["state"] for trial in trials].count("COMPLETE") == 2
    (failed,) = (trial for trial in trials if trial["state"] == "FAIL")
    assert "lower train.batch_size" in failed["error"]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_became_another_error_is_one(number, started):
    reported = [setting for setting in RUN if setting != "report=off"]
    program = STRUCK.replace("NUMBER", number)
    one = started("train", *reported, "tracking=off", "hydra.run.dir=run", program=program)
    assert one.wait(600) == 130, one.stderr
    assert one.stderr.splitlines()[-1] == "topicell: interrupted"
    assert json.loads(Path("run/run.json").read_text())["status"] == "KILLED"
