"""Lines that tell which step of a run is under way."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)

SECONDS = 2.0
"""A step that takes less is not mentioned."""


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Name a step in the log, and on the terminal, once it has taken `SECONDS`."""
    timer = threading.Timer(SECONDS, log.info, ("%s …", name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
