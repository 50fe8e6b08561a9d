"""topicell: topic models of single-cell counts, with tracking of experiments.

The public names are loaded when they are first used: importing topicell is cheap.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topicell.api import fit, load, load_dataset, preprocess
    from topicell.counts import Counts
    from topicell.errors import InputError
    from topicell.model.fit import TopicFit
    from topicell.scvi_style import AmortizedLDA

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
