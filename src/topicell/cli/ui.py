"""``topicell ui``: MLflow's UI on the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from topicell.cli.command import Command
from topicell.cli.options import read
from topicell.config import TrackingConfig
from topicell.errors import InputError

if TYPE_CHECKING:
    from subprocess import Popen


@dataclass
class UICommand:
    """Open MLflow's UI on the stored runs, until Ctrl-C."""

    host: str = "127.0.0.1"
    """Address on which the UI listens; everyone who reaches another one than the default can read
    and delete runs."""
    port: int = 5000
    """Port on which the UI listens."""
    browser: bool = True
    """Open the UI in the web browser."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def ui(arguments: list[str]) -> None:
    """Serve MLflow's UI until interrupted; for a tracking server, open its own UI."""
    asked: UICommand = read(COMMAND, arguments)
    import subprocess
    import webbrowser

    from topicell.tracking.store import is_server
    from topicell.tracking.ui import ui_address, ui_command

    address = ui_address(asked.tracking, asked.host, asked.port)
    if is_server(asked.tracking):
        print(f"the tracking server's own UI: {address}")
        if asked.browser:
            webbrowser.open(address)
        return
    if _listens(asked.host, asked.port):
        raise InputError(f"port = {asked.port}: another program uses this port; try port=5001")
    command = ui_command(asked.tracking, asked.host, asked.port)
    print("MLflow's UI starts; stop it with Ctrl-C", flush=True)
    server = subprocess.Popen(command)
    try:
        if _answers(asked.host, asked.port, server):
            print(f"MLflow's UI: {address}", flush=True)
            if asked.browser:
                webbrowser.open(address)
        server.wait()
        raise RuntimeError(
            f"MLflow's server stopped unexpectedly, with exit code {server.returncode}"
        )
    except KeyboardInterrupt:
        pass
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(10)


def _answers(host: str, port: int, server: Popen[bytes]) -> bool:
    """Wait until the server listens; return False if it ended before."""
    import time

    while server.poll() is None:
        if _listens(host, port):
            return True
        time.sleep(0.3)
    return False


def _listens(host: str, port: int) -> bool:
    """Return whether a program accepts connections there."""
    import socket

    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


COMMAND = Command(
    name="ui",
    summary="open MLflow's UI on the stored runs",
    examples=(("topicell ui [port=5000]", ""),),
    settings=UICommand,
    function=ui,
)
