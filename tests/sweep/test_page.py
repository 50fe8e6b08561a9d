"""The page of a sweep: the numbers of the verdict, every trial, escaped and self-contained."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from topicell.evaluation.estimates import difference
from topicell.evaluation.metrics import metric
from topicell.sweep import page
from topicell.sweep.selection import MEASURES, points, select
from topicell.sweep.trials import PERPLEXITY, Sweep, Trial

EVIL = "<script>alert('x')</script>"
LOST = {2: 6.0, 4: 1.5, 6: 0.004, 8: 0.0, 10: 0.3}


def make_trial(number: int, k: int, n_splits: int = 3, n_replicates: int = 2, **kwargs) -> Trial:
    rng = np.random.default_rng(number)

    def draws(centre: float, sd: float) -> dict[str, list[float]]:
        return {
            str(s): (centre + s * 0.5 * (centre > 50) + rng.normal(0, sd, n_replicates)).tolist()
            for s in range(n_splits)
        }

    values = {
        PERPLEXITY: draws(80 + LOST.get(k, 0.5), 0.02),
        "topics/coherence_npmi": draws(0.2, 0.01),
        "topics/diversity": draws(0.8, 0.01),
        "topics/used": draws(float(k), 0),
    }
    if n_replicates > 1:
        values["topics/stability"] = {str(s): [0.9 + 0.01 * s] for s in range(n_splits)}
    given = {
        "state": "COMPLETE",
        "params": {"model.n_topics": k},
        "values": values,
        "curve": {epoch: 90.0 - epoch for epoch in range(1, 11)},
        "epochs": 60,
        "seconds": 12.34,
        "run_id": f"run{number}",
    }
    return Trial(number=number, n_topics=k, **given | kwargs)


def stopped(number: int, k: int, state: str = "PRUNED", **kwargs) -> Trial:
    given = {"values": {}, "curve": {1: 95.0, 2: 94.0}, "epochs": 2}
    return make_trial(number, k, state=state, **given | kwargs)


def make_sweep(trials: list[Trial] | None = None, **kwargs) -> Sweep:
    if trials is None:
        trials = [make_trial(i, k) for i, k in enumerate(LOST)]
        trials += [stopped(5, 3), stopped(6, 9, "FAIL", error=f"no memory for {EVIL}")]
    given = {
        "name": "cells-topics",
        "data": "some cells",
        "kind": "sweep",
        "bounds": (2, 10),
        "space": {"model.n_topics": "range(2,11)"},
        "trials": trials,
        "importance": {"model.n_topics": 1.0},
        "storage": "sqlite:///optuna.db",
        "sampler": "tpe",
        "pruner": "median",
        "seconds": 3720.0,
        "n_jobs": 2,
        "version": "1.2.3",
        "created": "2025-01-01",
    }
    return Sweep(**given | kwargs)


def render(sweep: Sweep, figures=None) -> str:
    verdict = select(sweep.trials, bounds=sweep.bounds, stability_floor=sweep.stability_floor)
    return page.render(sweep, verdict, figures or {})


class Tags(HTMLParser):
    """Every tag with its attributes, all visible text, and the rows of the tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)
        if tag == "dd":
            self.text += " "
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # tags close in order

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def tables(html: str) -> list[list[list[str]]]:
    """The rows of each table, the first with the names of the columns."""
    found: list[list[list[str]]] = []
    for row in Tags(html).rows:
        if row[0] in ("K", "Trial"):
            found.append([])
        found[-1].append([cell.strip() for cell in row])
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    sweep = make_sweep(data=f"cells & {EVIL}")
    return (
        sweep,
        directory,
        page.write(sweep, select(sweep.trials, bounds=(2, 10)), directory, dpi=40),
    )


@pytest.fixture(scope="module")
def html(written):
    return written[2][-1].read_text(encoding="utf-8")


# The whole page


def test_files(written, html):
    _, directory, paths = written
    names = ["topic_curves", "parallel_coordinates", "trial_history", "pruning_curves"]
    assert paths == [
        *(directory / "figures" / f"{name}.{kind}" for name in names for kind in ("png", "pdf")),
        directory / "report.html",
    ]
    sheets = [attrs for _, attrs in Tags(html).tags if attrs.get("class") == "sheet"]
    assert sum(tag == "svg" for tag, _ in Tags(html).tags) == len(sheets) == 4
    assert all(len(s["aria-label"]) > 20 and "{" not in s["aria-label"] for s in sheets)
    assert sum(tag == "figcaption" for tag, _ in Tags(html).tags) == 4


def test_nothing_is_loaded_from_elsewhere(html):
    for tag, attrs in Tags(html).tags:
        assert tag not in {"script", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attrs.get(name) or "#").startswith(("data:", "#")), (tag, attrs[name][:80])
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"url\((?!#)|@import", html)
    assert "default-src 'none'" in html


def test_the_same_sweep_gives_the_same_bytes(written, html, tmp_path):
    sweep, _, _ = written
    paths = page.write(sweep, select(sweep.trials, bounds=(2, 10)), tmp_path, dpi=40, pdf=False)
    assert paths[-1].read_text(encoding="utf-8") == html


def test_names_and_errors_are_harmless_and_still_readable(html):
    assert "<script" not in html
    assert f"Number of topics of cells & {EVIL}" in Tags(html).text
    assert f"no memory for {EVIL}" in Tags(html).text


def test_hostile_settings_and_runs():
    space = {"model.n_topics": EVIL, EVIL: EVIL}
    params = {"model.n_topics": 4, EVIL: EVIL}
    trials = [
        make_trial(0, 4, params=params, run_id=EVIL, run_name=EVIL, folder=EVIL),
        stopped(1, 6, state=EVIL),
    ]
    sweep = make_sweep(
        trials,
        space=space,
        name=EVIL,
        tracking=f"http://host/{EVIL}",
        experiment_id=EVIL,
        parent_id=EVIL,
        storage=EVIL,
        sampler=EVIL,
        pruner=EVIL,
        version=EVIL,
        created=EVIL,
    )
    assert "<script" not in render(sweep)


# What it says


def test_verdict_and_warnings():
    for sweep in (make_sweep(), make_sweep(stability_floor=0.95), make_sweep([make_trial(0, 4)])):
        verdict = select(sweep.trials, bounds=(2, 10), stability_floor=sweep.stability_floor)
        text = Tags(render(sweep)).text
        assert verdict.kind.value in text.lower()
        for sentence in (verdict.sentence, *verdict.warnings):
            assert sentence in text


def test_numbers_of_topics_are_those_of_the_selection():
    sweep = make_sweep()
    verdict = select(sweep.trials, bounds=(2, 10))
    assert (verdict.n_topics, verdict.best) == (6, 8)
    head, *rows = tables(render(sweep))[0]
    assert head[:1] + head[4:-1] == ["K", *(metric(name).title for name in MEASURES[1:])]
    measured = points(sweep.trials)
    best = next(point for point in measured if point.n_topics == 8)
    assert [int(row[0]) for row in rows] == [point.n_topics for point in measured]
    for row, point in zip(rows, measured, strict=True):
        perplexity = point.estimate(PERPLEXITY)
        assert row[2] == f"{perplexity.mean:.2f} ± {perplexity.se:.2f}"
        if point is not best:
            above = difference(point.values[PERPLEXITY], best.values[PERPLEXITY])
            assert row[3] == f"{above.mean:+.3f} ± {above.se:.3f}".replace("-", "−")
        for cell, name in zip(row[4:7], MEASURES[1:4], strict=True):
            found = point.estimate(name)
            assert cell == f"{found.mean:.3f} ± {found.se:.3f}"
        assert row[-1] == ", ".join(map(str, point.trials))
    assert {row[0]: row[1].split() for row in rows if row[1]} == {
        "6": ["chosen"],
        "8": ["best", "plateau"],
    }
    assert rows[3][3] == "0"


def test_unstable_topics_are_marked():
    trials = [make_trial(0, 4), make_trial(1, 8)]
    trials[1].values["topics/stability"] = {"0": [0.5], "1": [0.5]}
    _, four, eight = tables(render(make_sweep(trials)))[0]
    assert four[1].split() == ["chosen", "best"]
    assert eight[1] == "not stable"
    assert eight[3].startswith("−1.497 ± 0.0")


@pytest.mark.parametrize("n", [1, 7, 60])
def test_every_trial_is_in_the_table(n):
    rng = np.random.default_rng(0)
    space = {"model.n_topics": "range(2,11)", "train.learning_rate": "…", "model.init": "a,b"}
    trials = [
        (make_trial if i % 3 == 0 else stopped)(
            i,
            k := int(rng.integers(2, 11)),
            params={
                "model.n_topics": k,
                "train.learning_rate": 10.0 ** -(i % 4),
                "model.init": "a",
            },
        )
        for i in range(n)
    ]
    head, *rows = tables(render(make_sweep(trials[::-1], space=space)))[-1]
    assert head == ["Trial", "State", *space, "Perplexity", "Epochs", "Time", "Run"]
    assert len(rows) == n
    for trial, row in zip(trials, rows, strict=True):
        assert row[0] == str(trial.number)
        assert row[1] == page.STATES[trial.state]
        assert row[2:5] == [str(trial.n_topics), f"{trial.params['train.learning_rate']:.4g}", "a"]
        assert (row[5] == "–") == (trial.state != "COMPLETE")
        assert row[6:] == [str(trial.epochs), "12.3 s", trial.run_id]


def test_what_was_searched():
    text = " ".join(Tags(render(make_sweep())).text.split())
    for words in (
        "model.n_topics range(2,11)",
        "Trials 7: 5 complete, 1 pruned, 1 failed; 2 at a time",
        "Sampler tpe",
        "Pruner median",
        "Time 1 h 2 min",
        # a complete trial takes 60 epochs, the pruned one took 2
        "Epochs 304 trained; pruning saved about 58",
        "optuna-dashboard sqlite:///optuna.db",
        "Breiman, Friedman, Olshen & Stone 1984",
        "topicell 1.2.3",
    ):
        assert words in text


def test_importance_of_several_settings(tmp_path):
    space = {"model.n_topics": "range(2,11)", "train.amsgrad": "true,false"}
    trials = [
        make_trial(i, k, params={"model.n_topics": k, "train.amsgrad": bool(i % 2)})
        for i, k in enumerate(LOST)
    ]
    importance = {"train.amsgrad": 0.25, "model.n_topics": 0.75}
    sweep = make_sweep(trials, space=space, importance=importance)
    *_, bars, html = page.write(sweep, select(trials), tmp_path, dpi=40, pdf=False)
    assert bars.stem == "importance_bars"
    labels = [attrs.get("aria-label") or "" for _, attrs in Tags(html.read_text()).tags]
    (alt,) = [label for label in labels if "importance" in label]
    assert alt.endswith("model.n_topics 75 %, train.amsgrad 25 %")
    assert tables(html.read_text())[-1][2][3] == "true"


# Runs


@pytest.mark.parametrize("tracking", ["http://host:5000", "https://host/mlflow/"])
def test_runs_are_linked_where_a_server_shows_them(tracking):
    sweep = make_sweep(tracking=tracking, experiment_id="7", parent_id="mother")
    links = {a["href"] for tag, a in Tags(render(sweep)).tags if tag == "a" and a["href"][0] != "#"}
    base = f"{tracking.rstrip('/')}/#/experiments/7/runs/"
    assert links == {base + run for run in ["mother", *(t.run_id for t in sweep.trials)]}


@pytest.mark.parametrize("tracking", ["", "sqlite:///mlflow.db", "javascript:alert(1)//http://"])
def test_runs_are_named_where_no_server_is(tracking):
    sweep = make_sweep(tracking=tracking, experiment_id="7", parent_id="mother")
    parsed = Tags(render(sweep))
    assert all(a["href"].startswith("#") for tag, a in parsed.tags if tag == "a")
    assert "topicell report run=run2" in parsed.text  # of the chosen trial
    assert "topicell report run=RUN_ID" in parsed.text


def test_runs_without_tracking_are_named_by_their_folder():
    trials = [make_trial(0, 4, run_id="", folder="multirun/my runs/0")]
    text = Tags(render(make_sweep(trials))).text
    assert "topicell report 'run=multirun/my runs/0'" in text


@pytest.mark.parametrize(
    ("storage", "shown", "dashboard"),
    [
        ("postgresql+psycopg://me:s3cret@h/db", "postgresql+psycopg://me:***@h/db", None),
        ("journal:my.log", "journal:my.log", "my.log"),
        ("sqlite:////data/a b.db", "sqlite:////data/a b.db", "'sqlite:////data/a b.db'"),
    ],
)
def test_storage_is_shown_without_its_password(storage, shown, dashboard):
    html = render(make_sweep(storage=storage))
    text = Tags(html).text
    assert shown in text
    assert "s3cret" not in html
    if dashboard:
        assert f"optuna-dashboard {dashboard}" in text


# Sweeps that lack something


def one_replicate(**kwargs) -> Sweep:
    trials = [make_trial(i, k, 1, 1) for i, k in enumerate(LOST)]
    return make_sweep(trials, **kwargs)


def without_coherence() -> Trial:
    trial = make_trial(2, 6)
    undefined = {"topics/coherence_npmi": {"0": [math.nan, math.nan]}}
    return dataclasses.replace(trial, values=trial.values | undefined)


LACKING = {
    "nothing": make_sweep,
    "trials": lambda: make_sweep([]),
    "complete trials": lambda: make_sweep([stopped(0, 3), stopped(1, 4, "FAIL", curve={})]),
    "all but one trial": lambda: make_sweep([make_trial(0, 4)]),
    "pruned trials": lambda: make_sweep([make_trial(i, k) for i, k in enumerate(LOST)]),
    "replicates": one_replicate,
    "a study": lambda: one_replicate(
        kind="multirun", storage="", sampler="", pruner="", seconds=None, bounds=None, importance={}
    ),
    "a coherence": lambda: make_sweep(
        [make_trial(0, 4), make_trial(1, 8, curve={1: math.inf, 2: math.nan}), without_coherence()]
    ),
    "stable topics": lambda: make_sweep(stability_floor=0.99),
    "a measure here and there": lambda: make_sweep(
        [make_trial(0, 4), make_trial(1, 8, 1, 1, curve={}, seconds=None, run_id="", params={})]
    ),
}


@pytest.mark.parametrize("lacking", LACKING)
def test_a_sweep_that_lacks(lacking, tmp_path):
    sweep = LACKING[lacking]()
    verdict = select(sweep.trials, bounds=sweep.bounds, stability_floor=sweep.stability_floor)
    *figures, html = page.write(sweep, verdict, tmp_path, dpi=40, pdf=False)
    text = Tags(html.read_text(encoding="utf-8")).text
    assert "nan" not in text.lower()
    assert "None" not in text
    assert verdict.sentence in text
    has_curves = any(trial.curve for trial in sweep.trials)
    assert len(figures) == 3 * bool(points(sweep.trials)) + has_curves


def test_one_fit_has_no_error():
    html = render(one_replicate())
    _, first, *_ = tables(html)[0]
    assert first[2] == f"{points(one_replicate().trials)[0].perplexity:.2f} ± –"
    assert "Stability" not in tables(html)[0][0]


def test_a_grid_says_so():
    sweep = dataclasses.replace(make_sweep(), kind="multirun", sampler="", storage="")
    text = " ".join(Tags(render(sweep)).text.split())
    assert "Sampler none: a grid, every combination" in text
    assert "optuna-dashboard" not in text
