"""``topicell conditions``, and ``evaluate.conditions`` of a run."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

OFF = ("tracking=off", "output=out")


@pytest.fixture
def cells():
    """Write a file of cells of eight samples and one with few cells; half have more of topic 0."""
    rng = np.random.default_rng(0)
    sample_N = np.append(np.repeat(range(8), 40), np.full(5, 8))
    profile_KG = rng.dirichlet(np.full(60, 0.2), 3)
    alpha_N3 = np.where(sample_N[:, None] % 2, [3.0, 0.5, 0.5], [0.5, 1.0, 1.0])
    theta_NK = np.stack([rng.dirichlet(alpha_K) for alpha_K in alpha_N3])
    x_NG = np.stack([rng.multinomial(200, p_G) for p_G in theta_NK @ profile_KG])
    obs = pd.DataFrame(
        {
            "donor": [f"d{sample}" for sample in sample_N],
            "state": np.where(sample_N % 2, "ill", "healthy"),
            "age": np.array([40.0, 50, 61, 30, 22, 44, 51, 53, 60])[sample_N],
        },
        index=[f"c{i}" for i in range(len(sample_N))],
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(60)])
    anndata.AnnData(sp.csr_matrix(x_NG.astype(np.float32)), obs=obs, var=var).write_h5ad("a.h5ad")
    data = ["data=file", "data.path=a.h5ad", "preprocess=all_genes", "preprocess.drop_genes=[]"]
    model = ["model.n_topics=3", "model.n_hidden=8", "train.epochs=10", "train.n_replicates=1"]
    return [*data, *model, "train.progress=false", "report=off", "tracking=off"]


@pytest.mark.filterwarnings("default:1 of 9 samples have fewer than 20 cells")
def test_a_run_and_the_command_make_the_same_table(run_here, cells):
    asked = ["data.sample_key=donor", "evaluate.conditions=state + age"]
    code, _, err = run_here("train", *cells, *asked, "hydra.run.dir=here")
    assert code == 0, err
    assert "1 of 9 samples have fewer than 20 cells" in err
    assert "d8 (5)" in err
    of_run = pd.read_csv("here/topics/conditions.csv")
    assert of_run["topic"].tolist() == [f"topic_{topic}" for topic in range(3)] * 2
    planted = of_run[of_run["term"] == "state"].sort_values("p").iloc[0]
    assert planted["level"] == "ill"
    assert planted["q"] < 0.01
    code, out, err = run_here(
        "conditions", "run=here", "formula=state + age", "sample_key=donor", *OFF
    )
    assert code == 0, err
    pd.testing.assert_frame_equal(pd.read_csv("out/conditions.csv"), of_run)
    assert {path.name for path in Path("out").iterdir()} == {
        "conditions.csv",
        *(f"conditions_{term}.{kind}" for term in ("state", "age") for kind in ("png", "pdf")),
    }
    assert out.startswith("state  (8 samples; permutations: p of at least")
    assert f"q = {planted['q']:.2g}" in out.splitlines()[1]
    # The folder is not overwritten.
    code, _, err = run_here("conditions", "run=here", "formula=state", "sample_key=donor", *OFF)
    assert code == 2
    assert "output = 'out' exists" in err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["evaluate.conditions=state"], "name its column with data.sample_key=COLUMN"),
        (["evaluate.conditions=state", "data.sample_key=who"], "data.sample_key = 'who': obs has"),
        (["evaluate.conditions=state +", "data.sample_key=donor"], "is not a formula"),
        (["evaluate.conditions=donor", "data.sample_key=state"], "several values in sample"),
    ],
)
def test_a_run_is_refused_before_work_starts(run_here, cells, asked, message):
    code, _, err = run_here("train", *cells, *asked, "hydra.run.dir=here")
    assert code == 2
    assert message in err
    assert not Path("here/model").exists()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("batch", "is_warned"),
    [
        ("state", True),  # one batch for each condition
        ("donor", False),  # each sample is a batch
        ("lab", False),  # batches and conditions are crossed
    ],
)
def test_batches_that_are_the_conditions_give_a_warning(run_here, cells, batch, is_warned):
    adata = anndata.read_h5ad("a.h5ad")
    adata = adata[adata.obs["donor"] != "d8"].copy()
    adata.obs["lab"] = (adata.obs["donor"].astype(str) > "d3").map({True: "a", False: "b"})
    adata.write_h5ad("a.h5ad")
    asked = ["data.sample_key=donor", "evaluate.conditions=state", f"model.batch_key={batch}"]
    code, _, err = run_here("train", *cells, *asked)
    assert code == 0, err
    assert ("obs['state'] has one value in each batch" in err) is is_warned


@pytest.mark.filterwarnings("default")
def test_batches_that_are_the_labels_give_a_warning(run_here, cells):
    code, _, err = run_here("train", *cells, "model.batch_key=state", "data.label_key=state")
    assert code == 0, err
    assert "model.batch_key = 'state' is also the column of labels" in err


def test_a_run_that_does_not_exist_is_refused(run_here):
    code, _, err = run_here("conditions", "run=none", "formula=a", "sample_key=b", *OFF)
    assert code == 2, err
    assert not Path("out").exists()
