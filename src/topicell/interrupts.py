"""Ctrl-C and SIGTERM: they end a command alike, wait where they must, and are not lost."""

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


def hear() -> None:
    """Have SIGTERM, by which a scheduler ends a process, do what Ctrl-C does; forget what came."""
    forget()
    signal.signal(signal.SIGTERM, interrupt)
    # What is ignored stays so, as under nohup.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = _interrupt_again


def interrupt(number: int, _: FrameType | None) -> NoReturn:
    """Handle a signal as Python does, and remember that it came."""
    _CAME.append(number)
    raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether this process was interrupted, whatever error it dies of.

    Compiled code may make another of the interrupt: pybind11, in which it strikes while an argument
    is converted, says that the argument has the wrong type.
    """
    return bool(_CAME)


def forget() -> None:
    """Begin anew: nothing came."""
    _CAME.clear()


@dataclass(slots=True)
class Interrupt:
    """A signal that waits, and who handles it then."""

    before: dict[int, Any] = field(default_factory=dict)
    came: list[tuple[int, FrameType | None]] = field(default_factory=list)

    def hold(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember the first, and wait no longer at the second."""
        self.came.append((number, frame))
        if len(self.came) > 1:
            self.pass_on()

    def pass_on(self) -> None:
        """Give what came to the handler that was there before."""
        came, self.came = self.came, []
        for number, frame in came[:1]:
            self.before[number](number, frame)


@contextlib.contextmanager
def held_interrupts() -> Iterator[Interrupt]:
    """Let Ctrl-C and SIGTERM wait until what is being done is whole, as `Interrupt.pass_on` says.

    The second one is not held. Elsewhere than in the main thread, which alone receives signals,
    nothing is.
    """
    held = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    numbers: tuple[int, int] = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        # What is ignored stays so, as under nohup.
        if callable(signal.getsignal(number)):
            held.before[number] = signal.signal(number, held.hold)
    try:
        yield held
    finally:
        for number, handler in held.before.items():
            signal.signal(number, handler)
        held.pass_on()


def _interrupt_again(unraisable: Any) -> None:
    """Interrupt once more where Python dropped an interrupt.

    An exception in a weak reference's callback or in a ``__del__`` (SQLAlchemy has such, and a run
    with MLflow is often inside them) is printed and forgotten: Ctrl-C would be lost.
    """
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    # Later, when the callback has returned.
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
