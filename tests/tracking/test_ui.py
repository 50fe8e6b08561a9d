"""MLflow's user interface."""

import os

import pytest

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.tracking.ui import ui_address, ui_command


def test_the_ui_opens_the_machine_learning_view_of_the_experiment(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    command = ui_command(store, "127.0.0.1", 5000)
    assert store.uri not in " ".join(command)
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == store.uri
    address = ui_address(store, "127.0.0.1", 5000)
    assert address.endswith("/runs?workflowType=machine_learning")
    absent = TrackingConfig(uri=f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(InputError, match="does not exist:"):
        ui_command(absent, "127.0.0.1", 5000)
