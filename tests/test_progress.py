"""A step is named in the log when it takes long."""

import logging
import threading

import pytest

from topicell import progress


@pytest.fixture
def timers(monkeypatch):
    """Replace timers; return those that run."""
    made = []

    class Timer(threading.Timer):
        def start(self):
            made.append(self)

        def cancel(self):
            made.remove(self)

    monkeypatch.setattr(threading, "Timer", Timer)
    return made


def test_a_long_step_is_named_once(timers, caplog):
    caplog.set_level(logging.INFO)
    with progress.step("figures"):
        (timer,) = timers
        assert timer.interval == progress.SECONDS
        assert timer.daemon
        assert not caplog.messages
        timer.function(*timer.args)
    assert caplog.messages == ["figures …"]
    assert not timers


def test_a_step_that_fails_is_not_named(timers):
    with pytest.raises(RuntimeError), progress.step("figures"):
        raise RuntimeError
    assert not timers
