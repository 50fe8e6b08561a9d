"""The page of a comparison: self-contained, escaped, accessible, and it says what was found."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

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

EVIL = "<script>alert('x')</script>"
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


class Tags(HTMLParser):
    """Every tag with its attributes, and all visible text; tags close in order."""

    def __init__(self, html):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return write(FOUND, folder).read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(html):
    parsed = Tags(html)
    outside = [
        value
        for _, attrs in parsed.tags
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "action", "data")
        if not (value or "").startswith(("#", "data:"))
    ]
    assert outside == []
    assert not re.search(r"url\((?!#)|@import", html)
    assert not parsed.all("script")
    (policy,) = (attrs["content"] for attrs in parsed.all("meta") if "http-equiv" in attrs)
    assert "default-src 'none'" in policy


def test_names_are_escaped(html):
    parsed = Tags(html)
    assert EVIL not in html
    assert parsed.text.count(EVIL) > 10


def test_ids_are_not_repeated_and_links_lead_somewhere(html):
    parsed = Tags(html)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in parsed.tags:
        for name in ("href", "xlink:href", "aria-labelledby"):
            if name in attrs and not attrs[name].startswith("data:"):
                assert attrs[name].removeprefix("#") in ids


def test_tables_and_figures_can_be_heard(html):
    parsed = Tags(html)
    assert all(attrs.get("scope") in ("row", "col") for attrs in parsed.all("th"))
    assert all(attrs.get("data-head") for attrs in parsed.all("td"))
    sheets = [attrs for attrs in parsed.all("div") if attrs.get("role") in ("img", "region")]
    assert all(attrs["aria-label"] and attrs["tabindex"] == "0" for attrs in sheets)
    assert len(parsed.all("figcaption")) == len(parsed.all("svg")) == 3


def test_the_page_says_what_was_found(html):
    text = re.sub(r"\s+", " ", Tags(html).text)
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
    assert text.count("best ") == 2  # once explained, once given
    assert "x" * (page.LONG + 1) not in text


def test_runs_that_do_not_differ_are_said_to_be_alike():
    alike = dataclasses.replace(
        FOUND, warnings=(), parameters={"seed": ("0", "0")}, scores=(), pairings=()
    )
    text = Tags(render(alike, {})).text
    assert "No warnings" in text
    assert "None: all settings are the same." in text
    assert "no run is clearly ahead in any score" in text


def test_what_cannot_be_drawn_is_left_out(tmp_path):
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


def test_a_table_of_26_runs_is_written(tmp_path):
    letters = [chr(65 + i) for i in range(26)]
    many = dataclasses.replace(
        FOUND,
        sides=tuple(side(letter) for letter in letters),
        parameters={"seed": tuple(map(str, range(26)))},
        scores=(Score("labels/nmi", (PERPLEXITY.values[0],) * 26, None, ""),),
        pairings=(),
    )
    assert "Z" in Tags(write(many, tmp_path).read_text()).text
