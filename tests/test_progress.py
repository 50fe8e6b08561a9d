"""Steps: lines in the log, and what is drawn on a terminal."""

import logging
import re
import threading
import time

import pytest

from topicell import progress
from topicell.cli.terminal import used
from topicell.progress import Shown, step, tracked


class Screen:
    """A terminal that remembers what it shows."""

    def __init__(self):
        self.written = ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return True

    @property
    def lines(self):
        """Everything that was drawn, also what was removed again."""
        return [line.strip() for line in re.split(r"[\r\n]", self.written) if line.strip()]


@pytest.fixture
def watches(monkeypatch):
    """Let no thread start; return the watches of outermost steps that are under way."""
    made = []
    monkeypatch.setattr(progress._Watch, "start", lambda watch: made.append(watch))
    return made


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that replaces the terminal by a screen, which it returns.

    Pytest replaces standard error too, between a fixture and its test.
    """
    before = progress.shown()

    def begin(what=Shown.bars):
        screen = Screen()
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setattr(progress, "SECONDS", 2.0)
        progress.show(what)
        return screen

    yield begin
    progress.show(before)


def after(watch, seconds):
    """Let a watch look as it would after some seconds."""
    now = time.monotonic()
    one = watch.outermost
    shift = now - seconds - one.began
    watch.last_line += shift
    while one is not None:
        one.began += shift
        one = one.inner
    for line in watch.look(now):
        progress.log.info("%s", line)


def test_a_long_step_is_named_once(watches, caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 2.0)
    caplog.set_level(logging.INFO)
    with step("figures"):
        (watch,) = watches
        assert watch.daemon
        after(watch, 1.9)
        assert not caplog.messages
        after(watch, 2.1)
        after(watch, 3)
    assert caplog.messages == ["figures …"]


def test_the_log_says_how_far_a_step_is_and_how_long_it_takes(watches, caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 2.0)
    caplog.set_level(logging.INFO)
    with step("data"), step("reading", 4000, "cells") as reading:
        (watch,) = watches
        reading.began = watch.outermost.began
        after(watch, 2)
        reading.advance(1000)
        after(watch, 31)
        assert len(caplog.messages) == 2
        after(watch, 40)
        reading.advance(1000)
        reading.describe(note="compressed")
        after(watch, 60)
        assert len(caplog.messages) == 3
        after(watch, 130)
    assert caplog.messages == [
        "data …",
        "data: reading …",
        "data: reading: 0:40, 1,000 of 4,000 cells, about 2:00 left",
        "data: reading: 2:10, 2,000 of 4,000 cells, about 2:10 left, compressed",
    ]


def test_a_step_of_unknown_length_shows_its_time(watches, caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 2.0)
    caplog.set_level(logging.INFO)
    with step("UMAP"):
        after(watches[0], 2)
        after(watches[0], 3700)
    assert caplog.messages == ["UMAP …", "UMAP: 1:01:40"]


def test_the_debug_log_has_the_seconds_of_each_named_step(watches, caplog):
    caplog.set_level(logging.DEBUG, "topicell.progress")
    with step("measures"), step("ELBO"):
        assert list(tracked(range(3), "", unit="cells")) == [0, 1, 2]
    inner, outer = caplog.messages
    assert re.fullmatch(r"measures: ELBO took \d+\.\d\d s(, memory [\d,]+ MiB)?", inner)
    assert outer.startswith("measures took ")


def test_a_step_that_fails_ends(watches, caplog):
    with pytest.raises(RuntimeError), step("figures"), step("inner"):
        raise RuntimeError
    assert watches[0].ended.is_set()
    assert progress._current.get() is None


def test_loops_yield_the_same_items_and_count_them(watches):
    assert list(tracked([1, 2], "no step is under way")) == [1, 2]
    assert not watches
    with step("data") as outer:
        loop = tracked([5, 7], "reading", 12, "cells", size=lambda item: item)
        assert next(loop) == 5
        inner = outer.inner
        assert (inner.name, inner.n, inner.total) == ("reading", 0, 12)
        assert next(loop) == 7
        assert inner.n == 5
        assert list(loop) == []
        assert inner.n == 12
        assert outer.inner is None
        assert progress._current.get() is outer


def test_loops_that_end_in_another_order_leave_the_outer_step(watches):
    with step("data") as outer:
        first, second = tracked([1, 2], "a"), tracked([1, 2, 3], "b")
        pairs = zip(first, second, strict=False)
        assert list(pairs) == [(1, 1), (2, 2)]
        assert outer.inner.name == "b"
        second.close()
        assert outer.inner is None
        assert progress._current.get() is outer
        # A loop that is left is closed.
        next(tracked([1, 2], "c"))
        assert progress._current.get() is outer


def test_a_bar_shows_the_innermost_step_and_is_removed(watches, terminal):
    screen = terminal()
    with step("data"):
        (watch,) = watches
        after(watch, 2)
        assert screen.lines[-1] == "data 00:02"
        with step("genes", 20_000, "cells") as genes:
            genes.began = watch.outermost.began
            genes.advance(5000)
            after(watch, 10)
            assert "data: genes 5.00k/20.0k cells" in screen.lines[-1]
            assert screen.lines[-1].endswith("left")
            genes.describe(note="half")
            genes.advance(15_000)
            after(watch, 11)
            assert "20.0k/20.0k" in screen.lines[-1]
            assert screen.lines[-1].endswith("left, half")
        with step("short") as short:
            after(watch, 11)
            short.began = time.monotonic()
            after(watch, 11.1)
            assert screen.lines[-1] == "data 00:11"
    assert watch.bar is None
    assert screen.written.endswith("\r")


def test_other_lines_are_written_above_the_bar(watches, terminal):
    screen = terminal()
    with step("data"):
        after(watches[0], 3)
        drawn = screen.written
        with progress.cleared():
            assert watches[0].bar is None
            screen.write("warning: a line\n")
        assert screen.written.startswith(drawn)
        assert "\rwarning: a line\n" in screen.written
        after(watches[0], 4)
        assert watches[0].bar is not None


@pytest.mark.parametrize("what", [Shown.nothing, Shown.lines, Shown.asked])
def test_only_the_command_line_draws_bars(what, watches, terminal):
    screen = terminal(what)
    with step("data"):
        after(watches[0], 100)
    assert not screen.written


def test_a_bar_that_was_asked_for_is_drawn_at_once_and_stays(watches, terminal):
    screen = terminal(Shown.asked)
    with step("fit", 2, "epochs", own_bar=True) as fit:
        fit.describe("initial topics")
        fit.describe("fit")
        for note in ("ELBO -2", "ELBO -1"):
            fit.describe(note=note)
            fit.advance()
        assert "initial topics" in screen.written
    assert screen.lines[-1].startswith("fit 2/2 epochs")
    assert screen.lines[-1].endswith("left, ELBO -1")
    assert screen.written.endswith("\n")
    screen.written = ""
    progress.show(Shown.nothing)
    with step("fit", 2, "epochs", own_bar=True) as fit:
        fit.advance()
    assert not screen.written


def test_the_thread_looks_and_ends(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    looked = threading.Event()
    look = progress._Watch.look

    def noted(self, now):
        lines = look(self, now)
        looked.set()
        return lines

    monkeypatch.setattr(progress._Watch, "look", noted)
    with step("data"):
        assert looked.wait(60)
        (thread,) = [t for t in threading.enumerate() if t.name == "topicell-progress"]
    thread.join(60)
    assert not thread.is_alive()
    assert caplog.messages == ["data …"]


def test_a_warning_during_a_line_of_progress_does_not_hang(monkeypatch):
    """The thread of the progress and a thread that logs take the same two locks."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.0)
    ended = threading.Event()

    def warn():
        with used(None), step("a step"):
            for _ in range(2000):
                logging.getLogger("topicell").warning("careful")
        ended.set()

    threading.Thread(target=warn, daemon=True).start()
    assert ended.wait(60)
