"""Fixtures: counts from known topics, a folder for each test, and processes that start fast."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import child
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

collect_ignore = ["cellxgene_server.py"]  # a program of another environment

# Tests must not fail on a slow machine; tests with Hypothesis may use a folder fixture.
settings.register_profile(
    "topicell",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("topicell")

EXTRA_OF = {
    "gensim": "baselines",
    "zarrs": "scale",
    "tomotopy": "baselines",
    "scvi": "baselines",
    "psycopg": "postgresql",
    "hydra_plugins.hydra_joblib_launcher": "launchers",
    "hydra_plugins.hydra_submitit_launcher": "launchers",
    "distributed": "dask",
}
"""Modules that the README's set-up does not install, and the extra that installs them."""
CHROMIUM = os.environ.get("TOPICELL_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CELLXGENE = os.environ.get("TOPICELL_CELLXGENE")
"""Python of an environment with cellxgene, whose requirements are not those of topicell."""
NPM = os.environ.get("TOPICELL_NPM")
"""Folder with the packages, by ``npm pack``, that ``topicell/export/vitessce.html`` loads."""
FIXTURES = {
    "cellxgene": "cellxgene",
    "chromium": "chromium",
    "facs_folder": "pbmc_facs.RData",
    "npm_packages": "npm",
    "postgresql_programs": "postgresql",
}
"""Fixtures that need more than the README's set-up installs, and the name in the marker."""


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
    """Return why a name in ``pytest.mark.extras`` is missing; None if it is installed."""
    if name == "cellxgene":
        return None if CELLXGENE else "TOPICELL_CELLXGENE names no Python with cellxgene"
    if name == "npm":
        return None if NPM else "TOPICELL_NPM names no folder with npm packages"
    if name == "chromium":
        return None if CHROMIUM else "no Chromium on the path (TOPICELL_CHROMIUM names another)"
    if name == "pbmc_facs.RData":
        return None if _facs_folder() else f"no {name} (set TOPICELL_DATA to its folder)"
    if name in ("zsh", "fish"):
        return None if shutil.which(name) else f"no {name} on the path"
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
    # When a long file starts last, the other workers are idle.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose extras, or whose GPU, are missing; ``-m extras`` selects those tests."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    if item.get_closest_marker("linux") and sys.platform != "linux":
        pytest.skip("reads /proc, or limits memory, as only Linux allows")
    names = [name for marker in item.iter_markers("extras") for name in marker.args]
    if reasons := list(filter(None, map(why_missing, names))):
        pytest.skip("; ".join(reasons))


# Half of the time of a test with a store. Only a power failure could lose data.
sqlalchemy.event.listen(sqlalchemy.Engine, "connect", child.do_not_wait_for_the_disk)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """Return a SQLite file with MLflow's tables, which take a second to create."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    store._open(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture(autouse=True, scope="session")
def _stores_are_copied(empty_store):
    """Create new stores as copies of the empty one; `start_process` does so too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_open", store._open)
        child.copy_new_stores(store, str(empty_store))
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory, monkeypatch):
    """Give each test its own current folder, and no cache or store of the user."""
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
def _same_state(monkeypatch):
    """Start each test with the same global state."""
    # The output must not depend on the load of the machine.
    monkeypatch.setattr(progress, "SECONDS", 1e6)
    torch.set_num_threads(1)
    pyro.enable_validation(True)
    signals.forget()


@pytest.fixture(autouse=True)
def _standard_error_stays_open():
    """Keep standard error open: absl (of scvi-tools) closes it when logging is set up again."""
    yield
    if "absl.logging" in sys.modules:
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture
def double_precision():
    """Use float64 by default, and a fixed seed."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def facs_folder() -> Path | None:
    """Return the folder of the downloaded FACS set."""
    return _facs_folder()


@pytest.fixture(scope="session")
def postgresql_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs."""
    return _postgresql_programs()


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """Return the path of a Chromium browser."""
    return CHROMIUM


@pytest.fixture(scope="session")
def cellxgene() -> str | None:
    """Return the Python of an environment with cellxgene."""
    return CELLXGENE


@pytest.fixture(scope="session")
def npm_packages() -> Path | None:
    """Return the folder with the npm packages that the page for Vitessce loads."""
    return Path(NPM) if NPM else None


def plant(n_cells, n_genes, n_topics, depth, *, seed=0):
    """Draw counts from known topics: return (Counts, θ, β)."""
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
    """Draw 500 cells × 120 genes from 4 topics, 300 counts per cell."""
    return plant(500, 120, 4, 300)


@pytest.fixture(scope="session")
def shallow():
    """Draw 400 cells × 200 genes from 4 topics, 30 counts per cell: fitted as sparse counts."""
    return plant(400, 200, 4, 30)


@pytest.fixture(scope="session")
def fitted(planted):
    """Fit three replicates to 400 of the planted cells; validate on the other 100."""
    counts = planted[0]
    config = TrainConfig(n_replicates=3, epochs=15, progress=False)
    rows = np.arange(counts.n_cells)
    return train(
        counts[rows[:400]], counts[rows[400:]], ModelConfig(n_topics=4, n_hidden=16), config
    )


@pytest.fixture
def small():
    """Return the settings of a training run of about a second on simulated cells."""
    return [
        *("data=simulated", "data.simulation.n_cells=120", "data.simulation.n_genes=60"),
        *("data.simulation.n_topics=3", "model.n_topics=3", "model.n_hidden=8"),
        *("train.epochs=3", "train.n_replicates=2", "train.progress=false"),
        *("evaluate.n_coherence_genes=5", "report.dpi=40"),
    ]


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
"""Modules that commands import, which takes seconds."""


class Started:
    """A started process, which has a session of its own and thus a process group of its own.

    Like ``subprocess.Popen`` it has ``pid``, ``returncode`` (None until `poll` or `wait` saw it
    end; the negative number of the signal that killed it), ``poll``, ``wait``, ``send_signal``,
    ``terminate`` and ``kill``. ``stdout`` and ``stderr`` are its output so far, as text; with
    ``piped``, ``stdout`` is a file to read from and ``stdin`` a file to write to.
    """

    def __init__(self, process, command, outputs, pipes):
        self._process, self._outputs = process, outputs
        self.args = command
        self.err_path = outputs[1]
        """The file that receives the standard error of the process and its children."""
        self.pid = process.pid
        self.returncode = None
        self.stdin, self._stdout = pipes or (None, None)

    @property
    def stdout(self):
        return self._outputs[0].read_text() if self._stdout is None else self._stdout

    @property
    def stderr(self):
        return self._outputs[1].read_text()

    def poll(self):
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        """Wait until the process ends; return its exit code."""
        if self.returncode is None:
            self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout, self.stderr)
        return self.returncode

    def send_signal(self, number):
        """Send a signal to the process only; ``os.killpg(started.pid, …)`` reaches its group."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def end(self):
        """Kill the whole process group."""
        # The number of the group is not reused while a process of the group lives.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(60)
        for pipe in (self.stdin, self._stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@pytest.fixture(scope="session")
def start_process(tmp_path_factory, empty_store):
    """Return a function that starts processes without the seconds that imports take.

    They are forked from a process that has imported everything, has no thread, and computes
    nothing. The function takes the arguments of `started`, and serves fixtures of any scope; the
    caller must call ``end()`` of what it returns.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    folder = tmp_path_factory.mktemp("outputs")
    # Libraries read these when they are imported; OpenBLAS and Arrow would start threads.
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

    def start(
        *arguments,
        cwd=None,
        env=None,
        program=None,
        piped=False,
        quick_workers=False,
        copied_store=True,
        draft=False,
    ):
        nonlocal n_started
        n_started += 1
        outputs = [folder / f"{n_started}.{stream}" for stream in ("out", "err")]
        streams, pipes = [os.devnull, *map(str, outputs)], None
        if piped:
            child_in, our_in = context.Pipe(duplex=False)
            our_out, child_out = context.Pipe(duplex=False)
            streams[:2] = child_in, child_out
            pipes = [
                os.fdopen(os.dup(end.fileno()), mode, encoding="utf-8")
                for end, mode in ((our_in, "w"), (our_out, "r"))
            ]
            our_in.close()
            our_out.close()
        for path in outputs:
            path.touch()
        ready, child_ready = context.Pipe(duplex=False)
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        arguments = [str(argument) for argument in arguments]
        process = context.Process(
            target=child.live,
            args=(program, arguments, str(cwd or Path.cwd())),
            kwargs={
                "environment": {k: v for k, v in environment.items() if v is not None},
                "streams": streams,
                "ready": child_ready,
                "quick_workers": quick_workers and sys.platform == "linux",
                "empty_store": str(empty_store) if copied_store else None,
                "draft": draft,
            },
        )
        process.start()
        child_ready.close()
        if piped:
            child_in.close()
            child_out.close()
        # The child closes it when its session, signals and streams are set up, or it was killed.
        with contextlib.suppress(EOFError):
            ready.recv()
        ready.close()
        return Started(process, arguments, outputs, pipes)

    yield start
    first.join()


@pytest.fixture
def started(start_process):
    """Return a function that starts ``topicell ARGUMENTS``, and end its processes after the test.

    It takes tens of milliseconds and returns a `Started`. Its keywords:

    cwd
        The current folder of the process; that of the test by default.
    env
        Variables added to the environment of the test; the value None removes a variable.
    program
        Python code to run instead, like ``python -c program *arguments``.
    piped
        Connect standard input and output by pipes, like ``Popen(stdin=PIPE, stdout=PIPE)``.
    quick_workers
        Fork the processes that it starts by ``multiprocessing``, the workers of a sweep, as well.
        They are its children, and write to its standard error. On Linux only; elsewhere they are
        started, which takes longer.
    copied_store
        Create a new SQLite store as a copy of an empty one.
    draft
        Draw the page of a sweep or grid with few dots and without PDFs.

    The process has a session of its own and the signals of a new interpreter: Ctrl-C is
    ``os.killpg(process.pid, signal.SIGINT)``, from the moment that the call returns. It differs
    from a new interpreter in two points: ``/proc/PID/environ`` and ``/proc/PID/cmdline`` are those
    of the process that it was forked from, and all have the same seed of hashes.
    """
    processes = []

    def start(*arguments, **settings):
        processes.append(start_process(*arguments, **settings))
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            process.end()


@pytest.fixture(scope="session")
def topicell(start_process):
    """Return a function that runs the command line in a process of its own, like a user."""

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
    """Return a function that runs a command in this process.

    It returns the exit code, standard output and standard error.
    """

    def run(*arguments: object) -> tuple[int, str, str]:
        hook = sys.unraisablehook
        try:
            with pytest.raises(SystemExit) as exit_:
                main([*map(str, arguments)])
        finally:
            sys.unraisablehook = hook
        return exit_.value.code, *capsys.readouterr()

    return run
