"""Steps of a program: lines in the log, and a bar with the time left on a terminal.

A step that lasts less than `SECONDS` is not shown. The code of a step only counts what it has done;
one thread looks at these numbers a few times per second, so that steps are not slowed down.

Steps contain steps. The log names each long step when it has lasted `SECONDS`, and says how far the
innermost one is every `LINE_SECONDS`; a level below, it says how long each step took.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

SECONDS = 2.0
"""A step that takes less time is not shown."""
LINE_SECONDS = 30.0
"""Seconds between two lines of the log about the same step."""
TICK_SECONDS = 0.25
"""Seconds between two looks at a step that is shown."""
STEADY_SECONDS = 0.5
"""An inner step that takes less time is not drawn, because the line would flicker."""
LARGE = 10_000
"""Numbers from here on are written with k or M in a bar."""
BAR = "{desc} {n_fmt}/{total_fmt} {unit} {bar:12} {remaining} left{postfix}"
NO_TOTAL = "{desc} {elapsed}{postfix}"


class Shown(Enum):
    """What a process shows of its steps, besides its log."""

    asked = "asked"
    """Bars for which the caller asked (``train.progress``): a program that imports topicell."""
    nothing = "nothing"
    """A worker process, or ``--quiet``."""
    lines = "lines"
    """The lines of the log: standard error is no terminal."""
    bars = "bars"
    """One line with a bar, for the innermost step."""


_shown = Shown.asked
_asked_bar: Any = None
"""The bar of `_own_bar`."""
_current: ContextVar[Step | None] = ContextVar("topicell_step", default=None)


def show(what: Shown) -> Shown:
    """Set what this process shows of its steps; return what it showed before."""
    global _shown
    before, _shown = _shown, what
    return before


def shown() -> Shown:
    """Return what this process shows of its steps."""
    return _shown


class Step:
    """A step that is under way.

    Attributes
    ----------
    name
        What the step does, as users read it.
    total, unit
        How much there is to do, None if it is not known, and of what: ``cells``, ``B`` for bytes.
    n
        How much of it is done.
    note
        Further words.
    """

    def __init__(self, name: str, total: int | None, unit: str, outer: Step | None) -> None:
        self.name: str = name or (outer.name if outer is not None else "")
        self.total, self.unit, self.outer = total, unit, outer
        self.n, self.note = 0, ""
        self.inner: Step | None = None
        self.began = time.monotonic()
        self.own_bar: Any = None
        self.named = False

    def advance(self, n: int = 1) -> None:
        """Count what was done."""
        self.n += n
        if self.own_bar is not None:
            self.own_bar.update(n)

    def describe(self, name: str | None = None, note: str | None = None) -> None:
        """Change the name of the step, or its further words."""
        self.name = self.name if name is None else name
        self.note = self.note if note is None else note
        if self.own_bar is not None:
            self.own_bar.set_postfix_str(self.note, refresh=False)
            self.own_bar.set_description_str(self.name, refresh=name is not None)

    @property
    def is_part(self) -> bool:
        """Whether it has no name of its own."""
        return self.outer is not None and self.outer.name == self.name

    @property
    def title(self) -> str:
        """The name, after that of the outermost step."""
        outermost = self
        while outermost.outer is not None:
            outermost = outermost.outer
        if self.name == outermost.name:
            return self.name
        return f"{outermost.name}: {self.name}"

    def seconds_left(self, now: float) -> float | None:
        """Return how long the step will take at its mean rate; None if that is not known."""
        if not self.total or not self.n:
            return None
        return max((now - self.began) * (self.total / self.n - 1), 0.0)

    def line(self, now: float) -> str:
        """Return in one line how far the step is."""
        words = f"{self.title}: {_clock(now - self.began)}"
        if self.total and self.n:
            words += f", {self.n:,} of {self.total:,} {self.unit}".rstrip()
        if (left := self.seconds_left(now)) is not None:
            words += f", about {_clock(left)} left"
        return f"{words}, {self.note}" if self.note else words


@contextlib.contextmanager
def step(
    name: str, total: int | None = None, unit: str = "", *, own_bar: bool = False
) -> Iterator[Step]:
    """Show a step: yield what counts how far it is.

    Parameters
    ----------
    name
        What the step does, as users read it; empty for a part of the outer step.
    total, unit
        How much there is to do, if that is known, and of what.
    own_bar
        Draw a bar from the first second, which stays when the step ends; also in a notebook.
    """
    outer = _current.get()
    this = Step(name, total, unit, outer)
    watch = _Watch(this) if outer is None else None
    if outer is not None:
        outer.inner = this
    _current.set(this)
    try:
        if watch is not None:
            watch.start()
        with _own_bar(this) if own_bar else contextlib.nullcontext():
            yield this
    finally:
        _leave(this)
        if watch is not None:
            watch.stop()
        if log.isEnabledFor(logging.DEBUG) and not this.is_part:
            seconds = time.monotonic() - this.began
            log.debug("%s took %.2f s%s", this.title, seconds, _memory())


def _leave(this: Step) -> None:
    """Take a step out of the chain, where a generator may have left a later one."""
    last = _current.get()
    if last is this:
        _current.set(this.outer)
        if this.outer is not None:
            this.outer.inner = None
        return
    while last is not None and last.outer is not this:
        last = last.outer
    if last is not None:
        last.outer = this.outer
        if this.outer is not None:
            this.outer.inner = last


def tracked(
    items: Iterable[T],
    name: str,
    total: int | None = None,
    unit: str = "",
    *,
    size: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Yield items and show the loop over them as a part of a step; without a step, only yield.

    Parameters
    ----------
    items
        What the loop is over.
    name
        What the loop does.
    total, unit
        How much there is to do, by default the number of the items, and of what.
    size
        How much of it an item is.
    """
    if _current.get() is None:
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    with step(name, total, unit) as this:
        for item in items:
            yield item
            this.advance(size(item))


@contextlib.contextmanager
def _own_bar(this: Step) -> Iterator[None]:
    """Draw a bar for one step, in its own thread; in a notebook, a graphical one."""
    if _shown is Shown.nothing:
        yield
        return
    from tqdm.auto import tqdm

    global _asked_bar
    with tqdm(
        total=this.total, desc=this.name, unit=this.unit, disable=None, bar_format=BAR
    ) as this.own_bar:
        _asked_bar = this.own_bar
        try:
            yield
        finally:
            this.own_bar = _asked_bar = None


class _Watch(threading.Thread):
    """The thread that writes the lines and draws the bars of an outermost step."""

    drawing: _Watch | None = None
    """The one that has the terminal."""
    lock = threading.RLock()

    def __init__(self, outermost: Step) -> None:
        super().__init__(name="topicell-progress", daemon=True)
        self.outermost = outermost
        self.last_line = outermost.began
        self.ended = threading.Event()
        self.bar: Any = None
        self.drawn: Step | None = None

    def run(self) -> None:
        """Look at the step until it ends."""
        wait = SECONDS
        while not self.ended.wait(wait):
            wait = TICK_SECONDS
            lines: list[str] = []
            with _Watch.lock:
                if not self.ended.is_set():
                    lines = self.look(time.monotonic())
            # Log after the lock is released: a thread that logs holds the lock of the handler and
            # waits for this one, so both could wait forever.
            for line in lines:
                if not self.ended.is_set():
                    log.info("%s", line)

    def stop(self) -> None:
        """End the thread, and remove what it has drawn."""
        self.ended.set()
        with _Watch.lock:
            self.clear()
            if _Watch.drawing is self:
                _Watch.drawing = None

    def look(self, now: float) -> list[str]:
        """Draw the innermost step, and return the lines that are due."""
        lines: list[str] = []
        steps = [self.outermost]
        while (inner := steps[-1].inner) is not None:
            steps.append(inner)
        for one in steps:
            if not one.named and now - one.began >= SECONDS:
                one.named = True
                if not one.is_part:
                    self.last_line = now
                    lines.append(f"{one.title} …")
        if now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            lines.append(steps[-1].line(now))
        if _shown is Shown.bars and _Watch.drawing in (None, self):
            _Watch.drawing = self
            if any(one.own_bar is not None for one in steps):
                self.clear()
                return lines
            steady = [one for one in steps if now - one.began >= STEADY_SECONDS]
            self.draw(steady[-1])
        return lines

    def draw(self, one: Step) -> None:
        """Draw a step in place of the one drawn before."""
        if one is not self.drawn:
            self.clear()
            self.bar, self.drawn = _bar(one), one
        self.bar.set_description_str(one.title, refresh=False)
        self.bar.set_postfix_str(one.note, refresh=False)
        self.bar.n = one.n
        # Without anything done, there is no rate.
        self.bar.bar_format = BAR if one.total and one.n else NO_TOTAL
        self.bar.refresh()

    def clear(self) -> None:
        """Remove the drawn line."""
        if self.bar is not None:
            self.bar.close()
        self.bar = self.drawn = None


def _after_fork() -> None:
    """Release the lock in a forked process, in which no thread draws."""
    _Watch.lock, _Watch.drawing = threading.RLock(), None


os.register_at_fork(after_in_child=_after_fork)


def _bar(one: Step) -> Any:
    """Return the bar of a step that began before."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # no thread of its own

    bar = Bar(
        total=one.total,
        unit=one.unit,
        unit_scale=(one.total or 0) >= LARGE,
        unit_divisor=1024 if one.unit == "B" else 1000,
        leave=False,
        smoothing=0,
        dynamic_ncols=True,
        delay=1e-9,  # do not draw before it is filled in
        file=sys.stderr,
    )
    bar.start_t -= time.monotonic() - one.began
    return bar


@contextlib.contextmanager
def cleared() -> Iterator[None]:
    """Remove the bar from the terminal while something else is written to it."""
    with _Watch.lock:
        if _Watch.drawing is not None:
            _Watch.drawing.clear()
        if _asked_bar is None:
            yield
            return
        _asked_bar.clear()
        yield
        _asked_bar.refresh()


def _clock(seconds: float) -> str:
    """Return seconds as ``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _memory() -> str:
    """Return how much memory this process uses; an empty text if the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return ""
    return f", memory {pages * os.sysconf('SC_PAGE_SIZE') // 2**20:,} MiB"
