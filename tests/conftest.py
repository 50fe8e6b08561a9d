"""Small corpora with known truth, and a place of its own for everything a test writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import torch

from topicell.cli import main
from topicell.config import ModelConfig, TrainConfig
from topicell.model.counts import Counts
from topicell.model.training import train

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_place(tmp_path_factory, monkeypatch):
    """Caches, stores and relative paths of a test stay in its own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("MLFLOW_TRACKING_URI", "TOPICELL_PARENT_RUN_ID", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True)
def _strict():
    torch.set_num_threads(1)
    pyro.enable_validation(True)


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


@pytest.fixture
def topicell():
    """Runs the command line in a process of its own, as a user does."""

    def command(*arguments, env=None, timeout=300):
        return subprocess.run(
            [sys.executable, "-m", "topicell", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            check=False,
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
