"""Fixtures of the tests of run folders and their delivery."""

import os
import signal

import pytest

from topicell.config import RunConfig, TrackingConfig
from topicell.tracking.record import Record
from topicell.tracking.store import client, experiment_id


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Return the address of an SQLite store that several tests use."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    config = TrackingConfig(uri=f"sqlite:///{path}", system_metrics=None)
    client(config)
    return config


@pytest.fixture(scope="session")
def record_run():
    """Return a function that records a whole run by a tracker."""

    def record(tracker):
        tracker.start(RunConfig(), {"topicell.version": "1"})
        tracker.log_dataset("cells", "/data/cells.h5ad", "ab" * 32)
        for epoch in range(3):
            values = {"train/elbo": -10.0 + epoch, "valid/perplexity": 5.0}
            tracker.log_metrics(values, epoch=epoch)
        tracker.log_metrics({"test/elbo": -7.5})
        (tracker.directory / "topics").mkdir()
        (tracker.directory / "topics" / "top_genes.csv").write_text("rank\n")
        (tracker.directory / "report.html").write_text("<p>")
        tracker.log_summary("**3 topics**\n", "figures/map 1.png")
        tracker.finish("FINISHED")

    return record


@pytest.fixture(scope="session")
def runs_of(store):
    """Return a function that returns the runs in the store with the key of a folder."""

    def runs(folder):
        mlflow = client(store)
        key = Record.read(folder).key
        return mlflow.search_runs([experiment_id(mlflow, store)], f"tags.`topicell.key` = '{key}'")

    return runs


@pytest.fixture
def ctrl_c():
    """Return a function that interrupts this process; it works in the background of a shell too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
