"""A run of a cohort: samples from files, batches, conditions, learned priors, prior knowledge."""

from __future__ import annotations

import contextlib
import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import topicell
from topicell.cli import main

SETTINGS = (
    *("data=file", "data.label_key=kind", "preprocess.n_variable_genes=null"),
    "preprocess.drop_genes=[]",
    *("model.n_topics=4", "model.n_hidden=8", "train.n_replicates=2", "train.epochs=6"),
    *("train.progress=false", "evaluate.n_samples=8", "evaluate.n_gap_cells=20"),
    *("report.n_components=5", "report.n_neighbors=10", "report.dpi=30", "tracking=off"),
    "evaluate.min_sample_cells=10",
)
PARTS = (
    *("model.batch_key=lab", "model.prevalence=condition", "model.prior=correlated"),
    *("model.background=true", "model.topic_gene_prior=sets.gmt", "evaluate.conditions=condition"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write six samples of two conditions and two labs, their table, and a file of gene sets."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    rates_KG = rng.gamma(0.3, 4.0, (3, 60)) + 0.05
    factors = np.exp(rng.normal(0, 0.5, (2, 60)))
    rows = []
    for sample in range(6):
        condition, lab = sample % 2, sample // 3
        p = np.array([0.6, 0.2, 0.2]) if condition else np.array([0.2, 0.4, 0.4])
        kind = rng.choice(3, 50, p=rng.dirichlet(60 * p))
        x = rng.poisson(rates_KG[kind] * factors[lab]).astype(np.float32)
        obs = pd.DataFrame({"kind": [f"k{k}" for k in kind]}, index=[f"c{i}" for i in range(50)])
        adata = anndata.AnnData(
            sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"G{g}" for g in range(60)])
        )
        adata.write_h5ad(folder / f"s{sample}.h5ad")
        rows.append((f"s{sample}.h5ad", f"s{sample}", "ab"[condition], f"lab {lab + 1}, main"))
    table = pd.DataFrame(rows, columns=["path", "sample", "condition", "lab"])
    table.to_csv(folder / "samples.csv", index=False)
    leading = np.argsort(-rates_KG[0] / rates_KG.mean(0))[:6]
    (folder / "sets.gmt").write_text("kind 0\t\t" + "\t".join(f"G{g}" for g in leading) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    arguments = ["train", *SETTINGS, "data.samples=samples.csv", *PARTS, "hydra.run.dir=run"]
    with contextlib.chdir(folder), pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    return folder / "run"


def test_all_parts_are_in_tables_cells_and_page(run):
    folder = run
    adata = anndata.read_h5ad(folder / "adata.h5ad")
    fit = topicell.load(folder / "model")
    factors = pd.read_csv(folder / "topics" / "batch_factors.csv", index_col=0)
    assert list(factors.columns) == ["lab 1, main", "lab 2, main"]
    expected = fit.batch_factors().T.loc[factors.index]
    np.testing.assert_allclose(factors, expected, rtol=1e-5)
    np.testing.assert_allclose(np.log(factors).sum(axis=1), 0, atol=1e-4)
    np.testing.assert_array_equal(adata.varm["batch_factors"], fit.batch_factors().T)
    seeds = pd.read_csv(folder / "topics" / "seeds.csv", index_col="topic")
    assert seeds["seed"].tolist() == ["kind 0"]
    prevalence = pd.read_csv(folder / "topics" / "prevalence.csv")
    assert set(prevalence["covariate"]) == {"condition[T.b]"}
    conditions = pd.read_csv(folder / "topics" / "conditions.csv")
    assert conditions["n_samples"].tolist() == [6] * 4
    correlation = pd.read_csv(folder / "topics" / "prior_correlation.csv", index_col=0)
    np.testing.assert_allclose(correlation, fit.topic_correlations(), rtol=1e-5)
    deviation = pd.read_csv(folder / "topics" / "top_genes_deviation.csv", index_col=0)
    assert deviation["topic_0"].tolist() == fit.top_genes(60)["topic_0"].tolist()
    samples = pd.read_csv(folder / "cells" / "samples.csv")
    assert samples["sample"].tolist() == [f"s{i}" for i in range(6)]
    scores = json.loads(adata.uns["topicell"]["scores"])
    assert -0.2 < scores["batches/separation"] < 0.5
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "seeded by <b>kind 0</b>",
        "lab 1, main",
        'id="by-deviation"',
        "prior_correlation",
    ):
        assert text in page
    for name in (
        "batch_factors",
        "umap_topics_batches",
        "prior_correlation",
        "conditions",
        "samples",
    ):
        assert (folder / "figures" / f"{name}.png").exists()


def test_the_test_of_conditions_does_not_use_proportions_that_know_them(run):
    from topicell.evaluation.conditions import compare_conditions

    folder = run
    adata = anndata.read_h5ad(folder / "adata.h5ad")
    conditions = pd.read_csv(folder / "topics" / "conditions.csv")
    folded = compare_conditions(
        adata.obsm["X_lda_folded"], adata.obs, "condition", "sample", min_cells=10
    ).table
    np.testing.assert_allclose(conditions["p"], folded["p"], rtol=1e-6)
    assert np.abs(adata.obsm["X_lda"] - adata.obsm["X_lda_folded"]).max() > 1e-3


@pytest.mark.filterwarnings("ignore:the data do not have the batches")
def test_stored_runs_serve_all_commands(run, run_here, monkeypatch):
    root = run.parent
    monkeypatch.chdir(root)
    for arguments in (
        ("transform", "run=run", "input=s1.h5ad", "output=unknown.csv", "unknown_batches=mean"),
        ("report", "run=run", "output=again", "report.dpi=30"),
        ("conditions", "run=run", "formula=condition", "output=tested", "min_sample_cells=10"),
        (
            *("train", *SETTINGS, "data.samples=samples.csv", "report=off", "hydra.run.dir=second"),
            *("model.batch_key=lab", "model.topic_gene_prior=run=run", "model.align_to=run"),
            "model.n_topics=5",
        ),
        ("compare", "runs=[run,second]", "output=compared.html"),
        ("consensus", "runs=[second]", "output=agreed", "tracking=off"),
    ):
        code, _, err = run_here(*arguments)
        assert code == 0, (arguments[0], err)
    cells = pd.read_csv(root / "unknown.csv", index_col="cell")
    assert cells.shape == (50, 4)
    seeds = pd.read_csv(root / "second" / "topics" / "seeds.csv")
    assert seeds["seed"].tolist() == [f"topic_{k}" for k in range(4)]
    assert (root / "compared.html").exists()
    assert (root / "agreed" / "topics" / "batch_factors.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.batch_key=nope",), "batch_key = 'nope': obs has no such column"),
        (("model.batch_key=sample", "data.path=s0.h5ad"), "batch_key = 'sample'"),
        (("model.prevalence=nope",), "model.prevalence: obs has no column 'nope'"),
        (("model.prevalence=condition+",), "model.prevalence: "),
        (("model.topic_gene_prior=nope.csv",), "model.topic_gene_prior = 'nope.csv'"),
        (("model.topic_gene_prior=run=nope",), "model.topic_gene_prior = 'run=nope'"),
        (("model.prior=none",), "model.prior"),
        (("model.kind=sklearn_nmf", "model.batch_key=lab"), "has no such setting"),
        (("evaluate.conditions=nope",), "evaluate.conditions: obs has no column 'nope'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments, message, folder, run_here, monkeypatch
):
    monkeypatch.chdir(folder)
    data = (
        () if any(a.startswith("data.path") for a in arguments) else ("data.samples=samples.csv",)
    )
    if not data:
        arguments = (*arguments, "data.label_key=null")
    code, _, err = run_here("train", *SETTINGS, *data, *arguments, "hydra.run.dir=bad")
    assert code == 2, err
    assert message in err
    assert not (folder / "bad" / "run.json").exists()
