"""MLflow's own user interface for the store."""

from __future__ import annotations

import ipaddress
import os
import sys
import warnings
from urllib.parse import urlsplit

from topicell.config import TrackingConfig
from topicell.tracking.store import client, experiment_id, is_server, require_store, tracking_uri


def ui_command(config: TrackingConfig, host: str, port: int) -> list[str]:
    """Return the command that serves MLflow's UI with one worker and without telemetry.

    Warns
    -----
    UserWarning
        Other machines may reach it.
    """
    require_store(config)
    if not _is_loopback(host):
        warnings.warn(
            f"host = {host!r}: MLflow has no password, so everyone who can reach port {port} can "
            "read, change and delete the runs; host=127.0.0.1 limits access to this machine",
            stacklevel=2,
        )
    # Everybody on the machine can see a command line, and the address may hold a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = tracking_uri(config)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", host]
    return [*command, "--port", str(port)]


def ui_address(config: TrackingConfig, host: str, port: int) -> str:
    """Return the address of the experiment's table of runs in the machine-learning view.

    It has no user name and no password, because it is printed and kept in the browser's history;
    the browser asks for them.
    """
    require_store(config)
    experiment = experiment_id(client(config), config)
    server = f"http://{host}:{port}"
    if is_server(config):
        parts = urlsplit(tracking_uri(config))
        server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
