"""MLflow's own UI on the store."""

from __future__ import annotations

import os
import sys

from topicell.config import TrackingConfig
from topicell.tracking.store import (
    client,
    experiment_id,
    is_server,
    require_store,
    tracking_uri,
)


def ui_command(config: TrackingConfig, host: str, port: int) -> list[str]:
    """The command that serves MLflow's own UI on the store, light and without telemetry."""
    require_store(config)
    # Through the environment: a command line is seen by everybody on the machine, and the
    # address of a database may hold a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = tracking_uri(config)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", host]
    return [*command, "--port", str(port)]


def ui_address(config: TrackingConfig, host: str, port: int) -> str:
    """The address of the experiment's table of runs in the machine-learning view."""
    require_store(config)
    experiment = experiment_id(client(config), config)
    server = tracking_uri(config).rstrip("/") if is_server(config) else f"http://{host}:{port}"
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"
