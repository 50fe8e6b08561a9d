"""Lines that show the current step of a run."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)

SECONDS = 2.0
"""A step that takes less time is not shown."""


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Write the name of a step to the log and the terminal when it has taken `SECONDS`."""
    timer = threading.Timer(SECONDS, log.info, ("%s …", name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
