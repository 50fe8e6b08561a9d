"""The end of a sweep or a grid: the verdict, its files, and what the parent run in MLflow has."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from topicell.sweep.selection import MEASURES, Verdict, outcomes, points, verdict_of
from topicell.sweep.trials import Sweep
from topicell.tracking.parents import Parent


def conclude(sweep: Sweep, parent: Parent, folder: Path) -> Verdict:
    """Write ``sweep.json``, the report and its figures, and put the verdict on the parent run."""
    from topicell.sweep import page

    verdict = verdict_of(sweep)
    folder.mkdir(parents=True, exist_ok=True)
    failed = {k: sum(failed) for k, failed in outcomes(sweep.trials).items() if any(failed)}
    names = ("n_topics", "best", "trial", "sentence")
    plain: dict[str, object] = (
        {"kind": verdict.kind.value}
        | {name: getattr(verdict, name) for name in names}
        | {"cautions": verdict.warnings}
    )
    sweep.write(folder, plain | {"failed": failed})
    parent.keep(("sweep.json",))
    for point in points(sweep.trials):
        metrics = {}
        for name in MEASURES:
            if (found := point.estimate(name)) is not None:
                metrics[f"by_n_topics/{name}"] = found.mean
                if not math.isnan(found.se):
                    metrics[f"by_n_topics/{name}_se"] = found.se
        # With K as the step, MLflow draws the curve over numbers of topics.
        parent.log_metrics(metrics, step=point.n_topics)
    parent.log_metrics({f"importance/{name}": value for name, value in sweep.importance.items()})
    if verdict.n_topics is not None:
        parent.log_metrics({"sweep/n_topics": verdict.n_topics})
    states = Counter(trial.state.lower() for trial in sweep.trials)
    counts = "Trials: " + ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    note = [f"**{verdict.sentence}**", *verdict.warnings, counts]
    parent.set_tags(
        {
            "topicell.verdict": verdict.kind.value,
            "topicell.n_topics": "" if verdict.n_topics is None else str(verdict.n_topics),
            "mlflow.note.content": "\n\n".join(note),
        }
    )
    page.write(sweep, verdict, folder)
    parent.keep(("report.html", "figures"))
    return verdict
