"""Security: no file is executed, no name is a path, no secret is written, no host is contacted."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import quote

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import yaml
import zarr

import topicell.data.reading
from topicell.cli.ui import UICommand
from topicell.config import SweepConfig, TrackingConfig, as_dict
from topicell.data.catalogue import CATALOGUE, Dataset, fetch, load_pbmc_facs
from topicell.errors import InputError
from topicell.tracking.registry import fetch_model, register
from topicell.tracking.store import client, experiment_id
from topicell.tracking.ui import ui_address, ui_command

SOURCE = Path(topicell.__file__).parents[1]
ONE_TRIAL = [
    *("sweep=topics", "model.n_topics=choice(2,3)", "sweep.n_trials=1", "sweep.n_jobs=1"),
    "evaluate.n_splits=1",
]
N, G, K = 40, 30, 3


@pytest.fixture
def quick(small):
    """Return the settings of a short run without a report."""
    return [
        *(*small, "train.epochs=2", "train.n_replicates=1", "evaluate.n_samples=8"),
        *("evaluate.differential_expression=false", "report=off"),
    ]


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Return the file that a bomb creates; fail if it exists after the test."""
    path = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Write harmless cells to a file."""
    x = np.random.default_rng(0).poisson(2.0, (N, G)).astype(np.float32)
    adata = anndata.AnnData(
        sp.csr_matrix(x),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(N)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(G)]),
    )
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return path


# No file is executed


@pytest.fixture(scope="module")
def nodes() -> list[tuple[str, ast.AST]]:
    """Return every node of the syntax trees of the sources, with its file."""
    return [
        (path.relative_to(SOURCE).as_posix(), node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


def imported(node: ast.AST) -> list[str]:
    """Return the names that a node imports."""
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


EXECUTE = (
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("pandas.read_pickle", "torch.load", "torch.hub", "torch.jit", "importlib.machinery"),
    *("mlflow.pyfunc.load_model", "mlflow.pytorch", "mlflow.sklearn"),
)
UNPACK = ("tarfile", "zipfile", "shutil.unpack_archive", "pooch.Untar", "pooch.Unzip")


def test_no_module_imports_code_that_executes_or_unpacks_files(nodes):
    found = {
        (path, name)
        for path, node in nodes
        for name in imported(node)
        if any(f"{name}.".startswith(f"{bad}.") for bad in (*EXECUTE, *UNPACK))
    }
    # A sweep sends the composed configuration through a pipe to a worker that it started. The
    # bytes are never in a file, and no other process can write to the pipe.
    assert found == {("hydra_plugins/topicell_sweeper/_sweep.py", "pickle")}


def test_no_call_executes_its_input(nodes):
    banned = {"eval", "exec", "compile", "__import__", "execfile", "os.system", "os.popen"}
    last = {"read_pickle", "to_pickle", "unpack_archive", "extractall", "unsafe_load", "full_load"}
    unpickled = []
    for path, node in nodes:
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        where = f"{path}:{node.lineno}: {name}"
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert name not in banned, where
        assert name.rpartition(".")[2] not in last, where
        assert not name.endswith(("torch.load", "joblib.load", "yaml.load")), where
        assert keywords.get("shell", "False") == "False", where
        assert keywords.get("allow_pickle", "False") == "False", where
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False", where
        if name in ("pickle.load", "pickle.loads"):
            unpickled.append(path)
    assert unpickled == ["hydra_plugins/topicell_sweeper/_sweep.py"]


def objects(bomb: Bomb, n: int = N) -> np.ndarray:
    array = np.empty((n, K), dtype=object)
    array[:] = 0.5
    array[0, 0] = bomb
    return array


def npy(path: Path, bomb: Bomb) -> Path:
    np.save(path.with_suffix(".npy"), objects(bomb), allow_pickle=True)
    return path.with_suffix(".npy")


def npz(path: Path, bomb: Bomb) -> Path:
    np.savez(path.with_suffix(".npz"), theta=objects(bomb))
    return path.with_suffix(".npz")


def npz_names(path: Path, bomb: Bomb) -> Path:
    theta = np.full((N, K), 1 / K)
    np.savez(path.with_suffix(".npz"), theta=theta, cells=objects(bomb)[:, 0])
    return path.with_suffix(".npz")


def npz_sparse(path: Path, bomb: Bomb) -> Path:
    sparse = sp.csr_matrix(np.full((N, K), 1 / K))
    arrays = {"indices": sparse.indices, "indptr": sparse.indptr, "shape": sparse.shape}
    data = objects(bomb, sparse.nnz)[:, 0]
    np.savez(path.with_suffix(".npz"), format=np.array("csr"), data=data, **arrays)
    return path.with_suffix(".npz")


def npy_of_a_pickle(path: Path, bomb: Bomb) -> Path:
    path.with_suffix(".npy").write_bytes(pickle.dumps(bomb))
    return path.with_suffix(".npy")


@pytest.mark.parametrize("role", ["theta", "beta"])
@pytest.mark.parametrize("form", [npy, npz, npz_names, npz_sparse, npy_of_a_pickle])
def test_pickled_topics_are_refused(form, role, mark, cells, run_here):
    topics = {"theta": np.full((N, K), 1 / K), "beta": np.full((G, K), 1 / G)}
    files = {name: f"{name}.csv" for name in topics}
    for name, values in topics.items():
        pd.DataFrame(values).to_csv(files[name], header=False, index=False)
    files[role] = form(mark.with_name("evil"), Bomb(mark))
    settings = [f"{name}={file}" for name, file in files.items()]
    code, _, err = run_here("evaluate", *settings, f"data={cells}", "report=off", "tracking=off")
    assert code == 2
    assert f"{role}={files[role]}: " in err


@pytest.mark.parametrize("name", ["c.h5ad", "c.h5", "c.RData", "c.pkl", "c.csv", "c.mtx", "c.rds"])
def test_pickled_cells_are_refused(name, mark):
    Path(name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(InputError, match=name):
        topicell.data.reading.read(name)


def test_pickled_bytes_in_an_h5ad_are_not_unpickled(mark, cells):
    payload = np.void(pickle.dumps(Bomb(mark)))
    with h5py.File(cells, "a") as file:
        for place in (file, file["obs"], file["uns"], file["X"]):
            # PyTables unpickles attributes.
            place.attrs["TITLE"] = payload
        file["uns"].create_dataset("evil", data=payload)
        file["uns/evil"].attrs.update({"encoding-type": "bytes", "encoding-version": "0.2.0"})
    with contextlib.suppress(InputError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        topicell.data.reading.read(cells)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_a_zarr_folder_with_a_pickle_codec_is_refused(place, mark, cells, monkeypatch):
    monkeypatch.delenv("NUMCODECS_ALLOW_UNSAFE_PICKLE_DECODE", raising=False)
    with warnings.catch_warnings(action="ignore"), anndata.settings.override(zarr_write_format=2):
        anndata.read_h5ad(cells).write_zarr("cells.zarr")
    Path("cells.zarr/.zmetadata").unlink(missing_ok=True)
    array = Path("cells.zarr/obs/_index")
    if (array / "values").exists():  # names are stored with a mask since anndata 0.13
        array /= "values"
    for chunk in (path for path in array.iterdir() if path.name[0] != "."):
        chunk.write_bytes(pickle.dumps(Bomb(mark)))
    described = json.loads((array / ".zarray").read_text())
    codec = {"id": "pickle", "protocol": 4}
    # After another codec, so that zarr still opens the array.
    changed = {"filters": [{"id": "vlen-utf8"}, codec], "compressor": None}
    if place == "compressor":
        changed = {"filters": [{"id": "vlen-utf8"}], "compressor": codec}
    (array / ".zarray").write_text(json.dumps(described | changed))
    assert zarr.open_array(array, mode="r").shape == (N,)
    with pytest.raises(InputError, match="cannot be read as a zarr folder"):
        topicell.data.reading.read("cells.zarr")


def test_a_pickled_r_workspace_is_refused(mark):
    Path("pbmc_facs.RData").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(InputError, match="cannot be read as the R workspace"):
        load_pbmc_facs("pbmc_facs.RData")


def test_pickled_cells_in_the_cache_are_not_unpickled(mark, run_here, tmp_path, monkeypatch, quick):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = [*quick, "tracking=off"]
    assert run_here("train", *settings)[0] == 0
    (kept,) = (tmp_path / "cache").rglob("*.h5ad")
    kept.write_bytes(pickle.dumps(Bomb(mark)))
    run_here("train", *settings)


def pickled(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def torch_saved(path: Path, bomb: Bomb) -> None:
    torch.save({"beta": bomb}, path)


@pytest.mark.parametrize("replace", [pickled, torch_saved])
@pytest.mark.parametrize("name", ["weights.safetensors", "model.json"])
def test_a_pickled_model_is_refused(name, replace, mark, cells, fitted, run_here):
    fitted.save("run/model")
    replace(Path("run/model", name), Bomb(mark))
    code, _, err = run_here("transform", "run=run", f"input={cells}", "output=mapped.csv")
    assert code == 2
    assert "is not a saved model" in err
    assert not Path("mapped.csv").exists()


# The registry


@pytest.fixture(scope="module")
def registry(fitted, tmp_path_factory):
    """Register a model: return the store, and the folder and description of its artifacts."""
    folder = tmp_path_factory.mktemp("registry")
    store = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    fitted.save(folder / "run/model")
    mlflow = client(store)
    run_id = mlflow.create_run(experiment_id(mlflow, store)).info.run_id
    assert register(store, run_id, folder / "run", tags={}) == "1"
    (described,) = folder.rglob("MLmodel")
    return SimpleNamespace(store=store, folder=described.parent, described=described)


@pytest.fixture
def registered(registry, tmp_path):
    """Return `registry` for a test that changes its folder; restore the folder afterwards."""
    before = tmp_path / "before"
    shutil.copytree(registry.folder, before)
    yield registry
    shutil.rmtree(registry.folder)
    shutil.move(before, registry.folder)


def test_transform_reads_only_the_weights_of_a_registered_model(
    registered, planted, mark, run_here
):
    folder = registered.folder
    for name in ("python_model.pkl", "model.pkl", "artifacts/fit/model.pkl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pickled(folder / name, Bomb(mark))
    for code in folder.rglob("*.py"):
        code.write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()")
    described = yaml.safe_load(registered.described.read_text())
    described["flavors"]["python_function"] |= {
        "python_model": "python_model.pkl",
        "cloudpickle_version": "3.1.2",
    }
    registered.described.write_text(yaml.safe_dump(described))
    counts = planted[0]
    adata = anndata.AnnData(
        counts.x, obs=pd.DataFrame(index=counts.cells), var=pd.DataFrame(index=counts.genes)
    )
    adata.write_h5ad("new.h5ad")
    store = f"tracking.uri={registered.store.uri}"
    settings = ["model=topicell/champion", "input=new.h5ad", "output=mapped.csv", store]
    assert run_here("transform", *settings)[0] == 0
    assert len(pd.read_csv("mapped.csv")) == counts.n_cells


def test_the_description_of_a_model_is_not_executed(registered, mark, tmp_path):
    call = f"!!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path [{mark}]]"
    registered.described.write_text(f"flavors: {call}\n")
    with pytest.raises((InputError, yaml.YAMLError)):
        fetch_model("topicell/champion", registered.store, tmp_path)


@pytest.mark.parametrize("outside", ["../../elsewhere", "/elsewhere", "artifacts/../../elsewhere"])
def test_a_model_cannot_name_weights_outside_of_its_folder(registered, outside, fitted, tmp_path):
    for place in registered.folder.parents[:2]:
        fitted.save(place / "elsewhere", overwrite=True)
    described = yaml.safe_load(registered.described.read_text())
    described["flavors"]["python_function"]["artifacts"]["fit"]["path"] = outside
    registered.described.write_text(yaml.safe_dump(described))
    with pytest.raises(InputError, match="outside the folder of the model"):
        fetch_model("topicell/champion", registered.store, tmp_path)


# Names stay in their folder

OUTSIDE = ["../../outside", "/outside", "..", ".", "a/b", "a\\b", "~/x:y"]


@pytest.mark.parametrize("setting", ["study", "register"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_of_studies_and_models_cannot_be_paths(setting, name):
    with pytest.raises(InputError, match=rf"sweep\.{setting} = "):
        SweepConfig(**{setting: name})


@pytest.mark.parametrize("name", ["topicell/../x/1", "a/b/c", "x:y/1", "a/../b"])
def test_a_registered_model_has_a_name_and_an_alias(name, tmp_path):
    with pytest.raises(InputError, match="write NAME/ALIAS or NAME/VERSION"):
        fetch_model(name, TrackingConfig(), tmp_path)


@pytest.mark.parametrize("run", ["../../etc", "..%2F..%2Fetc", "0" * 32 + "/../x", "models:/a/1"])
def test_a_run_id_cannot_be_a_path(run, registry, run_here):
    for command in (
        ["report", f"run={run}"],
        ["compare", f"runs=['{run}','{run}']"],
        ["transform", f"run={run}", f"input={registry.described}", "output=x.csv"],
    ):
        before = set(Path.cwd().parent.rglob("*"))
        code, _, _ = run_here(*command, f"tracking.uri={registry.store.uri}")
        assert code == 2
        assert set(Path.cwd().parent.rglob("*")) == before


@pytest.mark.slow
def test_names_in_the_data_do_not_change_the_names_of_files(tmp_path, run_here):
    from topicell import report
    from topicell.config import ReportConfig

    rng = np.random.default_rng(0)
    theta, beta = rng.dirichlet(np.ones(K), N), rng.dirichlet(np.ones(G), K)
    bad = "../../../outside/"

    def written(folder: Path, prefix: str) -> set[str]:
        x = sp.csr_matrix(rng.poisson(5 * theta @ beta * G).astype(np.float32))
        adata = anndata.AnnData(
            x,
            obs=pd.DataFrame(
                {f"{prefix}kind": [f"{prefix}{i % 2}" for i in range(N)], "leiden": f"{prefix}0"},
                index=[f"{prefix}c{i}" for i in range(N)],
                dtype="category",
            ),
            var=pd.DataFrame(index=[f"{prefix}g{i}" for i in range(G)]),
            layers={"counts": x},
        )
        for space in ("counts", "topics"):
            adata.obsm[f"X_umap_{space}"] = rng.normal(size=(N, 2))
        adata.obsm["X_lda"], adata.varm["lda_topics"] = theta, beta.T
        adata.uns["topicell"] = {
            "config": json.dumps({"seed": 0, "data": {"path": bad}}),
            "scores": json.dumps({f"{prefix}score": 1.0}),
            **dict.fromkeys(("run_id", "data", "source", "created", "version"), f"{prefix}x"),
            "label_key": f"{prefix}kind",
        }
        report.write(adata, [], folder, ReportConfig(dpi=30), seed=0)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}

    harmless, hostile = tmp_path / "a/b/c/harmless", tmp_path / "a/b/c/hostile"
    assert written(harmless, "") == written(hostile, bad)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in hostile.parent.iterdir()} == {"harmless", "hostile"}


# Downloads


class Server:
    """A server on this machine that records the requested paths and calls `answer`."""

    def __init__(self, answer) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *args: object) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def test_every_download_is_one_file_by_https_with_a_checksum():
    downloads = [dataset for dataset in CATALOGUE.values() if dataset.url]
    assert downloads
    for dataset in downloads:
        assert dataset.url.startswith("https://")
        assert dataset.sha256 is not None
        assert len(bytes.fromhex(dataset.sha256)) == 32
        # An archive could name the folder that it is unpacked to.
        assert Path(dataset.file_name).suffix in (".h5ad", ".RData")
        assert Path(dataset.file_name).name == dataset.file_name


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_a_redirect_to_another_scheme_is_refused(scheme, n_steps, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    target = f"{scheme}://192.0.2.1/cells.h5ad"

    def answer(request: BaseHTTPRequestHandler) -> None:
        step = len(server.requests)
        request.send_response(302)
        request.send_header("Location", f"/{step}" if step < n_steps else target)
        request.end_headers()

    with Server(answer) as server:
        dataset = Dataset("cells", f"{server.url}/0", "cells.h5ad", "0" * 64, None, "", "")
        with pytest.raises(InputError, match=f"it redirects to {target}, not an https address"):
            fetch(dataset, tmp_path / "data", progress=False, allow_loopback_http=True)
    assert len(server.requests) == n_steps
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_download_with_a_wrong_checksum_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"something else")

    with Server(answer) as server:
        dataset = Dataset("cells", f"{server.url}/x", "cells.h5ad", "0" * 64, None, "", "")
        with pytest.raises(InputError, match="has a wrong checksum"):
            fetch(dataset, tmp_path / "data", progress=False, allow_loopback_http=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Secrets

SECRET = "s3cret"
AWKWARD = f"p@:{SECRET}/?#:w@"
ADDRESSES = [
    f"http://user:{SECRET}@127.0.0.1:1",
    f"http://user:{quote(AWKWARD, safe='')}@127.0.0.1:1",
    f"http://{SECRET}@127.0.0.1:1",
    f"http://127.0.0.1:1?token={SECRET}",
    f"http://127.0.0.1:1/x?a=b&access_token={SECRET}&c=d",
    f"http://127.0.0.1:1/x?PASSWORD={SECRET}",
]
DATABASES = [
    f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/x",
    f"postgresql+psycopg://user:{quote(AWKWARD, safe='')}@127.0.0.1:1/x",
    f"postgresql+psycopg://user:{AWKWARD}@127.0.0.1:1/x",
    f"postgresql+psycopg://user@127.0.0.1:1/x?password={SECRET}",
    f"postgresql+psycopg://user@127.0.0.1:1/x?sslmode=require&sslpassword={SECRET}",
    f"postgresql+psycopg://user@127.0.0.1:1/x?sslmode=require;passwd={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
]
SPELLINGS = (SECRET, quote(SECRET, safe=""), quote(AWKWARD, safe=""))


def has_secret(text: str) -> bool:
    return any(spelling in text for spelling in SPELLINGS)


def with_secret(folder: Path) -> list[Path]:
    """Return the files under a folder that contain the secret, compressed or not."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".h5ad":
            stored = anndata.read_h5ad(path).uns
            content += str(stored).encode()
        if has_secret(content.decode("latin-1")):
            found.append(path)
    return found


@pytest.mark.parametrize("address", [*ADDRESSES, *DATABASES])
def test_a_recorded_address_has_no_secret(address):
    recorded = as_dict(TrackingConfig(uri=address))["uri"]
    assert not has_secret(recorded)
    assert recorded.startswith(address.partition("://")[0])
    message = f"(API request to {address}/api/2.0 failed: no host; see 'x@y')"
    assert not has_secret(as_dict(message))


@pytest.mark.parametrize(
    "harmless",
    [
        "preprocess.batch_key=donor",
        "^MT-",
        "sqlite:////data/runs.db",
        "http://host:5000/mlflow",
        "cells:raw@2x.h5ad",
        "data.label_key=key=1",
        "postgresql+psycopg://user@host:5432/runs?sslmode=require",
        "tag(log,interval(0.02,0.2))",
    ],
)
def test_text_without_a_secret_is_recorded_unchanged(harmless):
    assert as_dict(harmless) == harmless


@pytest.mark.parametrize("address", ADDRESSES[1:4])
def test_a_run_writes_no_secret_of_its_store(address, topicell, tmp_path, quick):
    done = topicell("train", *quick, f"tracking.uri='{address}'", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the run continues" in done.stderr
    assert not has_secret(done.stdout + done.stderr)
    (log,) = tmp_path.rglob("topicell.log")
    assert "the run continues" in log.read_text()
    assert with_secret(tmp_path) == []


@pytest.mark.parametrize(
    "settings",
    [
        *(
            ["-m", "sweep=topics", f"sweep.storage='{address}'"]
            for address in DATABASES
            if "#" not in address
        ),
        ["data=file", f"data.path='https://user:{SECRET}@127.0.0.1/cells.h5ad'"],
        ["data=file", f"data.path='https://127.0.0.1/cells.h5ad?token={SECRET}'"],
        [f"tracking.uri='ftp://user:{SECRET}@127.0.0.1'"],
        [f"tracking.uri='http://user:{SECRET}@127.0.0.1:1'", "hydra.run.dir=/proc/x"],
    ],
)
def test_an_error_message_has_no_secret(settings, topicell, tmp_path):
    done = topicell("train", *settings, cwd=tmp_path, env={"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 2, done.stderr
    assert "Traceback" in done.stderr
    assert not has_secret(done.stdout + done.stderr)
    assert with_secret(tmp_path) == []


@pytest.mark.slow
def test_a_grid_and_a_sweep_write_no_secret_of_their_overrides(topicell, tmp_path, quick):
    # Without a report the address is recorded like any setting, and not opened.
    secret = f"report.gene_sets='http://user:{quote(AWKWARD, safe='')}@host?token={SECRET}'"
    for command in (["seed=0,1", secret], [*ONE_TRIAL, secret]):
        done = topicell("train", "-m", *quick, *command, cwd=tmp_path, draft=True)
        assert done.returncode == 0, done.stderr
        assert not has_secret(done.stdout + done.stderr)
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    store = client(config)
    overrides = [
        run.data.tags.get("topicell.overrides", "")
        for run in store.search_runs([experiment_id(store, config)])
    ]
    assert sum("report.gene_sets=" in text for text in overrides) == 2
    assert {path.name for path in tmp_path.iterdir()} >= {"mlflow.db", "optuna.db", "sweeps"}
    assert with_secret(tmp_path) == []


# MLflow's UI, and connections to other hosts


@pytest.mark.parametrize("host", [UICommand().host, "localhost", "::1", "127.9.9.9"])
def test_the_ui_on_this_machine_needs_no_warning(host, registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    command = ui_command(registry.store, host, 5000)
    assert command[command.index("--host") + 1] == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "host.example"])
def test_a_ui_that_other_machines_reach_needs_a_warning(host, registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    with pytest.warns(
        UserWarning, match=r"everyone who can reach port 5000 can read, change and delete"
    ):
        ui_command(registry.store, host, 5000)


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_ui_opens_a_server_without_its_secret(address, monkeypatch):
    monkeypatch.setattr("topicell.tracking.ui.client", lambda config: None)
    monkeypatch.setattr("topicell.tracking.ui.experiment_id", lambda store, config: "7")
    opened = ui_address(TrackingConfig(uri=address), "127.0.0.1", 5000)
    assert opened.startswith("http://127.0.0.1:1/")
    assert not has_secret(opened)


GUARD = """
import os, sys

def guard(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1")):
            report(f"connect {address}")
    elif event == "socket.getaddrinfo":
        if str(arguments[0]) not in ("127.0.0.1", "localhost", "::1", "None", ""):
            report(f"look up {arguments[0]}")

def report(connection):
    with open(os.environ["CONNECTIONS"], "a") as file:
        file.write(f"{connection}\\n")

sys.addaudithook(guard)
"""
COMMANDS = """
import json, runpy, sys, time
def run(*arguments):
    sys.argv = ["topicell", *arguments]
    try:
        runpy.run_module("topicell", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)

quick, one_trial = map(json.loads, sys.argv[1:])
run("train", *quick)
run("train", *quick, "report.enabled=true")
run("train", "-m", *quick, *one_trial)
time.sleep(1)  # for threads in the background
"""


@pytest.mark.slow
def test_no_command_connects_to_another_host(tmp_path, quick):
    """In a new interpreter, because libraries read the environment when they are imported."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    connections = tmp_path / "connections"
    silent = ("PYTEST", "CI", "GITHUB", "MLFLOW", "DO_NOT_TRACK")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(silent)}
    path = os.pathsep.join(filter(None, (str(tmp_path / "guard"), os.environ.get("PYTHONPATH"))))
    environment |= {
        "PYTHONPATH": path,
        "CONNECTIONS": str(connections),
        "HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return connections.read_text() if connections.exists() else ""

    # The guard works: it reports a connection.
    reported = run(
        "import socket, contextlib\n"
        "with contextlib.suppress(OSError): socket.create_connection(('192.0.2.1', 9), 0.1)"
    )
    assert "192.0.2.1" in reported
    connections.unlink()
    assert run(COMMANDS, json.dumps(quick), json.dumps(ONE_TRIAL)) == ""
    # MLflow's telemetry would store an identifier of this machine.
    assert list((tmp_path / "home").rglob("*telemetry*")) == []
