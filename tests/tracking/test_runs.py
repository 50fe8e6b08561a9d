"""Run folders."""

import json

import pytest
import yaml

from topicell.config import RunConfig, TrackingConfig, as_dict
from topicell.errors import InputError
from topicell.tracking.runs import RunFolder, open_tracker
from topicell.tracking.store import client
from topicell.tracking.stored import read_metrics


def test_a_folder_holds_configuration_metrics_and_summary(tmp_path, record_run):
    tracker = open_tracker(TrackingConfig(enabled=False), tmp_path / "run")
    record_run(tracker)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert yaml.safe_load(text) == as_dict(RunConfig())
    history, final = read_metrics(tmp_path / "run")
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert [row["train/elbo"] for row in history] == [-10, -9, -8]
    assert final == {"test/elbo": -7.5}
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert summary == "**3 topics**\n\n![The topics on a map of the cells](figures/map 1.png)\n"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["dataset"]["digest"] == "ab" * 32
    last = json.loads(lines[-1])
    assert last.pop("time") > 0
    assert last == {"status": "FINISHED"}


def test_a_folder_that_holds_a_run_is_refused_and_not_changed(tmp_path, record_run):
    record_run(RunFolder(tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match=r"already holds config\.yaml"):
        RunFolder(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"hydra.run.dir=FOLDER"):
        RunFolder(tmp_path / "file" / "run")


def test_a_resumed_run_loses_the_tags_of_its_failure(store, tmp_path):
    tracker = open_tracker(store, tmp_path / "run")
    tracker.start(RunConfig(), {})
    tracker.finish("FAILED", {"topicell.error": "no memory"})
    first = client(store).get_run(tracker.run_id)
    assert (first.info.status, first.data.tags["topicell.error"]) == ("FAILED", "no memory")
    again = open_tracker(store, tmp_path / "run", resume=True)
    again.start(RunConfig(), {})
    again.finish("FINISHED")
    assert again.run_id == tracker.run_id
    run = client(store).get_run(again.run_id)
    assert run.info.status == "FINISHED"
    assert "topicell.error" not in run.data.tags


def test_a_resumed_run_keeps_the_code_with_which_it_was_started(tmp_path):
    first = RunFolder(tmp_path / "run")
    first.start(RunConfig(), {"device": "a\nb"})
    first.finish("KILLED")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == as_dict(RunConfig())
    (tmp_path / "run" / "git.diff").write_text("+the changes of then\n")
    again = RunFolder(tmp_path / "run", resume=True)
    with pytest.warns(UserWarning, match="device"):
        again.start(RunConfig(), {})
    again.finish("FINISHED")
    assert (tmp_path / "run" / "git.diff").read_text() == "+the changes of then\n"


def test_a_diff_of_the_user_is_not_overwritten(tmp_path):
    (tmp_path / "git.diff").write_text("mine")
    with pytest.raises(InputError, match=r"already holds git\.diff"):
        RunFolder(tmp_path)
    assert (tmp_path / "git.diff").read_text() == "mine"
