"""The same seed gives the same bytes.

Two interpreters make the same runs, with different seeds of hashes and global random states; one of
them makes a run again with the cells from its cache.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import anndata
import numpy as np
import optuna
import pandas as pd
import pyro
import pytest
import torch

import topicell as package
from topicell.config import ReportConfig, Sampler, SimulationConfig, SweepConfig
from topicell.report.embedding import embed_counts, embed_topics
from topicell.sweep.study import Study
from topicell.sweep.trials import PERPLEXITY

PROGRAM = """
import json, os, random, runpy, sys
import numpy as np
import torch

salt, *names = sys.argv[1:]
os.environ["XDG_CACHE_HOME"] = os.path.abspath("cache")


def disturb():
    random.seed(int(salt))
    np.random.seed(int(salt))
    torch.manual_seed(int(salt))
    random.random(), np.random.rand(int(salt)), torch.rand(int(salt))


def topicell(*arguments):
    disturb()
    sys.argv = ["topicell", *arguments]
    try:
        runpy.run_module("topicell", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)


def baselines():
    import warnings
    import topicell
    warnings.simplefilter("ignore")
    adata = topicell.load_dataset("simulated", simulation=SIMULATED)
    for kind in KINDS:
        for seed in (0, 1):
            disturb()
            fit = topicell.fit(
                adata, n_topics=3, n_replicates=2, kind=kind, epochs=3, seed=seed, progress=False
            )
            np.savez(f"{kind}-{seed}.npz", beta=fit.beta(), theta=fit.theta(adata))


from topicell.config import SimulationConfig
SIMULATED = SimulationConfig(n_cells=100, n_genes=50, n_topics=3)
KINDS = json.loads(os.environ["KINDS"])
RUNS = json.loads(os.environ["RUNS"])
if __name__ == "__main__":  # not in the workers of a sweep
    for name in names:
        topicell("train", f"hydra.run.dir={name}", *RUNS[name])
    baselines()
    topicell("train", "-m", *RUNS["sweep"])
"""
SMALL = [
    *("data=simulated", "data.simulation.n_cells=150", "data.simulation.n_genes=80"),
    *("data.simulation.n_topics=3", "model.n_hidden=16", "train.epochs=5"),
    *("train.n_replicates=2", "train.progress=false", "evaluate.n_samples=32"),
    *("evaluate.n_coherence_genes=5", "tracking=off"),
]
RUN = [*SMALL, "model.n_topics=4"]
REPORTED = [*RUN, "report.dpi=30"]
RUNS = {
    "first": REPORTED,
    "second": REPORTED,
    "cached": [*RUN, "report=off"],
    "two_threads": [*RUN, "report=off", "train.threads=2"],
    "other_seed": [*RUN, "report=off", "seed=1"],
    "sweep": [
        *("sweep=topics", *SMALL, "model.n_topics=range(2,12)", "hydra.sweep.dir=sweeps"),
        *("sweep.n_trials=3", "sweep.n_jobs=1", "sweep.n_startup_trials=1", "evaluate.n_splits=2"),
    ],
}
SAME = ("second", "cached")


KINDS = {
    "sklearn_lda": "sklearn",
    "sklearn_nmf": "sklearn",
    "gensim_lda": "gensim",
    "tomotopy_lda": "tomotopy",
}
"""Models and their libraries, without scvi-tools, which takes long to import:
tests/model/test_external.py tests its seed within one interpreter."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folders of both interpreters, and the folder of each run by its name."""
    folders = []
    for hash_seed, names in (("1", ("first", "other_seed")), ("2", (*SAME, "two_threads"))):
        folder = tmp_path_factory.mktemp("made")
        program = folder / "program.py"
        program.write_text(PROGRAM)
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
            "KINDS": json.dumps([kind for kind in KINDS if find_spec(KINDS[kind])]),
            "RUNS": json.dumps(RUNS),
        }
        done = subprocess.run(
            [sys.executable, str(program), hash_seed, *names],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        folders.append(folder)
    runs = {path.name: path for folder in folders for path in folder.iterdir()}
    return SimpleNamespace(folders=folders, runs=runs)


def bytes_of(folder):
    """Return the content of all tables, figures and weights of a run."""
    places = ("cells/*.csv", "topics/*.csv", "figures/*.png", "model/*.safetensors", "scores.csv")
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for place in places
        for path in folder.glob(place)
    }
    assert len(found) >= 8
    return found


@pytest.mark.slow
@pytest.mark.parametrize("other", SAME)
def test_a_run_gives_the_same_bytes_again(made, other):
    first, again = bytes_of(made.runs["first"]), bytes_of(made.runs[other])
    if other == "second":
        assert first.keys() == again.keys()
        assert "figures/umap_counts_topics.png" in first
    assert [name for name in again if first[name] != again[name]] == []


def exact(values):
    """Return the bytes of a matrix, sparse or dense."""
    return (values.toarray() if hasattr(values, "toarray") else np.asarray(values)).tobytes()


@pytest.mark.slow
def test_cells_and_their_maps_are_the_same(made):
    first, again = (
        anndata.read_h5ad(made.runs[name] / "adata.h5ad") for name in ("first", "second")
    )
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert "leiden" in first.obs
    assert {"X_pca", "X_umap_counts", "X_umap_topics", "X_lda"} <= set(first.obsm)
    for part in ("obsm", "varm", "layers"):
        one, other_ = getattr(first, part), getattr(again, part)
        assert one.keys() == other_.keys()
        for name in one:
            assert exact(one[name]) == exact(other_[name]), (part, name)


@pytest.mark.slow
def test_another_seed_gives_other_bytes(made):
    first, other = bytes_of(made.runs["first"]), bytes_of(made.runs["other_seed"])
    for name in ("cells/cell_topics.csv", "topics/gene_topics.csv", "scores.csv"):
        assert first[name] != other[name]
    assert first["model/weights.safetensors"] != other["model/weights.safetensors"]
    one, two = (
        anndata.read_h5ad(made.runs[name] / "adata.h5ad") for name in ("first", "other_seed")
    )
    assert (one.obs["split"] != two.obs["split"]).any()


@pytest.mark.slow
def test_more_threads_change_only_the_last_digits(made):
    for table in ("cells/cell_topics.csv", "topics/gene_topics.csv"):
        one, two = (
            pd.read_csv(made.runs[name] / table, index_col=0) for name in ("first", "two_threads")
        )
        assert list(one.index) == list(two.index)
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if library == "sklearn" else pytest.mark.extras(library))
        for kind, library in KINDS.items()
    ],
)
def test_other_models_give_the_same_bytes_again(made, kind):
    one, two = (np.load(folder / f"{kind}-0.npz") for folder in made.folders)
    other = np.load(made.folders[0] / f"{kind}-1.npz")
    for name in ("beta", "theta"):
        assert one[name].tobytes() == two[name].tobytes()
        assert one[name].tobytes() != other[name].tobytes()
        assert one[name][0].tobytes() != one[name][1].tobytes()  # replicates


@pytest.mark.slow
def test_a_sweep_has_the_same_trials_and_values_again(made):
    sweeps = []
    for folder in made.folders:
        (path,) = folder.glob("sweeps/*/sweep.json")
        sweeps.append(json.loads(path.read_text()))
    kept = ("number", "state", "params", "n_topics", "values", "curve", "epochs")
    one, two = ([{key: t[key] for key in kept} for t in sweep["trials"]] for sweep in sweeps)
    assert one == two
    assert len(one) == 3
    assert all(trial["state"] in ("COMPLETE", "PRUNED") for trial in one)
    assert sweeps[0]["name"] == sweeps[1]["name"]
    assert sweeps[0]["importance"] == sweeps[1]["importance"]


# In one process


def proposals(sampler, seed, name):
    """Return the settings of eight trials of a study with a simple objective."""
    settings = SweepConfig(
        study=name, storage=f"sqlite:///{name}.db", sampler=sampler, n_trials=8, pruner="none"
    )
    space = {
        "model.n_topics": optuna.distributions.IntDistribution(2, 60),
        "train.learning_rate": optuna.distributions.FloatDistribution(0.01, 1.0, log=True),
    }
    study = Study(settings, space, {}, seed)
    asked = []
    try:
        for _ in range(8):
            random.random(), np.random.rand()  # noqa: NPY002
            trial = study.ask()
            asked.append(dict(trial.params))
            value = abs(trial.params["model.n_topics"] - 20.0)
            study.complete(trial.number, value, {PERPLEXITY: {"0": [value]}})
    finally:
        study.close()
    return asked


@pytest.mark.parametrize("sampler", [s for s in Sampler if s is not Sampler.grid])
def test_a_study_proposes_the_same_again(sampler):
    first = proposals(sampler, 3, "first")
    assert proposals(sampler, 3, "again") == first
    assert proposals(sampler, 4, "other") != first


def states():
    """Return every global state that a fit could change."""
    return {
        "random": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "parameters": sorted(pyro.get_param_store().keys()),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
    }


def fitted_to(adata, seed):
    """Return θ of a fit, and everything that depends on random numbers, as bytes."""
    fit = package.fit(adata, n_topics=3, n_replicates=2, epochs=3, seed=seed, progress=False)
    theta = fit.cell_topics(adata, seed=seed)
    return theta, {
        "theta": theta.to_numpy().tobytes(),
        "beta": fit.beta(seed=seed).tobytes(),
        "refined": fit.theta(adata, refine=True, seed=seed).tobytes(),
        "perplexity": fit.perplexity(adata, seed=seed),
        "elbo": fit.elbo_by_replicate(adata, seed=seed).tobytes(),
    }


def mapped(adata, theta, seed):
    """Return the maps and clusters of a report, as bytes."""
    adata = adata.copy()
    adata.X = np.log1p(adata.layers["counts"].toarray())
    adata.obsm["X_lda"] = theta
    rows = np.arange(adata.n_obs)
    embed_counts(adata, rows, ReportConfig(), seed)
    embed_topics(adata, rows, ReportConfig(), seed)
    found = {name: np.asarray(values).tobytes() for name, values in adata.obsm.items()}
    return found | {"leiden": tuple(adata.obs["leiden"])}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_global_random_states_are_neither_read_nor_changed():
    simulation = SimulationConfig(n_cells=120, n_genes=50, n_topics=3)
    adata = package.load_dataset("simulated", simulation=simulation)
    fits, maps = [], []
    for salt in (1, 2):
        random.seed(salt)
        np.random.seed(salt)  # noqa: NPY002
        torch.manual_seed(salt)
        torch.set_num_threads(1)  # the compiler of UMAP changes it
        before = states()
        theta, fit = fitted_to(adata, seed=0)
        assert states() == before
        fits.append(fit)
        maps.append(mapped(adata, theta, seed=0))
    assert fits[0] == fits[1]
    assert maps[0] == maps[1]
    other_theta, other_fit = fitted_to(adata, seed=1)
    assert [name for name in fit if fit[name] == other_fit[name]] == []
    other_maps = mapped(adata, theta, seed=1)
    for name in ("X_umap_counts", "X_umap_topics"):
        assert other_maps[name] != maps[0][name]
    assert not np.array_equal(theta, other_theta)
