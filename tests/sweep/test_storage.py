"""Locks on files, between processes: exclusive or shared, and gone with whoever held them."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from topicell.errors import InputError
from topicell.sweep.storage import FileLocks, open_locks

OBEYS = """
import sys
from topicell.errors import InputError
from topicell.sweep.storage import open_locks

locks = open_locks(*sys.argv[1:])
print("ready", flush=True)
for line in sys.stdin:
    command = line.strip()
    if command == "release":
        locks.release()
        answer = "released"
    elif command == "briefly":
        with locks.decision():
            print("in", flush=True)
            sys.stdin.readline()
        answer = "out"
    else:
        try:
            answer = "alone" if locks.hold(shared=command == "shared") else "not alone"
        except InputError:
            answer = "refused"
    print(answer, flush=True)
"""

COUNTS = """
import sys, time
from pathlib import Path
from topicell.sweep.storage import open_locks

url, study, counter, n = sys.argv[1:]
locks = open_locks(url, study)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(n)):
    with locks.decision():
        before = int(Path(counter).read_text())
        time.sleep(0.0005)
        Path(counter).write_text(str(before + 1))
"""


class Holder:
    """A process that does with its locks what it is told."""

    def __init__(self, script, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, command):
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def hear(self):
        return self.process.stdout.readline().strip()

    def ask(self, command):
        self.tell(command)
        return self.hear()

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def processes():
    """Starts processes, and ends them."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, script=OBEYS):
            holder = Holder(script, *arguments)
            stack.enter_context(holder.process)
            stack.callback(holder.process.kill)
            assert holder.hear() == "ready"
            return holder

        yield start


@pytest.fixture(params=["sqlite:///", "journal:"])
def url(request, tmp_path):
    return f"{request.param}{tmp_path / 'optuna.db'}"


def test_one_process_works_on_a_study(processes, url):
    one, two = (processes(url, "s") for _ in range(2))
    assert one.ask("exclusive") == "alone"
    assert two.ask("exclusive") == "refused"
    assert two.ask("shared") == "refused"
    assert one.ask("release") == "released"
    assert two.ask("exclusive") == "alone"


def test_those_who_share_work_together_and_know_who_came_first(processes, url):
    one, two, three = (processes(url, "s") for _ in range(3))
    assert one.ask("shared") == "alone"
    assert two.ask("shared") == "not alone"
    assert three.ask("exclusive") == "refused"
    assert one.ask("release") == "released"
    assert three.ask("exclusive") == "refused"
    assert three.ask("shared") == "not alone"
    assert two.ask("release") == three.ask("release") == "released"
    four = processes(url, "s")
    assert four.ask("shared") == "alone"


def test_who_was_refused_stands_in_nobodys_way(processes, url):
    one, two, three = (processes(url, "s") for _ in range(3))
    assert one.ask("shared") == "alone"
    assert two.ask("exclusive") == "refused"
    assert three.ask("shared") == "not alone"
    assert one.ask("release") == three.ask("release") == "released"
    assert two.ask("exclusive") == "alone"


@pytest.mark.parametrize("command", ["exclusive", "shared"])
def test_the_lock_of_a_killed_process_is_free(processes, url, command):
    one = processes(url, "s")
    assert one.ask(command) == "alone"
    one.kill()
    assert processes(url, "s").ask("exclusive") == "alone"


def test_a_killed_process_leaves_the_others_their_share(processes, url):
    one, two, three = (processes(url, "s") for _ in range(3))
    assert one.ask("shared") == "alone"
    assert two.ask("shared") == "not alone"
    one.kill()
    assert three.ask("exclusive") == "refused"
    assert three.ask("shared") == "not alone"


def test_studies_and_storages_do_not_know_each_other(processes, url):
    assert processes(url, "s").ask("exclusive") == "alone"
    assert processes(url, "t").ask("exclusive") == "alone"
    assert processes(f"{url}2", "s").ask("exclusive") == "alone"


def test_a_storage_is_the_same_by_any_path(processes, url, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    scheme = url.removesuffix(str(tmp_path / "optuna.db"))
    assert processes(url, "s").ask("exclusive") == "alone"
    for path in (tmp_path / "link" / "optuna.db", tmp_path / ".." / tmp_path.name / "optuna.db"):
        assert processes(f"{scheme}{path}", "s").ask("exclusive") == "refused"


def test_a_program_that_is_started_meanwhile_does_not_keep_the_lock(processes, url):
    """As a worker that outlives the sweep, or a browser that shows its report."""
    locks = open_locks(url, "s")
    assert locks.hold(shared=False)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as other:
        locks.release()
        assert processes(url, "s").ask("exclusive") == "alone"
        other.kill()


def test_decisions_are_taken_one_at_a_time(processes, url, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    both = [processes(url, "s", counter, 200, script=COUNTS) for _ in range(2)]
    for one in both:
        one.tell("go")
    assert [one.process.wait(600) for one in both] == [0, 0]
    assert counter.read_text() == "400"


def test_who_is_killed_in_a_decision_does_not_stop_the_others(processes, url):
    one, two = (processes(url, "s") for _ in range(2))
    assert one.ask("briefly") == "in"
    two.tell("briefly")
    one.kill()
    assert two.hear() == "in"
    assert two.ask("") == "out"


def test_a_decision_that_fails_is_over(processes, url):
    locks = open_locks(url, "s")
    with pytest.raises(ZeroDivisionError), locks.decision():
        _ = 1 / 0
    assert processes(url, "s").ask("briefly") == "in"
    locks.release()


def test_a_brief_lock_does_not_touch_the_one_on_the_study(processes, url):
    one, two = (processes(url, "s") for _ in range(2))
    assert one.ask("shared") == "alone"
    assert one.ask("briefly") == "in"
    assert two.ask("shared") == "not alone"
    assert one.ask("") == "out"
    assert two.ask("briefly") == "in"


def test_who_is_refused_is_told_the_ways_out(url):
    locks = open_locks(url, "s")
    assert locks.hold(shared=False)
    other = open_locks(url, "s")
    with pytest.raises(InputError, match=r"sweep\.study = 's': another process .*sweep\.join=true"):
        other.hold(shared=True)
    other.release()
    locks.release()


def test_locks_are_files_of_their_own_beside_the_storage(url, tmp_path):
    locks = open_locks(url, "a study with any name: ü?*")
    assert isinstance(locks, FileLocks)
    assert locks.hold(shared=True)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert len(found) == 2
    assert all(name.startswith(".optuna.db.") and name.endswith(".lock") for name in found)
    locks.release()


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@host/d", "redis://host", "optuna.db", "sqlite://", "postgres"]
)
def test_an_address_that_cannot_be_locked_is_refused(url):
    with pytest.raises(InputError, match=r"give sqlite:///FILE, journal:FILE or") as refused:
        open_locks(url, "s")
    assert "secret" not in str(refused.value)
