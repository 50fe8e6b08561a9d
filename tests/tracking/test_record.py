"""The record of a run in its folder."""

import errno
import fcntl

from topicell.tracking.runs import RunFolder
from topicell.tracking.stored import read_metrics


def test_a_run_needs_no_locks_of_its_file_system(tmp_path, monkeypatch, record_run):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    record_run(RunFolder(tmp_path / "run"))
    history, _ = read_metrics(tmp_path / "run")
    assert len(history) == 3
