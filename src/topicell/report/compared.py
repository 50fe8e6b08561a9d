"""The values that a comparison of runs is made of.

`topicell.comparison` makes them from stored runs, `topicell.report.compare` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from topicell.evaluation.metrics import metric

MATCHED = 0.7
"""Topics of a lower cosine similarity are not called the same."""
N_SIGMA = 2.0
"""By how many standard errors of the difference the best must be ahead to be marked."""
N_GENES = 20
"""Leading genes of a topic that a match is said to share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the runs.

    `place` is its folder, where it was named so; `marks` are digests of the data and the device,
    `versions` those of the code, by name; `history` holds its metrics by epoch.
    """

    letter: str
    name: str
    data: str
    model: str
    made: str
    run_id: str
    place: str
    marks: Mapping[str, str]
    versions: Mapping[str, str]
    history: Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A score of a run minus that of another, its standard error (NaN: not known).

    `paired` is the number of splits that both were measured on; 0 where there is none.
    """

    mean: float
    se: float
    paired: int

    @property
    def clear(self) -> bool:
        """Whether it is more than chance would do."""
        return abs(self.mean) > N_SIGMA * self.se


@dataclass(frozen=True, slots=True)
class Value:
    """A score of a run.

    `over` says what `error` is: the standard error of the mean over ``splits``, or the standard
    deviation over ``replicates`` of a single split; empty where there is one value, and the error
    NaN. `single` are the n values that are summarised.
    """

    mean: float
    error: float
    over: str
    single: tuple[float, ...]
    against_first: Difference | None = None

    @property
    def kind(self) -> str:
        """What the error is, in words."""
        words = {"splits": "standard error over", "replicates": "sd of"}
        return f"{words[self.over]} {len(self.single)} {self.over}" if self.over else ""


@dataclass(frozen=True, slots=True)
class Score:
    """A score of all runs, in their order; None of a run that lacks it.

    `best` is the place of the run that is ahead of all others by more than the error; `obstacle`
    says what is not the same, but would have to be for the values to be compared.
    """

    name: str
    values: tuple[Value | None, ...]
    best: int | None
    obstacle: str

    @property
    def title(self) -> str:
        """What it is called."""
        return metric(self.name).title


@dataclass(frozen=True, slots=True)
class Match:
    """A topic of the first run and the one of another run that it is matched with.

    `rival` is the other topic of that run which is most similar to the first one's, if there are
    several; `genes` are those that lead both; `correlation` is of θ over the cells of both, NaN
    where they share none.
    """

    topic: int
    partner: int
    cosine: float
    rival: tuple[int, float] | None
    genes: tuple[str, ...]
    proportion: float
    partner_proportion: float
    correlation: float

    @property
    def found(self) -> bool:
        """Whether the two are similar enough to be one topic."""
        return self.cosine >= MATCHED


@dataclass(frozen=True, slots=True)
class Lone:
    """A topic without a partner, the one of the other run nearest to it, and its leading genes."""

    topic: int
    nearest: int
    cosine: float
    proportion: float
    genes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pairing:
    """The topics of the first run and those of another.

    `n_genes` are the genes of the one, of the other and of both; `share` is the mean share of the
    topics of each that the common genes hold; `n_cells` is the number of common cells. `matches`
    begin with those that were found; without common genes there is none. `lone` are the topics
    without a partner, of the one and of the other.
    """

    letters: tuple[str, str]
    n_genes: tuple[int, int, int]
    share: tuple[float, float]
    n_cells: int
    cosine_KK: np.ndarray
    matches: tuple[Match, ...]
    lone: tuple[tuple[Lone, ...], tuple[Lone, ...]]

    @property
    def found(self) -> tuple[Match, ...]:
        """The matches that are similar enough to be one topic."""
        return tuple(match for match in self.matches if match.found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side.

    `parameters` are the settings by dotted name, one text a run; None of a run without it.
    """

    sides: tuple[Side, ...]
    cautions: tuple[tuple[str, str], ...]
    parameters: Mapping[str, tuple[str | None, ...]]
    scores: tuple[Score, ...]
    pairings: tuple[Pairing, ...]
    version: str
    created: str

    @property
    def letters(self) -> list[str]:
        """The letters of the runs."""
        return [side.letter for side in self.sides]

    @property
    def differing(self) -> list[str]:
        """The settings that differ between runs that have them."""
        return [name for name, texts in self.parameters.items() if len({*texts} - {None}) > 1]
