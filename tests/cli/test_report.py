"""``topicell report`` and ``topicell transform`` of a stored run."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import topicell


@pytest.mark.slow
@pytest.mark.filterwarnings("default:the gene sets of the run")
def test_a_report_adds_the_parts_that_the_run_left_out(run_here, small):
    Path("sets.gmt").write_text("one\tof us\tgene_1\tgene_2\tgene_3\n")
    lacking = ["evaluate.differential_expression=false", "report.gene_sets=sets.gmt"]
    code, _, err = run_here("train", *small, *lacking, "tracking=off", "hydra.run.dir=here")
    assert code == 0, err
    assert Path("here/topics/enrichment.csv").exists()
    assert not Path("here/topics/differential_expression.csv").exists()
    assert not Path("here/figures/volcanoes.png").exists()

    Path("sets.gmt").unlink()
    # Without the file of its run, a report warns; a file named in the command must exist.
    code, _, err = run_here("report", "run=here", "output=again", "tracking=off")
    assert code == 0, err
    assert "sets.gmt, were not found" in err
    assert Path("again/topics/differential_expression.csv").exists()
    assert Path("again/figures/volcanoes.png").exists()
    assert not Path("again/topics/enrichment.csv").exists()
    asked = ["run=here", "output=more", "tracking=off", "report.gene_sets=sets.gmt"]
    code, _, err = run_here("report", *asked)
    assert code == 2
    assert "report.gene_sets = 'sets.gmt'" in err
    assert not Path("more").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*count as zero")
def test_report_and_transform_of_a_stored_run(run_here, tmp_path, small, in_mlflow):
    assert run_here("train", *small, "hydra.run.dir=here")[0] == 0
    (run,) = in_mlflow()
    run_id = run.info.run_id

    code, _, err = run_here("report", f"run={run_id}", "output=again")
    assert code == 0, err
    # The report of the stored run has the same figures.
    pages = [Path(folder, "report.html").read_text() for folder in ("here", "again")]
    pictures = [page.count("data:image/png") for page in pages]
    assert pictures[0] == pictures[1] > 5
    # The command writes PDFs, the run does not.
    drawn = [{path.name for path in Path(f, "figures").glob("*.pdf")} for f in ("here", "again")]
    assert not drawn[0]
    assert "umap_counts_topics.pdf" in drawn[1]
    assert run_here("report", f"run={run_id}", "output=again")[0] == 2

    adata = anndata.read_h5ad("here/adata.h5ad")
    new = anndata.AnnData(adata.layers["counts"][:20], obs=adata.obs[[]][:20], var=adata.var[[]])
    new.write_h5ad("new.h5ad")
    code, _, err = run_here("transform", f"run={run_id}", "input=new.h5ad", "output=mapped.h5ad")
    assert code == 0, err
    mapped = anndata.read_h5ad("mapped.h5ad")
    assert np.allclose(mapped.obsm["X_lda"], adata.obsm["X_lda"][:20], atol=1e-5)
    assert np.allclose(mapped.obs["lda_topic_1"], mapped.obsm["X_lda"][:, 1])
    refined = ("input=new.h5ad", "output=refined.csv", "refine=true")
    assert run_here("transform", "run=here", *refined)[0] == 0
    expected = topicell.load("here/model").transform(new, refine=True)
    assert np.allclose(pd.read_csv("refined.csv", index_col="cell"), expected, atol=1e-6)
    assert not np.allclose(expected, mapped.obsm["X_lda"], atol=1e-4)
    code, _, err = run_here("transform", "run=here", "input=new.h5ad", "output=mapped.csv")
    assert code == 0, err
    table = pd.read_csv("mapped.csv", index_col="cell")
    assert np.allclose(table, mapped.obsm["X_lda"], atol=1e-6)

    code, _, err = run_here("transform", f"run={run_id}", "input=new.h5ad", "output=mapped.h5ad")
    assert code == 2
    assert "exists" in err
    new[:, 5:].copy().write_h5ad("fewer.h5ad")
    arguments = ["transform", "run=here", "input=fewer.h5ad", "output=fewer.csv"]
    code, _, err = run_here(*arguments)
    assert code == 2
    assert f"5 of the model's {adata.n_vars} genes" in err
    assert "fill_missing=true" in err
    assert not Path("fewer.csv").exists()
    assert run_here(*arguments, "fill_missing=true")[0] == 0
