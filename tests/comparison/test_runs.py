"""Read stored runs: their tags and their settings."""

from __future__ import annotations

from stored_runs import OFF, store

from topicell.comparison import compare
from topicell.comparison.runs import parameters, read_run
from topicell.tracking.record import Record


def test_tags_are_read_from_run_json_or_else_from_config_yaml(tmp_path):
    """Artifacts from MLflow, and older folders, have tags only in comments of config.yaml."""
    folder = store(tmp_path / "a", device="cpu", prepared="123")
    read = read_run(folder, str(folder), "A")
    assert (read.device, read.prepared) == ("cpu", "123")
    tags = {"device": "cuda", "topicell.prepared_digest": "4: 5", "topicell.git_dirty": "true"}
    Record(name="a", tags=tags).write(folder)
    read = read_run(folder, str(folder), "A")
    assert (read.device, read.prepared) == ("cuda", "4: 5")
    assert read.side.versions["commit"] == " with uncommitted changes"


def test_differing_settings_are_listed(tmp_path):
    a = store(tmp_path / "a", config={"model.n_topics": 6, "data.path": "x.h5ad"})
    b = store(tmp_path / "b", config={"train.learning_rate": 0.5})
    found = compare([str(a), str(b)], ["one", "two"], OFF)
    assert found.differing == ["data.path", "model.n_topics", "train.learning_rate"]
    assert found.parameters["model.n_topics"] == ("6", "10")
    assert found.parameters["data.path"] == ("x.h5ad", "null")
    assert found.parameters["seed"] == ("0", "0")
    assert [side.name for side in found.sides] == ["one", "two"]


def test_a_setting_that_one_run_does_not_have_is_none():
    both = [{"seed": 0, "theta": "t.csv"}, {"seed": 0, "model.n_topics": 3}]
    assert parameters(both) == {
        "seed": ("0", "0"),
        "theta": ("t.csv", None),
        "model.n_topics": (None, "3"),
    }
