"""The page of a sweep: the verdict on the number of topics K, and the measures behind it."""

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
    SUPPORT,
    Kind,
    Point,
    Verdict,
    points,
)
from topicell.sweep.trials import PERPLEXITY, TOPICS, Sweep, Trial

DASH = "–"
"""Stands for what was not measured."""
HEADLINES = (PERPLEXITY, SUPPORT, "topics/coherence_npmi", "topics/used")
"""The metrics of the chosen K that the page begins with."""
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
"""Titles of the states of trials."""

FIGURES = {
    "topic_curves": (
        "The first panel shows how much worse each K predicts the same held-out cells than the "
        "best K; its bars are ± 1 standard error of that difference. If a bar reaches the line, "
        "the cells do not distinguish this K from the best: the smallest such K is taken. The "
        "other panels show each measure, ± 1 standard error over splits and replicates; their bars "
        "are long because some splits are harder than others for every K.",
        "Measures of {n_topics} numbers of topics with error bars; first the perplexity above "
        "that of the best one",
    ),
    "parallel_coordinates": (
        "Each line is a complete trial, through its settings and its measures. Look for settings "
        "that the dark lines share.",
        "Parallel coordinates of {n_complete} complete trials, coloured by perplexity",
    ),
    "trial_history": (
        "Perplexity of the trials in the order of their numbers. If the lowest value still falls "
        "at the end, more trials may find a better one.",
        "Perplexity of {n_trials} trials by number, with the lowest so far",
    ),
    "pruning_curves": (
        "Validation perplexity by epoch on the first split, by which trials are pruned. It is "
        "measured during training and differs a little from the perplexity that decides.",
        "Validation perplexity by epoch of {n_curves} trials, those that were stopped marked",
    ),
    "importance_bars": (
        "How well each setting distinguishes good trials from the others (PED-ANOVA; Watanabe, "
        "Bansal & Hutter 2023). It is rough for few trials.",
        "Bars of the importance of the settings: {importance}",
    ),
}
"""Caption and alternative text of each figure, in the order on the page."""


def write(
    sweep: Sweep, verdict: Verdict, directory: Path, dpi: int = 150, *, pdf: bool = False
) -> list[Path]:
    """Write ``report.html`` and ``figures/``.

    Parameters
    ----------
    sweep
        The trials and how they were made.
    verdict
        The verdict on them, from `topicell.sweep.selection.select`.
    directory
        Where to write; created if it does not exist.
    dpi
        Resolution of the figures.
    pdf
        Whether to write the figures as PDF too.

    Returns
    -------
    The files written: the figures, then the page.
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
    """Return the report of a sweep as one HTML page; `figures` are SVG by name in `FIGURES`."""
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
        topics=_topics(measured, verdict, sweep.support_floor),
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
        metrics=[metric(name) for name in (PERPLEXITY, SUPPORT)],
        trials=_trials(sweep),
        failed=[trial for trial in sweep.trials if trial.error],
        storage=without_password(sweep.storage),
        dashboard=shlex.quote(without_password(sweep.storage).removeprefix("journal:")),
        parent=_link(sweep, sweep.parent_id),
    )
    return html


def _figures(sweep: Sweep, verdict: Verdict) -> dict[str, Any]:
    """Return the matplotlib figures that can be drawn, by the name of their file."""
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
            refused=[p.n_topics for p in measured if p.found_again < sweep.support_floor],
            pruned={t.n_topics for t in sweep.trials if t.state == "PRUNED"}
            - {point.n_topics for point in measured},
            support_floor=sweep.support_floor,
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
    """Return the perplexity of each K above that of the best, on the same cells; None for the best.

    Without a verdict, the best is the K with the lowest perplexity.
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


def _estimate(trial: Trial, measure: str) -> Estimate | None:
    return estimate(trial.values[measure]) if measure in trial.values else None


def _mean(trial: Trial, measure: str) -> float:
    found = _estimate(trial, measure)
    return math.nan if found is None else found.mean


def _settings(sweep: Sweep) -> list[str]:
    """Return the searched settings, the number of topics first."""
    return [TOPICS, *(name for name in sweep.space if name != TOPICS)]


def _setting(trial: Trial, name: str) -> Any:
    value = trial.n_topics if name == TOPICS else trial.params.get(name, DASH)
    return str(value).lower() if isinstance(value, bool) else value


def _tiles(measured: Sequence[Point], verdict: Verdict) -> list[dict[str, str]]:
    """Return the chosen K and its measures; empty if none was chosen."""
    point = next((point for point in measured if point.n_topics == verdict.n_topics), None)
    if point is None:
        return []
    best = "the best" if verdict.best == verdict.n_topics else f"the best is {verdict.best}"
    tiles = [{"title": "Number of topics", "value": str(point.n_topics), "meaning": best}]
    for name in HEADLINES:
        if name in point.values:
            text = _text(point.estimate(name), _decimals(name, measured))
            mean, _, se = text.partition(" ± ")
            meaning = "" if se == DASH else f"± {se} standard error"
            tiles.append({"title": metric(name).title, "value": mean, "meaning": meaning})
    return tiles


def _topics(
    measured: Sequence[Point], verdict: Verdict, support_floor: float
) -> list[dict[str, Any]]:
    """Return the rows of the table of K."""
    if not measured:
        return []
    decimals = {name: _decimals(name, measured) for name in MEASURES}
    others = [
        name
        for name in MEASURES
        if name != PERPLEXITY and any(name in point.values for point in measured)
    ]
    rows = []
    for point, loss in zip(measured, _losses(measured, verdict), strict=True):
        k = point.n_topics
        marks = {
            "chosen": k == verdict.n_topics,
            "best": loss is None,
            "plateau": k in verdict.within and k != verdict.n_topics,
            "little support": point.found_again < support_floor,
        }
        above = "0" if loss is None else _text(loss, decimals[PERPLEXITY] + 1, signed=True)
        rows.append(
            {
                "n_topics": k,
                "trials": ", ".join(map(str, point.trials)),
                "kind": "chosen" if marks["chosen"] else "within" if marks["plateau"] else "",
                "marks": [mark for mark, holds in marks.items() if holds],
                "perplexity": _text(point.estimate(PERPLEXITY), decimals[PERPLEXITY]),
                "loss": above,
                "others": [
                    (metric(name).title, _text(point.estimate(name), decimals[name]))
                    for name in others
                ],
            }
        )
    return rows


def _trials(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the rows of the table of all trials, in the order of their numbers."""
    decimals = _decimals(PERPLEXITY, points(sweep.trials))
    return [
        {
            "number": trial.number,
            "state": STATES.get(trial.state, trial.state),
            "params": [(name, _value(_setting(trial, name))) for name in _settings(sweep)],
            "perplexity": _text(_estimate(trial, PERPLEXITY), decimals),
            "epochs": f"{trial.epochs:,}",
            "time": DASH if trial.seconds is None else _duration(trial.seconds),
            "run": _run(sweep, trial),
        }
        for trial in sorted(sweep.trials, key=lambda trial: trial.number)
    ]


def _run(sweep: Sweep, trial: Trial) -> dict[str, str]:
    """Return the name of a trial's run, its address, and the command for its report."""
    run = trial.run_id or trial.folder
    return {
        "number": str(trial.number),
        "id": run,
        "name": trial.run_name or run,
        "link": _link(sweep, trial.run_id),
        "command": f"topicell report {shlex.quote(f'run={run}')}" if run else "",
    }


def _link(sweep: Sweep, run_id: str) -> str:
    """Return the address of a run in MLflow's pages; empty without a server."""
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
    """Return the epochs that pruning saved, if pruned trials had trained as long as the others."""
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


def _text(value: Estimate | None, decimals: int, *, signed: bool = False) -> str:
    """Return a mean ± its standard error; a dash for what was not measured."""
    if value is None or not math.isfinite(value.mean):
        return DASH
    mean = f"{round(value.mean, decimals) + 0.0:{'+' * signed},.{decimals}f}".replace("-", "−")
    return f"{mean} ± {f'{value.se:,.{decimals}f}' if math.isfinite(value.se) else DASH}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
