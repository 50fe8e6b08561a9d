"""A run of more cells than the 8192 for which scanpy computes all distances."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest

from topicell.tracking.record import Record

SETTINGS = (
    "data=simulated",
    "data.simulation.n_genes=60",
    "data.simulation.n_topics=3",
    "preprocess.n_variable_genes=null",
    "preprocess.cache=false",
    "model.n_topics=3",
    "model.n_hidden=8",
    "train.n_replicates=1",
    "train.epochs=1",
    "train.progress=false",
    "evaluate.n_gap_cells=0",
    "evaluate.n_samples=8",
    "report.n_components=5",
    "report.n_neighbors=10",
    "report.dpi=30",
    "tracking=off",
    "hydra.run.dir=run",
)


@pytest.mark.slow
@pytest.mark.parametrize("n_cells", [8_300, 20_000])
def test_a_report_of_many_cells_is_complete(n_cells, run_here):
    code, out, err = run_here("train", *SETTINGS, f"data.simulation.n_cells={n_cells}")
    assert code == 0, err
    assert "run/report.html" in out
    assert Record.read(Path("run")).status == "FINISHED"
    adata = anndata.read_h5ad("run/adata.h5ad")
    assert adata.n_obs == n_cells
    for name in ("X_umap_counts", "X_umap_topics"):
        assert np.isfinite(adata.obsm[name]).all()
        assert (np.ptp(adata.obsm[name], axis=0) > 1).all()
    assert adata.obs["leiden"].nunique() > 1
    assert len(list(Path("run/figures").glob("*.png"))) > 10
    # Points are pictures in an SVG, so that the page hardly grows with the cells.
    assert Path("run/report.html").stat().st_size < 4e6 + 250 * n_cells
    assert json.loads(adata.uns["topicell"]["config"])["data"]["name"] == "simulated"
