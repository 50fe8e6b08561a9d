"""Ctrl-C and SIGTERM end a command in the same way, and can be delayed until work is saved."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

_CAME: list[int] = []


def install_handlers() -> None:
    """Treat SIGTERM, with which a scheduler ends a process, like Ctrl-C; clear past interrupts."""
    forget()
    signal.signal(signal.SIGTERM, interrupt)
    # An ignored signal stays ignored, as under nohup.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = _interrupt_again


def interrupt(number: int, _: FrameType | None) -> NoReturn:
    """Handle a signal as Python does, and remember it."""
    _CAME.append(number)
    raise KeyboardInterrupt


def interrupted() -> bool:
    """Return whether this process was interrupted, whatever the error that ends it.

    Compiled code can turn an interrupt into another error: pybind11 reports a wrong type if it is
    interrupted while it converts an argument.
    """
    return bool(_CAME)


def forget() -> None:
    """Clear past interrupts."""
    _CAME.clear()


@dataclass(slots=True)
class Interrupt:
    """Signals that are delayed, and their earlier handlers."""

    before: dict[int, Any] = field(default_factory=dict)
    came: list[tuple[int, FrameType | None]] = field(default_factory=list)

    def hold(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember the first, pass on at the second."""
        self.came.append((number, frame))
        if len(self.came) > 1:
            self.pass_on()

    def pass_on(self) -> None:
        """Give the first signal to its earlier handler."""
        came, self.came = self.came, []
        for number, frame in came[:1]:
            self.before[number](number, frame)


@contextlib.contextmanager
def held_interrupts() -> Iterator[Interrupt]:
    """Delay Ctrl-C and SIGTERM until the block ends or calls `Interrupt.pass_on`.

    The second signal is not delayed. Outside the main thread, which alone receives signals, nothing
    is.
    """
    held = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    numbers: tuple[int, int] = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        # An ignored signal stays ignored, as under nohup.
        if callable(signal.getsignal(number)):
            held.before[number] = signal.signal(number, held.hold)
    try:
        yield held
    finally:
        for number, handler in held.before.items():
            signal.signal(number, handler)
        held.pass_on()


def _interrupt_again(unraisable: Any) -> None:
    """Interrupt again after Python dropped an interrupt.

    Python prints and forgets an exception in a weak reference's callback or in ``__del__``.
    SQLAlchemy has such callbacks, and a run with MLflow is often inside them: Ctrl-C would be lost.
    """
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    # Later, when the callback has returned.
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
