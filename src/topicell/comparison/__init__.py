"""Compare stored runs: ``topicell compare``.

`compare` calls the modules in this order: `runs` reads stored runs, `incompatibilities` finds what
prevents a comparison (by the conditions in `rules`), `scoring` compares scores, and `matching`
matches topics. The result is a `values.Comparison`; `page` writes its page and tables.
"""

from __future__ import annotations

import string
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from topicell.comparison.incompatibilities import find_warnings
from topicell.comparison.matching import pair_topics
from topicell.comparison.runs import StoredRun, folder_of, parameters, read_run
from topicell.comparison.scoring import scores
from topicell.comparison.values import Comparison
from topicell.config import TrackingConfig
from topicell.errors import InputError

USAGE = "topicell compare runs=[RUN_ID,RUN_ID] (run ids of MLflow or run folders)"
LETTERS = string.ascii_uppercase


def compare(runs: Sequence[str], labels: Sequence[str], tracking: TrackingConfig) -> Comparison:
    """Read stored runs and compare them.

    Parameters
    ----------
    runs
        MLflow run ids and run folders.
    labels
        Names for the runs; if empty, the runs keep their own names.
    tracking
        The store of the run ids.

    Raises
    ------
    InputError
        There are fewer than two runs, a run is named twice, or one cannot be read.
    """
    if len(runs) < 2:
        raise InputError(f"runs: found {len(runs)}, but a comparison needs two or more: {USAGE}")
    if len(runs) > len(LETTERS):
        raise InputError(f"runs: found {len(runs)}, but a page takes {len(LETTERS)} at most")
    if labels and len(labels) != len(runs):
        raise InputError(
            f"labels: found {len(labels)} for {len(runs)} runs; give one label for each run"
        )
    stored: list[StoredRun] = []
    known: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for place, run in enumerate(runs):
            folder = folder_of(run, tracking, Path(scratch) / str(place))
            try:
                read = read_run(folder, run, LETTERS[place], labels[place] if labels else "")
            except (OSError, KeyError, ValueError) as error:
                what = str(error).partition("\n")[0]
                raise InputError(
                    f"runs: {run!r} cannot be read ({type(error).__name__}: {what}); is it a "
                    "complete run?"
                ) from error
            for name in filter(None, (read.side.run_id, str(folder.resolve()))):
                if name in known:
                    raise InputError(f"runs: {known[name]!r} and {run!r} are the same run")
                known[name] = run
            stored.append(read)
    return Comparison(
        sides=tuple(run.side for run in stored),
        warnings=tuple(find_warnings(stored)),
        parameters=parameters([run.config for run in stored]),
        scores=tuple(scores(stored)),
        pairings=tuple(pair_topics(stored[0], other) for other in stored[1:]),
        version=version("topicell"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def folder_name(runs: Sequence[str]) -> str:
    """Return the default folder of a comparison: ``compare-A-B``, from the names of the runs."""
    names = [Path(run).resolve().name[:20] if Path(run).is_dir() else run[:8] for run in runs]
    more = [f"and-{len(names) - 4}-more"] if len(names) > 4 else []
    return "-".join(["compare", *names[:4], *more])
