"""``topicell train``: exit codes, records and grids; tests/test_bad_input.py has the refusals."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest


def test_a_failed_run_ends_with_code_1_and_is_recorded(run_here, small, in_mlflow):
    diverges = ["train.learning_rate=1e30", "train.epochs=50"]
    code, _, err = run_here("train", *small, *diverges, "hydra.run.dir=here")
    assert code == 1
    assert "the run failed: NonFiniteError: training stopped at step" in err
    assert [run.info.status for run in in_mlflow()] == ["FAILED"]
    last = json.loads(Path("here/metrics.jsonl").read_text().splitlines()[-1])
    assert last["status"] == "FAILED"
    assert last["tags"]["topicell.error"].startswith("NonFiniteError: training stopped at step")


@pytest.mark.slow
def test_a_grid_makes_one_parent_and_a_nested_run_for_each_job(topicell, small, in_mlflow):
    grid = ["report=off", "model.n_topics=2,3", "seed=0,1"]
    answer = topicell("train", "-m", *small, *grid, draft=True)
    assert answer.returncode == 0, answer.stderr
    runs = in_mlflow()
    (parent,) = (run for run in runs if run.data.tags.get("topicell.kind") == "multirun")
    jobs = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {parent.info.run_id}
    found = sorted((run.data.params["model.n_topics"], run.data.params["seed"]) for run in jobs)
    assert found == [("2", "0"), ("2", "1"), ("3", "0"), ("3", "1")]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all("test/perplexity_folded" in run.data.metrics for run in jobs)


def test_a_grid_with_a_bad_job_ends_with_code_2_and_its_parent_has_failed(
    run_here, small, in_mlflow
):
    code, _, err = run_here("train", "-m", *small, "report=off", "model.n_topics=3,110")
    assert code == 2
    assert "only 96 training cells" in err
    states = {run.data.tags.get("topicell.kind", "job"): run.info.status for run in in_mlflow()}
    assert states == {"multirun": "FAILED", "job": "FINISHED"}


def test_a_missing_library_is_refused_before_anything_is_recorded(run_here, monkeypatch, in_mlflow):
    monkeypatch.setitem(sys.modules, "tomotopy", None)
    code, _, err = run_here("train", "data=simulated", "model=tomotopy_lda")
    assert code == 2
    assert "needs tomotopy, which is not installed; pip install 'topicell[baselines]'" in err
    assert not in_mlflow()


def test_seeded_topics_that_moved_away_are_a_warning_on_the_terminal(run_here):
    rng = np.random.default_rng(0)
    genes = [f"gene_{gene}" for gene in rng.choice(60, 20, replace=False)]
    Path("noise.gmt").write_text("noise\tno topic\t" + "\t".join(genes))
    code, out, err = run_here(
        *("train", "data=simulated", "data.simulation.n_cells=300", "data.simulation.n_genes=60"),
        *("preprocess=all_genes", "model.n_topics=4", "train.n_replicates=1", "train.epochs=20"),
        *("model.topic_gene_prior=noise.gmt", "model.prior_scale=5", "tracking=off", "report=off"),
    )
    assert code == 0, err
    assert "1 of 1 seeded topics moved away from their seed" in out
