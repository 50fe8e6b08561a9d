"""Refit the topics on which independent searches agree: ``topicell consensus``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from topicell.agreement import agreement_of
from topicell.config import RunConfig
from topicell.errors import InputError
from topicell.model.engines import cpu_threads
from topicell.model.fit import TopicFit
from topicell.model.registry import model_spec
from topicell.outputs import Result
from topicell.progress import step
from topicell.run import cells_of, run
from topicell.tracking.runs import Tracker

if TYPE_CHECKING:
    import pandas as pd


def refit(
    fits: Mapping[str, TopicFit], first: RunConfig, min_support: float, tracker: Tracker
) -> tuple[Result, pd.DataFrame]:
    """Make a run that starts with the topics on which the replicates of other runs agree.

    Parameters
    ----------
    fits
        The fits of the runs, by their names.
    first
        The settings of the first run. The new run has the same data and settings, but one
        replicate, and the agreed number of topics.
    min_support
        An agreed topic is in more than this share of the replicates.
    tracker
        Where the new run is recorded.

    Returns
    -------
    The new run, and the table of all topics with their support.

    Raises
    ------
    InputError
        The runs have no common topics, or the new run cannot be made; nothing was recorded.
    """
    spec = model_spec(first.model.kind)
    if not spec.takes("model.init_topics"):
        raise InputError(
            f"runs: the first has model.kind={spec.name}, which cannot start with given topics; "
            "name a run of amortized_lda or prodlda first"
        )
    cells = cells_of(first)
    # As in a run: two threads wait for each other where cores are shared.
    with step("agreement of the topics"), cpu_threads(first.train.threads):
        agreement = agreement_of(fits, cells.counts, min_support=min_support, seed=first.seed)
        path = tracker.directory / "topics" / "initial_topics.csv"
        path.parent.mkdir(exist_ok=True)
        agreement.write_initial_topics(path)
    config = replace(
        first,
        model=replace(
            first.model,
            n_topics=len(agreement.support_C),
            init_topics=str(path),
            align_to=None,
        ),
        train=replace(first.train, n_replicates=1),
        evaluate=replace(first.evaluate, n_splits=1),
    )
    return run(config, tracker, agreement=agreement), agreement.table
