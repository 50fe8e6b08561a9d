"""Stored runs with differences that a test sets."""

import itertools

import pytest
from stored_runs import store

from topicell.comparison.runs import read_run


@pytest.fixture
def stored(tmp_path):
    """Return a function that writes and reads a run with these differences."""
    letters = itertools.count()

    def make(**changed):
        number = next(letters)
        folder = store(tmp_path / f"run{number}", **changed)
        return read_run(folder, str(folder), "ABCDEF"[number])

    return make
