"""Storages of every kind, and processes that use them."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from topicell.errors import InputError
from topicell.sweep.storage import open_locks

PASSWORD = "not: to/be@shown"
ESCAPED = "not%3A%20to%2Fbe%40shown"
NUMBERS = itertools.count()


@pytest.fixture(
    params=[
        "sqlite",
        "journal",
        pytest.param("postgresql", marks=pytest.mark.extras("psycopg", "postgresql")),
    ]
)
def url(request, tmp_path):
    """Return the address of a storage of each kind; it does not exist yet."""
    if request.param == "postgresql":
        return request.getfixturevalue("database")
    return {"sqlite": "sqlite:///", "journal": "journal:"}[request.param] + f"{tmp_path}/optuna.db"


@pytest.fixture
def database(server):
    """Return the address of an empty database for one test."""
    import psycopg

    name = f"d{next(NUMBERS)}"
    host, _, port = server.partition(":")
    with psycopg.connect(
        host=host,
        port=port,
        user="topicell",
        password=PASSWORD,
        dbname="postgres",
        autocommit=True,
    ) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://topicell:{ESCAPED}@{server}/{name}"


@pytest.fixture(scope="session")
def server(postgresql_programs):
    """Start a PostgreSQL server, and return ``HOST:PORT``."""
    user = other_user()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="topicell-postgresql-"))
    data = folder / "data"
    (folder / "password").write_text(PASSWORD)

    def run(program, *arguments):
        command = [postgresql_programs / program, "-D", data, *arguments]
        done = subprocess.run(
            command, **user, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        if user:
            for path in (folder, folder / "password"):
                os.chown(path, user["user"], user["group"])
        run(
            "initdb",
            *("--username=topicell", f"--pwfile={folder / 'password'}", "--no-sync"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
        )
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off -c shared_buffers=16MB"
        # The server keeps its standard output open, so it must not be a pipe.
        run("pg_ctl", "-w", "-t", "60", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def other_user():
    """Return the user who runs the server, which refuses root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    return pytest.skip("this is root, and there is no other user to run PostgreSQL")


class Program:
    """A process that reads commands from standard input and answers each with a line."""

    def __init__(self, process):
        self.process = process

    def tell(self, command=""):
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def read_line(self):
        return self.process.stdout.readline().strip()

    def ask(self, command):
        self.tell(command)
        return self.read_line()

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start_program(start_process):
    """Return a function that starts a `Program`; all are ended after the test."""
    with contextlib.ExitStack() as stack:

        def start(script, *arguments):
            process = start_process(*arguments, program=script, piped=True)
            stack.callback(process.end)
            return Program(process)

        yield start


@pytest.fixture
def soon():
    """Return a function that waits until a condition holds, and returns whether it does."""

    def wait(condition, seconds=60.0):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if condition():
                return True
            time.sleep(0.05)
        return False

    return wait


@pytest.fixture
def until_free(soon):
    """Return a function that waits for the lock on a study: PostgreSQL releases it after a kill."""

    def is_free(url, study):
        locks = open_locks(url, study)
        try:
            return locks.hold(shared=False)
        except InputError:
            return False
        finally:
            locks.release()

    return lambda url, study="s": soon(lambda: is_free(url, study))
