"""``topicell train`` as a user meets it: files, folders, failures, grids."""

import json
import signal
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp


def counts_file(path, x=None, *, layers=None, names=None):
    if x is None:
        x = np.random.default_rng(0).poisson(2.0, size=(40, 30))
    names = [f"g{i}" for i in range(x.shape[1])] if names is None else names
    adata = anndata.AnnData(
        sp.csr_matrix(np.asarray(x, dtype=np.float32)),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(x.shape[0])]),
        var=pd.DataFrame(index=names),
    )
    for name, layer in (layers or {}).items():
        adata.layers[name] = layer
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.n_topix=3"], "did you mean 'model.n_topics'"),
        (["+train.lerning_rate=3"], "did you mean 'train.learning_rate'"),
        (["model.n_topics=ten"], "could not be converted to Integer"),
        (["model.n_topics=1"], "model.n_topics = 1: needs at least 2 topics"),
        (["train.device=gpu0"], "train.device"),
        (["model.cell_topic_prior=-1"], "model.cell_topic_prior"),
        (["model.n_topics=3", "model.cell_topic_prior=[1,2]"], "2 numbers for 3 topics"),
        (["<small>", "model.topic_gene_prior=[1,2]"], "2 numbers for 57 genes"),
        (["<small>", "model.n_topics=110"], "only 96 training cells"),
        (["data=pbmc9k"], "pbmc9k"),
        (["data.name=pbmc9k"], "pbmc9k"),
        (["data=file"], "data=file needs data.path=FILE"),
        (["data=file", "data.path=absent.h5ad"], "absent.h5ad"),
        (["data.label_key=cell_type"], "data.label_key"),
        (["preprocess.min_counts_per_cell=1000000"], "removes all 700 cells"),
        (["preprocess.drop_genes=[.]"], "preprocess.drop_genes"),
        (["tracking.uri=ftp://x"], "tracking.uri"),
        (["seed="], "seed"),
        (["model.n_topics=3,4"], "model.n_topics"),
        (["basic.h5ad"], "data=file data.path=FILE"),
        (["preproces=no_ribosomal"], "did you mean 'preprocess'"),
        (["data.label_key=n_counts"], "cannot be labels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_settings_end_with_code_2_and_one_line(arguments, words, run_here, small):
    arguments = [a for one in arguments for a in (small if one == "<small>" else [one])]
    code, _, err = run_here("train", *arguments)
    assert code == 2, err
    lines = [line for line in err.strip().splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("topicell: ")
    assert words in lines[0]
    assert "Traceback" not in err


def broken_files(folder):
    x = np.random.default_rng(0).poisson(2.0, size=(40, 30)).astype(float)
    log1p = np.log1p(x / x.sum(1, keepdims=True) * 1e4)
    counts_file(folder / "log.h5ad", log1p, layers={"umi": x})
    for name, value in (("negative", -1), ("nan", np.nan), ("fraction", 0.5)):
        spoiled = x.copy()
        spoiled[3, 4] = value
        counts_file(folder / f"{name}.h5ad", spoiled)
    counts_file(folder / "empty.h5ad", np.zeros((0, 5)))
    (folder / "truncated.h5ad").write_bytes((folder / "log.h5ad").read_bytes()[:2000])
    (folder / "text.csv").write_text("cell,g1,g2\nc1,1,two\n")
    (folder / "a folder").mkdir()


def test_paths_are_taken_literally(tmp_path, run_here, small):
    path = counts_file(tmp_path / "été, a=(1) – β.h5ad")
    settings = [setting for setting in small if not setting.startswith("data")]
    settings += ["preprocess=all_genes", "preprocess.drop_genes=[]", "tracking=off", "report=off"]
    code, _, err = run_here("train", "data=file", f"data.path={path}", *settings)
    assert code == 0, err


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("log.h5ad", ["log-normalised", "layer 'umi'"]),
        ("negative.h5ad", ["negative", "row 3", "g4"]),
        ("nan.h5ad", ["NaN", "row 3"]),
        ("fraction.h5ad", ["not whole"]),
        ("empty.h5ad", ["empty"]),
        ("truncated.h5ad", ["truncated.h5ad"]),
        ("text.csv", ["text.csv"]),
        ("a folder", ["a folder"]),
    ],
)
def test_bad_files_end_with_code_2_and_leave_nothing_behind(
    file, words, tmp_path, run_here, in_mlflow
):
    broken_files(tmp_path)
    code, _, err = run_here("train", "data=file", f"data.path='{tmp_path / file}'")
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err
    assert not Path("mlflow.db").exists() or not in_mlflow()


def test_duplicate_names_and_few_genes_are_warned_of(tmp_path, topicell, small):
    names = ["g0", "g0", *(f"g{i}" for i in range(2, 30))]
    with pytest.warns(UserWarning, match="not unique"):
        path = counts_file(tmp_path / "a.h5ad", names=names)
    settings = [setting for setting in small if not setting.startswith("data")]
    settings += ["data=file", f"data.path={path}", "tracking=off", "report=off"]
    answer = topicell("train", *settings)
    assert answer.returncode == 0, answer.stderr
    assert "1 gene names are repeated" in answer.stderr
    assert "only 30 genes passed the filters" in answer.stderr


def test_a_run_folder_is_never_written_over(run_here, small):
    settings = [*small, "tracking=off", "report=off", "hydra.run.dir=here"]
    assert run_here("train", *settings)[0] == 0
    paths = [Path("here/metrics.jsonl"), Path("here/adata.h5ad")]
    before = [path.stat().st_mtime_ns for path in paths]
    code, _, err = run_here("train", *settings)
    assert code == 2
    assert "already holds config.yaml" in err
    assert before == [path.stat().st_mtime_ns for path in paths]


def test_files_of_the_user_in_the_run_folder_are_not_written_over(run_here, small):
    Path("mine").mkdir()
    Path("mine/adata.h5ad").write_text("my cells")
    code, _, err = run_here("train", *small, "hydra.run.dir=mine")
    assert code == 2
    assert "already holds adata.h5ad" in err
    assert Path("mine/adata.h5ad").read_text() == "my cells"


def test_an_output_folder_that_cannot_be_written_is_named(run_here, tmp_path, small):
    (tmp_path / "file").write_text("")
    code, _, err = run_here("train", *small, f"hydra.run.dir={tmp_path}/file/run")
    assert code == 2, err
    assert "hydra.run.dir" in err


def test_a_failed_run_ends_with_code_1_and_is_recorded(run_here, small, in_mlflow):
    code, _, err = run_here(
        "train", *small, "train.learning_rate=1e30", "train.epochs=50", "hydra.run.dir=here"
    )
    assert code == 1
    assert "the run failed: NonFiniteError: training stopped at step" in err
    assert [run.info.status for run in in_mlflow()] == ["FAILED"]
    last = Path("here/metrics.jsonl").read_text().splitlines()[-1]
    ended = json.loads(last)
    assert ended["status"] == "FAILED"
    assert ended["tags"]["topicell.error"].startswith("NonFiniteError: training stopped at step")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_code_130_and_is_recorded(number, started, small, in_mlflow):
    long = ["train.epochs=100000", "train.early_stopping.enabled=false"]
    process = started("train", *small, *long, "hydra.run.dir=here")
    path = Path("here/metrics.jsonl")
    until = time.monotonic() + 600
    while not (path.exists() and path.stat().st_size > 2000):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < until, "the run did not start"
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(600) == 130, process.stderr
    assert "topicell: interrupted" in process.stderr
    assert [run.info.status for run in in_mlflow()] == ["KILLED"]


@pytest.mark.slow
def test_a_grid_makes_one_parent_and_a_nested_run_for_each_job(topicell, small, in_mlflow):
    grid = ["report=off", "model.n_topics=2,3", "seed=0,1"]
    answer = topicell("train", "-m", *small, *grid, draft=True)
    assert answer.returncode == 0, answer.stderr
    runs = in_mlflow()
    parents = [run for run in runs if run.data.tags.get("topicell.kind") == "multirun"]
    assert len(parents) == 1
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id
    ]
    assert len(runs) == 5
    grid = {(run.data.params["model.n_topics"], run.data.params["seed"]) for run in children}
    assert grid == {("2", "0"), ("2", "1"), ("3", "0"), ("3", "1")}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all("test/perplexity_folded" in run.data.metrics for run in children)


def test_a_grid_with_a_bad_job_ends_with_code_2_and_ends_the_parent(run_here, small, in_mlflow):
    settings = [*small, "report=off", "model.n_topics=3,110"]
    code, _, err = run_here("train", "-m", *settings)
    assert code == 2
    assert "only 96 training cells" in err
    runs = in_mlflow()
    states = {run.data.tags.get("topicell.kind", "job"): run.info.status for run in runs}
    assert states == {"multirun": "FAILED", "job": "FINISHED"}


def test_a_missing_library_is_said_before_anything_is_recorded(run_here, monkeypatch, in_mlflow):
    monkeypatch.setitem(sys.modules, "tomotopy", None)
    code, _, err = run_here("train", "data=simulated", "model=tomotopy_lda")
    assert code == 2
    assert "needs tomotopy, which is not installed; pip install 'topicell[baselines]'" in err
    assert not in_mlflow()


def test_a_setting_that_a_baseline_lacks_is_refused(run_here):
    code, _, err = run_here("train", "model=sklearn_nmf", "train.learning_rate=0.2")
    assert code == 2
    assert "train.learning_rate = 0.2: model.kind=sklearn_nmf has no such setting" in err
