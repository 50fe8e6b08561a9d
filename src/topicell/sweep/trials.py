"""The trials of a sweep as plain data, and ``sweep.json``.

They come from an Optuna study or from the runs of a grid; the verdict and the page need no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from topicell.errors import InputError

PERPLEXITY = "valid/perplexity_folded"
"""The metric that is minimised: the test cells stay unseen until the choice is made."""
TOPICS = "model.n_topics"
SEED = "seed"
KILLED = "the sweep was killed"
INTERRUPTED = "interrupted"
"""Errors of trials that did not fail by themselves."""
FORMAT = 1


def now() -> str:
    """Return the date and time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a sweep."""

    number: int
    state: str
    """COMPLETE, PRUNED, FAIL or RUNNING."""
    params: Mapping[str, Any]
    """The searched settings, by dotted name."""
    n_topics: int
    values: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """By metric and seed of the split, one value per replicate; empty unless complete."""
    curve: Mapping[int, float] = field(default_factory=dict)
    """Validation perplexity by epoch on the first split, by which trials are pruned."""
    epochs: int = 0
    """Epochs trained, over all splits."""
    seconds: float | None = None
    """Duration of the trial."""
    ended: str = ""
    """Date and time of its end."""
    run_id: str = ""
    run_name: str = ""
    folder: str = ""
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the trial failed by itself: a pruned or interrupted one did not."""
        return self.state == "FAIL" and self.error not in (KILLED, INTERRUPTED)

    @property
    def others(self) -> dict[str, Any]:
        """The searched settings without the number of topics and the seed."""
        return {name: v for name, v in self.params.items() if name not in (TOPICS, SEED)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep or a grid: its trials, and how they were made."""

    name: str
    data: str
    """Name of the data."""
    kind: str
    """``sweep`` or ``multirun``."""
    bounds: tuple[int, int] | None
    """The smallest and largest number of topics that could be tried."""
    space: Mapping[str, str]
    """The searched settings, each as the user wrote it."""
    trials: Sequence[Trial]
    importance: Mapping[str, float] = field(default_factory=dict)
    """Importance of each setting for the perplexity (PED-ANOVA); sums to 1."""
    storage: str = ""
    sampler: str = ""
    pruner: str = ""
    seconds: float | None = None
    """Wall-clock time, over all sessions."""
    n_jobs: int = 1
    support_floor: float = 0.5
    parent_id: str = ""
    experiment_id: str = ""
    tracking: str = ""
    """The tracking store, without a password; empty without tracking."""
    version: str = ""
    created: str = ""

    def write(self, folder: Path, verdict: Mapping[str, Any] | None = None) -> Path:
        """Write ``sweep.json``, with the verdict for readers of the file."""
        path = folder / "sweep.json"
        of_verdict = {} if verdict is None else {"verdict": verdict}
        text = json.dumps({"format": FORMAT} | of_verdict | asdict(self), indent=1)
        path.write_text(text, encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``sweep.json``."""
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("format", None) != FORMAT:
            raise InputError(f"{path} was written by another version of topicell; sweep again")
        # `topicell.sweep.selection.select` computes it again.
        document.pop("verdict", None)
        # In files of earlier versions; it was a limit of another measure.
        document.pop("stability_floor", None)
        document["trials"] = [
            Trial(**(trial | {"curve": {int(e): v for e, v in trial["curve"].items()}}))
            for trial in document["trials"]
        ]
        if document["bounds"] is not None:
            document["bounds"] = tuple(document["bounds"])
        return cls(**document)
