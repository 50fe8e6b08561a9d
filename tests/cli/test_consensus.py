"""``topicell consensus``: from stored runs to a new run, and refused input."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import topicell

OFF = ("tracking=off", "report=off")


@pytest.fixture
def runs(run_here, small):
    """Make two runs with other seeds."""
    small = [*small, "data.simulation.n_cells=300", "train.epochs=15", *OFF]
    for seed in (0, 1):
        code, _, err = run_here("train", *small, f"seed={seed}", f"hydra.run.dir=run{seed}")
        assert code == 0, err
    return ["run0", "run1"]


def test_the_topics_of_runs_are_refitted_as_a_run(runs, run_here):
    code, out, err = run_here("consensus", "runs=[run0,run1]", "output=new", "tracking=off")
    assert code == 0, err
    table = pd.read_csv("new/topics/agreement.csv")
    assert (table["searches"] == 4).all()
    assert (table["agreed"] == (table["found_in"] > 2)).all()
    agreed = table[table["agreed"]]
    adata = anndata.read_h5ad("new/adata.h5ad")
    theta_NK = np.asarray(adata.obsm["X_lda"])
    assert theta_NK.shape == (300, len(agreed))
    # A topic of the new run is the agreed one that has its number.
    assert (agreed["refit_correlation"] > 0.9).all()
    run, _, replicate, _, topic = agreed["members"].iloc[0].split("; ")[0].split()
    fit = topicell.load(Path(run) / "model")
    of_member_N = fit.theta(adata, replicates=[int(replicate)])[0][:, int(topic)]
    assert np.corrcoef(theta_NK[:, 0], of_member_N)[0, 1] > 0.9
    about = adata.uns["topicell"]
    assert about["topic_support"].tolist() == agreed["found_in"].tolist()
    assert about["n_searches"] == 4
    config = json.loads(about["config"])
    assert config["model"]["init_topics"] == "new/topics/initial_topics.csv"
    assert config["train"]["n_replicates"] == 1
    found = f"found in {agreed['found_in'].iloc[0]} of 4"
    assert out.splitlines()[0].startswith(f"topic_0     {found}")
    # It is a model like any other.
    code, out, err = run_here(
        "transform", "run=new", "input=run0/adata.h5ad", "output=new.csv", "tracking=off"
    )
    assert code == 0, err


def test_the_page_has_the_support_of_the_searches(runs, run_here):
    stored = json.loads(anndata.read_h5ad("run0/adata.h5ad").uns["topicell"]["config"])
    assert not stored["report"]["enabled"]
    assert run_here("consensus", "runs=[run0,run1]", "output=new", "tracking=off")[0] == 0
    code, _, err = run_here("report", "run=new", "output=page", "tracking=off", "report.dpi=40")
    assert code == 0, err
    page = Path("page/report.html").read_text()
    assert "of 4 replicates" in page
    assert "started with the topics on which 4 searches agree" in page
    assert "so no stability" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "runs has no value"),
        (["runs=[run0,run0]"], "named twice"),
        (["runs=[run0,nothing]"], "mlflow.db does not exist"),
        (["runs=[run0]", "min_support=2"], "min_support = 2"),
        (["runs=[run0,other]"], "genes of other are not among the modelled genes"),
        (["runs=[point,run0]"], "model.kind=sklearn_nmf, which cannot start with given topics"),
    ],
)
def test_what_cannot_be_refitted_is_refused_without_a_trace(arguments, words, small, run_here):
    small = [*small, *OFF]
    own = [setting for setting in small if "n_hidden" not in setting and "epochs" not in setting]
    made = {
        "run0": small,
        "other": [*small, "data.simulation.n_genes=400"],
        "point": [*own, "model=sklearn_nmf"],
    }
    for name, settings in made.items():
        if name in str(arguments):
            assert run_here("train", *settings, f"hydra.run.dir={name}")[0] == 0
    code, _, err = run_here("consensus", *arguments, "output=new", "tracking=off")
    assert code == 2
    assert words in err
    assert not Path("new").exists()


def test_an_existing_folder_is_not_touched(runs, run_here):
    Path("new/topics").mkdir(parents=True)
    mine = Path("new/topics/initial_topics.csv")
    mine.write_text("mine")
    code, _, err = run_here("consensus", "runs=[run0,run1]", "output=new", "tracking=off")
    assert code == 2
    assert "output = 'new' exists" in err
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_a_sweep_means_the_runs_with_its_number_of_topics(small, run_here):
    code, _, err = run_here(
        *("train", "-m", "sweep=topics", *small, *OFF, "model.n_topics=3,4"),
        *("sweep.sampler=grid", "sweep.n_trials=2", "sweep.pruner=none", "hydra.sweep.dir=swept"),
        *("evaluate.n_splits=1", "sweep.support_floor=0", "train.epochs=15"),
        "data.simulation.n_cells=300",
    )
    assert code == 0, err
    (folder,) = (path.parent for path in Path("swept").glob("**/sweep.json"))
    chosen = json.loads((folder / "sweep.json").read_text())["verdict"]["n_topics"]
    code, _, err = run_here("consensus", f"runs=[{folder}]", "output=new", "tracking=off")
    assert code == 0, err
    table = pd.read_csv("new/topics/agreement.csv")
    # The replicates of one run.
    assert (table["searches"] == 2).all()
    assert table["found_in"].sum() == 2 * chosen
