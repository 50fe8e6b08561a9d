"""Small corpora with known truth, and a place of its own for everything a test writes."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import runpy
import shutil
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
from hypothesis import HealthCheck, settings

from topicell import progress, signals
from topicell.cli import main
from topicell.config import ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.model.training import train
from topicell.tracking import store

CHECKOUT = Path(__file__).parents[1]
CHILD = Path(__file__).with_name("child.py")

# No test fails because the machine is slow. Fixtures of Hypothesis tests are folders to write to.
settings.register_profile(
    "topicell",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("topicell")

EXTRA_OF = {
    "gensim": "baselines",
    "tomotopy": "baselines",
    "scvi": "baselines",
    "psycopg": "postgresql",
    "hydra_plugins.hydra_joblib_launcher": "launchers",
    "hydra_plugins.hydra_submitit_launcher": "launchers",
}
"""The modules that the README's set-up does not install, and the extra that does."""
CHROMIUM = os.environ.get("TOPICELL_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FIXTURES = {
    "chromium": "chromium",
    "facs_folder": "pbmc_facs.RData",
    "postgresql_programs": "postgresql",
}
"""Fixtures that need what the README's set-up does not install, and the name of it in a marker."""


def _facs_folder() -> Path | None:
    for folder in (os.environ.get("TOPICELL_DATA"), CHECKOUT.parent / "shared" / "data"):
        if folder and (Path(folder) / "pbmc_facs.RData").is_file():
            return Path(folder).resolve()
    return None


def _postgresql_programs() -> Path | None:
    found = shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else []
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(versions, key=lambda folder: float(folder.parent.name), reverse=True)
    for folder in folders:
        if all((folder / name).is_file() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    return None


def why_missing(name: str) -> str | None:
    """Return why something that ``pytest.mark.extras`` names is missing; None if it is here."""
    if name == "chromium":
        return None if CHROMIUM else "no Chromium on the path (TOPICELL_CHROMIUM names another)"
    if name == "pbmc_facs.RData":
        return None if _facs_folder() else f"no {name} (set TOPICELL_DATA to its folder)"
    if name == "postgresql":
        return None if _postgresql_programs() else "no PostgreSQL (initdb, pg_ctl and postgres)"
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed (topicell[{EXTRA_OF[name]}])"
    return None


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests whose fixtures need an extra, and run files with slow tests first."""
    for item in items:
        names = [FIXTURES[name] for name in getattr(item, "fixturenames", ()) if name in FIXTURES]
        if names:
            item.add_marker(pytest.mark.extras(*names))
    # A long file that is begun last leaves all workers but one idle.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose extras are missing; ``-m extras`` selects those tests."""
    names = [name for marker in item.iter_markers("extras") for name in marker.args]
    if reasons := list(filter(None, map(why_missing, names))):
        pytest.skip("; ".join(reasons))


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _trust_the_power(connection, _):
    """Databases of tests need not outlive a power failure: waiting for the disk is half their time.

    A process that is killed loses nothing by it.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A SQLite file with MLflow's tables, as `create_store` begins it."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    store._open(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture(autouse=True, scope="session")
def _stores_are_copied(empty_store):
    """New stores begin as copies, here and in the processes that are started."""
    spec = importlib.util.spec_from_file_location("functions_of_child", CHILD)
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_open", store._open)
        child.copy_new_stores(store, str(empty_store))
        yield


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
    signals.forget()


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
def facs_folder() -> Path | None:
    """The folder of the downloaded FACS set."""
    return _facs_folder()


@pytest.fixture(scope="session")
def postgresql_programs() -> Path | None:
    """The folder of PostgreSQL's programs."""
    return _postgresql_programs()


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """The path of a Chromium browser."""
    return CHROMIUM


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
    "topicell.comparison.page",
    "topicell.evaluate",
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
def start_process(tmp_path_factory, empty_store):
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

    def start(*arguments, cwd=None, env=None, program=None, piped=False, **settings):
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
            "quick_workers": settings.pop("quick_workers", False),
            "empty_store": str(empty_store) if settings.pop("copied_store", True) else None,
            "draft": settings.pop("draft", False),
        }
        assert not settings
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
    copied_store
        Begin a new SQLite store as a copy of an empty one: the default.
    draft
        Draw the page of a sweep or grid with few dots and without PDFs.

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

    def command(*arguments, timeout=600, **settings):
        process = start_process(*arguments, **settings)
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
