"""The life of a process that is forked from one with everything imported.

It does what a new interpreter would, from its arguments to its exit code, but for its imports. What
it shares with its siblings is the seed of hashes: the order of a set is the same in all of them.
``conftest.py`` runs this file in the process, with what is ``given`` to it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
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
    environment: dict[str, str],
    streams: list[str | Connection],
    ready: Connection,
    *,
    quick_workers: bool,
    empty_store: str | None,
    draft: bool = False,
) -> None:
    """Run a program, or the command line, from a folder; streams are 0 to 2, paths or pipes."""
    os.setsid()
    # A collection would touch, and thus copy, the memory that is shared: that takes seconds.
    gc.freeze()
    # Python's helper that looks after semaphores is that of the tests; a command starts its own.
    tracker = resource_tracker._resource_tracker
    if tracker._fd is not None:
        os.close(tracker._fd)
    tracker._fd = tracker._pid = None
    take_place(folder, environment)
    take(streams)
    # As in conftest.py: no line depends on how busy the machine is.
    sys.modules["topicell.progress"].SECONDS = 1e6
    sqlalchemy = sys.modules["sqlalchemy"]
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", trust_the_power)
    if empty_store:
        copy_new_stores(sys.modules["topicell.tracking.store"], empty_store)
    if draft:
        write = sys.modules["topicell.sweep.page"].write
        write.__defaults__, write.__kwdefaults__ = (40,), {"pdf": False}
    if hold := environment.get("TOPICELL_TEST_HOLD"):
        hold_trials(Path(hold))
    if quick_workers:
        util.spawnv_passfds = Nursery(ready).spawn

    def begin() -> None:
        hear_signals()
        ready.close()

    end(work(program, arguments, begin))


def take_place(folder: str, environment: dict[str, str]) -> None:
    """Stand in a folder and an environment, with chance of its own."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # Python draws a seed anew after a fork; NumPy does not.
    sys.modules["numpy"].random.seed(random.getrandbits(32))


def trust_the_power(connection: object, _: object) -> None:
    """Do not wait for the disk, as the tests' own process does not."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


def copy_new_stores(store: ModuleType, empty_store: str) -> None:
    """Have MLflow's new SQLite files begin as a copy: to create the tables takes a second."""
    open_ = store._open

    def begin_with_tables(uri: str) -> object:
        path = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and path.suffix == ".unfinished" and not path.exists():
            shutil.copy(empty_store, path)
        return open_(uri)

    store._open = begin_with_tables


def hold_trials(hold: Path) -> None:
    """Have trials wait in their tenth epoch while a file exists; its text is the first number."""
    tracker = importlib.import_module("topicell.sweep.tracker").TrialTracker
    log_metrics = tracker.log_metrics

    def log_and_wait(self: Any, values: dict[str, float], epoch: int | None = None) -> None:
        log_metrics(self, values, epoch)
        with contextlib.suppress(FileNotFoundError):
            while epoch == 9 and int(self.trial.tags["topicell.trial"]) >= int(hold.read_text()):
                time.sleep(0.02)

    tracker.log_metrics = log_and_wait


def hear_signals(blocked: set[int] | tuple[()] = ()) -> None:
    """Do with signals as a new interpreter does."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # It is ignored where the tests run in the background of a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def take(streams: list[str | Connection]) -> None:
    """Have them as standard input, output and error."""
    for number, stream in enumerate(streams):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        opened = os.open(stream, flags) if isinstance(stream, str) else stream.fileno()
        if opened != number:
            os.dup2(opened, number)
            stream.close() if hasattr(stream, "close") else os.close(opened)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=False)


def work(program: str | None, arguments: list[str], begin: Callable[[], None]) -> int:
    """Run the program; its exit code, or the number of the signal that ends it, negative."""
    try:
        # Here, for a signal that comes as soon as it may ends the program, wherever it strikes.
        begin()
        if program is None:
            sys.argv = ["topicell", *arguments]
            runpy.run_module("topicell", run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *arguments]
            exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            return (exit_.code or 0) & 0xFF
        sys.stderr.write(f"{exit_.code}\n")
        return 1
    except BaseException as error:
        # Without the line above.
        error = error.with_traceback(error.__traceback__.tb_next)
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def end(code: int) -> None:
    """End as an interpreter does."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


class Nursery:
    """A process forked from a command before that did anything, for the command's own children.

    Those that `multiprocessing` would start as new interpreters are forked from it, and are then
    children of the command all the same.
    """

    SUBREAPER = 36

    def __init__(self, ready: Connection) -> None:
        self.new_interpreter = util.spawnv_passfds
        self.here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What an orphan of the nursery falls to.
        assert ctypes.CDLL(None).prctl(self.SUBREAPER, 1, 0, 0, 0) == 0
        if os.fork():
            there.close()
            return
        self.here.close()
        ready.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            request, fds, _, _ = socket.recv_fds(there, 2**20, 64)
            if not request:
                os._exit(0)
            said, say = os.pipe()
            between = os.fork()
            if not between:
                self._leave_an_orphan(pickle.loads(request), fds, there, say)
            os.waitpid(between, 0)
            # Only now it is a child of the command, which may wait for it.
            there.send(os.read(said, 32))
            for fd in (said, say, *fds):
                os.close(fd)

    def spawn(self, path: bytes, arguments: list[str], fds: list[int]) -> int:
        """As of ``multiprocessing.util``: start an interpreter; its process id."""
        if "--multiprocessing-fork" not in arguments:
            return self.new_interpreter(path, arguments, fds)
        blocked = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
        code = arguments[arguments.index("-c") + 1]
        request = (code, list(fds), str(Path.cwd()), dict(os.environ), blocked)
        socket.send_fds(self.here, [pickle.dumps(request)], list(fds))
        return int(self.here.recv(32))

    def _leave_an_orphan(
        self, request: tuple, fds: list[int], there: socket.socket, say: int
    ) -> None:
        between = os.getpid()
        if pid := os.fork():
            os.write(say, str(pid).encode())
            os._exit(0)
        os.close(say)
        while os.getppid() == between:
            time.sleep(0.001)
        code, numbers, folder, environment, blocked = request
        there.close()
        apart = [os.dup2(fd, 500 + i) for i, fd in enumerate(fds)]
        for fd, number in zip(apart, numbers, strict=True):
            os.dup2(fd, number)
            os.close(fd)
        for fd in set(fds) - set(numbers):
            os.close(fd)
        take_place(folder, environment)
        end(work(code, ["--multiprocessing-fork"], lambda: hear_signals(blocked)))


if __name__ == "child":
    live(**given)  # noqa: F821
