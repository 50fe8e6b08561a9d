"""Small corpora with known truth, and a place of its own for everything a test writes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import sqlalchemy
import torch

from topicell import interrupts, progress
from topicell.cli import main
from topicell.config import ModelConfig, TrainConfig
from topicell.model.counts import Counts
from topicell.model.training import train

CHECKOUT = Path(__file__).parents[1]
CHILD = Path(__file__).with_name("child.py")


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _trust_the_power(connection, _):
    """Databases of tests need not outlive a power failure: waiting for the disk is half their time.

    A process that is killed loses nothing by it.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(autouse=True)
def _own_place(tmp_path_factory, monkeypatch):
    """Caches, stores and relative paths of a test stay in its own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in (
        "MLFLOW_TRACKING_URI",
        "TOPICELL_PARENT_RUN_ID",
        "TOPICELL_PARENT_KEY",
        "HYDRA_FULL_ERROR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    # What the terminal shows must not depend on how busy the machine is.
    monkeypatch.setattr(progress, "SECONDS", 1e6)
    torch.set_num_threads(1)
    pyro.enable_validation(True)
    interrupts.forget()


@pytest.fixture(autouse=True)
def _standard_error_stays_open():
    """absl comes with scvi-tools, and closes the stream it found when logging is set up anew."""
    yield
    if "absl.logging" in sys.modules:
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture
def double_precision():
    """Float64 by default, and a seed."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def facs_folder() -> Path:
    """The folder of the downloaded FACS set, where this machine has it."""
    for folder in (os.environ.get("TOPICELL_DATA"), CHECKOUT.parent / "shared" / "data"):
        if folder and (Path(folder) / "pbmc_facs.RData").is_file():
            return Path(folder).resolve()
    pytest.skip("pbmc_facs.RData is not on this machine (set TOPICELL_DATA to its folder)")


def plant(n_cells, n_genes, n_topics, depth, *, seed=0):
    """Counts drawn from known topics: (Counts, θ, β)."""
    generator = np.random.default_rng(seed)
    beta_KG = generator.dirichlet(np.full(n_genes, 0.1), n_topics)
    theta_NK = generator.dirichlet(np.full(n_topics, 0.1), n_cells)
    p_NG = theta_NK @ beta_KG
    x_NG = np.stack([generator.multinomial(depth, p / p.sum()) for p in p_NG])
    cells = np.array([f"cell_{i}" for i in range(n_cells)], dtype=object)
    genes = np.array([f"gene_{i}" for i in range(n_genes)], dtype=object)
    return Counts(sp.csr_matrix(x_NG.astype(np.float32)), cells, genes), theta_NK, beta_KG


@pytest.fixture(scope="session")
def planted():
    """500 cells × 120 genes from 4 topics, 300 counts each."""
    return plant(500, 120, 4, 300)


@pytest.fixture(scope="session")
def shallow():
    """400 cells × 200 genes from 4 topics, 30 counts each: few enough for sparse arithmetic."""
    return plant(400, 200, 4, 30)


@pytest.fixture(scope="session")
def fitted(planted):
    """Three replicates on 400 of the planted cells, the others for validation."""
    counts = planted[0]
    config = TrainConfig(n_replicates=3, epochs=15, progress=False)
    rows = np.arange(counts.n_cells)
    return train(
        counts[rows[:400]], counts[rows[400:]], ModelConfig(n_topics=4, n_hidden=16), config
    )


PRELOADED = [
    "hydra.main",
    "hydra._internal.hydra",
    "hydra_plugins.topicell_sweeper._sweep",
    "hydra_plugins.topicell_sweeper.sweeper",
    "leidenalg",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_pdf",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.samplers",
    "psycopg",
    "scanpy",
    "sklearn.manifold",
    "sqlalchemy.dialects.postgresql.psycopg",
    "topicell.api",
    "topicell.comparison",
    "topicell.given",
    "topicell.report.compare",
    "topicell.run",
    "topicell.sweep.page",
    "topicell.sweep.search",
    "topicell.tracking.registry",
    "umap",
]
"""What commands import, and what takes them seconds."""


class Started:
    """A process that was started, in a session of its own and thus in a group of its own.

    Of ``subprocess.Popen`` it has ``pid``, ``returncode`` (None while nobody has seen it end; the
    negative number of the signal that killed it), ``poll``, ``wait``, ``send_signal``,
    ``terminate`` and ``kill``. ``stdout`` and ``stderr`` are the text that it has written so far;
    with ``piped``, ``stdout`` is a file to read lines from, and ``stdin`` one to write them to.
    """

    def __init__(self, process, command, said, pipes):
        self._process, self._said = process, said
        self.args = command
        self.err_path = said[1]
        """What its standard error, and that of its children, is written to."""
        self.pid = process.pid
        self.returncode = None
        self.stdin, self._stdout = pipes or (None, None)

    @property
    def stdout(self):
        return self._said[0].read_text() if self._stdout is None else self._stdout

    @property
    def stderr(self):
        return self._said[1].read_text()

    def poll(self):
        """The exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        """The exit code, once it has ended."""
        if self.returncode is None:
            self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout, self.stderr)
        return self.returncode

    def send_signal(self, number):
        """Send a signal to the process alone; ``os.killpg(started.pid, …)`` reaches its group."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def end(self):
        """Leave nothing of its group behind."""
        # While one of the group lives, nobody else has its number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(60)
        for pipe in (self.stdin, self._stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@pytest.fixture(scope="session")
def start_process(tmp_path_factory):
    """Starts processes that have nothing to import any more: they are forked from one that has.

    What it gives is called as ``started`` is, in fixtures of any scope; what it starts has to be
    ended with ``end()``. The process that is forked from has no thread and computes nothing, and
    nothing that befalls its children harms it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder = tmp_path_factory.mktemp("said")
    # Libraries read these when they are imported; OpenBLAS and Arrow would begin threads.
    settings = {
        "OMP_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "XDG_CACHE_HOME": str(tmp_path_factory.getbasetemp() / "cache"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        first = context.Process(target=os.getpid)
        first.start()
    n_started = 0

    def start(*arguments, cwd=None, env=None, program=None, piped=False, quick_workers=False):
        nonlocal n_started
        n_started += 1
        said = [folder / f"{n_started}.{stream}" for stream in ("out", "err")]
        streams, pipes = [os.devnull, *map(str, said)], None
        if piped:
            there_in, here_in = context.Pipe(duplex=False)
            here_out, there_out = context.Pipe(duplex=False)
            streams[:2] = there_in, there_out
            pipes = [
                os.fdopen(os.dup(end.fileno()), mode, encoding="utf-8")
                for end, mode in ((here_in, "w"), (here_out, "r"))
            ]
            here_in.close()
            here_out.close()
        for path in said:
            path.touch()
        ready, there = context.Pipe(duplex=False)
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        given = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "folder": str(cwd or Path.cwd()),
            "environment": {k: v for k, v in environment.items() if v is not None},
            "streams": streams,
            "ready": there,
            "quick_workers": quick_workers,
        }
        process = context.Process(
            target=runpy.run_path, args=(str(CHILD), {"given": given}, "child")
        )
        process.start()
        there.close()
        if piped:
            there_in.close()
            there_out.close()
        # Closed when it has its session, its signals and its streams, or has been killed.
        with contextlib.suppress(EOFError):
            ready.recv()
        ready.close()
        return Started(process, given["arguments"], said, pipes)

    yield start
    first.join()


@pytest.fixture
def started(start_process):
    """Starts ``topicell ARGUMENTS`` within tens of milliseconds, and ends it after the test.

    ``started(*arguments, …)`` gives a `Started`; settings, all of them keywords:

    cwd
        Its current folder; that of the test if it is None.
    env
        Added to the environment of the test; a value of None takes a variable away.
    program
        Python code to run instead, as of ``python -c program *arguments``.
    piped
        Connect its standard input and output by pipes, as ``Popen(stdin=PIPE, stdout=PIPE)`` does.
    quick_workers
        Its own processes of ``multiprocessing``, as the workers of a sweep, import nothing either.
        They are its children, and have its standard error.

    It stands in a session of its own, with the signals of a new interpreter: Ctrl-C is
    ``os.killpg(one.pid, signal.SIGINT)``. When the call returns it can be signalled and killed.
    Two things are not as of a new interpreter: ``/proc/PID/environ`` and ``/proc/PID/cmdline``
    are those of the process that it was forked from, and the seed of hashes is common to all.
    """
    found = []

    def start(*arguments, **settings):
        found.append(start_process(*arguments, **settings))
        return found[-1]

    try:
        yield start
    finally:
        for one in found:
            one.end()


@pytest.fixture(scope="session")
def topicell(start_process):
    """Runs the command line in a process of its own, as a user does."""

    def command(*arguments, cwd=None, env=None, timeout=300, quick_workers=False):
        process = start_process(*arguments, cwd=cwd, env=env, quick_workers=quick_workers)
        try:
            process.wait(timeout)
        finally:
            process.end()
        return subprocess.CompletedProcess(
            process.args, process.returncode, process.stdout, process.stderr
        )

    return command


@pytest.fixture
def run_here(capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        hook = sys.unraisablehook
        try:
            with pytest.raises(SystemExit) as exit_:
                main([*map(str, arguments)])
        finally:
            sys.unraisablehook = hook
        return exit_.value.code, *capsys.readouterr()

    return run
