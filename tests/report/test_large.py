"""Reports of many cells: all of them on the maps, or a sample."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
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
@pytest.mark.parametrize(("n_cells", "max_cells"), [(8_300, None), (20_000, 3_000)])
def test_a_report_of_many_cells_is_complete(n_cells, max_cells, run_here):
    settings = [f"data.simulation.n_cells={n_cells}", f"report.max_cells={max_cells or 'null'}"]
    code, out, err = run_here("train", *SETTINGS, *settings)
    assert code == 0, err
    assert "run/report.html" in out
    assert Record.read(Path("run")).status == "FINISHED"
    adata = anndata.read_h5ad("run/adata.h5ad")
    assert adata.n_obs == len(pd.read_csv("run/cells/cell_topics.csv")) == n_cells
    n_mapped = max_cells or n_cells
    for name in ("X_umap_counts", "X_umap_topics"):
        xy = adata.obsm[name][np.isfinite(adata.obsm[name]).all(axis=1)]
        assert len(xy) == n_mapped
        assert (np.ptp(xy, axis=0) > 1).all()
    assert np.isfinite(adata.obsm["X_pca"]).all()
    assert adata.obs["leiden"].notna().all()
    assert adata.obs["leiden"].nunique() > 1
    assert len(list(Path("run/figures").glob("*.png"))) > 10
    # Points are pictures in an SVG, so that the page hardly grows with the cells.
    assert Path("run/report.html").stat().st_size < 4e6 + 250 * n_mapped
    assert json.loads(adata.uns["topicell"]["config"])["data"]["name"] == "simulated"
    page = Path("run/report.html").read_text()
    said = f"The maps show {n_mapped:,} of the {n_cells:,} cells"
    assert (said in page) == (n_mapped < n_cells)
    assert f'aria-label="Map of {n_mapped:,} cells by counts' in page


@pytest.mark.slow
def test_a_report_made_again_has_as_many_cells_on_its_maps_as_asked(run_here):
    run = [*SETTINGS, "data.simulation.n_cells=400", "report.max_cells=300"]
    assert run_here("train", *run)[0] == 0
    for asked, n_mapped in (
        ((), 300),
        (["report.max_cells=200"], 200),
        (["report.max_cells=null"], 400),
    ):
        command = ["run=run", f"output=of{n_mapped}", "report.pdf=false", "tracking=off", *asked]
        code, _, err = run_here("report", *command)
        assert code == 0, err
        page = Path(f"of{n_mapped}/report.html").read_text()
        assert f'aria-label="Map of {n_mapped} cells by counts' in page
        assert (f"The maps show {n_mapped} of the 400 cells" in page) == (n_mapped < 400)
