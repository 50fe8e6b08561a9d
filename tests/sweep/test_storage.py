"""Locks between processes, which end with their process; and errors of bad addresses."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from topicell.errors import InputError
from topicell.sweep.storage import DatabaseLocks, FileLocks, open_locks, open_storage

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
    elif command == "decide":
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


@pytest.fixture
def holders(start_program, url):
    """Return a function that starts processes with the locks of a study."""

    def start(n, study="s", url=url):
        found = [start_program(OBEYS, url, study) for _ in range(n)]
        assert [one.read_line() for one in found] == ["ready"] * n
        return found

    return start


def test_an_exclusive_lock_refuses_all_other_processes(holders, soon):
    one, two = holders(2)
    assert one.ask("exclusive") == "alone"
    assert two.ask("exclusive") == "refused"
    assert two.ask("shared") == "refused"
    assert one.ask("release") == "released"
    assert soon(lambda: two.ask("exclusive") == "alone")


def test_a_shared_lock_admits_others_and_says_which_was_first(holders, soon):
    one, two, three, four = holders(4)
    assert one.ask("shared") == "alone"
    assert two.ask("shared") == "not alone"
    assert three.ask("exclusive") == "refused"
    assert one.ask("release") == "released"
    assert three.ask("exclusive") == "refused"
    assert three.ask("shared") == "not alone"
    assert two.ask("release") == three.ask("release") == "released"
    assert soon(lambda: four.ask("exclusive") == "alone")


@pytest.mark.parametrize("command", ["exclusive", "shared"])
def test_the_lock_of_a_killed_process_is_free(holders, soon, command):
    one, two = holders(2)
    assert one.ask(command) == "alone"
    assert two.ask("exclusive") == "refused"
    one.kill()
    assert soon(lambda: two.ask("exclusive") == "alone")


def test_other_shared_locks_survive_a_killed_process(holders):
    one, two, three = holders(3)
    assert one.ask("shared") == "alone"
    assert two.ask("shared") == "not alone"
    one.kill()
    assert three.ask("exclusive") == "refused"
    assert three.ask("shared") == "not alone"


@pytest.mark.parametrize("url", ["sqlite", "journal"], indirect=True)
def test_a_storage_has_one_lock_for_all_paths_to_it(holders, url, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    scheme = url.removesuffix(f"{tmp_path}/optuna.db")
    (one,) = holders(1)
    assert one.ask("exclusive") == "alone"
    for path in (tmp_path / "link" / "optuna.db", tmp_path / ".." / tmp_path.name / "optuna.db"):
        (other,) = holders(1, url=f"{scheme}{path}")
        assert other.ask("exclusive") == "refused"
    (other,) = holders(1, url=f"{url}2")
    assert other.ask("exclusive") == "alone"


def test_a_child_process_does_not_keep_the_lock(holders, soon, url):
    """For example a worker that lives longer than the sweep, or a browser with its report."""
    locks = open_locks(url, "s")
    assert locks.hold(shared=False)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as other:
        locks.release()
        (one,) = holders(1)
        assert soon(lambda: one.ask("exclusive") == "alone")
        other.kill()


def test_decisions_are_taken_one_at_a_time(start_program, url, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    both = [start_program(COUNTS, url, "s", counter, 200) for _ in range(2)]
    assert [one.read_line() for one in both] == ["ready"] * 2
    for one in both:
        one.tell()
    assert [one.process.wait(600) for one in both] == [0, 0]
    assert counter.read_text() == "400"


def test_a_process_killed_in_a_decision_releases_its_lock(holders):
    one, two = holders(2)
    assert one.ask("decide") == "in"
    two.tell("decide")
    one.kill()
    assert two.read_line() == "in"
    assert two.ask("") == "out"


def test_a_decision_that_fails_releases_its_lock(holders, url):
    locks = open_locks(url, "s")
    with pytest.raises(ZeroDivisionError), locks.decision():
        _ = 1 / 0
    (other,) = holders(1)
    assert other.ask("decide") == "in"
    locks.release()


def test_the_locks_of_decisions_and_of_studies_are_independent(holders):
    one, two = holders(2)
    assert one.ask("shared") == "alone"
    assert one.ask("decide") == "in"
    assert two.ask("shared") == "not alone"
    assert one.ask("") == "out"
    assert two.ask("decide") == "in"


def test_locks_are_in_the_database_or_in_files_beside_the_storage(url, tmp_path):
    locks = open_locks(url, "a study with any name: ü?*")
    assert locks.hold(shared=True)
    if url.startswith("postgresql"):
        assert isinstance(locks, DatabaseLocks)
    else:
        assert isinstance(locks, FileLocks)
        found = sorted(path.name for path in tmp_path.iterdir())
        assert len(found) == 2
        assert all(name.startswith(".optuna.db.") and name.endswith(".lock") for name in found)
    locks.release()


def open_both(url):
    """Open the locks and the storage, in the order of a study."""
    open_locks(url, "s").release()
    open_storage(url)


@pytest.mark.parametrize(
    "url",
    [
        *("nosuch://me:secret@host/d", "http://me:secret@host/d", "mysql://me:secret@host/d"),
        *("redis://host", "optuna.db", "postgres", "sqlite://"),
    ],
)
def test_an_unknown_kind_of_storage_is_refused_and_the_known_are_named(url):
    with pytest.raises(InputError, match=r"sweep\.storage = .*sqlite:///FILE.*journal:FILE") as e:
        open_both(url)
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("use", [open_storage, open_both])
def test_a_missing_driver_is_named_with_the_command_that_installs_it(use, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"driver is not .*pip install 'psycopg\[binary\]'") as e:
        use("postgresql+psycopg://me:secret@127.0.0.1:1/d")
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("use", [open_storage, open_both])
@pytest.mark.parametrize("scheme", ["sqlite:///", "journal:"])
def test_a_place_that_cannot_be_written_to_is_refused(use, scheme, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/optuna.db' cannot be opened .*sqlite:///FILE"):
        use(f"{scheme}{tmp_path / 'file' / 'optuna.db'}")


@pytest.mark.parametrize("use", [open_storage, open_both])
def test_another_kind_of_file_is_refused(use, tmp_path):
    (tmp_path / "cells.csv").write_text("cell,gene\n" * 1000)
    for scheme in ("sqlite:///", "journal:"):
        with pytest.raises(InputError, match=r"sweep\.storage.*cannot be opened"):
            use(f"{scheme}{tmp_path / 'cells.csv'}")
    with pytest.raises(InputError, match=r"sweep\.storage.*cannot be opened"):
        use(f"sqlite:///{tmp_path}")


@pytest.mark.extras("psycopg")
@pytest.mark.parametrize("use", [open_storage, open_both])
def test_an_unreachable_server_is_an_input_error_without_the_password(use):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for rest in (f"127.0.0.1:{port}/d", "127.0.0.1:port/d", "x y/z@127.0.0.1:1/d"):
            with pytest.raises(InputError, match=r"sweep\.storage.*cannot be opened") as refused:
                use(f"postgresql+psycopg://me:secret@{rest}")
            assert "secret" not in str(refused.value)


@pytest.mark.parametrize("use", [open_storage, open_both])
@pytest.mark.parametrize(
    "wrong", [("topicell:", "nobody:"), ("not%3A%20to%2Fbe%40shown", "no-secret"), ("/d", "/no-d")]
)
def test_a_refusal_by_the_server_is_an_input_error_without_the_password(use, database, wrong):
    with pytest.raises(InputError, match=r"sweep\.storage.*cannot be opened") as refused:
        use(database.replace(*wrong))
    assert "shown" not in str(refused.value)
    assert "no-secret" not in str(refused.value)
