"""Parents of several runs: grids and sweeps."""

import pytest

from topicell.config import RunConfig
from topicell.errors import InputError
from topicell.tracking.parents import Parent
from topicell.tracking.record import Record
from topicell.tracking.runs import open_tracker
from topicell.tracking.store import client, experiment_id


def test_jobs_of_a_multirun_are_nested_under_one_parent(store, tmp_path):
    parent = Parent.start(store, "multirun", {"topicell.kind": "multirun"}, tmp_path / "grid")
    children = []
    for job in range(2):
        tracker = open_tracker(store, tmp_path / str(job))
        tracker.start(RunConfig(seed=job), {})
        tracker.finish("FINISHED")
        children.append(tracker.run_id)
    parent.finish("FINISHED")
    after = open_tracker(store, tmp_path / "after")
    after.start(RunConfig(), {})
    after.finish("FINISHED")
    mlflow = client(store)
    experiment = experiment_id(mlflow, store)
    nested = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert {run.info.run_id for run in nested} == set(children)
    assert mlflow.get_run(parent.run_id).info.status == "FINISHED"
    assert "mlflow.parentRunId" not in mlflow.get_run(after.run_id).data.tags


def test_a_parent_refuses_the_folder_of_a_run(store, tmp_path, record_run):
    tracker = open_tracker(store, tmp_path / "run")
    record_run(tracker)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(InputError, match="holds a run, not a multirun"):
        Parent.start(store, "grid", {"topicell.kind": "multirun"}, tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_parent_does_not_end_a_run_that_is_alive(store, tmp_path):
    parent = Parent.start(store, "sweep", {"topicell.kind": "sweep"}, tmp_path / "sweep")
    tracker = open_tracker(store, tmp_path / "sweep" / "0")
    tracker.start(RunConfig(), {})
    parent.end_child("", 0, "KILLED", {"topicell.error": "gone"})
    assert Record.read(tmp_path / "sweep" / "0").status == "RUNNING"
    tracker.finish("FINISHED")
    parent.finish("FINISHED")
    assert client(store).get_run(tracker.run_id).info.status == "FINISHED"
