"""The page of the benchmark: it is that of the committed results, and its comparison is right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

CHECKOUT = Path(__file__).parents[1]
STUDY = CHECKOUT / "experiments" / "benchmark"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_page", STUDY / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module
    spec.loader.exec_module(module)
    return module


page = load()


def results(**values):
    """Return results of one measure, by model, for seeds 0, 1, …; higher is better."""
    return pd.DataFrame(
        [
            {"data": "pbmc68k", "model": model, "seed": seed, "labels/nmi": value}
            for model, of_model in values.items()
            for seed, value in enumerate(of_model)
        ]
    )


def test_the_page_is_that_of_the_results():
    table = pd.read_csv(STUDY / "results.csv")
    made = json.loads((STUDY / "made.json").read_text())
    assert (CHECKOUT / "docs" / "benchmark.md").read_text(encoding="utf-8") == page.text(
        table, made
    ), "docs/benchmark.md was not made from results.csv: python experiments/benchmark/study.py page"


def test_the_other_model_is_the_best_on_common_seeds():
    # By their means, c is best; on the seeds that it shares with topicell, b is.
    table = results(topicell=[0.5, 0.5, 0.9], b=[0.6, 0.61, 0.98], c=[0.58, 0.59])
    word, mean, half, other, n = page.verdicts(table, "labels/nmi")
    assert (word, other, n) == ("worse", "b", 3)
    assert mean == pytest.approx(-0.29 / 3)
    # Differences −0.1, −0.11, −0.08: standard deviation 0.01528, t of two degrees of freedom 4.303.
    assert half == pytest.approx(4.3027 * 0.0152753 / np.sqrt(3), rel=1e-4)


def test_a_difference_within_its_interval_is_undecided():
    table = results(topicell=[0.5, 0.6], b=[0.6, 0.5])
    assert page.verdicts(table, "labels/nmi")[0] == "undecided"
    table = results(topicell=[0.5, 0.6], b=[0.4, 0.501], **{"topicell, one replicate": [0.9, 0.9]})
    assert page.verdicts(table, "labels/nmi")[:1] == ("better",)


def test_the_same_values_are_equal():
    assert page.verdicts(results(topicell=[4, 4], b=[4, 4]), "labels/nmi")[:3] == ("equal", 0, 0)


def test_one_seed_is_not_compared():
    assert page.verdicts(results(topicell=[0.5, 0.6], b=[0.9]), "labels/nmi") is None


def test_lower_perplexity_is_better():
    table = results(topicell=[200.0, 210.0], b=[220.0, 230.01])
    table = table.rename(columns={"labels/nmi": "test/perplexity_folded"})
    word, mean, *_ = page.verdicts(table, "test/perplexity_folded")
    assert word == "better"
    assert mean == pytest.approx(-20.005)


def test_numbers_as_text():
    assert page.number(-0.0001, 2) == "0.00"
    assert page.number(-0.126, 2) == "−0.13"
    assert page.number(0.126, 2, sign=True) == "+0.13"


def test_best_values_are_bold():
    cells = page.cells_of(results(topicell=[0.5, 0.5], b=[0.7, 0.7]), "labels/nmi")
    assert cells.to_dict() == {"topicell": "0.500 ± 0.000", "b": "**0.700** ± 0.000"}
