"""``topicell train -m sweep=topics``: verdict, folder, runs in MLflow, registered model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest

from topicell.config import TrackingConfig
from topicell.sweep.selection import points, select
from topicell.sweep.trials import PERPLEXITY, Sweep
from topicell.tracking.store import client, experiment_id
from topicell.tracking.stored import read_scores

SMALL = [
    "data=simulated",
    "data.simulation.n_cells=200",
    "data.simulation.n_genes=60",
    "data.simulation.n_topics=3",
    "model.n_hidden=8",
    "train.epochs=4",
    "train.n_replicates=2",
    "train.progress=false",
    "evaluate.n_splits=2",
    "evaluate.n_samples=16",
    "evaluate.n_coherence_genes=5",
]
# Replicates of so few steps have other topics.
SWEEP = [
    *("-m", "sweep=topics", "model.n_topics=range(2,7)", "sweep.n_trials=4"),
    *("sweep.support_floor=0", *SMALL),
]


@pytest.fixture(scope="module")
def swept(topicell, tmp_path_factory):
    """Run a sweep that tries four of five numbers of topics."""
    folder = tmp_path_factory.mktemp("swept")
    elsewhere = {"MLFLOW_TRACKING_URI": None}
    done = topicell(
        "train", *SWEEP, "sweep.pruner=none", cwd=folder, env=elsewhere, quick_workers=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("sweeps/*/sweep.json")
    tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    sweep = Sweep.read(path)
    return SimpleNamespace(
        folder=folder,
        done=done,
        path=path,
        sweep=sweep,
        verdict=select(sweep.trials, bounds=sweep.bounds, support_floor=0),
        tracking=tracking,
        store=client(tracking),
    )


@pytest.mark.slow
def test_the_budget_is_used_and_no_point_is_tried_twice(swept):
    trials = swept.sweep.trials
    assert [trial.state for trial in trials] == ["COMPLETE"] * 4
    assert len({trial.n_topics for trial in trials}) == 4
    assert {trial.n_topics for trial in trials} <= set(range(2, 7))
    assert swept.sweep.bounds == (2, 6)
    for trial in trials:
        assert trial.epochs == 8  # on each of two splits
        assert swept.done.stderr.count(f"trial {trial.number:3d}  K = {trial.n_topics}") == 1


@pytest.mark.slow
def test_each_trial_is_a_run_with_the_values_of_the_study(swept):
    for trial in swept.sweep.trials:
        folder = Path(trial.folder)
        assert folder == swept.path.parent / str(trial.number)
        written = read_scores(folder / "scores.csv")
        assert {m: dict(v) for m, v in trial.values.items()} == written
        assert all(len(by_split) == 2 for by_split in written.values())
        # All trials are measured on the same splits.
        assert written[PERPLEXITY].keys() == swept.sweep.trials[0].values[PERPLEXITY].keys()
    study = optuna.load_study(
        study_name=swept.sweep.name, storage=f"sqlite:///{swept.folder}/optuna.db"
    )
    for trial, stored in zip(swept.sweep.trials, study.trials, strict=True):
        expected = np.mean([np.mean(of_split) for of_split in trial.values[PERPLEXITY].values()])
        assert stored.value == expected
        assert stored.params == {"model.n_topics": trial.n_topics}


@pytest.mark.slow
def test_one_parent_run_with_a_nested_run_for_each_trial(swept):
    runs = swept.store.search_runs([experiment_id(swept.store, swept.tracking)])
    (parent,) = [run for run in runs if run.data.tags.get("topicell.kind") == "sweep"]
    nested = [run for run in runs if run is not parent]
    assert parent.info.run_id == swept.sweep.parent_id
    assert {run.info.run_id for run in nested} == {t.run_id for t in swept.sweep.trials}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in nested:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["topicell.study"] == swept.sweep.name
        assert run.data.tags["topicell.trial_state"] == "COMPLETE"
        trial = swept.sweep.trials[int(run.data.tags["topicell.trial"])]
        assert run.data.params["model.n_topics"] == str(trial.n_topics)
        # The password of a study's storage does not belong to its runs.
        assert not any(name.startswith("sweep.") for name in run.data.params)
        curve = swept.store.get_metric_history(run.info.run_id, "valid/perplexity")
        assert {point.step: point.value for point in curve} == trial.curve


@pytest.mark.slow
def test_the_parent_run_has_the_best_value_so_far_and_the_verdict(swept):
    parent = swept.store.get_run(swept.sweep.parent_id)
    history = swept.store.get_metric_history(parent.info.run_id, "sweep/best_perplexity")
    best = [point.value for point in sorted(history, key=lambda point: point.step)]
    assert len(best) == 4
    assert best == sorted(best, reverse=True)
    assert best[-1] == min(point.perplexity for point in points(swept.sweep.trials))
    by_k = swept.store.get_metric_history(parent.info.run_id, f"by_n_topics/{PERPLEXITY}")
    assert {point.step: point.value for point in by_k} == {
        point.n_topics: point.perplexity for point in points(swept.sweep.trials)
    }
    assert parent.data.metrics["importance/model.n_topics"] == 1
    assert parent.data.metrics["sweep/n_topics"] == swept.verdict.n_topics
    assert parent.data.tags["topicell.verdict"] == swept.verdict.kind.value
    assert swept.verdict.sentence in parent.data.tags["mlflow.note.content"]
    assert swept.verdict.sentence in swept.done.stdout
    lines = swept.done.stdout.splitlines()
    number = swept.verdict.trial
    assert f"trial       {number}, in sweeps/{swept.path.parent.name}/{number}" in lines
    artifacts = {item.path for item in swept.store.list_artifacts(parent.info.run_id)}
    assert {"report.html", "sweep.json", "figures"} <= artifacts
    assert parent.data.params["searched.model.n_topics"] == "range(2,7)"
    assert parent.data.params["sweep.sampler"] == "tpe"


@pytest.mark.slow
def test_the_chosen_model_is_the_champion_and_maps_new_cells(topicell, swept, tmp_path):
    (chosen,) = (t for t in swept.sweep.trials if t.number == swept.verdict.trial)
    version = swept.store.get_model_version_by_alias("topicell", "champion")
    assert version.run_id == chosen.run_id
    assert version.tags["n_topics"] == str(swept.verdict.n_topics)
    cells = Path(chosen.folder) / "adata.h5ad"
    tracking = f"tracking.uri=sqlite:///{swept.folder}/mlflow.db"
    for name in ("model=topicell/champion", f"run={chosen.folder}"):
        output = tmp_path / f"{name.partition('=')[0]}.csv"
        arguments = [name, f"input={cells}", f"output={output}", "layer=counts", tracking]
        done = topicell("transform", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    by_model, by_run = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("model", "run"))
    pd.testing.assert_frame_equal(by_model, by_run)


@pytest.mark.slow
def test_the_report_is_written_again_from_the_parent_run(topicell, swept, tmp_path):
    tracking = f"tracking.uri=sqlite:///{swept.folder}/mlflow.db"
    for run in (swept.sweep.parent_id, swept.path.parent):
        output = tmp_path / Path(run).name
        done = topicell("report", f"run={run}", f"output={output}", tracking, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (output / "report.html").read_text() == (
            swept.path.parent / "report.html"
        ).read_text()
        figures = {path.stem for path in (swept.path.parent / "figures").iterdir()}
        assert {path.name for path in (output / "figures").iterdir()} == {
            f"{name}.{kind}" for name in figures for kind in ("png", "pdf")
        }


@pytest.mark.slow
def test_the_same_command_continues_with_a_larger_budget(topicell, swept):
    quick = {"cwd": swept.folder, "quick_workers": True, "draft": True}
    again = topicell("train", *SWEEP, "sweep.pruner=none", **quick)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 trials so far" in again.stderr
    assert "trial " not in again.stderr.replace("trials", "")
    more = topicell("train", *SWEEP, "sweep.pruner=none", "sweep.n_trials=9", **quick)
    assert more.returncode == 0, more.stderr
    after = Sweep.read(swept.path)
    # The fifth point is the last point of the space.
    assert {trial.n_topics for trial in after.trials} == set(range(2, 7))
    assert [t.run_id for t in after.trials[:4]] == [t.run_id for t in swept.sweep.trials]
    assert after.parent_id == swept.sweep.parent_id
    versions = swept.store.search_model_versions("name = 'topicell'")
    assert len(versions) == 1 + (select(after.trials, support_floor=0).trial != swept.verdict.trial)


@pytest.mark.slow
def test_a_grid_over_numbers_of_topics_ends_with_a_verdict(topicell, swept, tmp_path):
    """It has the same runs with the same values as a sweep over the same numbers."""
    done = topicell(
        "train",
        "-m",
        "model.n_topics=2,3,4",
        "report=off",
        *SMALL,
        cwd=tmp_path,
        draft=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("multiruns/*/*/report.html")
    grid = Sweep.read(path.with_name("sweep.json"))
    assert (grid.kind, grid.bounds, len(grid.trials)) == ("multirun", (2, 4), 3)
    assert select(grid.trials, bounds=grid.bounds).sentence in done.stdout
    of_sweep = {trial.n_topics: trial.values[PERPLEXITY] for trial in swept.sweep.trials}
    shared = [trial for trial in grid.trials if trial.n_topics in of_sweep]
    assert shared
    for trial in shared:
        assert trial.values[PERPLEXITY] == of_sweep[trial.n_topics]
    report = topicell("report", f"run={grid.parent_id}", "output=again", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "again" / "report.html").exists()


@pytest.mark.slow
def test_without_mlflow_the_folder_has_all_results_and_a_refused_point_is_a_failed_trial(
    topicell, tmp_path
):
    settings = ["tracking=off", "sweep.n_trials=2", "sweep.n_jobs=1", "sweep.sampler=grid"]
    settings += ["model.n_topics=range(1,4)", "sweep.storage=journal:study/log"]
    done = topicell(
        "train", *SWEEP[:2], *settings, *SMALL, cwd=tmp_path, quick_workers=True, draft=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    (path,) = tmp_path.glob("sweeps/*/sweep.json")
    sweep = Sweep.read(path)
    refused, complete = sweep.trials
    assert (refused.state, complete.state) == ("FAIL", "COMPLETE")
    assert refused.error == "model.n_topics = 1: needs at least 2 topics"
    assert (complete.n_topics, complete.run_id, sweep.parent_id) == (2, "", "")
    assert json.loads(path.read_text())["storage"] == "journal:study/log"
    assert path.with_name("report.html").exists()


@pytest.fixture(scope="module")
def mostly_failed(topicell, tmp_path_factory):
    """Run a sweep with more topics than cells in three of five trials."""
    folder = tmp_path_factory.mktemp("mostly_failed")
    settings = [
        "model.n_topics=choice(2,3,200,201,202)",
        "sweep.sampler=grid",
        "sweep.n_trials=5",
        "evaluate.n_splits=1",
    ]
    done = topicell("train", *SWEEP[:2], *SMALL, *settings, cwd=folder, quick_workers=True)
    (path,) = folder.glob("sweeps/*/sweep.json")
    return SimpleNamespace(folder=folder, done=done, path=path, sweep=Sweep.read(path))


@pytest.mark.slow
def test_a_sweep_that_mostly_failed_chooses_and_registers_nothing(mostly_failed):
    done, folder = mostly_failed.done, mostly_failed.folder
    assert done.returncode == 1, done.stderr
    counted = (
        "Failed trials: 3 of 5 (1 of 1 with K = 200, 1 of 1 with K = 201, 1 of 1 with K = 202)."
    )
    assert counted in done.stdout
    assert "too many trials failed" in done.stderr.splitlines()[-1]
    assert "only 160 training cells" in done.stderr.splitlines()[-1]
    verdict = json.loads(mostly_failed.path.read_text())["verdict"]
    assert (verdict["kind"], verdict["n_topics"]) == ("too many trials failed", None)
    assert verdict["failed"] == {"200": 1, "201": 1, "202": 1}
    assert counted in mostly_failed.path.with_name("report.html").read_text()
    store = client(TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"))
    assert not store.search_registered_models()
    parent = store.get_run(mostly_failed.sweep.parent_id)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["topicell.verdict"] == "too many trials failed"
    assert counted in parent.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_libraries_print_nothing_while_figures_are_written(topicell, mostly_failed):
    """fontTools logs each table of each font in each PDF."""
    run, folder = mostly_failed.sweep.parent_id, mostly_failed.folder
    assert not list(mostly_failed.path.parent.glob("figures/*.pdf"))
    lines = (mostly_failed.done.stdout + mostly_failed.done.stderr).splitlines()
    # The study, five trials, three lines of verdict, the error.
    assert len(lines) == 10, lines
    again = topicell("report", f"run={run}", "output=again", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert list((folder / "again" / "figures").glob("*.pdf"))
    assert (again.stdout, again.stderr) == ("again/report.html\n", "")
    assert "Failed trials: 3 of 5" in (folder / "again" / "report.html").read_text()
    for log in mostly_failed.path.parent.glob("*/topicell.log"):
        assert "glyf" not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep=topics"], "topicell train -m sweep=topics"),
        (["sweep.n_trials=3"], "not a sweep"),
        (["-m", "sweep=topics", "sweep.n_trials=0"], "sweep.n_trials"),
        (["-m", "sweep=topics", "sweep.sampler=tpee"], "sweep.sampler"),
        (["-m", "sweep=topics", "sweep.n_trails=3"], "did you mean 'sweep.n_trials'"),
        (["-m", "sweep=topics", "model.n_topics=5"], "nothing to search"),
        (["-m", "sweep=topics", "model.n_topics=range(5,5)"], "the range is empty"),
        (["-m", "sweep=topics", "model.n_topics=interval(2,9)"], "int(interval(2,9))"),
        (["-m", "sweep=topics", "model.n_topicz=2,3"], "model.n_topicz"),
        (["-m", "sweep=topics", "sweep.storage=redis://x"], "sweep.storage"),
        (["-m", "sweep=topics", "preprocess.split.valid=0", "preprocess.split.train=0.9"], "valid"),
        (
            ["-m", "sweep=topics", "sweep.sampler=grid", "train.learning_rate=interval(0.1,0.2)"],
            "the search space is infinite",
        ),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_settings_end_with_code_2_and_one_line(topicell, tmp_path, arguments, words):
    done = topicell(
        "train", *arguments, *SMALL[:1], "tracking=off", cwd=tmp_path, quick_workers=True
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("study ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("topicell: ")
    assert words in lines[0]
