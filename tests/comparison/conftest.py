"""Stored runs with differences that a test sets."""

import itertools
import sys
from pathlib import Path

import pytest

from topicell.comparison.runs import read_run

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from stored_runs import store


@pytest.fixture
def stored(tmp_path):
    """Return a function that writes and reads a run with these differences."""
    letters = itertools.count()

    def make(**changed):
        number = next(letters)
        folder = store(tmp_path / f"run{number}", **changed)
        return read_run(folder, str(folder), "ABCDEF"[number])

    return make
