"""A study in PostgreSQL, on a server of its own: the same laws, and locks of the database."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from topicell.config import Sampler, SweepConfig
from topicell.errors import InputError
from topicell.sweep import storage as module
from topicell.sweep.storage import DatabaseLocks, open_locks, open_storage
from topicell.sweep.study import KILLED, Study

TOPICS = "model.n_topics"
SPACE = {TOPICS: IntDistribution(2, 30), "model.sparse": CategoricalDistribution(["True", "False"])}
PASSWORD = "not: to/be@shown"
ESCAPED = "not%3A%20to%2Fbe%40shown"
NUMBERS = itertools.count()

pytestmark = pytest.mark.extras("psycopg")

ASKS_AND_WAITS = """
import json, sys
from optuna.distributions import json_to_distribution
from topicell.config import SweepConfig
from topicell.sweep import storage as module
from topicell.sweep.study import Study

told = json.loads(sys.argv[1])
module.HEARTBEAT_SECONDS, module.STALE_SECONDS = told["seconds"]
space = {name: json_to_distribution(text) for name, text in told["space"].items()}
study = Study(SweepConfig(**told["settings"]), space, {}, 0)
for i in range(told["n_asked"]):
    trial = study.ask()
    study.note(trial.number, run_id=f"run {i}")
    print(json.dumps([trial.number, trial.params]), flush=True)
sys.stdin.readline()
"""

JOINS = """
import json, sys, time
from optuna.distributions import json_to_distribution
from topicell.config import SweepConfig
from topicell.sweep.study import Study

told = json.loads(sys.argv[1])
space = {name: json_to_distribution(text) for name, text in told["space"].items()}
print("ready", flush=True)
sys.stdin.readline()
study = Study(SweepConfig(**told["settings"]), space, {}, 0)
while (trial := study.ask()) is not None:
    time.sleep(0.1)
    study.complete(trial.number, float(trial.number), {})
    print(json.dumps([trial.number, trial.params]), flush=True)
study.close()
"""

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


def other_user():
    """Whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    return pytest.skip("this is root, and there is no other user to run PostgreSQL")


@pytest.fixture(scope="session")
def server(postgresql_programs):
    """Where a server runs, as ``HOST:PORT``."""
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
        # The server would keep a pipe open that is waited for.
        run("pg_ctl", "-w", "-t", "60", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def url(server):
    """A database of the test's own, where Optuna has no tables yet."""
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


def opened(url, definition=None, **settings):
    """A study that is closed at the end of a ``with``."""
    settings = {"study": "s", "storage": url, "sampler": Sampler.random} | settings
    return contextlib.closing(Study(SweepConfig(**settings), SPACE, definition or {}, 0))


def use_up(study):
    asked = []
    while (trial := study.ask()) is not None:
        asked.append(trial.params)
        study.complete(trial.number, float(trial.params[TOPICS]), {})
    return asked


def states(study):
    return [trial.state for trial in study.trials()]


def distinct(asked):
    return len({json.dumps(params, sort_keys=True) for params in asked}) == len(asked)


class Process:
    """A process that does what it is told, and says what it did."""

    def __init__(self, start_process, script, *arguments):
        self.process = start_process(*arguments, program=script, piped=True)

    def tell(self, command=""):
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
def processes(start_process):
    """Starts processes, and ends them."""
    with contextlib.ExitStack() as stack:

        def start(script, *arguments):
            one = Process(start_process, script, *arguments)
            stack.callback(one.process.end)
            return one

        yield start


@pytest.fixture
def holders(processes, url):
    """Starts processes that have locks on a study of the same database."""

    def start(n, study="s"):
        found = [processes(OBEYS, url, study) for _ in range(n)]
        assert [one.hear() for one in found] == ["ready"] * n
        return found

    return start


def told(url, n_asked=0, seconds=(10, 60), **settings):
    return json.dumps(
        {
            "settings": {"study": "s", "storage": url} | settings,
            "space": {name: distribution_to_json(one) for name, one in SPACE.items()},
            "n_asked": n_asked,
            "seconds": seconds,
        }
    )


def soon(condition, seconds=60.0):
    """Wait for what the server does in its own time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


# Locks


def test_locks_of_a_database_are_of_the_database(url):
    locks = open_locks(url, "s")
    assert isinstance(locks, DatabaseLocks)
    locks.release()


def test_one_process_works_on_a_study(holders):
    one, two = holders(2)
    assert one.ask("exclusive") == "alone"
    assert two.ask("exclusive") == "refused"
    assert two.ask("shared") == "refused"
    assert one.ask("release") == "released"
    assert soon(lambda: two.ask("exclusive") == "alone")


def test_those_who_share_work_together_and_know_who_came_first(holders):
    one, two, three, four = holders(4)
    assert one.ask("shared") == "alone"
    assert two.ask("shared") == "not alone"
    assert three.ask("exclusive") == "refused"
    assert one.ask("release") == "released"
    assert three.ask("exclusive") == "refused"
    assert three.ask("shared") == "not alone"
    assert two.ask("release") == three.ask("release") == "released"
    assert soon(lambda: four.ask("exclusive") == "alone")


def test_the_lock_of_a_killed_process_is_free(holders):
    for command in ("exclusive", "shared"):
        one, two = holders(2, command)
        assert one.ask(command) == "alone"
        assert two.ask("exclusive") == "refused"
        one.kill()
        assert soon(lambda two=two: two.ask("exclusive") == "alone")


def test_a_killed_process_leaves_the_others_their_share(holders):
    one, two, three = holders(3)
    assert one.ask("shared") == "alone"
    assert two.ask("shared") == "not alone"
    one.kill()
    assert three.ask("exclusive") == "refused"
    assert three.ask("shared") == "not alone"


def test_studies_do_not_know_each_other(holders):
    ((one,), (two,)) = holders(1, "s"), holders(1, "t")
    assert one.ask("exclusive") == two.ask("exclusive") == "alone"


def test_decisions_are_taken_one_at_a_time(processes, url, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    both = [processes(COUNTS, url, "s", counter, 200) for _ in range(2)]
    assert [one.hear() for one in both] == ["ready"] * 2
    for one in both:
        one.tell()
    assert [one.process.wait(600) for one in both] == [0, 0]
    assert counter.read_text() == "400"


def test_who_is_killed_in_a_decision_does_not_stop_the_others(holders):
    one, two = holders(2)
    assert one.ask("briefly") == "in"
    two.tell("briefly")
    one.kill()
    assert two.hear() == "in"
    assert two.ask("") == "out"


def test_a_brief_lock_does_not_touch_the_one_on_the_study(holders):
    one, two = holders(2)
    assert one.ask("shared") == "alone"
    assert one.ask("briefly") == "in"
    assert two.ask("shared") == "not alone"
    assert one.ask("") == "out"
    assert two.ask("briefly") == "in"


def test_a_decision_that_fails_is_over(holders, url):
    locks = open_locks(url, "s")
    with pytest.raises(ZeroDivisionError), locks.decision():
        _ = 1 / 0
    (other,) = holders(1)
    assert other.ask("briefly") == "in"
    locks.release()


# Studies


def test_the_budget_counts_every_end_of_a_trial_once(url):
    with opened(url, n_trials=5) as study:
        study.complete(study.ask().number, 1.0, {})
        study.prune(study.ask().number)
        study.fail(study.ask().number, "no")
        interrupted = study.ask()
        study.interrupted(interrupted.number)
        again = study.ask()
        assert again.params == interrupted.params
        assert study.killed(again.number, "signal 9")
        third = study.ask()
        assert third.params == interrupted.params
        assert not study.killed(third.number, "signal 9")
    with opened(url, n_trials=5) as study:
        assert study.abandoned == []
        assert len(use_up(study)) == 1
        assert states(study) == ["COMPLETE", "PRUNED"] + ["FAIL"] * 4 + ["COMPLETE"]


def test_a_study_in_two_sessions_proposes_what_one_session_does(url):
    given = {"sampler": Sampler.tpe, "n_trials": 13}
    with opened(url, study="whole", **given) as study:
        expected = use_up(study)
    with opened(url, study="parts", **given | {"n_trials": 11}) as study:
        asked = use_up(study)
    with opened(url, study="parts", **given) as study:
        asked += use_up(study)
    assert asked == expected
    assert distinct(asked)


def test_a_killed_sweep_goes_on(processes, url):
    process = processes(ASKS_AND_WAITS, told(url, n_asked=2, n_trials=5))
    asked = [json.loads(process.hear()) for _ in range(2)]
    with pytest.raises(InputError, match="another process works on it"):
        opened(url, n_trials=5)
    process.kill()
    time.sleep(1)
    with opened(url, n_trials=5) as study:
        found = study.abandoned
        assert [[t.number, t.params, t.run_id] for t in found] == [
            [*one, f"run {i}"] for i, one in enumerate(asked)
        ]
        assert [(t.state, t.error) for t in study.trials()] == [("FAIL", KILLED)] * 2
        again = use_up(study)
        assert again[:2] == [params for _, params in asked]
        assert len(again) == 5
        assert distinct(again)
        assert states(study) == ["FAIL"] * 2 + ["COMPLETE"] * 5


def test_values_and_curves_come_back(url):
    values = {"valid/perplexity_folded": {"0": [3.0, 4.0], "1": [5.0]}}
    with opened(url) as study:
        trial = study.ask()
        study.note(trial.number, n_topics=trial.params[TOPICS], run_id="ab", folder="/x")
        for epoch, value in enumerate((9.0, 8.0)):
            study.report(trial.number, epoch, value)
        study.complete(trial.number, 4.0, values)
    with opened(url) as study:
        (found,) = study.trials()
    assert (found.values, found.curve, found.run_id) == (values, {0: 9.0, 1: 8.0}, "ab")


def test_other_settings_are_refused_without_a_word_of_the_password(url):
    with opened(url, {"train.epochs": 50}):
        pass
    with pytest.raises(InputError, match=r"train\.epochs was 50, is 80") as refused:
        opened(url, {"train.epochs": 80})
    assert "shown" not in str(refused.value)
    with opened(url, {"train.epochs": 50}) as study:
        assert study.ask() is not None


def test_two_who_join_at_once_use_one_budget(processes, url):
    """They make the tables, the study and its trials together."""
    both = [processes(JOINS, told(url, n_trials=9, join=True)) for _ in range(2)]
    assert [one.hear() for one in both] == ["ready"] * 2
    for one in both:
        one.tell()
    lines = [list(one.process.stdout) for one in both]
    assert [one.process.wait(600) for one in both] == [0, 0]
    asked = [json.loads(line) for of_one in lines for line in of_one]
    assert sorted(number for number, _ in asked) == list(range(9))
    assert distinct([params for _, params in asked])
    assert all(lines)
    with opened(url, n_trials=9) as study:
        assert states(study) == ["COMPLETE"] * 9
        assert study.ask() is None


def test_studies_that_start_at_once_in_an_empty_database_do_not_collide(processes, url):
    both = [processes(JOINS, told(url, study=name, n_trials=1)) for name in ("one", "two")]
    assert [one.hear() for one in both] == ["ready"] * 2
    for one in both:
        one.tell()
    assert [len(list(one.process.stdout)) for one in both] == [1, 1]
    assert [one.process.wait(600) for one in both] == [0, 0]


@pytest.mark.slow
def test_trials_of_one_who_joined_and_was_killed_are_taken_over(processes, url, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(module, "STALE_SECONDS", 4)
    given = {"n_trials": 3, "join": True}
    with opened(url, **given) as holder:
        kept = holder.ask()
        process = processes(ASKS_AND_WAITS, told(url, n_asked=1, seconds=(1, 4), **given))
        number, params = json.loads(process.hear())
        # Longer than it takes to be stale: it lives, as its heart says.
        time.sleep(6)
        with opened(url, **given) as early:
            assert early.abandoned == []
            assert early.n_others == 2
        process.kill()
        time.sleep(6)
        with opened(url, **given) as late:
            assert [(t.number, t.run_id, t.params) for t in late.abandoned] == [
                (number, "run 0", params)
            ]
            assert late.n_others == 1
            again = late.ask()
            assert again.params == params
            late.complete(again.number, 1.0, {})
            with opened(url, **given) as later:
                assert later.abandoned == []
                assert len(use_up(later)) == 1
            holder.complete(kept.number, 1.0, {})
            assert holder.ask() is None
        assert states(holder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_closed_study_leaves_no_connection_that_works(url):
    """A server has a hundred; a process may open studies one after another."""
    import psycopg

    for _ in range(3):
        with opened(url) as study:
            study.ask()
    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert soon(lambda: connection.execute(query).fetchone()[0] == 1)


# Errors


def test_a_server_that_cannot_be_reached_is_an_input_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql+psycopg://me:secret@127.0.0.1:{unused.getsockname()[1]}/d"
        for use in (opened, open_storage):
            with pytest.raises(InputError, match=r"sweep\.storage.*cannot be") as refused:
                use(url)
            assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong", [("topicell:", "nobody:"), (ESCAPED, "no-secret"), ("/d", "/no-secret-d")]
)
def test_a_server_that_refuses_is_an_input_error(url, wrong):
    before, after = wrong
    for use in (opened, open_storage):
        with pytest.raises(InputError, match=r"sweep\.storage.*cannot be") as refused:
            use(url.replace(before, after))
        assert "shown" not in str(refused.value)
        assert ":no-secret" not in str(refused.value)


def test_the_endless_and_the_logarithmic_come_back(url):
    space = {"a": FloatDistribution(1e-9, 1e9, log=True), "b": FloatDistribution(-1, 1)}
    settings = SweepConfig(study="s", storage=url, sampler=Sampler.random, n_trials=5)
    with contextlib.closing(Study(settings, space, {}, 0)) as study:
        asked = [study.ask().params for _ in range(5)]
        for number in study.open_trials:
            study.complete(number, 1.0, {})
    with contextlib.closing(Study(settings, space, {}, 0)) as study:
        assert [trial.params for trial in study.trials()] == asked
        assert study.ask() is None
