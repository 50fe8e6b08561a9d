"""A small run, and the runs that it leaves in MLflow."""

import pytest

from topicell.config import TrackingConfig
from topicell.tracking.store import client, experiment_id

SMALL = [
    "data=simulated",
    "data.simulation.n_cells=120",
    "data.simulation.n_genes=60",
    "data.simulation.n_topics=3",
    "model.n_topics=3",
    "model.n_hidden=8",
    "train.epochs=3",
    "train.n_replicates=2",
    "train.progress=false",
    "evaluate.n_coherence_genes=5",
    "report.pdf=false",
    "report.dpi=40",
]


@pytest.fixture
def small():
    """Settings of a run that takes about a second."""
    return list(SMALL)


@pytest.fixture
def in_mlflow():
    """A function that returns the runs in the store of the current folder."""

    def found():
        config = TrackingConfig()
        store = client(config)
        return store.search_runs([experiment_id(store, config)])

    return found
