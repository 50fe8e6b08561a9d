"""Processes of tests: forked from a process that has imported everything, instead of started anew.

`live` does everything that a new interpreter does, from the arguments to the exit code, except the
imports. All processes have the same seed of hashes, so the order of a set is the same in all.
``conftest.py`` starts it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import linecache
import os
import pickle
import random
import runpy
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any


def live(
    program: str | None,
    arguments: list[str],
    folder: str,
    *,
    environment: dict[str, str],
    streams: list[str | Connection],
    ready: Connection,
    quick_workers: bool,
    empty_store: str | None,
    draft: bool,
) -> None:
    """Run a program, or the command line, in a folder; streams are 0 to 2, paths or pipes."""
    os.setsid()
    # A garbage collection would write to, and so copy, the shared memory: that takes seconds.
    gc.freeze()
    # The process that cleans up semaphores belongs to the tests; a command starts its own.
    tracker = resource_tracker._resource_tracker
    if tracker._fd is not None:
        os.close(tracker._fd)
    tracker._fd = tracker._pid = None
    set_environment(folder, environment)
    redirect(streams)
    # As in conftest.py: the output must not depend on the load of the machine.
    sys.modules["topicell.progress"].SECONDS = 1e6
    sqlalchemy = sys.modules["sqlalchemy"]
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", do_not_wait_for_the_disk)
    if empty_store:
        copy_new_stores(sys.modules["topicell.tracking.store"], empty_store)
    if draft:
        write = sys.modules["topicell.sweep.page"].write
        write.__defaults__ = (40,)
    if hold := environment.get("TOPICELL_TEST_HOLD"):
        hold_trials(Path(hold))
    if quick_workers:
        util.spawnv_passfds = WorkerForks(ready).spawn

    def begin() -> None:
        reset_signals()
        ready.close()

    end(run_program(program, arguments, begin))


def set_environment(folder: str, environment: dict[str, str]) -> None:
    """Set the current folder and the environment, and draw a new seed."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # After a fork Python draws a new seed, NumPy does not.
    sys.modules["numpy"].random.seed(random.getrandbits(32))


def do_not_wait_for_the_disk(connection: object, _: object) -> None:
    """Let SQLite return before the disk has the data."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


def copy_new_stores(store: ModuleType, empty_store: str) -> None:
    """Create MLflow's new SQLite files as copies: creating the tables takes a second."""
    open_ = store._open

    def open_copy(uri: str) -> object:
        path = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and path.suffix == ".unfinished" and not path.exists():
            shutil.copy(empty_store, path)
        return open_(uri)

    store._open = open_copy


def hold_trials(hold: Path) -> None:
    """Stop trials in their tenth epoch while a file exists; its text is the first such trial."""
    tracker = importlib.import_module("topicell.sweep.tracker").TrialTracker
    log_metrics = tracker.log_metrics

    def log_and_wait(self: Any, values: dict[str, float], epoch: int | None = None) -> None:
        log_metrics(self, values, epoch)
        with contextlib.suppress(FileNotFoundError):
            while epoch == 9 and int(self.trial.tags["topicell.trial"]) >= int(hold.read_text()):
                time.sleep(0.02)

    tracker.log_metrics = log_and_wait


def reset_signals(blocked: set[int] | tuple[()] = ()) -> None:
    """Set the signal handlers of a new interpreter."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # A shell that runs the tests in the background lets them ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def redirect(streams: list[str | Connection]) -> None:
    """Connect standard input, output and error."""
    for number, stream in enumerate(streams):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        opened = os.open(stream, flags) if isinstance(stream, str) else stream.fileno()
        if opened != number:
            os.dup2(opened, number)
            stream.close() if hasattr(stream, "close") else os.close(opened)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=False)


def run_program(program: str | None, arguments: list[str], begin: Callable[[], None]) -> int:
    """Run the program; return its exit code, or the negative number of the signal that ends it."""
    try:
        # Inside of `try`: a signal may arrive as soon as it is allowed.
        begin()
        if program is None:
            sys.argv = ["topicell", *arguments]
            runpy.run_module("topicell", run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *arguments]
            if sys.version_info >= (3, 13):  # tracebacks show the lines of the program
                lines = program.splitlines(keepends=True)
                linecache.cache["<string>"] = (len(program), None, lines, "<string>")
            exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            return (exit_.code or 0) & 0xFF
        sys.stderr.write(f"{exit_.code}\n")
        return 1
    except BaseException as error:
        # Remove this function from the traceback.
        error = error.with_traceback(error.__traceback__.tb_next)
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def end(code: int) -> None:
    """End like an interpreter."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


class WorkerForks:
    """A process, forked from a command before it ran anything, that forks the command's workers.

    It replaces the new interpreters that `multiprocessing` would start. The workers are children
    of the command, as they would be without it.
    """

    SUBREAPER = 36

    def __init__(self, ready: Connection) -> None:
        self.new_interpreter = util.spawnv_passfds
        self.our_end, fork_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # This process becomes the parent of the workers when the process between them ends.
        assert ctypes.CDLL(None).prctl(self.SUBREAPER, 1, 0, 0, 0) == 0
        if os.fork():
            fork_end.close()
            return
        self.our_end.close()
        ready.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            request, fds, _, _ = socket.recv_fds(fork_end, 2**20, 64)
            if not request:
                os._exit(0)
            read_end, write_end = os.pipe()
            between = os.fork()
            if not between:
                self._leave_an_orphan(pickle.loads(request), fds, fork_end, write_end)
            os.waitpid(between, 0)
            # Only now it is a child of the command, which may wait for it.
            fork_end.send(os.read(read_end, 32))
            for fd in (read_end, write_end, *fds):
                os.close(fd)

    def spawn(self, path: bytes, arguments: list[str], fds: list[int]) -> int:
        """Start a worker and return its process id; replaces ``util.spawnv_passfds``."""
        if "--multiprocessing-fork" not in arguments:
            return self.new_interpreter(path, arguments, fds)
        blocked = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
        code = arguments[arguments.index("-c") + 1]
        request = (code, list(fds), str(Path.cwd()), dict(os.environ), blocked)
        socket.send_fds(self.our_end, [pickle.dumps(request)], list(fds))
        return int(self.our_end.recv(32))

    def _leave_an_orphan(
        self, request: tuple, fds: list[int], fork_end: socket.socket, write_end: int
    ) -> None:
        between = os.getpid()
        if pid := os.fork():
            os.write(write_end, str(pid).encode())
            os._exit(0)
        os.close(write_end)
        while os.getppid() == between:
            time.sleep(0.001)
        code, numbers, folder, environment, blocked = request
        fork_end.close()
        copies = [os.dup2(fd, 500 + i) for i, fd in enumerate(fds)]
        for fd, number in zip(copies, numbers, strict=True):
            os.dup2(fd, number)
            os.close(fd)
        for fd in set(fds) - set(numbers):
            os.close(fd)
        set_environment(folder, environment)
        end(run_program(code, ["--multiprocessing-fork"], lambda: reset_signals(blocked)))
