"""System metrics of a run, in its folder and in MLflow."""

import json
import time
from dataclasses import replace

from topicell.config import RunConfig
from topicell.tracking import system
from topicell.tracking.record import Journal
from topicell.tracking.runs import open_tracker
from topicell.tracking.store import client
from topicell.tracking.stored import read_metrics
from topicell.tracking.system import SystemMetrics


def measured(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "step" in line]


def test_a_run_has_system_metrics_in_its_folder_and_in_mlflow(store, tmp_path):
    tracker = open_tracker(replace(store, system_metrics=0.05), tmp_path / "run")
    tracker.start(RunConfig(), {})
    until = time.monotonic() + 30
    while len(measured(tmp_path / "run")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    tracker.log_metrics({"test/elbo": -7.5})
    tracker.finish("FINISHED")
    lines = measured(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert len(lines) >= 2
    name = "system/system_memory_usage_megabytes"
    assert all(line[name] > 10 for line in lines)
    stored = client(store).get_metric_history(tracker.run_id, name)
    assert {point.step: point.value for point in stored} == {
        line["step"]: line[name] for line in lines
    }
    # They are no scores.
    assert read_metrics(tmp_path / "run") == ([], {"test/elbo": -7.5})


def test_without_the_setting_nothing_is_measured(store, tmp_path):
    tracker = open_tracker(replace(store, system_metrics=None), tmp_path / "run")
    tracker.start(RunConfig(), {})
    tracker.finish("FINISHED")
    assert measured(tmp_path / "run") == []


def test_a_resumed_run_continues_the_steps(tmp_path):
    for _ in range(2):
        journal = Journal(tmp_path)
        metrics = SystemMetrics(journal, 1000)
        metrics.begin()
        metrics.end()
        journal.close()
    assert [line["step"] for line in measured(tmp_path)] == [0, 1]


def test_a_system_that_cannot_be_measured_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    class Broken:
        def collect_metrics(self):
            raise OSError("no such counter")

    monkeypatch.setattr(system, "_monitors", lambda: [Broken()])
    journal = Journal(tmp_path)
    metrics = SystemMetrics(journal, 0.01)
    metrics.begin()
    metrics.end()
    journal.append({"status": "FINISHED"})
    journal.close()
    assert caplog.messages == ["system metrics are not recorded further (no such counter)"]
