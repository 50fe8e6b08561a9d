import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sqlite3
import threading
import time

import pytest
import yaml
from mlflow import MlflowClient

from topicell.config import RunConfig, TrackingConfig, as_dict, dotted
from topicell.errors import InputError
from topicell.tracking import delivery
from topicell.tracking.delivery import RECORDS, deliver
from topicell.tracking.parents import Parent
from topicell.tracking.provenance import provenance
from topicell.tracking.record import Record
from topicell.tracking.runs import RunFolder, open_tracker
from topicell.tracking.store import (
    client,
    create_store,
    experiment_id,
    shown_uri,
    tracking_uri,
)
from topicell.tracking.stored import fetch_run, read_metrics
from topicell.tracking.ui import ui_address, ui_command


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that is created once: its tables take seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    config = TrackingConfig(uri=f"sqlite:///{path}")
    client(config)
    return config


def record(tracker):
    tracker.start(RunConfig(), {"topicell.version": "1"})
    tracker.log_dataset("cells", "/data/cells.h5ad", "ab" * 32)
    for epoch in range(3):
        tracker.log_metrics({"train/elbo": -10.0 + epoch, "valid/perplexity": 5.0}, epoch=epoch)
    tracker.log_metrics({"test/elbo": -7.5})
    (tracker.directory / "topics").mkdir()
    (tracker.directory / "topics" / "top_genes.csv").write_text("rank\n")
    (tracker.directory / "report.html").write_text("<p>")
    tracker.log_summary("**3 topics**\n", "figures/map 1.png")
    tracker.finish("FINISHED")


def test_the_folder_alone_holds_configuration_and_metrics(tmp_path):
    tracker = open_tracker(TrackingConfig(enabled=False), tmp_path / "run")
    record(tracker)
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


def test_mlflow_holds_what_the_folder_holds(store, tmp_path):
    tracker = open_tracker(store, tmp_path / "run")
    record(tracker)
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
        tracker.run_id, store, tmp_path / "fetched", (*RECORDS, "report.html", "topics")
    )
    assert run_id == tracker.run_id
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.yaml", "metrics.jsonl", "report.html", "topics/top_genes.csv"}
    assert read_metrics(folder) == read_metrics(tmp_path / "run")


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


@pytest.mark.slow
def test_processes_that_start_together_make_one_sound_store(started, tmp_path):
    path = tmp_path / "new" / "mlflow.db"
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from topicell.tracking.store import create_store\n"
        "create_store(Path(sys.argv[1]))\n"
    )
    processes = [started(path, program=program, copied_store=False) for _ in range(3)]
    assert [process.wait(600) for process in processes] == [0, 0, 0]
    assert sorted(p.name for p in path.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    config = TrackingConfig(uri=f"sqlite:///{path}")
    assert experiment_id(client(config), config) == experiment_id(client(config), config)


def test_a_dead_server_costs_one_warning_and_no_result(tmp_path, caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    tracker = open_tracker(TrackingConfig(uri=f"http://127.0.0.1:{port}"), tmp_path / "run")
    with caplog.at_level(logging.WARNING, logger="topicell.tracking"):
        record(tracker)
    assert len([r for r in caplog.records if r.name.startswith("topicell.")]) == 1
    assert "the run continues" in caplog.text
    history, final = read_metrics(tmp_path / "run")
    assert len(history) == 3
    assert final == {"test/elbo": -7.5}


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    record(RunFolder(tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match=r"holds config\.yaml already"):
        RunFolder(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"hydra.run.dir=FOLDER"):
        RunFolder(tmp_path / "file" / "run")


def test_where_the_store_is(monkeypatch):
    assert tracking_uri(TrackingConfig()) == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(TrackingConfig()) == "http://127.0.0.1:1"
    assert tracking_uri(TrackingConfig(uri="sqlite:///a.db")) == "sqlite:///a.db"
    with pytest.raises(InputError, match=r"tracking.uri = 'ftp://x'"):
        tracking_uri(TrackingConfig(uri="ftp://x"))
    secret = TrackingConfig(uri="postgresql://me:secret@host/db")
    assert shown_uri(secret) == "postgresql://me:***@host/db"


def test_what_is_no_run_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="neither a folder nor a run"):
        fetch_run("0" * 32, store, tmp_path, RECORDS)
    parent = Parent.start(store, "multirun", {"topicell.kind": "multirun"}, tmp_path / "grid")
    with pytest.raises(InputError, match="parent of a multirun"):
        fetch_run(parent.run_id, store, tmp_path, RECORDS)
    parent.finish("FINISHED")
    with pytest.raises(InputError, match=r"has no config\.yaml"):
        fetch_run(str(tmp_path), store, tmp_path, RECORDS)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = TrackingConfig(uri=f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(InputError, match="cannot be read"):
        fetch_run("0" * 32, gone, tmp_path, RECORDS)
    # The end of a grid whose server has gone is a warning.
    Parent(gone, parent.run_id).finish("FINISHED")


def test_the_ui_opens_the_machine_learning_view_of_the_experiment(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    command = ui_command(store, "127.0.0.1", 5000)
    assert store.uri not in " ".join(command)
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == store.uri
    address = ui_address(store, "127.0.0.1", 5000)
    assert address.endswith("/runs?workflowType=machine_learning")
    absent = TrackingConfig(uri=f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(InputError, match="does not exist:"):
        ui_command(absent, "127.0.0.1", 5000)


def test_the_last_epoch_and_the_whole_run_do_not_mix(store, tmp_path):
    """Final metrics have names of their own: MLflow shows of each name the last value alone."""
    tracker = open_tracker(store, tmp_path / "run")
    record(tracker)
    history, final = read_metrics(tmp_path / "run")
    assert not final.keys() & history[-1].keys()
    stored = client(store).get_run(tracker.run_id).data.metrics
    assert stored == {k: v for k, v in (history[-1] | final).items() if k != "epoch"}


def test_provenance_names_version_and_commit():
    tags = provenance()
    assert tags["topicell.version"]
    if "topicell.git_commit" in tags:
        assert len(tags["topicell.git_commit"]) == 40
        assert tags["topicell.git_dirty"] in ("true", "false")


# What was given up, locked, moved or mistaken


@pytest.fixture
def impatient(monkeypatch):
    """Deadlines that are over at once."""
    for name in ("START_SECONDS", "FREE_SECONDS"):
        monkeypatch.setattr(delivery, name, 0.0)
    monkeypatch.setattr("topicell.tracking.runs.LAST_SECONDS", 0.0)


def runs_in(store, folder):
    """The runs in a store that have the key of a folder."""
    there = client(store)
    key = Record.read(folder).key
    return there.search_runs([experiment_id(there, store)], f"tags.`topicell.key` = '{key}'")


def test_a_store_that_hangs_touches_no_run(store, tmp_path, monkeypatch, caplog, impatient):
    create, release, entered = MlflowClient.create_run, threading.Event(), threading.Event()

    def hang(*arguments, **settings):
        entered.set()
        release.wait(60)
        return create(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", hang)
        tracker = open_tracker(store, tmp_path / "run")
        record(tracker)
        assert entered.wait(60)
    assert caplog.text.count("(no answer in time); the run continues") == 1
    assert read_metrics(tmp_path / "run")[1] == {"test/elbo": -7.5}
    kept = (tmp_path / "run" / "run.json").read_bytes()
    assert Record.read(tmp_path / "run").status == "FINISHED"
    # The answer comes when the folder may be another process's: it is found by its key.
    release.set()
    tracker._delivery._thread.join(60)
    assert (tmp_path / "run" / "run.json").read_bytes() == kept
    (found,) = runs_in(store, tmp_path / "run")
    monkeypatch.undo()
    assert deliver(tmp_path / "run", store, 30) == found.info.run_id
    assert len(runs_in(store, tmp_path / "run")) == 1
    assert client(store).get_run(found.info.run_id).data.metrics["test/elbo"] == -7.5


def test_a_store_that_is_late_has_all_at_the_end(store, tmp_path, monkeypatch, caplog):
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
    assert [run.info.status for run in runs_in(store, tmp_path / "run")] == ["FINISHED"]


def test_a_call_that_failed_is_made_again(store, tmp_path, monkeypatch):
    create, made = MlflowClient.create_run, []

    def answer_is_lost(*arguments, **settings):
        made.append(create(*arguments, **settings))
        raise OSError("no")

    monkeypatch.setattr(MlflowClient, "create_run", answer_is_lost)
    tracker = open_tracker(store, tmp_path / "run")
    record(tracker)
    assert Record.read(tmp_path / "run").delivered
    assert [run.info.run_id for run in made] == [tracker.run_id]


def test_artifacts_that_an_interrupt_leaves_out_arrive_later(store, tmp_path, monkeypatch, ctrl_c):
    log_artifact, sent, hurry = MlflowClient.log_artifact, [], threading.Event()

    def interrupted(client, run_id, path, where):
        sent.append(path)
        if len(sent) == 2:
            ctrl_c()
            hurry.wait(60)
        log_artifact(client, run_id, path, where)

    wait = delivery.Delivery._wait

    def let_go(self, event):
        if self._hurry:
            hurry.set()
        return wait(self, event)

    tracker = open_tracker(store, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", interrupted)
        patch.setattr(delivery.Delivery, "_wait", let_go)
        with pytest.raises(KeyboardInterrupt):
            record(tracker)
        tracker.finish("KILLED")
    kept = Record.read(tmp_path / "run")
    assert (kept.status, kept.delivered) == ("FINISHED", False)
    there = client(store)
    assert there.get_run(kept.run_id).info.status == "FINISHED"
    assert len(there.list_artifacts(kept.run_id)) == 2
    deliver(tmp_path / "run", store, 30)
    assert {item.path for item in there.list_artifacts(kept.run_id)} == {
        *("config.yaml", "metrics.jsonl", "report.html", "summary.md", "topics"),
    }


@pytest.fixture
def ctrl_c():
    """Interrupts this process; also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_as_the_delivery_begins_is_no_second_one(store, tmp_path, monkeypatch, ctrl_c):
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
    assert [run.info.status for run in runs_in(store, tmp_path / "run")] == ["KILLED"]


@pytest.mark.parametrize("seconds", [0, 0.1, 0.19, 0.2, 0.21, 0.3])
def test_a_run_that_is_being_made_when_an_interrupt_strikes_is_made_once(
    seconds, store, tmp_path, monkeypatch, ctrl_c
):
    create, moments = MlflowClient.create_run, [seconds]

    def slow(*arguments, **settings):
        if moments:
            threading.Timer(moments.pop(), ctrl_c).start()
        time.sleep(0.2)
        return create(*arguments, **settings)

    monkeypatch.setattr(MlflowClient, "create_run", slow)
    tracker = open_tracker(store, tmp_path / "run")

    def begin():
        tracker.start(RunConfig(), {})
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        begin()
    tracker.finish("KILLED")
    kept = Record.read(tmp_path / "run")
    found = runs_in(store, tmp_path / "run")
    assert [run.info.run_id for run in found] == [kept.run_id]
    assert found[0].info.status == kept.status == "KILLED"
    assert kept.delivered


def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    record(RunFolder(tmp_path / "run"))
    history, _ = read_metrics(tmp_path / "run")
    assert len(history) == 3


def test_a_parent_takes_over_no_folder_of_a_run(store, tmp_path):
    tracker = open_tracker(store, tmp_path / "run")
    record(tracker)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(InputError, match="holds a run, not a multirun"):
        Parent.start(store, "grid", {"topicell.kind": "multirun"}, tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_store_that_is_deleted_in_a_run_has_all_after_sync(tmp_path, caplog):
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/there/mlflow.db")
    tracker = open_tracker(config, tmp_path / "run")
    tracker.start(RunConfig(), {})
    tracker.log_metrics({"train/elbo": -9.0}, epoch=0)
    for path in (tmp_path / "there").glob("mlflow.db*"):
        path.unlink()
    tracker.finish("FINISHED")
    assert "unable to open database file" in caplog.text
    assert not Record.read(tmp_path / "run").delivered
    other = TrackingConfig(uri=f"sqlite:///{tmp_path}/other.db")
    run_id = deliver(tmp_path / "run", other, 30)
    run = client(other).get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/elbo": -9})


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


def test_a_store_that_was_moved_is_not_made_anew(tmp_path):
    there = tmp_path / "there"
    config = TrackingConfig(uri=f"sqlite:///{there}/mlflow.db")
    tracker = open_tracker(config, tmp_path / "run")
    record(tracker)
    kept = Record.read(tmp_path / "run")
    kept.delivered = False
    kept.write(tmp_path / "run")
    there.rename(tmp_path / "moved")
    with pytest.raises(
        InputError, match=r"no longer there; give its new address with tracking\.uri=…"
    ):
        deliver(tmp_path / "run", TrackingConfig(), 30)
    assert not there.exists()
    moved = TrackingConfig(uri=f"sqlite:///{tmp_path}/moved/mlflow.db")
    assert deliver(tmp_path / "run", moved, 30) == tracker.run_id


def test_the_run_of_a_process_that_is_not_gone_is_left_to_it(store, tmp_path):
    parent = Parent.start(store, "sweep", {"topicell.kind": "sweep"}, tmp_path / "sweep")
    tracker = open_tracker(store, tmp_path / "sweep" / "0")
    tracker.start(RunConfig(), {})
    parent.end_child("", 0, "KILLED", {"topicell.error": "gone"})
    assert Record.read(tmp_path / "sweep" / "0").status == "RUNNING"
    tracker.finish("FINISHED")
    parent.finish("FINISHED")
    assert client(store).get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.extras("psycopg")
@pytest.mark.parametrize("answer", [b"", None], ids=["closes", "silent"])
def test_a_database_that_is_away_is_not_waited_for(answer, tmp_path):
    """MLflow alone tries for minutes."""
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
        record(RunFolder(tmp_path / "run", tracking=config))
        assert not Record.read(tmp_path / "run").delivered
        # Nor does any other store of the process wait, as it would for MLflow's lock.
        create_store(tmp_path / "other.db")
        assert time.monotonic() - began < 60
    nowhere = TrackingConfig(uri="postgresql+psycopg://user@host:port/db")
    with pytest.raises(InputError, match="is not a valid address; write"):
        RunFolder(tmp_path / "no run", tracking=nowhere)
