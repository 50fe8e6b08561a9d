"""The delivery of run folders to MLflow."""

import logging
import socket
import threading
import time

import pytest
from faults import free_port
from mlflow import MlflowClient

from topicell.config import RunConfig, TrackingConfig, dotted
from topicell.errors import InputError
from topicell.tracking import delivery
from topicell.tracking.delivery import deliver
from topicell.tracking.record import Record
from topicell.tracking.runs import RunFolder, open_tracker
from topicell.tracking.store import client, create_store
from topicell.tracking.stored import fetch_run, read_metrics


def test_mlflow_receives_everything_in_the_folder(store, tmp_path, record_run):
    tracker = open_tracker(store, tmp_path / "run")
    record_run(tracker)
    run = client(store).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "pbmc68k, 10 topics, seed 0"
    assert run.data.params == {name: str(value) for name, value in dotted(RunConfig()).items()}
    assert run.data.metrics == {"train/elbo": -8, "valid/perplexity": 5, "test/elbo": -7.5}
    assert run.data.tags["topicell.data_digest"] == "ab" * 32
    picture = f"get-artifact?path=figures%2Fmap+1.png&run_uuid={tracker.run_id}"
    assert (
        run.data.tags["mlflow.note.content"]
        == f"**3 topics**\n\n![The topics on a map of the cells]({picture})\n"
    )
    assert run.inputs.dataset_inputs[0].dataset.name == "cells"
    curve = client(store).get_metric_history(tracker.run_id, "train/elbo")
    assert [(point.step, point.value) for point in curve] == [(0, -10), (1, -9), (2, -8)]
    (tmp_path / "fetched").mkdir()
    folder, run_id = fetch_run(
        tracker.run_id,
        store,
        tmp_path / "fetched",
        ("config.yaml", "metrics.jsonl", "environment.txt", "report.html", "topics"),
    )
    assert run_id == tracker.run_id
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        *("config.yaml", "metrics.jsonl", "environment.txt", "report.html", "topics/top_genes.csv"),
    }
    assert read_metrics(folder) == read_metrics(tmp_path / "run")


def test_a_dead_server_costs_one_warning_and_no_result(tmp_path, caplog, record_run):
    nowhere = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    tracker = open_tracker(nowhere, tmp_path / "run")
    with caplog.at_level(logging.WARNING, logger="topicell.tracking"):
        record_run(tracker)
    assert len([r for r in caplog.records if r.name.startswith("topicell.")]) == 1
    assert "the run continues" in caplog.text
    history, final = read_metrics(tmp_path / "run")
    assert len(history) == 3
    assert final == {"test/elbo": -7.5}


@pytest.fixture
def no_patience(monkeypatch):
    """Set the deadlines of a delivery to zero."""
    for name in ("START_SECONDS", "FREE_SECONDS"):
        monkeypatch.setattr(delivery, name, 0.0)
    monkeypatch.setattr("topicell.tracking.runs.LAST_SECONDS", 0.0)


def test_a_store_that_hangs_does_not_affect_the_run(
    store, tmp_path, monkeypatch, caplog, no_patience, record_run, runs_of
):
    create, release, entered = MlflowClient.create_run, threading.Event(), threading.Event()

    def hang(*arguments, **settings):
        entered.set()
        release.wait(60)
        return create(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", hang)
        tracker = open_tracker(store, tmp_path / "run")
        record_run(tracker)
        assert entered.wait(60)
    assert caplog.text.count("(no answer in time); the run continues") == 1
    assert read_metrics(tmp_path / "run")[1] == {"test/elbo": -7.5}
    kept = (tmp_path / "run" / "run.json").read_bytes()
    assert Record.read(tmp_path / "run").status == "FINISHED"
    # The answer arrives when another process may own the folder: the key finds the run.
    release.set()
    tracker._delivery._thread.join(60)
    assert (tmp_path / "run" / "run.json").read_bytes() == kept
    (found,) = runs_of(tmp_path / "run")
    monkeypatch.undo()
    assert deliver(tmp_path / "run", store, 30) == found.info.run_id
    assert len(runs_of(tmp_path / "run")) == 1
    assert client(store).get_run(found.info.run_id).data.metrics["test/elbo"] == -7.5


def test_a_store_that_answers_late_receives_everything(
    store, tmp_path, monkeypatch, caplog, runs_of
):
    create, release = MlflowClient.create_run, threading.Event()

    def wait(*arguments, **settings):
        release.wait(60)
        return create(*arguments, **settings)

    monkeypatch.setattr(MlflowClient, "create_run", wait)
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "START_SECONDS", 0.0)
        patch.setattr(delivery, "FREE_SECONDS", 0.0)
        tracker = open_tracker(store, tmp_path / "run")
        tracker.start(RunConfig(), {})
        assert "no answer in time" in caplog.text
        assert tracker.run_id == ""
    release.set()
    tracker.finish("FINISHED")
    assert Record.read(tmp_path / "run").delivered
    assert [run.info.status for run in runs_of(tmp_path / "run")] == ["FINISHED"]


def test_a_run_whose_id_was_lost_is_not_created_again(store, tmp_path, monkeypatch, record_run):
    create, made = MlflowClient.create_run, []

    def lose_the_answer(*arguments, **settings):
        made.append(create(*arguments, **settings))
        raise OSError("no")

    monkeypatch.setattr(MlflowClient, "create_run", lose_the_answer)
    tracker = open_tracker(store, tmp_path / "run")
    record_run(tracker)
    assert Record.read(tmp_path / "run").delivered
    assert [run.info.run_id for run in made] == [tracker.run_id]


def test_artifacts_left_out_by_an_interrupt_are_delivered_later(
    store, tmp_path, monkeypatch, ctrl_c, record_run
):
    log_artifact, sent, hurry = MlflowClient.log_artifact, [], threading.Event()

    def interrupted(client, run_id, path, where):
        sent.append(path)
        if len(sent) == 2:
            ctrl_c()
            hurry.wait(60)
        log_artifact(client, run_id, path, where)

    wait = delivery.Delivery._wait

    def continue_after_interrupt(self, event):
        if self._hurry:
            hurry.set()
        return wait(self, event)

    tracker = open_tracker(store, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", interrupted)
        patch.setattr(delivery.Delivery, "_wait", continue_after_interrupt)
        with pytest.raises(KeyboardInterrupt):
            record_run(tracker)
        tracker.finish("KILLED")
    kept = Record.read(tmp_path / "run")
    assert (kept.status, kept.delivered) == ("FINISHED", False)
    mlflow = client(store)
    assert mlflow.get_run(kept.run_id).info.status == "FINISHED"
    assert len(mlflow.list_artifacts(kept.run_id)) == 2
    deliver(tmp_path / "run", store, 30)
    # The code may have changes that are not committed.
    assert {item.path for item in mlflow.list_artifacts(kept.run_id)} - {"git.diff"} == {
        *("config.yaml", "metrics.jsonl", "environment.txt", "report.html", "summary.md", "topics"),
    }


def test_an_interrupt_while_the_delivery_begins_starts_no_second_one(
    store, tmp_path, monkeypatch, ctrl_c, runs_of
):
    begin, begun = threading.Thread.start, []

    def interrupted(thread):
        begin(thread)
        begun.append(thread)
        ctrl_c()

    tracker = open_tracker(store, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tracker.start(RunConfig(), {})
    tracker.finish("KILLED")
    assert len(begun) == 1
    assert [run.info.status for run in runs_of(tmp_path / "run")] == ["KILLED"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_is_created_once_when_an_interrupt_arrives_meanwhile(
    when, store, tmp_path, monkeypatch, ctrl_c, runs_of
):
    create, interrupts = MlflowClient.create_run, [ctrl_c]

    def interrupted(*arguments, **settings):
        if when == "before" and interrupts:
            interrupts.pop()()
        run = create(*arguments, **settings)
        if interrupts:
            interrupts.pop()()
        return run

    monkeypatch.setattr(MlflowClient, "create_run", interrupted)
    tracker = open_tracker(store, tmp_path / "run")

    def begin():
        tracker.start(RunConfig(), {})
        time.sleep(10)  # until the interrupt arrives

    with pytest.raises(KeyboardInterrupt):
        begin()
    tracker.finish("KILLED")
    record = Record.read(tmp_path / "run")
    (run,) = runs_of(tmp_path / "run")
    assert run.info.run_id == record.run_id
    assert run.info.status == record.status == "KILLED"
    assert record.delivered


def test_a_run_whose_store_was_deleted_is_delivered_to_another(tmp_path, caplog):
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/first/mlflow.db", system_metrics=None)
    tracker = open_tracker(config, tmp_path / "run")
    tracker.start(RunConfig(), {})
    tracker.log_metrics({"train/elbo": -9.0}, epoch=0)
    for path in (tmp_path / "first").glob("mlflow.db*"):
        path.unlink()
    tracker.finish("FINISHED")
    assert "unable to open database file" in caplog.text
    assert not Record.read(tmp_path / "run").delivered
    other = TrackingConfig(uri=f"sqlite:///{tmp_path}/other.db")
    run_id = deliver(tmp_path / "run", other, 30)
    run = client(other).get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/elbo": -9})


def test_a_store_that_was_moved_is_not_created_again(tmp_path, record_run):
    first = tmp_path / "first"
    config = TrackingConfig(uri=f"sqlite:///{first}/mlflow.db")
    tracker = open_tracker(config, tmp_path / "run")
    record_run(tracker)
    kept = Record.read(tmp_path / "run")
    kept.delivered = False
    kept.write(tmp_path / "run")
    first.rename(tmp_path / "moved")
    with pytest.raises(
        InputError, match=r"no longer there; give its new address with tracking\.uri=…"
    ):
        deliver(tmp_path / "run", TrackingConfig(), 30)
    assert not first.exists()
    moved = TrackingConfig(uri=f"sqlite:///{tmp_path}/moved/mlflow.db")
    assert deliver(tmp_path / "run", moved, 30) == tracker.run_id


@pytest.mark.extras("psycopg")
@pytest.mark.parametrize("answer", [b"", None], ids=["closes", "silent"])
def test_a_run_does_not_wait_for_a_database_that_is_down(answer, tmp_path, record_run):
    """Without topicell's timeout, MLflow retries for minutes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]

        def close():
            while answer is not None:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=close, daemon=True).start()
        began = time.monotonic()
        config = TrackingConfig(uri=f"postgresql+psycopg://user@127.0.0.1:{port}/db")
        record_run(RunFolder(tmp_path / "run", tracking=config))
        assert not Record.read(tmp_path / "run").delivered
        # MLflow holds a lock while it retries; another store of the process does not wait for it.
        create_store(tmp_path / "other.db")
        assert time.monotonic() - began < 60
    nowhere = TrackingConfig(uri="postgresql+psycopg://user@host:port/db")
    with pytest.raises(InputError, match="is not a valid address; write"):
        RunFolder(tmp_path / "no run", tracking=nowhere)
