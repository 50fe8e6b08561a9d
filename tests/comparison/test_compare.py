"""`topicell compare`: bad input is refused, and tables hold what was found."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stored_runs import BETA, OFF, THETA, shifted, store

from topicell.comparison import compare, folder_name
from topicell.comparison.page import write
from topicell.comparison.runs import read_run
from topicell.config import TrackingConfig
from topicell.errors import InputError


def test_bad_input_ends_with_code_2_and_one_line(run_here):
    store(Path("a"), run_id="f00")
    store(Path("b"))
    store(Path("c"), run_id="f00")
    store(Path("grid/0"))
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text("{}")
    Path("broken").mkdir()
    for name in ("adata.h5ad", "config.yaml", "metrics.jsonl", "model", "scores.csv"):
        Path("broken", name).write_text("?")
    Path("taken").mkdir()
    for arguments, words in (
        ([], "found 0, but a comparison needs two or more: topicell compare runs=["),
        (["runs="], "found 0"),
        (["runs=[a]"], "found 1"),
        (["runs=[a,b/../a]"], "'a' and 'b/../a' are the same run"),
        (["runs=[a,c]"], "'a' and 'c' are the same run"),
        (["runs=[a,nowhere]"], "does not exist:"),
        (["runs=[a,grid]"], "'grid' holds several runs; name the runs"),
        (["runs=[a,sweep]"], "make one page of all with `topicell report run=sweep`"),
        (["runs=[a,taken]"], "'taken' has no adata.h5ad"),
        (["runs=[a,broken]"], "'broken' cannot be read"),
        (["runs=[a,b"], "has no closing bracket"),
        (["runs=[a,", "b]"], "without spaces"),
        (["runs=[a,b]", "labels=one"], "labels: found 1 for 2 runs"),
        (["runs=[a,b]", "output=taken"], "output = 'taken' exists"),
        (["run=[a,b]"], "did you mean 'runs'"),
        ([f"runs=[{','.join(['a'] * 27)}]"], "26 at most"),
    ):
        before = sorted(Path().rglob("*"))
        code, out, err = run_here("compare", *arguments)
        assert code == 2, arguments
        assert words in err
        assert len(err.splitlines()) == 1
        assert not out
        assert sorted(Path().rglob("*")) == before


def test_a_parent_in_mlflow_is_refused(run_here):
    from topicell.tracking.parents import PARENT_RUN, Parent

    store(Path("a"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(PARENT_RUN, "")
        parent = Parent.start(TrackingConfig(), "grid", {"topicell.kind": "multirun"}, Path("grid"))
        parent.finish("FINISHED")
    code, _, err = run_here("compare", f"runs=a,{parent.run_id}")
    assert code == 2
    assert "is the parent of a multirun; name its runs, or make one page of all with" in err
    code, _, err = run_here("compare", "runs=a,0123456789abcdef0123456789abcdef")
    assert code == 2
    assert "neither a folder nor a run" in err


def test_the_output_folder_is_named_after_the_runs():
    Path("first run").mkdir()
    ids = [letter * 32 for letter in "abcde"]
    assert folder_name(["first run", ids[0]]) == "compare-first run-aaaaaaaa"
    assert folder_name(ids).endswith("-dddddddd-and-1-more")


def test_too_few_runs_are_refused_in_python_too():
    with pytest.raises(InputError, match="found 1"):
        compare(["a"], [], OFF)


def test_tables_and_figures_are_written(tmp_path):
    order = np.array([2, 0, 3, 1])
    a = store(tmp_path / "a")
    b = store(tmp_path / "b", theta=THETA[:, order], beta=BETA[order], values=shifted((-1, -1.1)))
    found = compare([str(a), str(b)], [], OFF)
    (tmp_path / "out").mkdir()
    page = write(found, tmp_path / "out")
    assert page == tmp_path / "out" / "compare.html"
    table = pd.read_csv(tmp_path / "out" / "scores.csv").set_index(["metric", "run"])
    row = table.loc["test/perplexity_folded", "B"]
    assert row["minus_A"] == pytest.approx(-1.05)
    assert (row["best"], row["paired_splits"]) == (True, 2)
    assert row["error_is"] == "standard error over 2 splits"
    topics = pd.read_csv(tmp_path / "out" / "matched_topics.csv")
    assert order[topics["other_topic"]].tolist() == topics["topic"].tolist()
    assert topics["match"].all()
    settings = pd.read_csv(tmp_path / "out" / "parameters.csv")
    assert not settings["differs"].any()
    assert pd.read_csv(tmp_path / "out" / "runs.csv")["run"].tolist() == ["A", "B"]
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    names = ("scores", "topics_A_B", "training")
    assert drawn == {f"{name}.{end}" for name in names for end in ("png", "pdf")}


@pytest.mark.slow
def test_comparing_folders_imports_neither_mlflow_nor_torch():
    for name in "ab":
        store(Path(name))
    program = (
        "import sys\n"
        "from topicell.cli import main\n"
        "try:\n"
        "    main(['compare', 'runs=[a,b]'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'mlflow', 'torch', 'scanpy', 'optuna'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert Path("compare-a-b/compare.html").exists()
    assert not Path("mlflow.db").exists()


@pytest.mark.filterwarnings("ignore:obs already has")
@pytest.mark.slow
def test_trained_and_evaluated_runs_are_compared_by_id_and_by_folder(topicell, run_here):
    small = [
        *("data=simulated", "data.simulation.n_cells=120", "data.simulation.n_genes=60"),
        *("data.simulation.n_topics=3", "model.n_hidden=8", "train.epochs=3"),
        *("train.n_replicates=2", "train.progress=false", "evaluate.n_coherence_genes=5"),
        "report=off",
    ]
    for folder, settings in (
        ("three", ["model.n_topics=3", "evaluate.n_splits=2"]),
        ("four", ["model.n_topics=4", "evaluate.n_splits=2"]),
    ):
        answer = topicell("train", *small, *settings, f"hydra.run.dir={folder}")
        assert answer.returncode == 0, answer.stderr
    code, _, err = run_here(
        *("evaluate", "theta=three/cells/cell_topics.csv", "beta=three/topics/gene_topics.csv"),
        *("data=three/adata.h5ad", "held_out=split", "output=evaluated"),
        *("report=off", "tracking=off"),
    )
    assert code == 0, err
    run_id = read_run(Path("three"), "three", "A").side.run_id
    code, out, err = run_here("compare", f"runs=[{run_id},four,evaluated]", "output=out")
    assert code == 0, err
    assert out == "out/compare.html\n"
    html = Path("out/compare.html").read_text()
    assert run_id in html
    settings = pd.read_csv("out/parameters.csv").set_index("parameter")
    differing = set(settings.index[settings["differs"]])
    assert differing >= {"model.n_topics"}
    assert not {name for name in differing if name.startswith(("data.", "train."))}
    table = pd.read_csv("out/scores.csv").set_index(["metric", "run"])
    by_hand = pd.read_csv("four/scores.csv").query("metric == 'test/perplexity_folded'")
    means = by_hand.groupby("split")["value"].mean()
    row = table.loc["test/perplexity_folded", "B"]
    assert row["mean"] == pytest.approx(means.mean())
    assert row["error"] == pytest.approx(means.std() / math.sqrt(2))
    assert row["paired_splits"] == 2
    # The evaluated matrices are the topics of the run.
    topics = pd.read_csv("out/matched_topics.csv").query("other_run == 'C'")
    assert topics["cosine"].tolist() == pytest.approx([1] * 3)
    assert topics["theta_correlation"].tolist() == pytest.approx([1] * 3)
    assert topics["other_topic"].tolist() == topics["topic"].tolist()
    assert table.loc["test/perplexity_folded", "C"]["paired_splits"] == 1
    code, _, err = run_here("compare", f"runs=[{run_id},three]")
    assert code == 2
    assert "are the same run" in err
