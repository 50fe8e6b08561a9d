"""``topicell doctor``: each check, with its real cause."""

import json
import shutil
import socket
import sqlite3
import sys
import types
from pathlib import Path

import pytest

from topicell import memory
from topicell.cli import doctor
from topicell.cli.doctor import Check, DoctorCommand, Status
from topicell.config import TrackingConfig
from topicell.tracking import health


@pytest.fixture
def few_imports(monkeypatch):
    """Import little in the other process, which saves seconds."""
    monkeypatch.setattr(doctor, "IMPORTED", ("json",))
    told = {"devices": {"build": None, "gpus": [], "problem": ""}}
    imported = doctor.imported
    without_torch = doctor.IMPORTER.partition("try:\n    from")[0] + "print('{}')"
    monkeypatch.setattr(doctor, "IMPORTER", without_torch)
    monkeypatch.setattr(doctor, "imported", lambda modules: (imported(modules)[0], told))


def only(checks, name):
    (found,) = [check for check in checks if check.name == name]
    return found


def test_all_is_well_here(few_imports, run_here):
    code, out, _ = run_here("doctor")
    assert code == 0, out
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["ok", "Python"]
    assert any(line.split()[:2] == ["ok", "torch"] for line in lines)
    assert "does not exist yet; the first run creates it" in out
    # It changes nothing.
    assert not list(Path.cwd().iterdir())
    code, quiet, _ = run_here("doctor", "-q")
    assert code == 0
    assert not [line for line in quiet.splitlines() if line.startswith("ok")]


def test_json_masks_passwords_and_counts(few_imports, run_here, monkeypatch):
    with socket.socket() as closed:
        # Nothing listens at a port that was bound and not opened.
        closed.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}"
        code, out, _ = run_here("doctor", "json=true", f"tracking.uri={uri}")
    found = json.loads(out)
    assert code == 1
    assert found["problems"] == 1
    (store,) = [one for one in found["checks"] if one["name"] == "tracking store"]
    assert store["status"] == "problem"
    assert "http://user:***@127.0.0.1" in store["found"]
    assert "refused" in store["found"]
    assert "topicell sync" in store["fix"]
    assert "secret" not in out


def test_a_server_that_hangs(monkeypatch):
    monkeypatch.setattr(health, "SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config = TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        (check,) = doctor.tracking_store(config)
    assert check.status is Status.problem
    assert "no answer within 0.2 s" in check.found


def test_stores_in_a_file(empty_store, tmp_path):
    path = tmp_path / "mlflow.db"
    config = TrackingConfig(uri=f"sqlite:///{path}")
    shutil.copy(empty_store, path)
    (check,) = doctor.tracking_store(config)
    assert (check.status, check.found) == (Status.ok, f"{config.uri} can be read and written")
    with sqlite3.connect(path) as other:
        other.execute("BEGIN IMMEDIATE")
        (check,) = doctor.tracking_store(config)
        assert check.status is Status.problem
        assert "database is locked" in check.found
    other.close()
    with sqlite3.connect(path) as older:
        older.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    older.close()
    before = path.read_bytes()
    (check,) = doctor.tracking_store(config)
    assert check.status is Status.problem
    assert "out-of-date" in check.found
    assert check.fix == f"copy the database, then run: mlflow db upgrade {config.uri}"
    assert path.read_bytes() == before
    path.write_bytes(b"this is no database" * 100)
    (check,) = doctor.tracking_store(config)
    assert "not a database" in check.found


def test_other_stores():
    (check,) = doctor.tracking_store(TrackingConfig(enabled=False))
    assert (check.status, check.found) == (Status.ok, "tracking=off")
    (check,) = doctor.tracking_store(TrackingConfig(uri="sqlite:////proc/none/mlflow.db"))
    assert check.status is Status.problem
    assert "/proc/none/mlflow.db cannot be created" in check.found


def test_a_library_that_cannot_be_imported_or_ends_the_process(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise ImportError('libfoo.so.3 is missing')")
    (tmp_path / "crashes.py").write_text("import os; os.kill(os.getpid(), 11)")
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so is damaged')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "IMPORTED", ("json", "crashes", "broken", "nowhere.at.all"))
    found = list(doctor.libraries())
    assert [check.name for check in found] == [
        "import crashes", "import broken", "import nowhere.at.all", "GPU",
    ]  # fmt: skip
    assert "exit code -11" in found[0].found
    assert found[1].found == "ImportError: libfoo.so.3 is missing"
    assert found[2].fix.startswith("install nowhere again")
    assert found[3].status is Status.warning
    assert "libtorch.so is damaged" in found[3].found


def test_a_check_that_fails_is_a_line(monkeypatch):
    monkeypatch.setattr(doctor, "libraries", lambda: iter(()))
    monkeypatch.setitem(sys.modules, "pooch", None)
    found = list(doctor.checked(DoctorCommand()))
    check = only(found, "cache")
    assert check.status is Status.problem
    assert check.found.startswith("could not be checked (ModuleNotFoundError: import of pooch")
    assert only(found, "Python").status is Status.ok
    assert only(found, "tracking store").status is Status.ok


def test_versions(monkeypatch):
    installed = {"torch": "2.5.1", "anndata": "0.13.0rc1"}
    version = doctor.metadata.version

    def installed_version(name):
        if name == "scanpy":
            raise doctor.metadata.PackageNotFoundError(name)
        return installed.get(name) or version(name)

    monkeypatch.setattr(doctor.metadata, "version", installed_version)
    found = list(doctor.versions())
    torch, scanpy = only(found, "torch"), only(found, "scanpy")
    assert torch == Check("torch", "2.5.1 (>=2.6)", Status.problem, "pip install 'torch>=2.6'")
    assert scanpy.status is Status.problem
    assert scanpy.found == "is not installed (>=1.11)"
    assert only(found, "anndata").status is Status.ok
    assert only(found, "mlflow").status is Status.ok


def test_extras(monkeypatch):
    def version(name):
        if name == "gensim":
            return "4.2.0"
        if name == "distributed":
            raise doctor.metadata.PackageNotFoundError(name)
        return "2099.1"

    monkeypatch.setattr(doctor.metadata, "version", version)
    found = list(doctor.extras())
    assert {check.name for check in found} >= {"extra baselines", "extra dask", "extra scale"}
    assert not {"extra dev", "extra test"} & {check.name for check in found}
    dask = only(found, "extra dask")
    assert (dask.status, dask.found) == (Status.ok, "distributed is not installed")
    assert dask.fix == "pip install 'topicell[dask]' adds it"
    old = only(found, "extra baselines")
    assert old.status is Status.warning
    assert "gensim 4.2.0 (>=4.3)" in old.found
    assert only(found, "extra scale").found == "zarrs 2099.1"


@pytest.mark.parametrize(
    ("found", "driver", "status", "words"),
    [
        ({"build": None, "gpus": []}, False, "ok", "no CUDA device; runs use the CPU"),
        ({"build": "12.8", "gpus": [("H200", 2**37)]}, True, "ok", "H200 with 128.0 GiB"),
        ({"build": None, "gpus": []}, True, "warning", "this torch is built for the CPU"),
        (
            {"build": "13.0", "gpus": [], "problem": "The NVIDIA driver is too old"},
            True,
            "warning",
            "built for CUDA 13.0, cannot use it: The NVIDIA driver is too old",
        ),
    ],
)
def test_gpus(found, driver, status, words, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/bin/x" if driver else None)
    check = doctor.gpu({"devices": {"problem": "", **found}})
    assert check.status.value == status
    assert words in check.found
    assert bool(check.fix) == (status == "warning")


def test_torch_is_asked_for_its_devices():
    import torch

    from topicell.model.devices import devices

    found = devices()
    assert found["build"] == torch.version.cuda
    assert len(found["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_limits_of_a_container(tmp_path, monkeypatch):
    assert doctor.core_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.core_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert doctor.core_limit(tmp_path) == 1.5
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert doctor.core_limit(tmp_path) is None
    monkeypatch.setattr(doctor, "core_limit", lambda: 0.5)
    (check,) = doctor.processor()
    assert "limit of 0.5 cores" in check.found
    monkeypatch.setattr(memory, "free", lambda: 2**30)
    (check,) = doctor.free_memory()
    assert (check.status, check.found) == (Status.warning, "1.0 GiB free")


def test_disks(monkeypatch):
    free = types.SimpleNamespace(free=2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: free)
    check = only(doctor.folders(DoctorCommand()), "working folder")
    assert check.status is Status.warning
    assert "1.0 GiB free" in check.found
    assert only(doctor.folders(DoctorCommand(min_free_gb=1)), "cache").status is Status.ok
    free.free = 2**20
    check = only(doctor.folders(DoctorCommand()), "temporary files")
    assert check.status is Status.problem


def test_folders_that_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = DoctorCommand(tracking=TrackingConfig(uri="sqlite:////proc/mlflow.db"))
    found = list(doctor.folders(asked))
    assert only(found, "store's folder").status is Status.problem
    assert "/proc cannot be written to" in only(found, "store's folder").found
    assert only(found, "cache").found.endswith("is a file")
    monkeypatch.chdir("/proc")
    check = only(doctor.folders(DoctorCommand()), "working folder")
    assert check.status is Status.problem
    assert check.fix.startswith("change the permissions")


def test_the_cache_and_data_sets(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (check,) = doctor.cache()
    assert check.found.startswith("0 MB of prepared data in")
    assert "rm -r" not in check.found
    folder = tmp_path / "topicell" / "prepared"
    folder.mkdir(parents=True)
    (folder / "a.h5ad").write_bytes(bytes(3_000_000))
    (check,) = doctor.cache()
    assert check.found.startswith("3 MB")
    assert check.found.endswith(f"rm -r {folder} removes them")

    monkeypatch.setenv("TOPICELL_DATA", str(tmp_path / "none"))
    (check,) = doctor.data_sets()
    assert check.status is Status.warning
    assert "does not exist" in check.found
    monkeypatch.setenv("TOPICELL_DATA", str(folder / "a.h5ad"))
    (check,) = doctor.data_sets()
    assert check.status is Status.problem
    monkeypatch.setenv("TOPICELL_DATA", str(tmp_path))
    (tmp_path / "pbmc_facs.RData").touch()
    (check,) = doctor.data_sets()
    assert ": pbmc_facs; when needed: pbmc3k" in check.found


@pytest.mark.slow
def test_the_whole_command_imports_everything(topicell):
    answer = topicell("doctor")
    assert answer.returncode == 0, answer.stdout
    assert f"{len(doctor.IMPORTED)} libraries can be imported" in answer.stdout
    assert answer.stdout.splitlines()[-1] in ("no problems", "1 warning", "2 warnings")
