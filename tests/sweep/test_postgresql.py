"""What only a study in PostgreSQL needs; the other tests of storages run there as well."""

from __future__ import annotations

import contextlib
import json

import pytest
from optuna.distributions import IntDistribution, distribution_to_json

from topicell.config import Sampler, SweepConfig
from topicell.errors import InputError
from topicell.sweep.study import Study

SPACE = {"model.n_topics": IntDistribution(2, 30)}

pytestmark = pytest.mark.extras("psycopg")

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


def opened(url, definition=None, **settings):
    """A study that is closed at the end of a ``with``."""
    settings = {"study": "s", "storage": url, "sampler": Sampler.random} | settings
    return contextlib.closing(Study(SweepConfig(**settings), SPACE, definition or {}, 0))


@pytest.fixture
def start_two(start_program, database):
    """Starts two processes that open a study at once; the lines of each."""

    def start(*settings):
        space = {name: distribution_to_json(one) for name, one in SPACE.items()}
        both = [
            start_program(
                JOINS, json.dumps({"settings": {"storage": database} | given, "space": space})
            )
            for given in settings
        ]
        assert [one.hear() for one in both] == ["ready"] * 2
        for one in both:
            one.tell()
        lines = [list(one.process.stdout) for one in both]
        assert [one.process.wait(600) for one in both] == [0, 0]
        return lines

    return start


def test_other_settings_are_refused_without_the_password(database):
    with opened(database, {"train.epochs": 50}):
        pass
    with pytest.raises(InputError, match=r"train\.epochs was 50, is 80") as refused:
        opened(database, {"train.epochs": 80})
    assert "shown" not in str(refused.value)


def test_two_who_join_at_once_use_one_budget(start_two, database):
    """They make the tables, the study and its trials together."""
    given = {"study": "s", "n_trials": 9, "join": True}
    lines = start_two(given, given)
    asked = [json.loads(line) for of_one in lines for line in of_one]
    assert sorted(number for number, _ in asked) == list(range(9))
    assert len({json.dumps(params) for _, params in asked}) == 9
    assert all(lines)
    with opened(database, n_trials=9) as study:
        assert [trial.state for trial in study.trials()] == ["COMPLETE"] * 9
        assert study.ask() is None


def test_studies_that_start_at_once_in_an_empty_database_do_not_collide(start_two):
    lines = start_two({"study": "one", "n_trials": 1}, {"study": "two", "n_trials": 1})
    assert [len(of_one) for of_one in lines] == [1, 1]


def test_a_closed_study_leaves_no_connection(database, soon):
    """A server has a hundred; a process may open studies one after another."""
    import psycopg

    for _ in range(3):
        with opened(database) as study:
            study.ask()
    with psycopg.connect(database.replace("+psycopg", "")) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert soon(lambda: connection.execute(query).fetchone()[0] == 1)
