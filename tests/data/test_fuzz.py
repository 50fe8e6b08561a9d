"""Random valid and damaged input: the functions of experiments/robustness/fuzz.py."""

from __future__ import annotations

import importlib.util
import random
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROGRAM = Path(__file__).parents[2] / "experiments" / "robustness" / "fuzz.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("robustness_fuzz", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz = load()


# libhdf5 can crash on changed bytes, and this process with it: the study has processes of its own.
IN_PROCESS = [
    drive for drive in fuzz.DRIVES if drive not in ("h5ad, bytes changed", "10x h5, bytes changed")
]


@pytest.mark.parametrize("drive", IN_PROCESS)
@settings(
    derandomize=True,
    database=None,
    max_examples=6,
    suppress_health_check=list(HealthCheck),
)
@given(rng=st.randoms(use_true_random=False))
def test_input_is_read_as_it_was_written_or_refused_in_one_line(
    drive: str, rng: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fuzz.DRIVES[drive](rng, Path(folder))


def test_input_with_another_error_is_a_fault_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(_: random.Random, folder: Path) -> bool:
        (folder / "input").write_text("cells")
        raise IndexError("out of bounds")

    drives = {"broken": broken, "right": lambda *_: True, "wrong": lambda *_: False}
    monkeypatch.setattr(fuzz, "DRIVES", drives)
    found = fuzz.fuzz(0.5, 0, tmp_path)
    assert set(found) == {("broken", "fault"), ("right", "read"), ("wrong", "refused")}
    assert (tmp_path / "broken-0" / "input").read_text() == "cells"
    assert "IndexError: out of bounds" in (tmp_path / "broken-0" / "fault.txt").read_text()
    assert "| broken" in fuzz.table(found)


def test_a_crash_inside_libhdf5_is_told_by_the_innermost_frame() -> None:
    late = 'Timeout!\nThread 1 (most recent call first):\n  File "/x/topicell/reading.py", line 3\n'
    crash = "Fatal Python error\n\nThread 1 (most recent call first):\n"
    inside = '  File "/x/h5py/_hl/dataset.py", line 1\n  File "/x/anndata/io.py", line 2\n'
    outside = '  File "/x/anndata/io.py", line 2\n  File "/x/h5py/_hl/group.py", line 1\n'
    assert fuzz.in_libhdf5(crash + inside)
    assert fuzz.in_libhdf5(late + crash + inside)
    assert not fuzz.in_libhdf5(crash + outside)
    assert not fuzz.in_libhdf5(crash + inside + late)
