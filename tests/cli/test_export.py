"""``topicell export``: files of stored runs, opened by the programs that they are for."""

import json
import subprocess
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.evaluation.gene_sets import read_gene_sets

SERVER = Path(__file__).parents[1] / "cellxgene_server.py"
N, G = 120, 60
SETTINGS = (
    *("data=file", "data.label_key=kind", "preprocess=all_genes", "preprocess.drop_genes=[]"),
    *("model.n_topics=3", "model.n_hidden=8", "train.epochs=3"),
    *("train.n_replicates=1", "train.progress=false", "evaluate.n_coherence_genes=5"),
    *("report.dpi=40", "report.max_cells=100"),
)
OFF = "tracking=off"


@pytest.fixture(scope="module")
def runs(topicell, tmp_path_factory):
    """Run three times: as usual, without report, and with counts that stay in their file."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    profile_KG = rng.dirichlet(np.full(G, 0.2), 3)
    theta_NK = rng.dirichlet(np.full(3, 0.3), N)
    x_NG = np.stack([rng.multinomial(200, p_G) for p_G in theta_NK @ profile_KG])
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(np.array(["a", "b", "c"])[theta_NK.argmax(axis=1)]),
            "age": pd.array([40, None] * (N // 2), dtype="Int64"),
            "number": np.arange(N) + 2**40,
        },
        index=[f"cell{i}" for i in range(N)],
    )
    ids = {"gene_ids": [f"ENSG{i:011d}" for i in range(G)]}
    var = pd.DataFrame(ids, index=[f"GENE{i}" for i in range(G)])
    cells = anndata.AnnData(sp.csr_matrix(x_NG.astype(np.float32)), obs=obs, var=var)
    cells.write_h5ad(folder / "cells.h5ad")
    # adata.h5ad has the columns of the data, and cellxgene refuses two of these.
    cells.obs = cells.obs[["kind"]]
    cells.write_h5ad(folder / "plain.h5ad")
    for name, file, more in (
        ("usual", "plain", []),
        ("bare", "cells", ["report=off", "evaluate.differential_expression=false"]),
        ("backed", "cells", ["data.backed=true"]),
    ):
        there = [f"data.path={folder / file}.h5ad", f"hydra.run.dir={folder / name}", OFF]
        answer = topicell("train", *SETTINGS, *more, *there)
        assert answer.returncode == 0, answer.stderr
    return folder


def served(python, path):
    """Return what the server of cellxgene sends for a file."""
    answer = subprocess.run(
        [python, "-W", "ignore", SERVER, path], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_cells_of_a_run_have_no_null(runs):
    # anndata before 0.12, and thus many a cellxgene, cannot read a file with one.
    kinds = set()
    with h5py.File(runs / "usual" / "adata.h5ad") as file:
        file.visititems(lambda _, item: kinds.add(item.attrs.get("encoding-type")))
    assert "dict" in kinds
    assert "null" not in kinds


@pytest.mark.slow
def test_cellxgene_opens_the_cells_of_a_run(runs, cellxgene):
    path = runs / "usual" / "adata.h5ad"
    adata, found = anndata.read_h5ad(path), served(cellxgene, path)
    assert found["obs"][found["names"]] == adata.obs_names.tolist()
    assert {"lda", "umap_counts", "umap_topics"} <= found["maps"].keys()
    assert sum(found["maps"]["umap_counts"]) == 100
    assert found["types"]["kind"] == found["types"]["leiden"] == "categorical"
    assert found["obs"]["kind"] == adata.obs["kind"].tolist()
    np.testing.assert_allclose(found["obs"]["lda_topic_2"], adata.obs["lda_topic_2"], rtol=1e-6)
    assert found["genes"] == adata.var_names.tolist()
    np.testing.assert_allclose(found["gene"], adata.X[:, -1].toarray().ravel(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bare", "backed"])
def test_cellxgene_opens_an_export(runs, cellxgene, run_here, name):
    code, _, err = run_here("export", "cellxgene", f"run={runs / name}", "output=it.h5ad", OFF)
    assert code == 0, err
    found, usual = served(cellxgene, "it.h5ad"), anndata.read_h5ad(runs / "usual" / "adata.h5ad")
    assert list(found["maps"]) == ["umap_counts", "umap_topics"]
    assert found["genes"] == usual.var_names.tolist()
    np.testing.assert_allclose(found["gene"], usual.X[:, -1].toarray().ravel(), rtol=1e-5)
    assert found["obs"]["number"] == [str(2**40 + i) for i in range(N)]
    age = np.array(found["obs"]["age"], dtype=float)
    np.testing.assert_array_equal(age, [40, np.nan] * (N // 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["usual", "bare", "backed"])
def test_the_cells_of_the_maps_are_exported_for_vitessce(runs, run_here, name):
    asked = ["vitessce", f"run={runs / name}", "output=it", "n_genes=4", OFF]
    code, out, err = run_here("export", *asked)
    assert code == 0, err
    found = anndata.read_zarr("it/cells.zarr")
    usual = anndata.read_h5ad(runs / "usual" / "adata.h5ad")
    assert found.n_obs == 100  # report.max_cells
    assert 4 <= found.n_vars <= 12
    assert np.isfinite(found.obsm["X_umap_topics"]).all()
    expected = usual[found.obs_names, found.var_names].X.toarray()
    np.testing.assert_allclose(found.X, expected, rtol=1e-5)
    stored = anndata.read_h5ad(runs / name / "adata.h5ad")[found.obs_names]
    np.testing.assert_array_equal(found.obs["topic_1"], stored.obs["lda_topic_1"])
    assert found.obs["set_0"].tolist() == stored.obs["kind"].tolist()
    assert f"it: 100 cells × {found.n_vars} genes" in out
    code, _, err = run_here("export", *asked)
    assert (code, err) == (2, "topicell: output = 'it' exists; name another folder\n")


@pytest.mark.slow
def test_genes_are_exported_by_name_and_by_id(runs, run_here):
    asked = [f"run={runs / 'usual'}", OFF]
    code, out, err = run_here("export", "gmt", *asked, "n_genes=4", "by=lift")
    assert (code, out) == (0, "topics-usual.gmt: 3 topics\n"), err
    table = pd.read_csv(runs / "usual" / "topics" / "top_genes_lift.csv")
    sets = read_gene_sets("topics-usual.gmt")
    assert sets == {f"topic_{k}": table[f"topic_{k}"][:4].tolist() for k in range(3)}
    code, _, err = run_here("export", "gmt", *asked, "n_genes=4", "by=lift", "ids=true", "output=i")
    assert code == 0, err
    ids = {f"GENE{i}": f"ENSG{i:011d}" for i in range(G)}
    expected = {topic: [ids[gene] for gene in genes] for topic, genes in sets.items()}
    assert read_gene_sets("i") == expected

    assert run_here("export", "gmt", *asked)[0] == 2  # the file exists
    code, _, err = run_here("export", "rnk", *asked, "output=ranks")
    assert code == 0, err
    assert sorted(path.name for path in Path("ranks").iterdir()) == [
        f"topic_{k}.rnk" for k in range(3)
    ]
    rank = pd.read_csv("ranks/topic_0.rnk", sep="\t", header=None)
    assert rank[1].is_monotonic_decreasing
    code, _, err = run_here("export", "rnk", f"run={runs / 'bare'}", OFF)
    assert code == 2
    assert "by = 'differential': the run has no such table" in err


@pytest.mark.slow
def test_a_run_in_mlflow_is_exported_by_its_id(runs, run_here, in_mlflow, small):
    code, _, err = run_here("train", *small, "report=off")
    assert code == 0, err
    (run,) = in_mlflow()
    run_id = run.info.run_id
    code, out, err = run_here("export", "gmt", f"run={run_id}")
    assert (code, out) == (0, f"topics-{run_id}.gmt: 3 topics\n"), err
    code, _, err = run_here("export", "gmt", f"run={run_id}", "output=i.gmt", "ids=true")
    assert code == 2
    assert "have no identifiers of genes" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the format first: topicell export vitessce | cellxgene | gmt | rnk run=RUN_ID"),
        (["run=x"], "name the format first"),
        (["vitesse", "run=x"], "'vitesse' is not a format of topicell export; did you mean 'vit"),
        (["loom", "run=x"], "'loom' is not a format of topicell export; it is one of vitessce,"),
        (["gmt"], "run has no value; give run=VALUE"),
        (["gmt", "run=x", "by=rank"], "by: Invalid value 'rank', expected one of [relevance, "),
        (["gmt", "run=x", "n_genes=0"], "n_genes = 0: must be greater than 0"),
        (["gmt", "run=x", "n_gene=5"], "did you mean 'n_genes'? topicell export gmt --help lists"),
        (["gmt", "run=.", "tracking=off"], "run = '.' has no topics: it is not a run folder"),
        (["vitessce", "run=.", "tracking=off"], "run = '.' has no adata.h5ad"),
    ],
)
def test_bad_settings_are_one_line(run_here, arguments, words):
    code, out, err = run_here("export", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("topicell: ")
    assert words in err
    assert err.count("\n") == 1


def test_a_parent_is_refused(run_here):
    Path("study").mkdir()
    Path("study/sweep.json").write_text("{}")
    code, _, err = run_here("export", "gmt", "run=study", OFF)
    assert (code, err) == (
        2,
        "topicell: run = 'study' is the parent of a sweep: name one of its runs\n",
    )


def test_help_lists_the_formats(run_here):
    code, out, _ = run_here("export", "--help")
    assert code == 0
    for name in ("vitessce", "cellxgene", "gmt", "rnk"):
        assert f"\n  {name:<12}" in out
        code, of_format, _ = run_here("export", name, "--help")
        assert code == 0
        assert of_format.startswith(f"topicell export {name}: Write ")
        assert "\n  run=\n" in of_format
