"""Operating systems other than Linux, simulated."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from topicell import outputs

MESSAGE = "topicell runs on Linux and macOS; on Windows, install and run it in WSL"


@pytest.fixture
def without_fcntl(tmp_path):
    """Return the environment of an interpreter that, as on Windows, has no fcntl."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['fcntl'] = None\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}


def test_without_fcntl_the_command_ends_with_one_line(without_fcntl, tmp_path):
    script = tmp_path / "topicell"
    script.write_text("from topicell.cli import main\nmain()\n")
    for arguments in ([script, "--help"], [script, "train"]):
        answer = subprocess.run(
            [sys.executable, *arguments],
            env=without_fcntl,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (answer.returncode, answer.stdout) == (1, "")
        assert answer.stderr == f"topicell: {MESSAGE}\n"
    answer = subprocess.run(
        [sys.executable, "-m", "topicell", "--help"],
        env=without_fcntl,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert MESSAGE in answer.stderr


@pytest.mark.parametrize("name", ["topicell", "topicell.api", "topicell.sweep.storage"])
def test_without_fcntl_the_import_fails_with_a_clear_error(without_fcntl, name):
    program = f"""
try:
    import {name}
except ImportError as error:
    print(error)
"""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=without_fcntl,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == f"{MESSAGE}\n"


def test_the_peak_of_memory_is_in_mib_on_macos_too(monkeypatch):
    usage = SimpleNamespace(ru_maxrss=300 * 2**20)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert outputs.peak_mib() == 300
    monkeypatch.setattr(sys, "platform", "freebsd")
    monkeypatch.setattr(Path, "exists", lambda _: False)
    usage.ru_maxrss = 300 * 2**10
    assert outputs.peak_mib() == 300
