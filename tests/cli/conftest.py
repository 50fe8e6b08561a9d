"""Fixtures of the tests of commands."""

import pytest

from topicell.config import TrackingConfig
from topicell.tracking.store import client, experiment_id


@pytest.fixture
def in_mlflow():
    """Return a function that returns the runs in the store of the current folder."""

    def runs():
        config = TrackingConfig()
        store = client(config)
        return store.search_runs([experiment_id(store, config)])

    return runs
