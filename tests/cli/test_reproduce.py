"""``topicell reproduce``: the same bytes, differences, moved data, refused runs."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from topicell.config import SimulationConfig
from topicell.data.simulation import simulate

OFF = ("tracking=off", "report=off")


@pytest.fixture
def trained(run_here, small):
    """Return a function that makes a run in the folder ``run``."""

    def train(*more):
        code, _, err = run_here("train", *small, "hydra.run.dir=run", *more)
        assert code == 0, err

    return train


def contents(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_stored_run_is_reproduced_with_the_same_bytes(trained, run_here, in_mlflow):
    trained()
    before = contents("run")
    (stored,) = in_mlflow()
    run_id = stored.info.run_id
    assert stored.data.tags["topicell.command"].startswith("topicell train data=simulated ")
    code, out, err = run_here("reproduce", f"run={run_id}", "output=again")
    assert code == 0, err
    assert "results     same bytes in all " in out
    assert out.splitlines()[-1] == "verdict     reproduced, same bytes"
    assert contents("run") == before
    for name in ("model/weights.safetensors", "cells/cell_topics.csv", "figures/structure.png"):
        assert Path("run", name).read_bytes() == Path("again", name).read_bytes()
    scores = pd.read_csv("again/reproduction.csv")
    assert (scores["difference_in_noise"] == 0).all()
    new = next(run for run in in_mlflow() if run.info.run_id != run_id)
    assert new.data.tags["topicell.reproduces"] == run_id
    # The command in the tag makes the run too.
    code, _, err = run_here("reproduce", "run=run", "output=third", *OFF[:1])
    assert code == 0, err
    assert json.loads(Path("third/run.json").read_text())["tags"]["topicell.reproduces"] == str(
        Path("run").resolve()
    )


def test_the_recorded_command_makes_the_same_run(trained, run_here):
    import shlex

    trained(*OFF, "data.simulation.n_cells=150", "model.n_topics=4")
    command = json.loads(Path("run/run.json").read_text())["tags"]["topicell.command"]
    program, *arguments = shlex.split(command)
    assert program == "topicell"
    assert run_here(*arguments, "hydra.run.dir=other")[0] == 0
    name = "model/weights.safetensors"
    assert Path("run", name).read_bytes() == Path("other", name).read_bytes()


def test_scores_that_differ_by_more_than_noise_end_with_one(trained, run_here):
    trained(*OFF)
    table = pd.read_csv("run/scores.csv")
    table["value"] *= 1.5
    table.to_csv("run/scores.csv", index=False)
    code, out, _ = run_here("reproduce", "run=run", "output=again", "tracking=off")
    assert code == 1
    assert "verdict     not reproduced: " in out
    assert "results     other bytes in 1 of " in out


def test_moved_data_are_found_and_changed_data_refused(run_here, small, tmp_path):
    adata = simulate(SimulationConfig(n_cells=120, n_genes=60, n_topics=3))
    (tmp_path / "here").mkdir()
    adata.write_h5ad(tmp_path / "here" / "cells.h5ad")
    kept = [setting for setting in small if not setting.startswith("data")]
    path = tmp_path / "here" / "cells.h5ad"
    asked = (
        "data=file",
        f"data.path={path}",
        *kept,
        *OFF,
        *("preprocess.drop_genes=[]", "preprocess.n_variable_genes=null"),
        "hydra.run.dir=run",
    )
    code, _, err = run_here("train", *asked)
    assert code == 0, err
    moved = tmp_path / "moved.h5ad"
    shutil.move(path, moved)
    code, _, err = run_here("reproduce", "run=run", "output=a", "tracking=off")
    assert code == 2
    assert "cells.h5ad" in err
    code, out, err = run_here(
        "reproduce", "run=run", "output=a", "tracking=off", f"data.path={moved}"
    )
    assert code == 0, err
    assert out.splitlines()[-1] == "verdict     reproduced, same bytes"
    adata[:90].copy().write_h5ad(moved)
    code, _, err = run_here(
        "reproduce", "run=run", "output=b", "tracking=off", f"data.path={moved}"
    )
    assert code == 2
    assert "the data of the run have changed" in err
    assert not Path("b").exists()


def test_other_runs_are_refused_with_their_own_command(trained, run_here):
    trained(*OFF, "data.simulation.n_cells=300", "train.epochs=15")
    code, _, err = run_here("consensus", "runs=[run]", "output=agreed", "tracking=off")
    assert code == 0, err
    code, _, err = run_here("reproduce", "run=agreed", "output=a", "tracking=off")
    assert code == 2
    assert "topicell consensus 'runs=[run]' output=agreed tracking=off" in err
    code, _, err = run_here("reproduce", "run=run", "output=run", "tracking=off")
    assert (code, "output = 'run' exists" in err) == (2, True)
    code, _, err = run_here("reproduce", "run=run", "output=a", "data.path=x", "tracking=off")
    assert code == 2
    assert "are simulated, not a file" in err
