"""An MLflow server, and a proxy in front of it that simulates faults."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

FAULTS = {
    "refused": 0,
    "hanging": 0,
    "slow": 0,
    "500": 0,
    "deaf": 0,
    "vanishing": 9,
    "hanging later": 9,
    "500 later": 12,
    "slow later": 7,
}
"""The faults of a server, and the number of requests before each begins."""


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """Serve a store in a folder; yield the port of the tracking server."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    # By default it closes connections that were idle for five seconds; a request that is sent in
    # the same moment has no answer, and MLflow's client does not repeat it here.
    command += ["--uvicorn-opts", "--timeout-keep-alive 600"]
    light = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | light, start_new_session=True
        )
    try:
        end = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < end
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait(600)


class Proxy:
    """Forward requests to a server until a fault begins.

    Parameters
    ----------
    port
        The port of the server.
    fault
        ``refused`` (nothing listens), ``hanging`` (never answers), ``slow`` (answers after 5 s),
        ``500`` (answers with an error), ``vanishing`` (stops listening), ``deaf`` (forwards the
        request but loses the answer), or empty.
    after
        Number of requests that are forwarded before the fault begins.
    """

    SLOW_SECONDS = 5.0

    def __init__(self, port: int, fault: str = "", after: int = 0) -> None:
        self.upstream = port
        self.fault = fault
        self.after = after
        self.n_requests = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self) -> None:
                proxy._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        self._server = _Server(("127.0.0.1", free_port()), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        if fault == "refused":
            self._server.server_close()
        else:
            self._thread.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(_chunks(request.rfile))
        with self._lock:
            self.n_requests += 1
            faulty = self.n_requests > self.after
        if faulty and self.fault == "hanging":
            # Until the client gives up.
            request.connection.settimeout(60)
            with contextlib.suppress(OSError):
                request.rfile.read(1)
            request.close_connection = True
            return
        if faulty and self.fault == "500":
            _reply(request, 500, b"broken")
            return
        if faulty and self.fault == "vanishing":
            request.close_connection = True
            threading.Thread(target=self.close, daemon=True).start()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        headers = {k: v for k, v in request.headers.items() if k.lower() != "transfer-encoding"}
        connection.request(request.command, request.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if faulty and self.fault == "deaf":
            request.close_connection = True
            return
        if faulty and self.fault == "slow":
            time.sleep(self.SLOW_SECONDS)
        kind = response.getheader("Content-Type") or "application/json"
        _reply(request, response.status, content, kind)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Ignore clients that closed the connection."""


def _reply(
    request: BaseHTTPRequestHandler, status: int, content: bytes, kind: str = "text/plain"
) -> None:
    with contextlib.suppress(OSError):
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while size := int(file.readline(), 16):
        yield file.read(size)
        file.readline()
    file.readline()
