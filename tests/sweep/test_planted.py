"""From counts of known topics to the number of them."""

from __future__ import annotations

import pytest

from topicell.config import (
    DataConfig,
    ModelConfig,
    PreprocessConfig,
    ReportConfig,
    RunConfig,
    SimulationConfig,
    TrackingConfig,
    TrainConfig,
)
from topicell.data.preprocessing import held_in_memory
from topicell.evaluation.estimates import difference
from topicell.run import run
from topicell.sweep.selection import STABILITY, Kind, points, select
from topicell.sweep.trials import PERPLEXITY, TOPICS, Trial
from topicell.tracking.runs import open_tracker

PLANTED = 5


def fit(n_topics, folder):
    simulation = SimulationConfig(n_cells=600, n_genes=200, n_topics=PLANTED, mean_counts=600)
    config = RunConfig(
        data=DataConfig(name="simulated", simulation=simulation),
        preprocess=PreprocessConfig(n_variable_genes=None, drop_genes=[]),
        model=ModelConfig(n_topics=n_topics),
        train=TrainConfig(n_replicates=2, progress=False),
        tracking=TrackingConfig(enabled=False),
        report=ReportConfig(enabled=False),
    )
    config.evaluate.n_splits = 2
    config.evaluate.differential_expression = False
    result = run(config, open_tracker(config.tracking, folder))
    return Trial(
        number=n_topics - 3,
        state="COMPLETE",
        params={TOPICS: n_topics},
        n_topics=n_topics,
        values=result.values,
    )


@pytest.mark.slow
def test_the_planted_number_of_topics_is_found(tmp_path):
    with held_in_memory():
        trials = [fit(n_topics, tmp_path / str(n_topics)) for n_topics in range(3, 7)]
    verdict = select(trials)
    assert verdict.n_topics == PLANTED, verdict
    assert verdict.trial == PLANTED - 3
    assert verdict.kind in (Kind.optimum, Kind.plateau)
    # Measured: 54.3, 45.3, 39.1 and 39.1. Too few topics cost much, and too many next to
    # nothing: less than the splits differ, and seen because they are compared on the same cells.
    three, four, five, six = points(trials)
    assert three.perplexity > four.perplexity > 1.1 * five.perplexity
    assert six.perplexity < 1.01 * five.perplexity
    own = five.estimate(PERPLEXITY).se
    assert difference(six.values[PERPLEXITY], five.values[PERPLEXITY]).se < own / 10
    assert five.estimate(STABILITY).mean > 0.99
