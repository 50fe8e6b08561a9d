"""What strangers' files, names, addresses and networks cannot do.

A file from elsewhere is data and never a program; a name stays a name; a password stays where it
was given; nothing is said to anybody but those that a setting names.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pickle
import shutil
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
from topicell.config import SweepConfig, TrackingConfig, as_dict
from topicell.data.catalogue import CATALOGUE, Dataset, fetch, load_pbmc_facs
from topicell.errors import InputError
from topicell.tracking.registry import fetch_model, register
from topicell.tracking.store import client, experiment_id
from topicell.tracking.ui import ui_address, ui_command

SOURCE = Path(topicell.__file__).parents[1]
SMALL = [
    "data=simulated",
    "data.simulation.n_cells=120",
    "data.simulation.n_genes=60",
    "data.simulation.n_topics=3",
    "model.n_topics=3",
    "model.n_hidden=8",
    "train.epochs=2",
    "train.n_replicates=1",
    "train.progress=false",
    "evaluate.n_samples=8",
    "evaluate.n_coherence_genes=5",
    "evaluate.differential_expression=false",
    "report=off",
]
ONE_TRIAL = [
    "model.n_topics=choice(2,3)",
    "sweep.n_trials=1",
    "sweep.n_jobs=1",
    "evaluate.n_splits=1",
]
N, G, K = 40, 30, 3


class Bomb:
    """What leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that no bomb may leave; at first it is shown that one would."""
    path = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Cells in a file, which are harmless."""
    x = np.random.default_rng(0).poisson(2.0, (N, G)).astype(np.float32)
    adata = anndata.AnnData(
        sp.csr_matrix(x),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(N)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(G)]),
    )
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return path


# No file is a program


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Every call in the sources: file, node, and the dotted name that is called."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(SOURCE).as_posix(), node, ast.unparse(node.func)


def imports() -> Iterator[tuple[str, str]]:
    """Every module that the sources import: file, name."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((path.relative_to(SOURCE).as_posix(), name) for name in names)


RUNS_WHAT_IT_READS = (
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("pandas.read_pickle", "torch.load", "torch.hub", "torch.jit", "importlib.machinery"),
    *("mlflow.pyfunc.load_model", "mlflow.pytorch", "mlflow.sklearn"),
)
UNPACKS = ("tarfile", "zipfile", "shutil.unpack_archive", "pooch.Untar", "pooch.Unzip")


def test_no_module_imports_what_runs_or_unpacks_what_it_reads():
    found = {
        (path, name)
        for path, name in imports()
        if any(f"{name}.".startswith(f"{bad}.") for bad in (*RUNS_WHAT_IT_READS, *UNPACKS))
    }
    # A composed configuration goes through a pipe from the sweep to a worker that it started
    # itself (multiprocessing pickles all that it sends): these bytes never lie in a file, and
    # nobody else can write to the pipe.
    assert found == {("hydra_plugins/topicell_sweeper/_sweep.py", "pickle")}


def test_no_call_runs_what_it_reads():
    banned = {"eval", "exec", "compile", "__import__", "execfile", "os.system", "os.popen"}
    last = {"read_pickle", "to_pickle", "unpack_archive", "extractall", "unsafe_load", "full_load"}
    for path, node, name in calls():
        where = f"{path}:{node.lineno}: {name}"
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert name not in banned, where
        assert name.rpartition(".")[2] not in last, where
        assert not name.endswith(("torch.load", "joblib.load", "yaml.load")), where
        assert keywords.get("shell", "False") == "False", where
        assert keywords.get("allow_pickle", "False") == "False", where
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False", where
    loads = [path for path, _, name in calls() if name == "pickle.loads"]
    assert loads == ["hydra_plugins/topicell_sweeper/_sweep.py"]
    assert not [path for path, _, name in calls() if name == "pickle.load"]


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
def test_topics_that_are_pickled_are_refused(form, role, mark, cells, run_here):
    topics = {"theta": np.full((N, K), 1 / K), "beta": np.full((G, K), 1 / G)}
    files = {name: f"{name}.csv" for name in topics}
    for name, values in topics.items():
        pd.DataFrame(values).to_csv(files[name], header=False, index=False)
    files[role] = form(mark.with_name("evil"), Bomb(mark))
    settings = [f"{name}={file}" for name, file in files.items()]
    code, _, said = run_here("evaluate", *settings, f"data={cells}", "report=off", "tracking=off")
    assert code == 2
    assert f"{role}={files[role]}: " in said


@pytest.mark.parametrize("name", ["c.h5ad", "c.h5", "c.RData", "c.pkl", "c.csv", "c.mtx", "c.rds"])
def test_cells_that_are_pickled_are_refused(name, mark, run_here):
    Path(name).write_bytes(pickle.dumps(Bomb(mark)))
    code, _, said = run_here("train", "data=file", f"data.path={name}", *SMALL[1:])
    assert code == 2
    assert name in said


def test_pickled_bytes_inside_of_an_h5ad_are_bytes(mark, cells):
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
def test_a_zarr_folder_cannot_ask_to_be_unpickled(place, mark, cells, monkeypatch):
    monkeypatch.delenv("NUMCODECS_ALLOW_UNSAFE_PICKLE_DECODE", raising=False)
    with anndata.settings.override(zarr_write_format=2):
        anndata.read_h5ad(cells).write_zarr("cells.zarr")
    Path("cells.zarr/.zmetadata").unlink(missing_ok=True)
    array = Path("cells.zarr/obs/_index")
    for chunk in (path for path in array.iterdir() if path.name[0] != "."):
        chunk.write_bytes(pickle.dumps(Bomb(mark)))
    described = json.loads((array / ".zarray").read_text())
    codec = {"id": "pickle", "protocol": 4}
    # Behind another codec it would not be seen to be there.
    changed = {"filters": [{"id": "vlen-utf8"}, codec], "compressor": None}
    if place == "compressor":
        changed = {"filters": [{"id": "vlen-utf8"}], "compressor": codec}
    (array / ".zarray").write_text(json.dumps(described | changed))
    assert zarr.open_group("cells.zarr", mode="r")["obs/_index"].shape == (N,)
    with pytest.raises(InputError, match="cannot be read as a zarr folder"):
        topicell.data.reading.read("cells.zarr")


def test_an_r_workspace_that_is_pickled_is_refused(mark):
    Path("pbmc_facs.RData").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(InputError, match="cannot be read as the R workspace"):
        load_pbmc_facs("pbmc_facs.RData")


def test_prepared_cells_that_were_changed_to_a_pickle_are_not_unpickled(
    mark, run_here, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = [*SMALL, "tracking=off"]
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
def test_a_model_that_is_pickled_is_refused(name, replace, mark, cells, fitted, run_here):
    fitted.save("run/model")
    replace(Path("run/model", name), Bomb(mark))
    code, _, said = run_here("transform", "run=run", f"input={cells}", "output=mapped.csv")
    assert code == 2
    assert "is not a saved model" in said
    assert not Path("mapped.csv").exists()


# The registry


@pytest.fixture(scope="module")
def registry(fitted, tmp_path_factory):
    """A model in a registry: the store, and the folder where its artifacts lie."""
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
    """The same, to be changed: afterwards it is as it was."""
    before = tmp_path / "before"
    shutil.copytree(registry.folder, before)
    yield registry
    shutil.rmtree(registry.folder)
    shutil.move(before, registry.folder)


def test_a_registered_model_is_safetensors_json_and_its_source(registered):
    files = {path.relative_to(registered.folder) for path in registered.folder.rglob("*")}
    endings = {path.suffix for path in files if (registered.folder / path).is_file()}
    assert endings == {"", ".safetensors", ".json", ".py", ".txt", ".yaml"}
    flavor = yaml.safe_load(registered.described.read_text())["flavors"]["python_function"]
    assert flavor["model_code_path"] == "served.py"
    assert "python_model" not in flavor
    assert ".pkl" not in registered.described.read_text()


def test_transform_reads_the_weights_of_a_registered_model_alone(
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
    given = ["model=topicell/champion", "input=new.h5ad", "output=mapped.csv", store]
    assert run_here("transform", *given)[0] == 0
    assert len(pd.read_csv("mapped.csv")) == counts.n_cells


def test_a_description_of_a_model_is_no_program(registered, mark, tmp_path):
    call = f"!!python/object/apply:pathlib.Path.touch [!!python/name:pathlib.Path [{mark}]]"
    registered.described.write_text(f"flavors: {call}\n")
    with pytest.raises((InputError, yaml.YAMLError)):
        fetch_model("topicell/champion", registered.store, tmp_path)


@pytest.mark.parametrize("outside", ["../../elsewhere", "/elsewhere", "artifacts/../../elsewhere"])
def test_a_model_cannot_name_weights_outside_of_itself(registered, outside, fitted, tmp_path):
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
def test_names_of_studies_and_models_are_no_paths(setting, name):
    with pytest.raises(InputError, match=rf"sweep\.{setting} = "):
        SweepConfig(**{setting: name})


@pytest.mark.parametrize("name", ["topicell/../x/1", "a/b/c", "x:y/1", "a/../b"])
def test_a_registered_model_has_a_name_and_an_alias(name, tmp_path):
    with pytest.raises(InputError, match="write NAME/ALIAS or NAME/VERSION"):
        fetch_model(name, TrackingConfig(), tmp_path)


@pytest.mark.parametrize("run", ["../../etc", "..%2F..%2Fetc", "0" * 32 + "/../x", "models:/a/1"])
def test_a_run_id_is_no_path(run, registry, run_here):
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
def test_names_from_data_name_no_files(tmp_path, run_here):
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
        report.write(adata, [], folder, ReportConfig(dpi=30, pdf=False), seed=0)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}

    harmless, hostile = tmp_path / "a/b/c/harmless", tmp_path / "a/b/c/hostile"
    assert written(harmless, "") == written(hostile, bad)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in hostile.parent.iterdir()} == {"harmless", "hostile"}


# Downloads


class Server:
    """A server on this machine: what it was asked for, and how it answers."""

    def __init__(self, answer) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
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


def test_every_download_is_by_https_of_one_file_with_a_checksum():
    downloads = [dataset for dataset in CATALOGUE.values() if dataset.url]
    assert downloads
    for dataset in downloads:
        assert dataset.url.startswith("https://")
        assert dataset.sha256 is not None
        assert len(bytes.fromhex(dataset.sha256)) == 32
        # No archive: nothing in it could say where it is to be unpacked.
        assert Path(dataset.file_name).suffix in (".h5ad", ".RData")
        assert Path(dataset.file_name).name == dataset.file_name


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_a_redirect_leaves_no_secure_connection(scheme, n_steps, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    target = f"{scheme}://192.0.2.1/cells.h5ad"

    def answer(request: BaseHTTPRequestHandler) -> None:
        step = len(server.asked)
        request.send_response(302)
        request.send_header("Location", f"/{step}" if step < n_steps else target)
        request.end_headers()

    with Server(answer) as server:
        dataset = Dataset("cells", f"{server.url}/0", "cells.h5ad", "0" * 64, None, "", "")
        with pytest.raises(InputError, match=f"it redirects to {target}, not an https address"):
            fetch(dataset, tmp_path / "data", progress=False, allow_loopback_http=True)
    assert len(server.asked) == n_steps
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_wrong_checksum_leaves_nothing(tmp_path, monkeypatch):
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


def tells(text: str) -> bool:
    return any(spelling in text for spelling in SPELLINGS)


def telling(folder: Path) -> list[Path]:
    """The files of a folder that hold the secret: also packed ones."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".h5ad":
            stored = anndata.read_h5ad(path).uns
            content += str(stored).encode()
        if tells(content.decode("latin-1")):
            found.append(path)
    return found


@pytest.mark.parametrize("address", [*ADDRESSES, *DATABASES])
def test_a_record_of_an_address_keeps_its_secret(address):
    shown = as_dict(TrackingConfig(uri=address))["uri"]
    assert not tells(shown)
    assert shown.startswith(address.partition("://")[0])
    message = f"(API request to {address}/api/2.0 failed: no host; see 'x@y')"
    assert not tells(as_dict(message))


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
def test_what_is_no_secret_is_recorded_as_it_is(harmless):
    assert as_dict(harmless) == harmless


@pytest.mark.parametrize("address", ADDRESSES[1:4])
def test_a_run_keeps_the_secret_of_its_store(address, topicell, tmp_path):
    done = topicell("train", *SMALL, f"tracking.uri='{address}'", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the run continues" in done.stderr
    assert not tells(done.stdout + done.stderr)
    (log,) = tmp_path.rglob("topicell.log")
    assert "the run continues" in log.read_text()
    assert telling(tmp_path) == []


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
def test_a_refusal_keeps_the_secret(settings, topicell, tmp_path):
    done = topicell("train", *settings, cwd=tmp_path, env={"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 2, done.stderr
    assert "Traceback" in done.stderr
    assert not tells(done.stdout + done.stderr)
    assert telling(tmp_path) == []


@pytest.mark.slow
def test_a_grid_and_a_sweep_keep_the_secrets_of_their_overrides(topicell, tmp_path):
    # Without a report nobody opens the address; it is recorded like any setting.
    secret = f"report.gene_sets='http://user:{quote(AWKWARD, safe='')}@host?token={SECRET}'"
    for command in (["seed=0,1", secret], ["sweep=topics", *ONE_TRIAL, secret]):
        done = topicell("train", "-m", *SMALL, *command, cwd=tmp_path, draft=True)
        assert done.returncode == 0, done.stderr
        assert not tells(done.stdout + done.stderr)
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    store = client(config)
    overrides = [
        run.data.tags.get("topicell.overrides", "")
        for run in store.search_runs([experiment_id(store, config)])
    ]
    assert sum("report.gene_sets=" in text for text in overrides) == 2
    assert {path.name for path in tmp_path.iterdir()} >= {"mlflow.db", "optuna.db", "sweeps"}
    assert telling(tmp_path) == []


# MLflow's UI, and who is spoken to


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_the_ui_on_this_machine_needs_no_warning(host, registry):
    command = ui_command(registry.store, host, 5000)
    assert command[command.index("--host") + 1] == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "host.example"])
def test_the_ui_for_others_is_warned_of(host, registry):
    with pytest.warns(
        UserWarning, match=r"everyone who can reach port 5000 can read, change and delete"
    ):
        ui_command(registry.store, host, 5000)


def test_the_ui_is_for_this_machine_by_default():
    from topicell.cli.ui import UICommand

    assert UICommand().host == "127.0.0.1"


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_address_of_a_server_is_opened_without_its_secret(address, monkeypatch):
    monkeypatch.setattr("topicell.tracking.ui.client", lambda config: None)
    monkeypatch.setattr("topicell.tracking.ui.experiment_id", lambda store, config: "7")
    opened = ui_address(TrackingConfig(uri=address), "127.0.0.1", 5000)
    assert opened.startswith("http://127.0.0.1:1/")
    assert not tells(opened)


GUARD = """
import os, sys

def guard(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1")):
            tell(f"connect {address}")
    elif event == "socket.getaddrinfo":
        if str(arguments[0]) not in ("127.0.0.1", "localhost", "::1", "None", ""):
            tell(f"look up {arguments[0]}")

def tell(what):
    with open(os.environ["TOLD"], "a") as file:
        file.write(f"{what}\\n")

sys.addaudithook(guard)
"""
COMMANDS = f"""
import runpy, sys
def run(*arguments):
    sys.argv = ["topicell", *arguments]
    try:
        runpy.run_module("topicell", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)

small = {SMALL!r}
run("train", *small)
run("train", *small, "report.enabled=true", "report.pdf=false", "report.dpi=30")
run("train", "-m", "sweep=topics", *small, *{ONE_TRIAL!r})
import time
time.sleep(1)  # threads in the background have a moment
"""


@pytest.mark.slow
def test_no_command_speaks_to_anybody(tmp_path):
    """A new interpreter, for libraries ask the environment when they are imported."""
    import subprocess

    (tmp_path / "guard").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    told = tmp_path / "told"
    silent = ("PYTEST", "CI", "GITHUB", "MLFLOW", "DO_NOT_TRACK")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(silent)}
    path = os.pathsep.join(filter(None, (str(tmp_path / "guard"), os.environ.get("PYTHONPATH"))))
    environment |= {
        "PYTHONPATH": path,
        "TOLD": str(told),
        "HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
    }

    def run(program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return told.read_text() if told.exists() else ""

    # The guard hears; and of MLflow's own telemetry there is something to hear.
    heard = run(
        "import socket, contextlib\n"
        "with contextlib.suppress(OSError): socket.create_connection(('192.0.2.1', 9), 0.1)"
    )
    assert "192.0.2.1" in heard
    told.unlink()
    assert run(COMMANDS) == ""
    # The number by which MLflow would know this machine again.
    assert list((tmp_path / "home").rglob("*telemetry*")) == []
