"""Long-lived worker processes: each runs one trial after another, and can be killed alone.

Imports and prepared data are paid for once in each process. A worker sends over a pipe that a trial
began, its perplexity after each epoch (the answer says whether to stop), and how it ended. If a
process ends without that, its pipe is closed; another process takes its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from topicell.errors import InputError, failure
from topicell.signals import interrupt, interrupted
from topicell.sweep.tracker import Began, CurrentTrial, Pruned, Report, SplitReport

GRACE_SECONDS = 20.0
"""How long an interrupted worker may take to record the end of its run."""

Work = Callable[[bytes, CurrentTrial], None]
"""Runs a job in a worker; an error is raised, or set on the trial."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a trial: COMPLETE, PRUNED, FAIL or KILLED (interrupted)."""

    number: int
    state: str
    values: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 0
    error: str = ""
    bad_input: bool = False


@dataclass(frozen=True, slots=True)
class Died:
    """The end of a process, and of its trial if it had one; the code is negative for a signal."""

    number: int | None
    exitcode: int | None


Event = Began | Report | SplitReport | Done | Died


@dataclass(slots=True, eq=False)
class Worker:
    """One process, and the trial that it is running."""

    process: Any
    connection: Connection
    number: int | None = None


class Workers:
    """Processes that run jobs.

    Parameters
    ----------
    prepare
        Called once in each process; returns the function that runs a job. It is pickled.
    """

    def __init__(self, prepare: Callable[[], Work]) -> None:
        self._prepare = prepare
        # A forked process would share the parent's threads, connections and locks.
        self._context = mp.get_context("spawn")
        self._workers: list[Worker] = []

    @property
    def busy(self) -> list[int]:
        """Numbers of the trials that are running."""
        return [worker.number for worker in self._workers if worker.number is not None]

    def give(self, number: int, job: bytes, tags: Mapping[str, str]) -> None:
        """Give the job of a trial to an idle worker, or to a new one."""
        worker = next((worker for worker in self._workers if worker.number is None), None)
        if worker is None:
            worker = self._start()
            self._workers.append(worker)
        worker.number = number
        # If it died while idle, `events` says so.
        with contextlib.suppress(OSError):
            worker.connection.send((number, job, dict(tags)))

    def answer(self, number: int, *, end: bool) -> None:
        """Answer a report: whether the trial ends."""
        for worker in self._workers:
            if worker.number == number:
                with contextlib.suppress(OSError):
                    worker.connection.send(end)

    def events(self, timeout: float) -> Iterator[Event]:
        """Return what the workers sent; wait up to so many seconds for it."""
        workers: dict[Any, Worker] = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(workers), timeout):
            worker = workers[connection]
            event: Event
            try:
                event = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join(5)
                worker.connection.close()
                self._workers.remove(worker)
                event = Died(worker.number, worker.process.exitcode)
            if isinstance(event, (Done, Died)):
                worker.number = None
            yield event

    def interrupt(self) -> Iterator[Event]:
        """Interrupt all trials, return what they send until they end, and end all processes."""
        deadline = time.monotonic() + GRACE_SECONDS
        self._interrupt(self.busy)
        while self.busy and time.monotonic() < deadline:
            for event in self.events(0.5):
                if isinstance(event, (Began, Report, SplitReport)):
                    # The first signal came before the run could receive it.
                    self._interrupt([event.number])
                if event.number is not None:
                    yield event
        yield from [Died(number, None) for number in self.busy]
        self.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            if worker.number is None:
                worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def _interrupt(self, numbers: list[int]) -> None:
        for worker in self._workers:
            if worker.number in numbers and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)

    def _start(self) -> Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._prepare), daemon=True)
        # The new process inherits that SIGINT is blocked, and unblocks it while it runs a job:
        # during its imports a signal waits. Python's own helper process would unblock it here.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        there.close()
        return Worker(process, here)


def _serve(connection: Connection, prepare: Callable[[], Work]) -> None:
    """Run jobs in a worker process until the pipe is closed or a job is interrupted."""
    # Ctrl-C on the terminal then reaches the parent alone, which interrupts its workers once.
    os.setsid()
    parent = mp.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    work = prepare()
    state = ""
    while state != "KILLED":
        try:
            number, job, tags = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        if not parent.is_alive():
            return
        done = _run(work, job, CurrentTrial(connection, number, tags))
        state = done.state
        with contextlib.suppress(OSError):
            connection.send(done)


def _run(work: Work, job: bytes, trial: CurrentTrial) -> Done:
    """Run a job; return how it ended."""
    error, bad_input = "", False
    try:
        signal.signal(signal.SIGINT, _interrupt_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        work(job, trial)
        if trial.error is not None:
            raise trial.error
        state = "COMPLETE"
    except Pruned:
        state = "PRUNED"
    except KeyboardInterrupt:
        state = "KILLED"
    except Exception as raised:
        state = "KILLED" if interrupted() else "FAIL"
        bad_input = isinstance(raised, InputError)
        error = str(raised) if bad_input else failure(raised)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    return Done(trial.number, state, trial.values, trial.epochs, error, bad_input)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Interrupt the run, and ignore further signals while it records its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt(number, frame)


def _end_with(parent: Any) -> None:
    """Wait for the sweep's process to end; then interrupt the run and end this process."""
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_SECONDS)
    os._exit(1)
