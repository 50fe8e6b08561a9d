"""``topicell evaluate``: the scores of a run, and both forms of its settings."""

import json
from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore:.*columns of topics already")
def test_topics_of_a_run_score_the_same_through_evaluate(run_here, small):
    """The tables of a run are all that `evaluate` needs to find its numbers again."""
    settings = [setting for setting in small if "n_hidden" not in setting]
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


@pytest.fixture
def given(tmp_path):
    """Cells with a layer and labels, topics of them, and the arguments that name the topics."""
    rng = np.random.default_rng(0)
    theta, beta = rng.dirichlet(np.ones(3), 60), rng.dirichlet(np.ones(20), 3)
    x = np.stack([rng.multinomial(100, p) for p in theta @ beta]).astype(np.float32)
    adata = anndata.AnnData(
        np.zeros_like(x),
        obs=pd.DataFrame({"kind": np.array(list("abc"))[theta.argmax(1)]}),
        layers={"umi": x, "other": np.flip(x, 1).copy()},
    )
    adata.obs_names, adata.var_names = (
        [f"{letter}{i}" for i in range(n)] for letter, n in (("c", 60), ("g", 20))
    )
    adata.write_h5ad("my cells.h5ad")
    pd.DataFrame(theta, adata.obs_names).to_csv("theta.csv")
    pd.DataFrame(beta.T, adata.var_names).to_csv("beta.csv")
    return [
        *("theta=theta.csv", "beta=beta.csv", "report=off", "tracking=off"),
        "evaluate.n_coherence_genes=5",
    ]


def scores_of(folder):
    """The scores and settings that a run folder records, but for what differs between runs."""
    record = json.loads(Path(folder, "run.json").read_text())
    scores = json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-2])
    unlike = {"time", "memory/peak_mib"}
    return (
        {name: value for name, value in scores.items() if name not in unlike},
        {name: value for name, value in record["params"].items() if name != "output"},
    )
