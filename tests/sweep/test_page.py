"""The page of a sweep: the numbers of the verdict, every trial; escaped and self-contained."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from webpage import EVIL, Page, assert_self_contained

from topicell.evaluation.estimates import difference
from topicell.evaluation.metrics import metric
from topicell.sweep import page
from topicell.sweep.selection import MEASURES, points, select
from topicell.sweep.trials import PERPLEXITY, Sweep, Trial

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
        values["topics/found_again"] = {str(s): [0.9 + 0.01 * s] for s in range(n_splits)}
    defaults = {
        "state": "COMPLETE",
        "params": {"model.n_topics": k},
        "values": values,
        "curve": {epoch: 90.0 - epoch for epoch in range(1, 11)},
        "epochs": 60,
        "seconds": 12.34,
        "run_id": f"run{number}",
    }
    return Trial(number=number, n_topics=k, **defaults | kwargs)


def stopped(number: int, k: int, state: str = "PRUNED", **kwargs) -> Trial:
    defaults = {"values": {}, "curve": {1: 95.0, 2: 94.0}, "epochs": 2}
    return make_trial(number, k, state=state, **defaults | kwargs)


def make_sweep(trials: list[Trial] | None = None, **kwargs) -> Sweep:
    if trials is None:
        trials = [make_trial(i, k) for i, k in enumerate(LOST)]
        trials += [stopped(5, 3), stopped(6, 9, "FAIL", error=f"no memory for {EVIL}")]
    defaults = {
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
    return Sweep(**defaults | kwargs)


def render(sweep: Sweep, figures=None) -> str:
    verdict = select(sweep.trials, bounds=sweep.bounds, support_floor=sweep.support_floor)
    return page.render(sweep, verdict, figures or {})


def tables(html: str) -> list[list[list[str]]]:
    """Return the rows of each table; the first has the names of the columns."""
    found: list[list[list[str]]] = []
    for row in Page(html).rows:
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
        page.write(sweep, select(sweep.trials, bounds=(2, 10)), directory, dpi=40, pdf=True),
    )


@pytest.fixture(scope="module")
def html(written):
    return written[2][-1].read_text(encoding="utf-8")


def test_every_figure_is_written_and_described(written, html):
    _, directory, paths = written
    names = ["topic_curves", "parallel_coordinates", "trial_history", "pruning_curves"]
    assert paths == [
        *(directory / "figures" / f"{name}.{kind}" for name in names for kind in ("png", "pdf")),
        directory / "report.html",
    ]
    sheets = [attrs for _, attrs in Page(html).tags if attrs.get("class") == "sheet"]
    assert sum(tag == "svg" for tag, _ in Page(html).tags) == len(sheets) == 4
    assert all(len(s["aria-label"]) > 20 and "{" not in s["aria-label"] for s in sheets)
    assert sum(tag == "figcaption" for tag, _ in Page(html).tags) == 4


def test_the_same_sweep_gives_the_same_bytes(written, html, tmp_path):
    sweep, _, _ = written
    paths = page.write(sweep, select(sweep.trials, bounds=(2, 10)), tmp_path, dpi=40)
    assert paths[-1].read_text(encoding="utf-8") == html


def test_a_page_is_self_contained_and_names_are_escaped(html):
    assert_self_contained(html)
    assert "<script" not in html
    assert f"Number of topics of cells & {EVIL}" in Page(html).text
    assert f"no memory for {EVIL}" in Page(html).text


def test_the_page_contains_verdict_and_warnings():
    for sweep in (make_sweep(), make_sweep(support_floor=0.95), make_sweep([make_trial(0, 4)])):
        verdict = select(sweep.trials, bounds=(2, 10), support_floor=sweep.support_floor)
        text = Page(render(sweep)).text
        assert verdict.kind.value in text.lower()
        for sentence in (verdict.sentence, *verdict.warnings):
            assert sentence in text


def test_the_table_of_k_is_that_of_the_selection():
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
        for cell, name, decimals in zip(row[4:7], MEASURES[1:4], (2, 3, 3), strict=True):
            found = point.estimate(name)
            assert cell == f"{found.mean:.{decimals}f} ± {found.se:.{decimals}f}"
        assert row[-1] == ", ".join(map(str, point.trials))
    assert {row[0]: row[1].split() for row in rows if row[1]} == {
        "6": ["chosen"],
        "8": ["best", "plateau"],
    }
    assert rows[3][3] == "0"


def test_a_k_with_little_support_is_marked():
    trials = [make_trial(0, 4), make_trial(1, 8)]
    trials[1].values["topics/found_again"] = {"0": [0.4], "1": [0.5]}
    _, four, eight = tables(render(make_sweep(trials)))[0]
    assert four[1].split() == ["chosen", "best"]
    assert eight[1] == "little support"
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


def test_the_page_contains_space_budget_and_sampler():
    text = Page(render(make_sweep())).words
    for words in (
        "model.n_topics range(2,11)",
        "Trials 7: 5 complete, 1 pruned, 1 failed; 2 at a time",
        "Sampler tpe",
        "Pruner median",
        "Time 1 h 2 min",
        # A complete trial takes 60 epochs; the pruned one took 2.
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
    *_, bars, html = page.write(sweep, select(trials), tmp_path, dpi=40)
    assert bars.stem == "importance_bars"
    labels = [attrs.get("aria-label") or "" for _, attrs in Page(html.read_text()).tags]
    (alt,) = [label for label in labels if "importance" in label]
    assert alt.endswith("model.n_topics 75 %, train.amsgrad 25 %")
    assert tables(html.read_text())[-1][2][3] == "true"


@pytest.mark.parametrize("tracking", ["http://host:5000", "https://host/mlflow/"])
def test_runs_on_a_server_are_linked(tracking):
    sweep = make_sweep(tracking=tracking, experiment_id="7", parent_id="parent")
    links = {a["href"] for tag, a in Page(render(sweep)).tags if tag == "a" and a["href"][0] != "#"}
    base = f"{tracking.rstrip('/')}/#/experiments/7/runs/"
    assert links == {base + run for run in ["parent", *(t.run_id for t in sweep.trials)]}


@pytest.mark.parametrize("tracking", ["", "sqlite:///mlflow.db", "javascript:alert(1)//http://"])
def test_runs_without_a_server_are_named(tracking):
    sweep = make_sweep(tracking=tracking, experiment_id="7", parent_id="parent")
    parsed = Page(render(sweep))
    assert all(a["href"].startswith("#") for tag, a in parsed.tags if tag == "a")
    assert "topicell report run=run2" in parsed.text  # the chosen trial
    assert "topicell report run=RUN_ID" in parsed.text


def test_runs_without_tracking_are_named_by_their_folder():
    trials = [make_trial(0, 4, run_id="", folder="multirun/my runs/0")]
    text = Page(render(make_sweep(trials))).text
    assert "topicell report 'run=multirun/my runs/0'" in text


@pytest.mark.parametrize(
    ("storage", "named", "dashboard"),
    [
        ("postgresql+psycopg://me:s3cret@h/db", "postgresql+psycopg://me:***@h/db", None),
        ("journal:my.log", "journal:my.log", "my.log"),
        ("sqlite:////data/a b.db", "sqlite:////data/a b.db", "'sqlite:////data/a b.db'"),
    ],
)
def test_the_storage_is_named_without_its_password(storage, named, dashboard):
    html = render(make_sweep(storage=storage))
    text = Page(html).text
    assert named in text
    assert "s3cret" not in html
    if dashboard:
        assert f"optuna-dashboard {dashboard}" in text


def one_replicate(**kwargs) -> Sweep:
    trials = [make_trial(i, k, 1, 1) for i, k in enumerate(LOST)]
    return make_sweep(trials, **kwargs)


def without_coherence() -> Trial:
    trial = make_trial(2, 6)
    undefined = {"topics/coherence_npmi": {"0": [math.nan, math.nan]}}
    return dataclasses.replace(trial, values=trial.values | undefined)


WITHOUT = {
    "trials": lambda: make_sweep([]),
    "complete trials": lambda: make_sweep([stopped(0, 3), stopped(1, 4, "FAIL", curve={})]),
    "more than one trial": lambda: make_sweep([make_trial(0, 4)]),
    "a study": lambda: one_replicate(
        kind="multirun", storage="", sampler="", pruner="", seconds=None, bounds=None, importance={}
    ),
    "a coherence": lambda: make_sweep(
        [make_trial(0, 4), make_trial(1, 8, curve={1: math.inf, 2: math.nan}), without_coherence()]
    ),
    "topics found again": lambda: make_sweep(support_floor=0.99),
    "some metrics": lambda: make_sweep(
        [make_trial(0, 4), make_trial(1, 8, 1, 1, curve={}, seconds=None, run_id="", params={})]
    ),
}


@pytest.mark.parametrize("missing", WITHOUT)
def test_a_sweep_with_missing_values_has_a_page(missing, tmp_path):
    sweep = WITHOUT[missing]()
    verdict = select(sweep.trials, bounds=sweep.bounds, support_floor=sweep.support_floor)
    *figures, html = page.write(sweep, verdict, tmp_path, dpi=40)
    text = Page(html.read_text(encoding="utf-8")).text
    assert "nan" not in text.lower()
    assert "None" not in text
    assert verdict.sentence in text
    has_curves = any(trial.curve for trial in sweep.trials)
    assert len(figures) == 3 * bool(points(sweep.trials)) + has_curves


def test_a_single_fit_has_no_error():
    html = render(one_replicate())
    _, first, *_ = tables(html)[0]
    assert first[2] == f"{points(one_replicate().trials)[0].perplexity:.2f} ± –"
    assert "Stability" not in tables(html)[0][0]


def test_a_grid_has_no_sampler():
    sweep = dataclasses.replace(make_sweep(), kind="multirun", sampler="", storage="")
    text = Page(render(sweep)).words
    assert "Sampler none: a grid, every combination" in text
    assert "optuna-dashboard" not in text
