"""The command line as a user meets it: commands, exit codes, messages."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import topicell
from topicell.config import TrackingConfig
from topicell.tracking.store import client, experiment_id

SMALL = [
    "data=simulated",
    "data.simulation.n_cells=120",
    "data.simulation.n_genes=60",
    "data.simulation.n_topics=3",
    "model.n_topics=3",
    "model.n_hidden=8",
    "train.epochs=3",
    "train.n_replicates=2",
    "train.progress=false",
    "evaluate.n_coherence_genes=5",
    "report.pdf=false",
    "report.dpi=40",
]


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


def in_mlflow(**settings):
    config = TrackingConfig(**settings)
    store = client(config)
    return store, store.search_runs([experiment_id(store, config)])


def test_help_and_version(topicell):
    answer = subprocess.run(
        [sys.executable, "-m", "topicell", "--help"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0
    for command in ("train", "report", "compare", "transform", "ui"):
        assert command in answer.stdout
    assert topicell("--version").stdout.startswith("topicell ")
    assert topicell().returncode == 2


def test_help_imports_nothing_heavy():
    program = (
        "import sys, topicell, topicell.cli\n"
        "heavy = {'torch', 'pyro', 'scanpy', 'anndata', 'mlflow', 'pandas', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "model.n_topix=3"], "did you mean 'model.n_topics'"),
        (["train", "+train.lerning_rate=3"], "did you mean 'train.learning_rate'"),
        (["train", "model.n_topics=ten"], "could not be converted to Integer"),
        (["train", "model.n_topics=1"], "model.n_topics = 1: needs at least 2 topics"),
        (["train", "train.device=gpu0"], "train.device"),
        (["train", "model.cell_topic_prior=-1"], "model.cell_topic_prior"),
        (["train", "model.n_topics=3", "model.cell_topic_prior=[1,2]"], "2 numbers for 3 topics"),
        (["train", *SMALL, "model.topic_gene_prior=[1,2]"], "2 numbers for 57 genes"),
        (["train", *SMALL, "model.n_topics=110"], "more topics than the 96 training cells"),
        (["train", "data=pbmc9k"], "pbmc9k"),
        (["train", "data.name=pbmc9k"], "pbmc9k"),
        (["train", "data=file"], "data=file needs data.path=FILE"),
        (["train", "data=file", "data.path=absent.h5ad"], "absent.h5ad"),
        (["train", "data.label_key=cell_type"], "data.label_key"),
        (["train", "preprocess.min_counts_per_cell=1000000"], "none of 700 cells"),
        (["train", "preprocess.drop_genes=[.]"], "preprocess.drop_genes"),
        (["train", "tracking.uri=ftp://x"], "tracking.uri"),
        (["train", "seed="], "seed"),
        (["train", "model.n_topics=3,4"], "model.n_topics"),
        (["transform", "run=x"], "has no value"),
        (["transform", "run=x", "input=a", "output=b.txt"], ".h5ad or .csv"),
        (["transform", "run=x", "input=a", "out=b.csv"], "'out' is not a setting"),
        (["report", "somewhere"], "NAME=VALUE"),
        (["report", "run=nowhere"], "does not exist here"),
        (["ui"], "does not exist here"),
        (["ui", "port=abc"], "port: Value 'abc'"),
        (["train", "basic.h5ad"], "data=file data.path=FILE"),
        (["train", "preproces=no_ribosomal"], "did you mean 'preprocess'"),
        (["train", "data.label_key=n_counts"], "are no labels"),
    ],
    ids=lambda value: " ".join(value[:2] + value[-1:]) if isinstance(value, list) else "",
)
def test_bad_settings_end_with_code_2_and_one_line(arguments, words, run_here):
    code, _, err = run_here(*arguments)
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


def test_paths_are_taken_literally(tmp_path, run_here):
    path = counts_file(tmp_path / "été, a=(1) – β.h5ad")
    settings = [setting for setting in SMALL if not setting.startswith("data")]
    settings += ["preprocess=all_genes", "preprocess.drop_genes=[]", "tracking=off", "report=off"]
    code, _, err = run_here("train", "data=file", f"data.path={path}", *settings)
    assert code == 0, err


def test_help_of_a_command_lists_its_settings(topicell):
    answer = topicell("transform", "--help")
    assert answer.returncode == 0
    assert "fill_missing=False" in answer.stdout


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
def test_bad_files_end_with_code_2_and_leave_nothing_behind(file, words, tmp_path, run_here):
    broken_files(tmp_path)
    code, _, err = run_here("train", "data=file", f"data.path='{tmp_path / file}'")
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err
    assert not Path("mlflow.db").exists() or not in_mlflow()[1]


def test_duplicate_names_and_few_genes_are_warned_of(tmp_path, topicell):
    names = ["g0", "g0", *(f"g{i}" for i in range(2, 30))]
    with pytest.warns(UserWarning, match="not unique"):
        path = counts_file(tmp_path / "a.h5ad", names=names)
    settings = [setting for setting in SMALL if not setting.startswith("data")]
    settings += ["data=file", f"data.path={path}", "tracking=off", "report=off"]
    answer = topicell("train", *settings)
    assert answer.returncode == 0, answer.stderr
    assert "1 gene names repeat" in answer.stderr
    assert "only 30 genes passed the filters" in answer.stderr


def test_a_run_folder_is_never_written_over(run_here):
    settings = [*SMALL, "tracking=off", "report=off", "hydra.run.dir=here"]
    assert run_here("train", *settings)[0] == 0
    paths = [Path("here/metrics.jsonl"), Path("here/adata.h5ad")]
    before = [path.stat().st_mtime_ns for path in paths]
    code, _, err = run_here("train", *settings)
    assert code == 2
    assert "holds config.yaml already" in err
    assert before == [path.stat().st_mtime_ns for path in paths]


def test_files_of_the_user_in_the_run_folder_are_not_written_over(run_here):
    Path("mine").mkdir()
    Path("mine/adata.h5ad").write_text("my cells")
    code, _, err = run_here("train", *SMALL, "hydra.run.dir=mine")
    assert code == 2
    assert "holds adata.h5ad already" in err
    assert Path("mine/adata.h5ad").read_text() == "my cells"


def test_an_output_folder_that_cannot_be_written_is_named(run_here, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run_here("train", *SMALL, f"hydra.run.dir={tmp_path}/file/run")
    assert code == 2, err
    assert "hydra.run.dir" in err


def test_a_failed_run_ends_with_code_1_and_is_recorded(run_here):
    code, _, err = run_here(
        "train", *SMALL, "train.learning_rate=1e30", "train.epochs=50", "hydra.run.dir=here"
    )
    assert code == 1
    assert "the run failed: NonFiniteError: training stopped at step" in err
    assert [run.info.status for run in in_mlflow()[1]] == ["FAILED"]
    last = Path("here/metrics.jsonl").read_text().splitlines()[-1]
    ended = json.loads(last)
    assert ended["status"] == "FAILED"
    assert ended["tags"]["topicell.error"].startswith("NonFiniteError: training stopped at step")


def test_an_interrupt_in_a_callback_of_python_is_not_lost():
    program = """
import time, weakref
from topicell import cli

class Collected: pass

def interrupted(_): raise KeyboardInterrupt

def command(arguments):
    held = Collected()
    reference = weakref.ref(held, interrupted)
    del held
    time.sleep(60)

cli.report = command
cli.main(["report"])
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert (answer.returncode, answer.stderr) == (130, "topicell: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_code_130_and_is_recorded(number, started):
    long = ["train.epochs=100000", "train.early_stopping.enabled=false"]
    process = started("train", *SMALL, *long, "hydra.run.dir=here")
    path = Path("here/metrics.jsonl")
    until = time.monotonic() + 600
    while not (path.exists() and path.stat().st_size > 2000):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < until, "the run did not start"
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(600) == 130, process.stderr
    assert "topicell: interrupted" in process.stderr
    assert [run.info.status for run in in_mlflow()[1]] == ["KILLED"]


@pytest.mark.slow
def test_a_grid_makes_one_parent_and_a_nested_run_for_each_job(topicell):
    grid = ["report=off", "model.n_topics=2,3", "seed=0,1"]
    answer = topicell("train", "-m", *SMALL, *grid, draft=True)
    assert answer.returncode == 0, answer.stderr
    _, runs = in_mlflow()
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


def test_a_grid_with_a_bad_job_ends_with_code_2_and_ends_the_parent(run_here):
    settings = [*SMALL, "report=off", "model.n_topics=3,110"]
    code, _, err = run_here("train", "-m", *settings)
    assert code == 2
    assert "more topics than the 96 training cells" in err
    _, runs = in_mlflow()
    states = {run.data.tags.get("topicell.kind", "job"): run.info.status for run in runs}
    assert states == {"multirun": "FAILED", "job": "FINISHED"}


@pytest.mark.filterwarnings("ignore:.*columns of topics already")
def test_topics_of_a_run_score_the_same_through_evaluate(run_here):
    """The tables of a run are all that `evaluate` needs to find its numbers again."""
    settings = [setting for setting in SMALL if "n_hidden" not in setting]
    settings += ["report=off", "model=sklearn_lda"]
    assert run_here("train", *settings, "hydra.run.dir=here")[0] == 0
    code, _, err = run_here(
        *("evaluate", "theta=here/cells/cell_topics.csv", "beta=here/topics/gene_topics.csv"),
        *("data=here/adata.h5ad", "held_out=split", "report=off", "tracking=off", "output=there"),
    )
    assert code == 0, err
    ours, theirs = (
        json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-2])
        for folder in ("here", "there")
    )
    for name in ("test/perplexity_folded", "topics/diversity", "topics/used"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-6), name
    for arguments, message in (
        (["theta=here/nothing.csv"], "nothing.csv"),
        (["output=there"], "output=FOLDER"),
        (["dataa=x"], "did you mean 'data'"),
    ):
        given = dict(
            argument.split("=", 1)
            for argument in (
                "theta=here/cells/cell_topics.csv",
                "beta=here/topics/gene_topics.csv",
                "data=here/adata.h5ad",
                *arguments,
            )
        )
        code, _, err = run_here("evaluate", *(f"{k}={v}" for k, v in given.items()))
        assert code == 2
        assert message in err, err


def test_a_missing_library_is_said_before_anything_is_recorded(run_here, monkeypatch):
    monkeypatch.setitem(sys.modules, "tomotopy", None)
    code, _, err = run_here("train", "data=simulated", "model=tomotopy_lda")
    assert code == 2
    assert "needs tomotopy, which is not installed; pip install 'topicell[baselines]'" in err
    assert not in_mlflow()[1]


def test_a_setting_that_a_baseline_lacks_is_refused(run_here):
    code, _, err = run_here("train", "model=sklearn_nmf", "train.learning_rate=0.2")
    assert code == 2
    assert "train.learning_rate = 0.2: model.kind=sklearn_nmf has no such setting" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("default:the run's own gene sets")
def test_a_report_catches_up_with_what_a_run_left_out(run_here):
    Path("sets.gmt").write_text("one\tof us\tgene_1\tgene_2\tgene_3\n")
    lacking = ["evaluate.differential_expression=false", "report.gene_sets=sets.gmt"]
    code, _, err = run_here("train", *SMALL, *lacking, "tracking=off", "hydra.run.dir=here")
    assert code == 0, err
    assert Path("here/topics/enrichment.csv").exists()
    assert not Path("here/topics/differential_expression.csv").exists()
    assert not Path("here/figures/volcanoes.png").exists()

    Path("sets.gmt").unlink()
    # Of sets that are gone a report does without, and says so; if they are asked for, it does not.
    code, _, err = run_here("report", "run=here", "output=again", "tracking=off")
    assert code == 0, err
    assert "sets.gmt, are not here" in err
    assert Path("again/topics/differential_expression.csv").exists()
    assert Path("again/figures/volcanoes.png").exists()
    assert not Path("again/topics/enrichment.csv").exists()
    asked = ["run=here", "output=more", "tracking=off", "report.gene_sets=sets.gmt"]
    code, _, err = run_here("report", *asked)
    assert code == 2
    assert "report.gene_sets = 'sets.gmt'" in err
    assert not Path("more").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*count as zero")
def test_report_and_transform_of_a_stored_run(run_here, tmp_path):
    assert run_here("train", *SMALL, "hydra.run.dir=here")[0] == 0
    _, (run,) = in_mlflow()
    run_id = run.info.run_id

    code, _, err = run_here("report", f"run={run_id}", "output=again")
    assert code == 0, err
    # The same figures, from the stored run.
    pages = [Path(folder, "report.html").read_text() for folder in ("here", "again")]
    pictures = [page.count("data:image/png") for page in pages]
    assert pictures[0] == pictures[1] > 5
    assert run_here("report", f"run={run_id}", "output=again")[0] == 2

    adata = anndata.read_h5ad("here/adata.h5ad")
    new = anndata.AnnData(adata.layers["counts"][:20], obs=adata.obs[[]][:20], var=adata.var[[]])
    new.write_h5ad("new.h5ad")
    code, _, err = run_here("transform", f"run={run_id}", "input=new.h5ad", "output=mapped.h5ad")
    assert code == 0, err
    mapped = anndata.read_h5ad("mapped.h5ad")
    assert np.allclose(mapped.obsm["X_lda"], adata.obsm["X_lda"][:20], atol=1e-5)
    assert np.allclose(mapped.obs["lda_topic_1"], mapped.obsm["X_lda"][:, 1])
    refined = ("input=new.h5ad", "output=refined.csv", "refine=true")
    assert run_here("transform", "run=here", *refined)[0] == 0
    expected = topicell.load("here/model").transform(new, refine=True)
    assert np.allclose(pd.read_csv("refined.csv", index_col="cell"), expected, atol=1e-6)
    assert not np.allclose(expected, mapped.obsm["X_lda"], atol=1e-4)
    code, _, err = run_here("transform", "run=here", "input=new.h5ad", "output=mapped.csv")
    assert code == 0, err
    table = pd.read_csv("mapped.csv", index_col="cell")
    assert np.allclose(table, mapped.obsm["X_lda"], atol=1e-6)

    code, _, err = run_here("transform", f"run={run_id}", "input=new.h5ad", "output=mapped.h5ad")
    assert code == 2
    assert "exists" in err
    new[:, 5:].copy().write_h5ad("fewer.h5ad")
    arguments = ["transform", "run=here", "input=fewer.h5ad", "output=fewer.csv"]
    code, _, err = run_here(*arguments)
    assert code == 2
    assert f"5 of the model's {adata.n_vars} genes" in err
    assert "fill_missing=true" in err
    assert not Path("fewer.csv").exists()
    assert run_here(*arguments, "fill_missing=true")[0] == 0


@pytest.mark.slow
def test_the_ui_serves_the_store(run_here, started):
    settings = [*SMALL, "report=off"]
    assert run_here("train", *settings)[0] == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = started("ui", f"port={port}", "browser=false", piped=True)
    try:
        first = server.stdout.readline()
        assert f"http://127.0.0.1:{port}/#/experiments/" in first
        assert "workflowType=machine_learning" in first
        until = time.monotonic() + 600
        page = ""
        while time.monotonic() < until and not page:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    page = answer.read().decode()
            except OSError:
                time.sleep(0.5)
        assert "MLflow" in page
        body = json.dumps({"experiment_ids": [first.split("/experiments/")[1].split("/")[0]]})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert len(json.load(answer)["runs"]) == 1
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(600)
    # Nothing of it is left to hold the port.
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
