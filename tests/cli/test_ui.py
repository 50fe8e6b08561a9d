"""``topicell ui``."""

import json
import signal
import socket
import urllib.request

import pytest
from faults import free_port


@pytest.mark.slow
def test_the_ui_serves_the_store_and_releases_its_port(run_here, started, small):
    settings = [*small, "report=off"]
    assert run_here("train", *settings)[0] == 0
    port = free_port()
    server = started("ui", f"port={port}", "browser=false", piped=True)
    try:
        assert server.stdout.readline() == "MLflow's UI starts; stop it with Ctrl-C\n"
        # MLflow writes lines of its own in between.
        first = next(line for line in server.stdout if line.startswith("MLflow's UI: "))
        assert f"http://127.0.0.1:{port}/#/experiments/" in first
        assert "workflowType=machine_learning" in first
        # The address is printed when the server answers.
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            assert "MLflow" in answer.read().decode()
        body = json.dumps({"experiment_ids": [first.split("/experiments/")[1].split("/")[0]]})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert len(json.load(answer)["runs"]) == 1
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(600)
    # No process of it still listens on the port.
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
