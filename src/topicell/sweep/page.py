"""The page of a sweep: the verdict on the number of topics K, and all that it rests on."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topicell.evaluation.estimates import Estimate, difference, estimate
from topicell.evaluation.metrics import metric
from topicell.redaction import without_password
from topicell.report.templates import template
from topicell.sweep.selection import (
    MEASURES,
    STABILITY,
    Kind,
    Point,
    Verdict,
    points,
)
from topicell.sweep.trials import PERPLEXITY, TOPICS, Sweep, Trial

DASH = "–"
"""Stands for what was not measured."""
HEADLINES = (PERPLEXITY, STABILITY, "topics/coherence_npmi", "topics/used")
"""The metrics of the chosen K that the page begins with."""
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
"""What the states of trials are called."""

FIGURES = {
    "topic_curves": (
        "Above all, how much worse each K predicts the same held-out cells than the best K does; "
        "its bars are ± 1 standard error of that difference. Where a bar reaches the line, the "
        "cells do not tell this K from the best: the smallest of these is taken. Below, the "
        "measures by themselves, ± 1 standard error over splits and replicates; their bars are "
        "long because some splits are harder than others, for every K alike.",
        "Measures of {n_topics} numbers of topics with error bars; first the perplexity above "
        "that of the best one",
    ),
    "parallel_coordinates": (
        "One line a complete trial, through its settings and its measures. Look for the settings "
        "that the dark lines share.",
        "Parallel coordinates of {n_complete} complete trials, coloured by perplexity",
    ),
    "trial_history": (
        "Perplexity of the trials in the order of their numbers. If the lowest still falls at the "
        "end, more trials may find a better one.",
        "Perplexity of {n_trials} trials by number, with the lowest so far",
    ),
    "pruning_curves": (
        "Validation perplexity by epoch, of the first split: what pruning goes by. It is taken "
        "while training and is not quite the perplexity that decides.",
        "Validation perplexity by epoch of {n_curves} trials, those that were stopped marked",
    ),
    "importance_bars": (
        "How much each setting tells good trials from the others (PED-ANOVA; Watanabe, Bansal & "
        "Hutter 2023). Of few trials it is rough.",
        "Bars of the importance of the settings: {importance}",
    ),
}
"""Caption and alternative text of each figure, in the order of the page."""


def write(
    sweep: Sweep, verdict: Verdict, directory: Path, dpi: int = 150, *, pdf: bool = True
) -> list[Path]:
    """Write ``report.html``, and ``figures/`` as PNG and PDF.

    Parameters
    ----------
    sweep
        The trials and how they were made.
    verdict
        The verdict on them, of `topicell.sweep.selection.select`.
    directory
        Where to write; made if need be.
    dpi
        Resolution of the figures.
    pdf
        Whether to write them as PDF too.

    Returns
    -------
    The files written: the figures, and the page last.
    """
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    from topicell.report.figures import as_svg, save

    paths, images = [], {}
    for name, figure in _figures(sweep, verdict).items():
        images[name] = as_svg(figure, name)
        paths += save(figure, directory / "figures" / name, dpi, pdf=pdf)
    page = directory / "report.html"
    page.write_text(render(sweep, verdict, images), encoding="utf-8")
    return [*paths, page]


def render(sweep: Sweep, verdict: Verdict, figures: Mapping[str, str]) -> str:
    """The report of a sweep as one HTML page, with its images inside.

    Parameters
    ----------
    sweep
        The trials and how they were made.
    verdict
        The verdict on them.
    figures
        SVG by the names of `FIGURES`.
    """
    from markupsafe import Markup

    measured = points(sweep.trials)
    states = Counter(trial.state for trial in sweep.trials)
    trained = sum(trial.epochs for trial in sweep.trials)
    counts = {
        "n_topics": len(measured),
        "n_complete": states["COMPLETE"],
        "n_trials": len(sweep.trials),
        "n_curves": sum(bool(trial.curve) for trial in sweep.trials),
        "importance": _importance(sweep),
    }
    # The style is that of the page of a run.
    html: str = template("page.html.j2", Path(__file__).parent).render(
        sweep=sweep,
        verdict=verdict,
        heading=verdict.kind.value[0].upper() + verdict.kind.value[1:],
        fine=verdict.kind in (Kind.optimum, Kind.plateau),
        chosen=next((_run(sweep, t) for t in sweep.trials if t.number == verdict.trial), None),
        tiles=_tiles(measured, verdict),
        states=[f"{states[s]} {word}" for s, word in STATES.items() if states[s]],
        duration=None if sweep.seconds is None else _duration(sweep.seconds),
        trained=f"{trained:,}",
        saved=_saved(sweep.trials),
        topics=_topics(measured, verdict, sweep.stability_floor),
        figures=[
            {
                "name": name,
                "caption": caption,
                "alt": alt.format(**counts),
                "svg": Markup(figures[name]),
            }
            for name, (caption, alt) in FIGURES.items()
            if name in figures
        ],
        settings=_settings(sweep),
        metrics=[metric(name) for name in (PERPLEXITY, STABILITY)],
        trials=_trials(sweep),
        failed=[trial for trial in sweep.trials if trial.error],
        storage=without_password(sweep.storage),
        dashboard=shlex.quote(without_password(sweep.storage).removeprefix("journal:")),
        parent=_link(sweep, sweep.parent_id),
    )
    return html


def _figures(sweep: Sweep, verdict: Verdict) -> dict[str, Any]:
    """The matplotlib figures, by the name of their file; those there is nothing to draw for go."""
    from topicell.report.figures import sweep as sweep_figures

    measured = points(sweep.trials)
    complete = [t for t in sweep.trials if t.state == "COMPLETE" and PERPLEXITY in t.values]
    states = [STATES.get(trial.state, "running") for trial in sweep.trials]
    place = next((i for i, t in enumerate(sweep.trials) if t.number == verdict.trial), None)
    drawn = {}
    if measured:
        losses = _losses(measured, verdict)
        drawn["topic_curves"] = sweep_figures.topic_curves(
            [point.n_topics for point in measured],
            {
                name: _means_and_errors([point.estimate(name) for point in measured])
                for name in MEASURES
                if any(name in point.values for point in measured)
            },
            _means_and_errors([loss or Estimate(0.0, 0.0) for loss in losses]),
            best=next(p.n_topics for p, loss in zip(measured, losses, strict=True) if not loss),
            chosen=verdict.n_topics,
            within=verdict.within,
            refused=[p.n_topics for p in measured if p.stability < sweep.stability_floor],
            pruned={t.n_topics for t in sweep.trials if t.state == "PRUNED"}
            - {point.n_topics for point in measured},
            stability_floor=sweep.stability_floor,
        )
        chosen = next((i for i, t in enumerate(complete) if t.number == verdict.trial), None)
        columns = {name: [_setting(t, name) for t in complete] for name in _settings(sweep)} | {
            metric(name).title: [_mean(trial, name) for trial in complete]
            for name in MEASURES
            if any(name in trial.values for trial in complete)
        }
        drawn["parallel_coordinates"] = sweep_figures.parallel_coordinates(
            columns, metric(PERPLEXITY).title, chosen
        )
        drawn["trial_history"] = sweep_figures.trial_history(
            [trial.number for trial in sweep.trials],
            [_mean(t, PERPLEXITY) if t in complete else math.nan for t in sweep.trials],
            states,
            place,
        )
    if any(trial.curve for trial in sweep.trials):
        drawn["pruning_curves"] = sweep_figures.pruning_curves(
            [trial.curve for trial in sweep.trials], states, place
        )
    if len(sweep.importance) > 1:
        drawn["importance_bars"] = sweep_figures.importance_bars(sweep.importance)
    return drawn


def _losses(measured: Sequence[Point], verdict: Verdict) -> list[Estimate | None]:
    """Perplexity of each K above that of the best one, on the same cells; None for the best.

    Where there is no verdict, the best is the one of the lowest perplexity.
    """
    lowest = min(measured, key=lambda point: point.perplexity)
    best = next((point for point in measured if point.n_topics == verdict.best), lowest)
    return [
        None if point is best else difference(point.values[PERPLEXITY], best.values[PERPLEXITY])
        for point in measured
    ]


def _means_and_errors(estimates: Sequence[Estimate | None]) -> tuple[list[float], list[float]]:
    known = [e or Estimate(math.nan, math.nan) for e in estimates]
    return [e.mean for e in known], [e.se for e in known]


def _mean(trial: Trial, measure: str) -> float:
    return estimate(trial.values[measure]).mean if measure in trial.values else math.nan


def _settings(sweep: Sweep) -> list[str]:
    """The settings that were moved, the number of topics first."""
    return [TOPICS, *(name for name in sweep.space if name != TOPICS)]


def _setting(trial: Trial, name: str) -> Any:
    value = trial.n_topics if name == TOPICS else trial.params.get(name, DASH)
    return str(value).lower() if isinstance(value, bool) else value


def _tiles(measured: Sequence[Point], verdict: Verdict) -> list[dict[str, str]]:
    """The chosen K and its measures; nothing where none was chosen."""
    point = next((point for point in measured if point.n_topics == verdict.n_topics), None)
    if point is None:
        return []
    best = "the best" if verdict.best == verdict.n_topics else f"the best is {verdict.best}"
    tiles = [{"title": "Number of topics", "value": str(point.n_topics), "meaning": best}]
    for name in HEADLINES:
        if name in point.values:
            (text,) = _column([point.estimate(name)], _decimals(name, measured))
            mean, _, se = text.partition(" ± ")
            meaning = "" if se == DASH else f"± {se} standard error"
            tiles.append({"title": metric(name).title, "value": mean, "meaning": meaning})
    return tiles


def _topics(
    measured: Sequence[Point], verdict: Verdict, stability_floor: float
) -> list[dict[str, Any]]:
    """The rows of the table of K."""
    if not measured:
        return []
    losses = _losses(measured, verdict)
    above = _column(losses, _decimals(PERPLEXITY, measured) + 1, signed=True)
    columns = {
        name: _column([point.estimate(name) for point in measured], _decimals(name, measured))
        for name in MEASURES
        if any(name in point.values for point in measured)
    }
    rows = []
    for i, point in enumerate(measured):
        k = point.n_topics
        marks = {
            "chosen": k == verdict.n_topics,
            "best": losses[i] is None,
            "plateau": k in verdict.within and k != verdict.n_topics,
            "not stable": point.stability < stability_floor,
        }
        rows.append(
            {
                "n_topics": k,
                "trials": ", ".join(map(str, point.trials)),
                "kind": "chosen" if marks["chosen"] else "within" if marks["plateau"] else "",
                "marks": [mark for mark, holds in marks.items() if holds],
                "perplexity": columns[PERPLEXITY][i],
                "loss": "0" if losses[i] is None else above[i],
                "others": [
                    (metric(name).title, column[i])
                    for name, column in columns.items()
                    if name != PERPLEXITY
                ],
            }
        )
    return rows


def _trials(sweep: Sweep) -> list[dict[str, Any]]:
    """The rows of the table of all trials, in the order of their numbers."""
    trials = sorted(sweep.trials, key=lambda trial: trial.number)
    measured = [
        estimate(trial.values[PERPLEXITY]) if PERPLEXITY in trial.values else None
        for trial in trials
    ]
    perplexities = _column(measured, _decimals(PERPLEXITY, points(trials)))
    return [
        {
            "number": trial.number,
            "state": STATES.get(trial.state, trial.state),
            "params": [(name, _value(_setting(trial, name))) for name in _settings(sweep)],
            "perplexity": perplexity,
            "epochs": f"{trial.epochs:,}",
            "time": DASH if trial.seconds is None else _duration(trial.seconds),
            "run": _run(sweep, trial),
        }
        for trial, perplexity in zip(trials, perplexities, strict=True)
    ]


def _run(sweep: Sweep, trial: Trial) -> dict[str, str]:
    """What a trial's run is called, its address, and how its report is asked for."""
    run = trial.run_id or trial.folder
    return {
        "number": str(trial.number),
        "id": run,
        "name": trial.run_name or run,
        "link": _link(sweep, trial.run_id),
        "command": f"topicell report {shlex.quote(f'run={run}')}" if run else "",
    }


def _link(sweep: Sweep, run_id: str) -> str:
    """The address of a run in MLflow's pages; empty where there is no server to show them."""
    is_server = sweep.tracking.startswith(("http://", "https://"))
    if not (is_server and run_id and sweep.experiment_id):
        return ""
    # Without the user: a browser asks for it.
    server = re.sub(r"//[^/]*@", "//", sweep.tracking).rstrip("/")
    return f"{server}/#/experiments/{sweep.experiment_id}/runs/{run_id}"


def _importance(sweep: Sweep) -> str:
    ordered = sorted(sweep.importance.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in ordered)


def _saved(trials: Sequence[Trial]) -> str:
    """Epochs that pruning saved: each pruned trial would have gone on as complete ones do."""
    complete = [trial.epochs for trial in trials if trial.state == "COMPLETE"]
    if not complete:
        return ""
    full = sum(complete) / len(complete)
    saved = sum(max(full - trial.epochs, 0) for trial in trials if trial.state == "PRUNED")
    return f"{saved:,.0f}" if saved else ""


def _decimals(measure: str, measured: Sequence[Point]) -> int:
    if measure == PERPLEXITY:
        return 2 if min((point.perplexity for point in measured), default=0) < 100 else 1
    decimals = metric(measure).decimals
    return 3 if decimals is None else decimals


def _column(
    estimates: Sequence[Estimate | None], decimals: int, *, signed: bool = False
) -> list[str]:
    """Means ± standard errors; a dash for what is not known."""

    def text(e: Estimate | None) -> str:
        if e is None or not math.isfinite(e.mean):
            return DASH
        mean = f"{round(e.mean, decimals) + 0.0:{'+' * signed},.{decimals}f}".replace("-", "−")
        return f"{mean} ± {e.se:,.{decimals}f}" if math.isfinite(e.se) else f"{mean} ± {DASH}"

    return [text(e) for e in estimates]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
