"""The results of a comparison as plain data: `topicell.comparison.page` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from topicell.evaluation.metrics import metric

MATCHED = 0.7
"""Least cosine similarity of two topics that count as the same."""
N_SIGMA = 2.0
"""A difference is clear if it is more than this many times its standard error."""
N_GENES = 20
"""Leading genes of each topic that matched topics are compared by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Describe one of the compared runs."""

    letter: str
    name: str
    data: str
    model: str
    made: str
    run_id: str
    folder: str
    """The run folder; empty if the run was named by its MLflow id."""
    tags: Mapping[str, str]
    """Digests of the data, and the device, by name."""
    versions: Mapping[str, str]
    """Versions of topicell and libraries, and the commit, by name."""
    history: Sequence[Mapping[str, float]]
    """Metrics by epoch."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A score of one run minus that of another, with its standard error (NaN if not known)."""

    mean: float
    se: float
    paired: int
    """Number of splits on which both runs were measured; 0 if they share none."""

    @property
    def clear(self) -> bool:
        """Return whether the difference is larger than chance explains."""
        return abs(self.mean) > N_SIGMA * self.se


@dataclass(frozen=True, slots=True)
class Value:
    """A score of one run: its mean over splits and replicates, with an error (NaN if unknown)."""

    mean: float
    error: float
    over: str
    """``splits`` or ``replicates``: where the error comes from; empty if there is none."""
    single: tuple[float, ...]
    """The values that are summarised."""
    against_first: Difference | None = None

    @property
    def kind(self) -> str:
        """Return in words what the error is."""
        words = {"splits": "standard error over", "replicates": "sd of"}
        return f"{words[self.over]} {len(self.single)} {self.over}" if self.over else ""


@dataclass(frozen=True, slots=True)
class Score:
    """A score of all runs."""

    name: str
    values: tuple[Value | None, ...]
    """One for each run; None for a run without this score."""
    best: int | None
    """Index of the run that is clearly better than all others, if there is one."""
    incompatibility: str
    """The reason why the values cannot be compared; empty if they can."""

    @property
    def title(self) -> str:
        """Return the title of the metric."""
        return metric(self.name).title


@dataclass(frozen=True, slots=True)
class Match:
    """A topic of the first run, and the topic of another run that is matched with it."""

    topic: int
    partner: int
    cosine: float
    next_best: tuple[int, float] | None
    """The most similar of the other topics of that run and its cosine, if there are others."""
    genes: tuple[str, ...]
    """Genes that are among the leading genes of both topics."""
    proportion: float
    partner_proportion: float
    correlation: float
    """Correlation of the topic proportions over the common cells; NaN if there are none."""

    @property
    def found(self) -> bool:
        """Return whether the two topics are similar enough to count as the same."""
        return self.cosine >= MATCHED


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A topic without a partner, the nearest topic of the other run, and its leading genes."""

    topic: int
    nearest: int
    cosine: float
    proportion: float
    genes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pairing:
    """The topics of the first run compared with those of another run."""

    letters: tuple[str, str]
    n_genes: tuple[int, int, int]
    """Genes of the first run, of the other run, and of both."""
    share: tuple[float, float]
    """Mean share of the topics of each run that the common genes hold."""
    n_cells: int
    """Number of common cells."""
    cosine_KK: np.ndarray
    matches: tuple[Match, ...]
    """Matches that are similar enough to count as the same come first; empty without common
    genes."""
    unmatched: tuple[tuple[Unmatched, ...], tuple[Unmatched, ...]]
    """Topics without a partner, of the first run and of the other."""
    little: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    """Topics with little support, of the first run and of the other."""

    @property
    def found(self) -> tuple[Match, ...]:
        """Return the matches that are similar enough to count as the same topic."""
        return tuple(match for match in self.matches if match.found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result of a comparison of runs."""

    sides: tuple[Side, ...]
    warnings: tuple[tuple[str, str], ...]
    """Warnings about the comparison: (heading, explanation)."""
    parameters: Mapping[str, tuple[str | None, ...]]
    """Settings by dotted name, one text for each run; None for a run without the setting."""
    scores: tuple[Score, ...]
    pairings: tuple[Pairing, ...]
    version: str
    created: str

    @property
    def letters(self) -> list[str]:
        """Return the letters of the runs."""
        return [side.letter for side in self.sides]

    @property
    def differing(self) -> list[str]:
        """Return the settings whose values differ between the runs that have them."""
        return [name for name, texts in self.parameters.items() if len({*texts} - {None}) > 1]
