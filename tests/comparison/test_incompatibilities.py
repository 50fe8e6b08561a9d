"""Differences between runs that forbid a comparison: each has its warning, and no best run."""

from __future__ import annotations

import numpy as np
import pytest
from stored_runs import BETA, VALUES, shifted

from topicell.comparison.incompatibilities import find_warnings
from topicell.comparison.scoring import scores

OTHER_SPLIT = np.roll(np.repeat(["train", "valid", "test"], [40, 10, 10]), 5)
ONE = {name: {"0": by_split["0"]} for name, by_split in VALUES.items()}
ALONE = {name: {"0": by_split["0"][:1]} for name, by_split in VALUES.items()}


@pytest.mark.parametrize(
    ("a", "b", "heading", "not_comparable"),
    [
        ({}, {"prepared": "4", "source": "d", "data": "mice"}, "Different data", "Perplexity"),
        ({}, {"prepared": "4", "genes": [f"h{i}" for i in range(30)]}, "Different genes", "Perp"),
        ({}, {"prepared": "4", "cells": [f"d{i}" for i in range(60)]}, "Different cells", "NMI"),
        ({}, {"prepared": "4"}, "Different counts", "Stability"),
        ({}, {"source": "d"}, "Different sources, the same cells", ""),
        ({"values": ONE}, {"split": OTHER_SPLIT}, "Different held-out cells", "Perplexity"),
        ({}, {"labels": ["up", "down"] * 30}, "Different labels", "NMI"),
        ({}, {"device": "cuda"}, "Different devices", "Time of the fit"),
        ({}, {"torch": "2.7"}, "Different versions", ""),
        ({"values": ALONE}, {}, "No error bars for A", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_difference_has_a_warning_that_names_what_is_not_comparable(
    stored, a, b, heading, not_comparable
):
    runs = [stored(**a), stored(**b)]
    found = dict(find_warnings(runs))
    assert heading in found
    if not_comparable:
        assert "Not comparable: " in found[heading]
        assert not_comparable in found[heading].partition("Not comparable: ")[2]
    for score in scores(runs):
        if score.incompatibility:
            assert score.best is None
            assert score.values[1].against_first is None
    assert any(score.incompatibility for score in scores(runs)) == bool(not_comparable)


def test_comparable_runs_have_no_warnings(stored):
    assert list(find_warnings([stored(), stored(values=shifted((1, 1)))])) == []


def test_with_other_genes_the_agreement_with_labels_is_comparable(stored):
    runs = [stored(), stored(prepared="4", beta=BETA[:, :20], genes=[f"g{i}" for i in range(20)])]
    incompatibilities = {score.name: score.incompatibility for score in scores(runs)}
    assert incompatibilities["test/perplexity_folded"] == "different data"
    assert incompatibilities["labels/nmi"] == ""
    assert "20 are in all" in dict(find_warnings(runs))["Different genes"]


def test_cells_are_the_same_if_a_third_run_connects_them(stored):
    moved, fewer = {"source": "d"}, {"prepared": "4", "beta": BETA[:, :20]}
    genes = [f"g{i}" for i in range(20)]
    runs = [stored(**moved), stored(), stored(genes=genes, **fewer)]
    assert {s.name: s.incompatibility for s in scores(runs)}["labels/nmi"] == ""
    assert list(dict(find_warnings(runs))) == [
        "Different genes",
        "Different sources, the same cells",
    ]


def test_runs_with_several_different_splits_are_comparable(stored):
    """Their errors include the effect of the held-out cells."""
    runs = [stored(), stored(split=OTHER_SPLIT)]
    (perplexity,) = (s for s in scores(runs) if s.name == "test/perplexity_folded")
    assert perplexity.incompatibility == ""
    assert perplexity.values[1].against_first.paired == 0


def test_a_different_setting_of_a_metric_is_named(stored):
    values = VALUES | {"topics/coherence_npmi": {"0": [0.1, 0.2]}}
    runs = [stored(values=values, config={"evaluate.n_coherence_genes": 5}), stored(values=values)]
    found = dict(find_warnings(runs))
    assert found == {
        "Different evaluate.n_coherence_genes": "A: 5; B: 20. Not comparable: Coherence (NPMI)."
    }
