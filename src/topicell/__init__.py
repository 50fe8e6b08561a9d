"""topicell: topic models of single-cell counts, with tracking of experiments.

The public names are loaded when they are first used: importing topicell is cheap.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topicell.api import fit, load, load_dataset, preprocess
    from topicell.counts import Counts
    from topicell.errors import InputError
    from topicell.model.fit import TopicFit
    from topicell.scvi_style import AmortizedLDA

if find_spec("fcntl") is None:
    # Locks, signals and processes are those of POSIX systems.
    _message = "topicell runs on Linux and macOS; on Windows, install and run it in WSL"
    if PurePath(sys.argv[0]).stem == "topicell":  # the command: one line without a traceback
        sys.exit(f"topicell: {_message}")
    raise ImportError(_message, name=__name__)

__version__ = version("topicell")

_HOMES = {
    "AmortizedLDA": "topicell.scvi_style",
    "fit": "topicell.api",
    "load": "topicell.api",
    "load_dataset": "topicell.api",
    "preprocess": "topicell.api",
    "InputError": "topicell.errors",
    "Counts": "topicell.counts",
    "TopicFit": "topicell.model.fit",
}

__all__ = [
    "AmortizedLDA",
    "Counts",
    "InputError",
    "TopicFit",
    "fit",
    "load",
    "load_dataset",
    "preprocess",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'topicell' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
