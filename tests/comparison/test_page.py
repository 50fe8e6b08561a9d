"""The page of a comparison: self-contained, escaped, accessible and complete."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
from webpage import EVIL, Page, assert_self_contained

from topicell.comparison import page
from topicell.comparison.page import render, write
from topicell.comparison.values import (
    Comparison,
    Difference,
    Match,
    Pairing,
    Score,
    Side,
    Unmatched,
    Value,
)

NAN = math.nan
HISTORY = [
    {"epoch": epoch, "valid/elbo": -9.0 - 500 / (1 + epoch**3), "valid/elbo_sd": 0.1}
    for epoch in range(30)
]


def side(letter, **changed):
    values = {
        "letter": letter,
        "name": f"{letter} {EVIL}",
        "data": f"{EVIL}: 60 cells",
        "model": "amortized_lda, 2 topics",
        "made": "2026-01-02T03:04:05+00:00",
        "run_id": f"{EVIL}{letter}",
        "folder": EVIL,
        "tags": {"data source": "f" * 64},
        "versions": {"torch": EVIL},
        "history": HISTORY,
    }
    return Side(**values | changed)


def match(topic, partner, cosine):
    return Match(topic, partner, cosine, (2, 0.31), (EVIL, "GENE1"), 0.25, 0.5, -0.125)


PAIRING = Pairing(
    letters=("A", "B"),
    n_genes=(30, 20, 10),
    share=(0.5, 0.75),
    n_cells=60,
    cosine_KK=np.array([[0.1, 0.95, 0.31], [0.6, 0.2, 0.31]]),
    matches=(match(0, 1, 0.95), match(1, 0, 0.6)),
    unmatched=(
        (Unmatched(1, 0, 0.6, 0.4, (EVIL,)),),
        (Unmatched(0, 1, 0.6, 0.4, ("G1",)), Unmatched(2, 0, 0.31, 0.1, ("G2",))),
    ),
)
PERPLEXITY = Score(
    "test/perplexity_folded",
    (
        Value(231.2269, 0.0467, "replicates", (231.2, 231.3)),
        Value(-3.5, 0.87, "splits", (-4.0, -3.0), Difference(-234.7269, 0.436, 1)),
    ),
    1,
    "",
)
FOUND = Comparison(
    sides=(side("A"), side("B", run_id="", folder="folder")),
    warnings=((f"Different {EVIL}", EVIL),),
    parameters={
        "model.n_topics": ("2", "3"),
        "data.path": (EVIL, "x" * 500),
        "seed": ("0", "0"),
        "theta": (None, f"{EVIL}.csv"),
    },
    scores=(
        PERPLEXITY,
        Score("our/new_score", (None, Value(NAN, NAN, "", (NAN,))), None, "different data"),
        Score("topics/used", (Value(6, 0.0, "replicates", (6, 6)), None), None, ""),
    ),
    pairings=(PAIRING,),
    version="0.1.0",
    created="2026-01-02",
)


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return write(FOUND, folder).read_text(encoding="utf-8")


def test_a_page_is_self_contained_without_scripts(html):
    assert_self_contained(html)
    assert not Page(html).all("script")


def test_names_are_escaped(html):
    parsed = Page(html)
    assert EVIL not in html
    assert parsed.text.count(EVIL) > 10


def test_ids_are_unique_and_every_link_has_its_target(html):
    parsed = Page(html)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in parsed.tags:
        for name in ("href", "xlink:href", "aria-labelledby"):
            if name in attrs and not attrs[name].startswith("data:"):
                assert attrs[name].removeprefix("#") in ids


def test_tables_and_figures_are_described_for_screen_readers(html):
    parsed = Page(html)
    assert all(attrs.get("scope") in ("row", "col") for attrs in parsed.all("th"))
    assert all(attrs.get("data-head") for attrs in parsed.all("td"))
    sheets = [attrs for attrs in parsed.all("div") if attrs.get("role") in ("img", "region")]
    assert all(attrs["aria-label"] and attrs["tabindex"] == "0" for attrs in sheets)
    assert len(parsed.all("figcaption")) == len(parsed.all("svg")) == 3


def test_topics_with_little_support_are_marked():
    def shown(pairing):
        return Page(render(dataclasses.replace(FOUND, pairings=(pairing,)), {})).words

    assert "* At most half of the replicates" not in shown(PAIRING)
    text = shown(dataclasses.replace(PAIRING, little=(frozenset({1}), frozenset({2}))))
    assert "* At most half of the replicates of the run have this topic" in text
    assert re.search(r"A 1\* *B 0 no match", text)
    assert "B 2*, 10.0 % of the average cell" in text
    assert re.search(r"A 0 *B 1(?!\*)", text)


def test_the_page_contains_scores_matches_and_settings(html):
    text = Page(html).words
    for words in (
        "B is ahead in",
        "231.227 ± 0.047",
        "sd of 2 replicates",
        "−3.500 ± 0.870",
        "vs A: −234.727 ± 0.436",
        "standard error over 2 splits",
        "not comparable: different data",
        "6 ± 0",
        "not defined",
        "Compared on the 10 common genes: A has 30 genes (the common ones hold 50 % of its average",
        "1 of 2 topics of A are in B (mean cosine 0.95); B has 3",
        "no match",
        "Topics of B without a partner in A",
        "B 2, 10.0 % of the average cell; nearest: A 0, cosine 0.310. Leading genes: G2",
        "60 cells are in both",
        "−0.125",
        "Settings that do not differ (2)",
        "seed=0",
        "(only B)",
        f"{'x' * page.LONG}…",
    ):
        assert words in text, words
    assert text.count("best ") == 2  # once in the explanation, once in the table
    assert "x" * (page.LONG + 1) not in text


def test_a_comparison_without_differences_says_so():
    same = dataclasses.replace(
        FOUND, warnings=(), parameters={"seed": ("0", "0")}, scores=(), pairings=()
    )
    text = Page(render(same, {})).text
    assert "No warnings" in text
    assert "None: all settings are the same." in text
    assert "no run is clearly ahead in any score" in text


def test_figures_without_data_are_omitted(tmp_path):
    bare = dataclasses.replace(
        FOUND,
        sides=(side("A", history=[]), side("B", history=[])),
        scores=(),
        pairings=(
            dataclasses.replace(
                PAIRING, n_genes=(30, 20, 0), matches=(), unmatched=((), ()), n_cells=0
            ),
        ),
    )
    html = write(bare, tmp_path).read_text()
    assert "have no gene in common to match topics by" in html
    assert "<svg" not in html
    assert list((tmp_path / "figures").iterdir()) == []


def test_26_runs_are_written(tmp_path):
    letters = [chr(65 + i) for i in range(26)]
    many = dataclasses.replace(
        FOUND,
        sides=tuple(side(letter) for letter in letters),
        parameters={"seed": tuple(map(str, range(26)))},
        scores=(Score("labels/nmi", (PERPLEXITY.values[0],) * 26, None, ""),),
        pairings=(),
    )
    assert "Z" in Page(write(many, tmp_path).read_text()).text
