"""A plain grid (``-m model.n_topics=5,10 seed=0,1``) ends with the same verdict as a sweep."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from topicell.config import DataConfig, RunConfig, dotted
from topicell.sweep import conclusion
from topicell.sweep.tracker import VALIDATION
from topicell.sweep.trials import INTERRUPTED, TOPICS, Sweep, Trial, now
from topicell.tracking.parents import Parent
from topicell.tracking.stored import NestedRun

STATES = {"FINISHED": "COMPLETE", "RUNNING": "RUNNING"}
"""MLflow's states of a run as states of a trial; every other state is a failure."""


def conclude(parent: Parent, folder: Path) -> Iterator[str]:
    """Compare the runs of a grid over numbers of topics; return lines for the terminal."""
    if not parent.run_id:
        return
    sweep = as_sweep(parent)
    other_cells = any(name.partition(".")[0] in ("data", "preprocess") for name in sweep.space)
    if other_cells or len({trial.n_topics for trial in sweep.trials}) < 2:
        # Perplexities of different cells or genes cannot be compared.
        return
    verdict = conclusion.conclude(sweep, parent, folder)
    yield verdict.sentence
    yield from (f"  {warning}" for warning in verdict.warnings)
    yield f"report      {folder / 'report.html'}"


def as_sweep(parent: Parent) -> Sweep:
    """Return the runs of a grid as trials, in the order in which they began."""
    runs = parent.nested_runs(VALIDATION)
    searched = [
        name
        for name in dotted(RunConfig())
        if len({run.params.get(name) for run in runs}) > 1 and not name.startswith("tracking.")
    ]
    trials = [
        Trial(
            number=number,
            state=STATES.get(run.status, "FAIL"),
            params={name: _number(run.params.get(name, "")) for name in searched},
            n_topics=int(run.params.get(TOPICS, 0)),
            values=run.values,
            curve=run.curve,
            epochs=int(sum(n for (n,) in run.values.get("fit/epochs", {}).values()))
            or len(run.curve),
            seconds=run.seconds,
            ended=run.ended,
            run_id=run.run_id,
            run_name=run.name,
            error=run.tags.get("topicell.error", INTERRUPTED if run.status == "KILLED" else ""),
        )
        for number, run in enumerate(runs)
    ]
    numbers = [trial.n_topics for trial in trials if trial.n_topics]
    return Sweep(
        name=parent.run_id,
        data=", ".join(sorted(set(map(_data, runs)))),
        kind="multirun",
        bounds=(min(numbers), max(numbers)) if numbers else None,
        space={name: _listed(trial.params[name] for trial in trials) for name in searched},
        trials=trials,
        parent_id=parent.run_id,
        experiment_id=parent.experiment,
        tracking=parent.store,
        version=version("topicell"),
        created=now(),
    )


def _data(run: NestedRun) -> str:
    """Return `DataConfig.title` of a run; MLflow has its settings as text."""
    found = {name: run.params.get(f"data.{name}", "None") for name in ("path", "samples")}
    given = {name: value for name, value in found.items() if value != "None"}
    if not given:
        return run.params.get("data.name", "")
    path: Any = given.get("path")
    with contextlib.suppress(ValueError, SyntaxError):  # a long list is not complete
        path = ast.literal_eval(path) if str(path).startswith("[") else path
    return DataConfig(name="file", **given | {"path": path}).title


def _listed(values: Iterable[int | float | str]) -> str:
    return ",".join(map(str, sorted(set(values), key=lambda value: (str(type(value)), value))))


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
