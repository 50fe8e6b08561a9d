"""Long-lived worker processes: each takes one job after another, and dies alone.

What a worker costs to start (imports, the prepared data) is paid once. A worker speaks over a pipe:
that a trial began, its perplexity after each epoch (the answer says whether to go on), and how it
ended. A process that dies is an event like any other, and another takes its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from topicell.errors import InputError, failure
from topicell.signals import interrupt, interrupted
from topicell.sweep.watch import CurrentTrial, Pruned

GRACE_SECONDS = 20.0
"""How long an interrupted worker may take to record the end of its run."""

Work = Callable[[bytes, CurrentTrial], None]
"""Does a job in a worker; what goes wrong is raised, or told to the trial."""


@dataclass(frozen=True, slots=True)
class Began:
    """The run of a trial is recorded."""

    number: int
    run_id: str
    folder: str


@dataclass(frozen=True, slots=True)
class Report:
    """Validation perplexity of an epoch; the worker waits for an answer."""

    number: int
    epoch: int
    value: float


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Perplexity of each replicate on a split; the worker waits for an answer."""

    number: int
    seed: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Done:
    """How a trial ended: COMPLETE, PRUNED, FAIL or KILLED (interrupted)."""

    number: int
    state: str
    values: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 0
    error: str = ""
    bad_input: bool = False


@dataclass(frozen=True, slots=True)
class Died:
    """The process of a trial ended without a word: its exit code, negative for a signal."""

    number: int | None
    exitcode: int | None


Event = Began | Report | SplitReport | Done | Died


@dataclass(slots=True, eq=False)
class Worker:
    """One process, and the trial that it works on, if any."""

    process: Any
    connection: Connection
    number: int | None = None


class Workers:
    """Processes that do jobs.

    Parameters
    ----------
    prepare
        Called in each process once, without arguments; gives the function that does a job. It
        must be one that can be pickled.
    """

    def __init__(self, prepare: Callable[[], Work]) -> None:
        self._prepare = prepare
        # A fork would share the parent's threads, connections and locks.
        self._context = mp.get_context("spawn")
        self._workers: list[Worker] = []

    @property
    def busy(self) -> list[int]:
        """Numbers of the trials that are worked on."""
        return [worker.number for worker in self._workers if worker.number is not None]

    def give(self, number: int, job: bytes, tags: Mapping[str, str]) -> None:
        """Give the job of a trial to an idle worker; start one if there is none."""
        idle = [worker for worker in self._workers if worker.number is None]
        if not idle:
            self._workers.append(self._start())
        worker = idle[0] if idle else self._workers[-1]
        worker.number = number
        # If it died while idle, the next wait says so.
        with contextlib.suppress(OSError):
            worker.connection.send((number, job, dict(tags)))

    def answer(self, number: int, *, end: bool) -> None:
        """Answer a report."""
        for worker in self._workers:
            if worker.number == number:
                with contextlib.suppress(OSError):
                    worker.connection.send(end)

    def events(self, timeout: float) -> Iterator[Event]:
        """What has happened; waits up to so many seconds for the first."""
        connections = {worker.connection: worker for worker in self._workers}
        sentinels = {worker.process.sentinel: worker for worker in self._workers}
        ready = wait([*connections, *sentinels], timeout)
        heard: list[Worker] = []
        for one in ready:
            worker = connections.get(one) if isinstance(one, Connection) else sentinels[one]
            assert worker is not None
            if worker in heard:
                continue
            heard.append(worker)
            yield from self._events_of(worker)

    def _events_of(self, worker: Worker) -> Iterator[Event]:
        try:
            while worker.connection.poll():
                event = worker.connection.recv()
                if isinstance(event, Done):
                    worker.number = None
                yield event
        except (EOFError, OSError):
            pass
        else:
            if worker.process.is_alive():
                return
        worker.process.join(5)
        if worker in self._workers:
            self._workers.remove(worker)
            worker.connection.close()
            yield Died(worker.number, worker.process.exitcode)

    def interrupt(self) -> Iterator[Event]:
        """Interrupt all jobs and end all processes; what the jobs had to say until then."""
        until = time.monotonic() + GRACE_SECONDS
        for worker in self._workers:
            if worker.number is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
        while self.busy and time.monotonic() < until:
            open_ = {w.connection: w for w in self._workers if w.number is not None}
            for one in wait(list(open_), 0.5):
                assert isinstance(one, Connection)
                worker = open_[one]
                try:
                    event = worker.connection.recv()
                except (EOFError, OSError):
                    event = Died(worker.number, worker.process.exitcode)
                if isinstance(event, (Began, Report, SplitReport)) and worker.process.is_alive():
                    # It did not hear: it was about to begin.
                    os.kill(worker.process.pid, signal.SIGINT)
                if isinstance(event, (Done, Died)):
                    worker.number = None
                yield event
        for worker in self._workers:
            if worker.number is not None:
                yield Died(worker.number, None)
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

    def _start(self) -> Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self._prepare), daemon=True)
        with _undisturbed():
            process.start()
        there.close()
        return Worker(process, here)


class _Channel:
    """The trial as its worker sees it."""

    def __init__(self, connection: Connection, number: int, tags: Mapping[str, str]) -> None:
        self._connection = connection
        self.number = number
        self.tags = tags
        self.epochs = 0
        self.values: Mapping[str, Any] = {}
        self.error: Exception | None = None

    def began(self, run_id: str, folder: Path) -> None:
        try:
            self._connection.send(Began(self.number, run_id, str(folder)))
        except OSError as error:
            raise KeyboardInterrupt from error  # the sweep is gone

    def trained(self, epochs: int) -> None:
        self.epochs += epochs

    def report(self, epoch: int, value: float) -> bool:
        return self._asked(Report(self.number, epoch, value))

    def report_split(self, seed: str, values: Sequence[float]) -> bool:
        return self._asked(SplitReport(self.number, seed, list(values)))

    def _asked(self, report: Report | SplitReport) -> bool:
        try:
            self._connection.send(report)
            return bool(self._connection.recv())
        except (EOFError, OSError) as error:
            raise KeyboardInterrupt from error  # the sweep is gone

    def conclude(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def fail(self, error: Exception) -> None:
        self.error = error


def _serve(connection: Connection, prepare: Callable[[], Work]) -> None:
    """What a worker process does: jobs, until the pipe is closed or it is interrupted."""
    # Ctrl-C on the terminal reaches the parent, which interrupts the workers once.
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
        trial = _Channel(connection, number, tags)
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
        with contextlib.suppress(OSError):
            connection.send(Done(number, state, trial.values, trial.epochs, error, bad_input))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Start a process whole, and deaf to interrupts; one that comes meanwhile is raised after.

    The new process hears them while it works: what comes during its imports waits for the job.
    """
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    # Python's helper process, if it had to be started within, would take the mask away.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Interrupt the run, and let it record its end whatever comes then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt(number, frame)


def _end_with(parent: Any) -> None:
    """Interrupt the run if the sweep's own process is gone, and end."""
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_SECONDS)
    os._exit(1)
