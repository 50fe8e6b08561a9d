"""Worker processes: one job after another; they end with an interrupt or with their parent."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from topicell.errors import InputError
from topicell.sweep import workers as module
from topicell.sweep.tracker import Began, Pruned, Report, SplitReport
from topicell.sweep.workers import Died, Done, Workers

SECONDS = 600


def prepare(prepared=None):
    if prepared is not None:
        with Path(prepared).open("a") as file:
            file.write(f"{os.getpid()}\n")
    return work


def work(job, trial):
    kind, _, rest = job.decode().partition(" ")
    if kind == "sleep":
        try:
            # The test may interrupt as soon as it has this event.
            trial.began(f"run of {os.getpid()}", Path("folder"))
            time.sleep(300)
        except KeyboardInterrupt:
            Path(rest).write_text("interrupted")
            raise
    trial.began(f"run of {os.getpid()}", Path("folder"))
    if kind == "epochs":
        for epoch in range(int(rest)):
            trial.trained(1)
            if trial.report(epoch, 10.0 - epoch):
                raise Pruned(f"epoch {epoch}")
        trial.conclude({"measure": {"0": [1.0, 2.0]}})
    elif kind == "split":
        if trial.report_split("7", [1.5, 2.5]):
            trial.fail(Pruned("split"))
    elif kind == "tell":
        trial.fail(ValueError("told"))
    elif kind == "raise":
        raise ValueError("raised")
    elif kind == "refuse":
        raise InputError("bad")
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "exit":
        os._exit(3)
    elif kind == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        trial.report(0, 1.0)
        time.sleep(300)


@pytest.fixture
def workers():
    made = Workers(prepare)
    yield made
    for _ in made.interrupt():
        pass


def events_until(workers, until):
    """Return all events until one of a kind; the answer to every report is to continue."""
    events = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for event in workers.events(timeout=1):
            events.append(event)
            if isinstance(event, (Report, SplitReport)):
                workers.answer(event.number, end=False)
        if any(isinstance(event, until) for event in events):
            return events
    raise AssertionError(f"only {events}")


def end_of(workers, number, job):
    workers.give(number, job, {})
    return events_until(workers, (Done, Died))[-1]


def test_a_worker_is_prepared_once_and_does_one_job_after_another(tmp_path):
    prepared = tmp_path / "prepared"
    workers = Workers(partial(prepare, str(prepared)))
    try:
        for number in range(3):
            workers.give(number, b"epochs 2", {"tag": "value"})
            assert workers.busy == [number]
            events = events_until(workers, Done)
            assert [type(event) for event in events] == [Began, Report, Report, Done]
            assert [(e.epoch, e.value) for e in events[1:3]] == [(0, 10.0), (1, 9.0)]
            done = events[-1]
            assert (done.state, done.epochs) == ("COMPLETE", 2)
            assert done.values == {"measure": {"0": [1.0, 2.0]}}
            assert workers.busy == []
        (pid,) = set(prepared.read_text().split())
        assert events[0].run_id == f"run of {pid}"
    finally:
        workers.close()
    assert not Path(f"/proc/{pid}").exists()


def test_there_are_as_many_workers_as_simultaneous_jobs(workers):
    for number in range(3):
        workers.give(number, b"epochs 1", {})
    assert sorted(workers.busy) == [0, 1, 2]
    runs = set()
    while workers.busy:
        runs |= {event.run_id for event in events_until(workers, Done) if isinstance(event, Began)}
    assert len(runs) == 3


def test_every_end_of_a_job_is_reported(workers):
    ends = {
        b"raise": ("FAIL", "ValueError: raised", False),
        b"tell": ("FAIL", "ValueError: told", False),
        b"refuse": ("FAIL", "bad", True),
        b"split": ("COMPLETE", "", False),
    }
    for number, (job, expected) in enumerate(ends.items()):
        done = end_of(workers, number, job)
        assert (done.number, done.state, done.error, done.bad_input) == (number, *expected)


@pytest.mark.parametrize("job", [b"epochs 5", b"split"])
def test_an_answer_can_end_a_trial(workers, job):
    workers.give(4, job, {})
    events = []
    while not any(isinstance(event, Done) for event in events):
        for event in workers.events(timeout=1):
            events.append(event)
            if isinstance(event, (Report, SplitReport)):
                workers.answer(4, end=True)
    assert events[-1].state == "PRUNED"
    assert sum(isinstance(event, (Report, SplitReport)) for event in events) == 1


@pytest.mark.parametrize(("job", "exitcode"), [(b"die", -9), (b"exit", 3)])
def test_a_dead_worker_is_reported_and_another_takes_the_next_job(workers, job, exitcode):
    assert end_of(workers, 0, job) == Died(0, exitcode)
    assert workers.busy == []
    assert end_of(workers, 1, b"epochs 1").state == "COMPLETE"


def test_the_death_of_an_idle_worker_is_reported_with_its_next_job(workers):
    assert end_of(workers, 0, b"epochs 1").state == "COMPLETE"
    (worker,) = workers._workers
    worker.process.kill()
    worker.process.join()
    workers.give(1, b"epochs 1", {})
    # Its death is reported with the number of the job that it could not take.
    assert events_until(workers, (Done, Died))[-1] == Died(1, -9)


def test_an_interrupt_ends_jobs_and_processes(workers, tmp_path):
    for number in range(2):
        workers.give(number, f"sleep {tmp_path / str(number)}".encode(), {})
    n_began = 0
    while n_began < 2:
        n_began += sum(isinstance(event, Began) for event in events_until(workers, Began))
    processes = [worker.process for worker in workers._workers]
    events = list(workers.interrupt())
    assert sorted((e.number, e.state) for e in events) == [(0, "KILLED"), (1, "KILLED")]
    assert [(tmp_path / str(number)).read_text() for number in range(2)] == ["interrupted"] * 2
    assert not any(process.is_alive() for process in processes)


def test_a_worker_that_ignores_an_interrupt_is_killed(workers, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 1.0)
    workers.give(0, b"deaf", {})
    events_until(workers, Report)
    (process,) = [worker.process for worker in workers._workers]
    assert list(workers.interrupt()) == [Died(0, None)]
    assert not process.is_alive()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path, stop):
    """Their run is interrupted, so that its end can be recorded."""
    marker = tmp_path / "marker"
    program = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_workers as t\n"
        "if __name__ == '__main__':\n"
        "    workers = t.Workers(t.prepare)\n"
        f"    workers.give(0, b'sleep {marker}', {{}})\n"
        "    began = t.events_until(workers, t.Began)[0]\n"
        "    print(began.run_id, flush=True)\n"
        "    time.sleep(300)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(program)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        worker = int(parent.stdout.readline().split()[-1])
        parent.send_signal(stop)
        parent.wait(SECONDS)
        end = time.monotonic() + SECONDS
        while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert marker.read_text() == "interrupted"
        assert not Path(f"/proc/{worker}").exists()
    finally:
        parent.kill()
        parent.stdout.close()
        parent.wait()
