"""A run whose counts stay in files has the results of a run in memory."""

from __future__ import annotations

import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell import report
from topicell.evaluation.differential import differential_expression

SETTINGS = (
    "data=file",
    "data.label_key=kind",
    "preprocess.n_variable_genes=60",
    "model.n_topics=3",
    "model.n_hidden=8",
    "model.batch_key=lab",
    "train.n_replicates=2",
    "train.epochs=3",
    "train.progress=false",
    "evaluate.n_splits=2",
    "evaluate.n_samples=8",
    "evaluate.n_gap_cells=20",
    "evaluate.n_differential_cells=150",
    "report.n_components=5",
    "report.n_neighbors=10",
    "report.max_cells=120",
    "report.dpi=30",
    "tracking=off",
)
SAME = (
    "model/weights.safetensors",
    "scores.csv",
    "cells/cell_topics.csv",
    "topics/gene_topics.csv",
    "topics/differential_expression.csv",
    "topics/top_genes_relevance.csv",
    "topics/consensus.csv",
    "topics/batch_factors.csv",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return a file of 300 cells that are sorted by kind, so that a poor shuffle would show."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 2.0, (3, 90)) + 0.05
    kind = np.repeat([0, 1, 2], 100)
    lab = rng.integers(0, 2, 300)
    obs = pd.DataFrame(
        {"kind": pd.Categorical([f"k{k}" for k in kind]), "lab": pd.Categorical(lab.astype(str))},
        index=[f"c{i}" for i in range(300)],
    )
    names = pd.DataFrame(index=[f"MT-{i}" if i < 3 else f"G{i}" for i in range(90)])
    factors = np.exp(rng.normal(0, 0.3, (2, 90)))
    x_NG = sp.csr_matrix(rng.poisson(rates[kind] * factors[lab]).astype(np.float32))
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    anndata.AnnData(x_NG, obs=obs, var=names).write_h5ad(path)
    return path


def test_model_scores_tables_and_report_are_those_in_memory(path, run_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, more in (
        ("memory", ()),
        ("parts", ("data.backed=true", "preprocess.cache=false")),
        ("kept", ("data.backed=true", "data.keep_counts=true", "report=off")),
        ("cached", ("data.backed=true", "report=off")),
    ):
        code, _, err = run_here("train", *SETTINGS, f"data.path={path}",
                                f"hydra.run.dir={name}", *more)  # fmt: skip
        assert code == 0, err
    for name in ("parts", "kept", "cached"):
        for file in SAME:
            here, there = (tmp_path / folder / file for folder in (name, "memory"))
            assert here.read_bytes() == there.read_bytes(), (name, file)
    memory, parts, kept = (
        anndata.read_h5ad(tmp_path / name / "adata.h5ad") for name in ("memory", "parts", "kept")
    )
    assert parts.X is None
    assert not parts.layers
    for adata in (parts, kept):
        for name in ("X_lda", "lda_topics", "lda_lfc"):
            side = "varm" if name.startswith("lda") else "obsm"
            np.testing.assert_array_equal(getattr(adata, side)[name], getattr(memory, side)[name])
    for name in ("X_pca", "X_umap_counts", "X_umap_topics"):
        np.testing.assert_array_equal(parts.obsm[name], memory.obsm[name])
    pd.testing.assert_frame_equal(parts.obs, memory.obs)
    np.testing.assert_array_equal(
        kept.layers["counts"].toarray(), memory.layers["counts"].toarray()
    )
    np.testing.assert_array_equal(kept.X.toarray(), memory.X.toarray())

    # The report is made again from the source.
    shown = {}
    for name in ("memory", "parts"):
        code, _, err = run_here(
            "report", f"run={name}", f"output=again-{name}", "report.max_cells=200",
            "report.pdf=false",
        )  # fmt: skip
        assert code == 0, err
        shown[name] = (tmp_path / f"again-{name}" / "figures" / "top_genes_dots.png").read_bytes()
    assert shown["memory"] == shown["parts"]


def test_the_report_of_a_run_whose_source_is_gone_says_so(path, run_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(path, "here.h5ad")
    code, _, err = run_here(
        "train", *SETTINGS, "data.path=here.h5ad", "data.keep_counts=false", "hydra.run.dir=run",
        "preprocess.cache=false", "evaluate.n_splits=1", "report=off",
    )  # fmt: skip
    assert code == 0, err
    assert anndata.read_h5ad("run/adata.h5ad").X is None
    shutil.move("here.h5ad", "gone.h5ad")
    code, _, err = run_here("report", "run=run", "output=again")
    assert code == 2
    assert "does not keep its counts (data.keep_counts), so its source is read" in err
    assert "there is no such file" in err
    assert not (tmp_path / "again").exists()
    other = anndata.read_h5ad("gone.h5ad")
    other.X *= 2
    other.write_h5ad("here.h5ad")
    code, _, err = run_here("report", "run=run", "output=again")
    assert code == 2
    assert "has changed since the run" in err
    assert not (tmp_path / "again").exists()


def test_differential_expression_of_a_sample_is_that_of_these_cells(path):
    adata = anndata.read_h5ad(path)
    adata.layers["counts"] = adata.X.astype(np.uint8)
    adata.uns["topicell"] = {}
    theta_NK = np.random.default_rng(0).dirichlet(np.ones(3), 300)
    adata.obsm["X_lda"] = theta_NK
    everything = adata.copy()
    report.add_differential_expression(everything, 300, 0)
    assert "differential_cells" not in everything.uns["topicell"]
    assert np.isfinite(everything.varm["lda_lfc"]).any()
    found = []
    for seed in (0, 0, 1):
        sample = adata.copy()
        report.add_differential_expression(sample, 150, seed)
        assert sample.uns["topicell"]["differential_cells"] == 150
        found.append(sample.varm["lda_lfc"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2], equal_nan=True)
    drawn = np.sort(np.random.default_rng(1).choice(300, 150, replace=False))
    expected = differential_expression(adata.X[drawn], theta_NK[drawn])
    np.testing.assert_array_equal(found[2], expected.lfc_KG.T)
