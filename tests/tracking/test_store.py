"""The address and the creation of a store."""

import sqlite3

import pytest

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.tracking.store import client, experiment_id, shown_uri, tracking_uri


@pytest.mark.slow
def test_processes_that_start_together_create_one_store(started, tmp_path):
    path = tmp_path / "new" / "mlflow.db"
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from topicell.tracking.store import create_store\n"
        "create_store(Path(sys.argv[1]))\n"
    )
    processes = [started(path, program=program, copied_store=False) for _ in range(3)]
    assert [process.wait(600) for process in processes] == [0, 0, 0]
    assert sorted(p.name for p in path.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    config = TrackingConfig(uri=f"sqlite:///{path}")
    assert experiment_id(client(config), config) == experiment_id(client(config), config)


def test_the_setting_goes_before_the_variable_of_the_environment(monkeypatch):
    assert tracking_uri(TrackingConfig()) == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(TrackingConfig()) == "http://127.0.0.1:1"
    assert tracking_uri(TrackingConfig(uri="sqlite:///a.db")) == "sqlite:///a.db"
    with pytest.raises(InputError, match=r"tracking.uri = 'ftp://x'"):
        tracking_uri(TrackingConfig(uri="ftp://x"))
    secret = TrackingConfig(uri="postgresql://me:secret@host/db")
    assert shown_uri(secret) == "postgresql://me:***@host/db"
