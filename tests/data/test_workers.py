"""Workers of Dask prepare cells as this process does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.config import DataConfig, Flavor, PreprocessConfig, RunConfig
from topicell.data import mapped, stored, workers
from topicell.data.mapped import is_mapped
from topicell.data.preprocessing import prepared, preprocess
from topicell.data.reading import load_or_open
from topicell.errors import InputError
from topicell.run import cells_of

cluster_of_dask = pytest.mark.extras("distributed")


@pytest.fixture(scope="module")
def address():
    """Return the address of a scheduler with two worker processes."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as cluster:
        yield cluster.scheduler_address


def make(n_cells=400, n_genes=120):
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 2.0, (4, n_genes)) + 0.05
    kind = rng.integers(4, size=n_cells)
    x = rng.poisson(rates[kind]).astype(np.float32)
    x[rng.integers(n_cells, size=30), rng.integers(n_genes, size=30)] += 60  # is clipped
    x[[3, 200]] = 0
    obs = pd.DataFrame(
        {"kind": pd.Categorical([f"k{k}" for k in kind]), "batch": rng.integers(3, size=n_cells)},
        index=[f"c{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"MT-{i}" if i < 5 else f"G{i}" for i in range(n_genes)])
    return anndata.AnnData(sp.csr_matrix(x), obs=obs, var=var)


def write(adata, folder, form="h5ad"):
    path = folder / f"cells.{form}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's and zarr's own, about their formats
        getattr(adata, f"write_{form}")(path)
    return path


def result(path, dask, *, rounds=False, folder=None, **settings):
    """Return the prepared cells or the error, and the warnings in order."""
    settings = {"n_variable_genes": 40, "cache": folder is not None} | settings
    config = PreprocessConfig(dask=dask, **settings)
    data = DataConfig(name="file", path=str(path), backed=True, round=rounds)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = prepared(
                lambda: load_or_open(data, shared=dask is not None), "", config, folder=folder
            )
        except InputError as error:
            found = str(error)
    return found, [str(w.message) for w in caught if w.category is UserWarning]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", 37)


@cluster_of_dask
@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("h5ad", {}),
        ("zarr", {"batch_key": "batch"}),
        ("h5ad", {"batch_key": "kind", "min_counts_per_cell": 0}),
        ("h5ad", {"target_sum": None, "flavor": Flavor.seurat_v3_paper}),
        ("h5ad", {"n_variable_genes": None}),
        ("h5ad", {"min_counts_per_cell": 10_000}),
    ],
)
def test_cells_and_warnings_are_those_without_dask(form, settings, address, tmp_path):
    path = write(make(), tmp_path, form)
    expected, warned = result(path, None, **settings)
    found, warned_too = result(path, address, **settings)
    assert warned_too == warned
    if isinstance(expected, str):
        assert found == expected
        return
    assert mapped.is_mapped(found)
    for x, y in ((found.X, expected.X), (found.layers["counts"], expected.layers["counts"])):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x.toarray(), y.toarray())
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)


@cluster_of_dask
@pytest.mark.parametrize(("value", "words"), [(0.5, "not whole"), (-1, "negative")])
def test_a_value_that_is_no_count_has_the_same_message(value, words, address, tmp_path, capfd):
    adata = make()
    x = adata.X.toarray()
    x[211, 7] = x[390, 2] = value
    adata.X = sp.csr_matrix(x)
    path = write(adata, tmp_path)
    expected, _ = result(path, None)
    found, _ = result(path, address)
    assert words in found
    assert "row 211, gene G7" in found
    assert found == expected
    assert capfd.readouterr().err == ""


@cluster_of_dask
def test_repeated_and_rounded_values_have_the_same_warnings(address, tmp_path):
    adata = make()
    x = adata.X
    x.data[::50] += 0.3
    for row in (0, 300):
        first = x.indptr[row]
        x.indices[first + 1] = x.indices[first]
    adata.X = sp.csr_matrix((x.data, x.indices, x.indptr), shape=x.shape)
    path = write(adata, tmp_path)
    expected, warned = result(path, None, rounds=True)
    found, warned_too = result(path, address, rounds=True)
    assert any("holds 2 values that repeat a cell and gene" in text for text in warned)
    assert any("were rounded" in text for text in warned)
    assert warned_too == warned
    assert found.uns[stored.ROUNDED] == expected.uns[stored.ROUNDED]


@cluster_of_dask
def test_the_cache_does_not_depend_on_dask(address, tmp_path):
    path = write(make(), tmp_path)
    result(path, address, folder=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    written = kept.read_bytes()
    # Nobody answers there, and nobody has to.
    found, _ = result(path, "tcp://127.0.0.1:1", folder=tmp_path / "cache")
    assert not isinstance(found, str)
    result(path, None, folder=tmp_path / "cache")
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [kept.name]
    assert kept.read_bytes() == written


@cluster_of_dask
@pytest.mark.filterwarnings("ignore:.* cells have fewer counts")
def test_a_run_without_dask_has_its_own_cells_in_memory(address, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = DataConfig(name="file", path=str(write(make(), tmp_path)))
    preprocess = PreprocessConfig(n_variable_genes=40, dask=address)
    shared = cells_of(RunConfig(data=data, preprocess=preprocess)).adata
    alone = cells_of(RunConfig(data=data, preprocess=replace(preprocess, dask=None))).adata
    in_parts = RunConfig(data=replace(data, backed=True), preprocess=replace(preprocess, dask=None))
    assert is_mapped(shared)
    assert not is_mapped(alone)
    assert alone.raw is not None
    assert is_mapped(cells_of(in_parts).adata)
    assert len(list((tmp_path / "cache" / "topicell" / "prepared").iterdir())) == 2


@cluster_of_dask
def test_a_scheduler_is_found_by_its_file(address, tmp_path):
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": address}))
    found, _ = result(write(make(), tmp_path), str(tmp_path / "scheduler.json"))
    assert found.shape == (398, 40)


@cluster_of_dask
def test_workers_that_do_not_find_the_file_are_rejected(address, tmp_path, monkeypatch):
    write(make(), tmp_path)
    monkeypatch.chdir(tmp_path)
    # Each process has its own current folder at this path.
    found, _ = result("/proc/self/cwd/cells.h5ad", address)
    assert "does not find /proc/self/cwd/cells.h5ad" in found
    assert "(2 of 2 workers)" in found


@cluster_of_dask
def test_workers_with_other_code_are_rejected(address, tmp_path, monkeypatch):
    own = workers.code()
    monkeypatch.setattr(workers, "code", lambda: "topicell 0.0.1")
    found, _ = result(write(make(), tmp_path), address)
    assert f"has {own}, whereas this process has topicell 0.0.1" in found


def test_workers_without_topicell_are_rejected(tmp_path):
    matrix = SimpleNamespace(files=(write(make(), tmp_path),))
    missing = ModuleNotFoundError("No module named 'topicell'")
    client = SimpleNamespace(run=lambda *_, **__: {"tcp://a": None, "tcp://b": missing})
    with pytest.raises(InputError, match=r"the worker tcp://b cannot run this version .* \(1 of 2"):
        workers._require_same(client, matrix, "tcp://c:1")


@cluster_of_dask
def test_a_scheduler_that_does_not_answer_or_has_no_workers_is_rejected(tmp_path, monkeypatch):
    from distributed import LocalCluster

    path = write(make(), tmp_path)
    monkeypatch.setattr(workers, "SECONDS", 0.5)
    found, _ = result(path, "tcp://127.0.0.1:1")
    assert "preprocess.dask = 'tcp://127.0.0.1:1': no scheduler answers within 0.5 s" in found
    found, _ = result(path, str(tmp_path / "none.json"))
    assert "this is not the file of a scheduler" in found
    monkeypatch.undo()
    with LocalCluster(
        n_workers=0,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as cluster:
        found, _ = result(path, cluster.scheduler_address)
    assert "the scheduler has no workers" in found


@cluster_of_dask
def test_the_command_line_starts_workers_and_ends_them(tmp_path):
    # A new interpreter: workers import the main module of a real command.
    path = write(make(), tmp_path)
    (tmp_path / "tmp").mkdir()
    run = subprocess.run(
        [
            *(sys.executable, "-m", "topicell", "train", "data=file", f"data.path={path}"),
            *("preprocess.dask=local", "preprocess.n_variable_genes=40", "model.n_topics=3"),
            *("train.epochs=2", "train.n_replicates=1", "train.progress=false", "report=off"),
            *("tracking=off", "hydra.run.dir=run", "evaluate.n_samples=8"),
        ],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    # Besides the progress, nothing is said of Dask.
    assert "dask" not in run.stderr.lower().replace("by the workers of dask", "")
    assert "Traceback" not in run.stderr
    assert anndata.read_h5ad(tmp_path / "run" / "adata.h5ad").shape == (398, 40)
    assert not list((tmp_path / "tmp").glob("topicell-dask-*"))


@cluster_of_dask
def test_ctrl_c_ends_local_workers(tmp_path):
    path = write(make(), tmp_path)
    folder = tmp_path / "tmp"
    folder.mkdir()
    command = [sys.executable, "-m", "topicell", "train", "data=file", f"data.path={path}"]
    process = subprocess.Popen(
        [*command, "preprocess.dask=local", "report=off", "tracking=off"],
        env=os.environ | {"TMPDIR": str(folder)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not list(folder.glob("topicell-dask-*")):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        # It returns when the last process that could write there has ended.
        _, err = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "topicell: interrupted"
    assert "Traceback" not in err
    assert not list(folder.glob("topicell-dask-*"))


def test_few_chunks_are_computed_ahead_and_results_keep_the_order():
    running = set()
    most = 0

    class Future:
        def __init__(self, rows):
            self.rows = rows
            running.add(rows)

        def result(self):
            running.remove(self.rows)
            return [self.rows]

    def submit(_part, _function, rows, of_rows, _common, pure):
        nonlocal most
        np.testing.assert_array_equal(of_rows[0], rows)
        future = Future(rows)
        most = max(most, len(running))
        return future

    client = SimpleNamespace(
        scatter=lambda data, **_: data, nthreads=lambda: {"a": 1, "b": 2}, submit=submit
    )
    matrix = SimpleNamespace(rows=range(1000), n_rows=30)
    found = list(workers.OverWorkers(client, matrix)(None, (np.arange(1000),)))
    assert [row for rows in found for row in rows] == list(range(1000))
    assert most == 6


def test_without_distributed_the_extra_is_named(monkeypatch, run_here):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, _, err = run_here("train", "preprocess.dask=local")
    assert code == 2
    assert "pip install 'topicell[dask]'" in err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dask": "localhost:8786"}, "tcp://HOST:PORT"),
        ({"dask": "local", "flavor": "seurat"}, "use preprocess.flavor=seurat_v3"),
    ],
)
def test_settings_that_dask_cannot_use_are_rejected(settings, words):
    with pytest.raises(InputError, match=r"preprocess\.dask") as caught:
        PreprocessConfig(**settings)
    assert words in str(caught.value)


def test_sources_that_cannot_be_shared_are_rejected(tmp_path, monkeypatch):
    config = PreprocessConfig(dask="local")
    with pytest.raises(InputError, match="needs an h5ad file or a zarr folder, not pbmc68k"):
        load_or_open(DataConfig(name="pbmc68k"), shared=True)
    with pytest.raises(InputError, match="these are in memory"):
        preprocess(make(), config)
    table = tmp_path / "cells.csv"
    make().to_df().to_csv(table)
    with pytest.raises(InputError, match=r"preprocess\.dask needs an h5ad file"):
        load_or_open(DataConfig(name="file", path=str(table)), shared=True)
    adata = make()
    adata.X = adata.X.tocsc()
    data = DataConfig(name="file", path=str(write(adata, tmp_path)))
    with pytest.raises(InputError, match="stored by columns"):
        load_or_open(data, shared=True)
