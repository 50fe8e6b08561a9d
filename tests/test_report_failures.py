"""A run whose report fails keeps its model, tables, scores and cells, and reports the failure."""

import errno
import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData

import topicell
from topicell.config import TrackingConfig
from topicell.report import embedding, figure_set, figures, page
from topicell.signals import interrupt
from topicell.tracking.record import REPORT_ERROR, Record
from topicell.tracking.runs import RunFolder
from topicell.tracking.store import client

SMALL = (
    "data=simulated",
    "data.simulation.n_cells=60",
    "data.simulation.n_genes=30",
    "preprocess.n_variable_genes=null",
    "model.n_topics=2",
    "model.n_hidden=4",
    "train.n_replicates=1",
    "train.epochs=1",
    "train.progress=false",
    "evaluate.n_gap_cells=0",
    "report.dpi=20",
)
DRAWN = ("umap_counts_topics", "structure", "volcanoes")
KEPT = {
    "MODEL_CARD.md",
    "adata.h5ad",
    "cells/cell_topics.csv",
    "config.yaml",
    "environment.txt",
    "metrics.jsonl",
    "model/model.json",
    "model/weights.safetensors",
    "scores.csv",
    "summary.md",
    "topics/differential_expression.csv",
    "topics/gene_topics.csv",
    "topics/top_genes.csv",
    "topics/top_genes_frex.csv",
    "topics/top_genes_lift.csv",
    "topics/top_genes_relevance.csv",
}
"""Artifacts of every run, also if its report fails."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return one store for all runs of the module: creating it takes seconds."""
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture(autouse=True)
def _few_figures(monkeypatch):
    """Draw only three figures, with maps without UMAP."""

    def counts(adata, *_):
        adata.obsm["X_pca"] = adata.obsm["X_umap_counts"] = np.arange(2.0 * adata.n_obs).reshape(
            -1, 2
        )
        adata.obs["leiden"] = "0"

    def topics(adata, *_):
        adata.obsm["X_umap_topics"] = adata.obsm["X_umap_counts"]

    monkeypatch.setattr(embedding, "embed_counts", counts)
    monkeypatch.setattr(embedding, "embed_topics", topics)
    every = figure_set.drawings
    monkeypatch.setattr(
        figure_set, "drawings", lambda *args: (d for d in every(*args) if d[0] in DRAWN)
    )


def broken(*_, **__):
    raise RuntimeError("<b>no</b>\nlink at postgresql://me:secret@host/db")


ONE_LINE = "RuntimeError: <b>no</b> link at postgresql://me:***@host/db"


def break_maps(monkeypatch):
    monkeypatch.setattr(embedding, "embed_counts", broken)
    return ONE_LINE


def break_one_figure(monkeypatch):
    monkeypatch.setattr(figures, "volcanoes", broken)
    return f"figure volcanoes could not be drawn ({ONE_LINE})"


def break_main_figure(monkeypatch):
    monkeypatch.setattr(figures, "umap_by_topic", broken)
    return f"figure umap_counts_topics could not be drawn ({ONE_LINE})"


def break_page(monkeypatch):
    monkeypatch.setattr(page, "render", broken)
    return ONE_LINE


def break_folder_of_figures(monkeypatch):
    """Put a file at the path of the folder, so that even root cannot write there."""
    start = RunFolder.start

    def started(self, *args):
        start(self, *args)
        (self.directory / "figures").write_text("")

    monkeypatch.setattr(RunFolder, "start", started)
    return "the figures could not be written (FileExistsError: "


def break_one_file(monkeypatch):
    """Let the disk be full when the third figure is written."""
    canvas = figures.drawing.FigureCanvasAgg
    print_png = canvas.print_png

    def full(self, target, **kwargs):
        print_png(self, target, **kwargs)
        if isinstance(target, Path) and target.name.startswith(".volcanoes"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(canvas, "print_png", full)
    return "figure volcanoes could not be written (OSError: [Errno 28] No space left on device)"


def files(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {"git.diff"}  # of a checkout with changes that are not committed


def uploaded(store, run_id, folder=""):
    found = set()
    for item in client(store).list_artifacts(run_id, folder):
        found |= uploaded(store, run_id, item.path) if item.is_dir else {item.path}
    return found - {"git.diff"}  # of a checkout with changes that are not committed


FAULTS = {
    break_maps: set(),
    break_one_figure: {"report.html", "figures/preview.png"}
    | {f"figures/{name}.png" for name in DRAWN[:2]},
    break_main_figure: {"report.html"} | {f"figures/{name}.png" for name in DRAWN[1:]},
    break_page: {"figures/preview.png"} | {f"figures/{name}.png" for name in DRAWN},
    break_folder_of_figures: {"report.html", "figures"},
    break_one_file: {"report.html", "figures/preview.png"}
    | {f"figures/{name}.png" for name in DRAWN[:2]},
}
"""For each fault, the parts of the report that are written nevertheless."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_whose_report_fails_keeps_all_else(fault, run_here, monkeypatch, store):
    words = fault(monkeypatch)
    code, out, err = run_here("train", *SMALL, f"tracking.uri={store.uri}", "hydra.run.dir=a run")
    assert code == 1, err
    *_, line = err.splitlines()
    assert line.startswith(f"topicell: the report is incomplete: {words}")
    assert line.endswith(
        "all other results are saved, and `topicell report 'run=a run'` makes the report again"
    )
    assert "ELBO" in out
    assert ("report.html" in out) == ("report.html" in FAULTS[fault])

    folder = Path("a run")
    assert files(folder) == KEPT | FAULTS[fault] | {"run.json", "topicell.log"}
    assert topicell.load(folder / "model").n_topics == 2
    assert anndata.read_h5ad(folder / "adata.h5ad").obsm["X_lda"].shape == (60, 2)
    record = Record.read(folder)
    assert record.status == "FINISHED"
    assert record.tags[REPORT_ERROR].startswith(words)
    stored = client(store).get_run(record.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags[REPORT_ERROR] == record.tags[REPORT_ERROR]
    assert uploaded(store, record.run_id) == KEPT | FAULTS[fault]
    # The summary names a picture only if it exists.
    pictured = "figures/preview.png" in (folder / "summary.md").read_text()
    assert pictured == ("figures/preview.png" in FAULTS[fault])


def test_a_failed_figure_is_named_on_the_page(run_here, monkeypatch):
    break_one_figure(monkeypatch)
    assert run_here("train", *SMALL, "tracking=off", "hydra.run.dir=run")[0] == 1
    html = Path("run/report.html").read_text()
    figures_of_page = html.partition('<h2 id="h-figures">')[2].partition('<h2 id="h-scores">')[0]
    assert figures_of_page.count("<figure ") == 3
    assert figures_of_page.count("<svg ") == 2
    assert (
        "<strong>Volcano plots of the genes of 2 topics</strong><p>could not be drawn: "
        "RuntimeError: &lt;b&gt;no&lt;/b&gt; link at postgresql://me:***@host/db</p>"
    ) in figures_of_page


@pytest.mark.parametrize("by", ["folder", "id"])
def test_a_report_that_is_made_again_removes_the_tag(by, run_here, store):
    with pytest.MonkeyPatch.context() as patch:
        break_maps(patch)
        tracked = f"tracking.uri={store.uri}"
        assert run_here("train", *SMALL, tracked, "hydra.run.dir=run")[0] == 1
        run_id = Record.read(Path("run")).run_id
        # It has ended, so that there is nothing to resume; the failure is reported again.
        code, out, err = run_here("train", *SMALL, tracked, "hydra.run.dir=run", "resume=true")
        assert code == 1
        assert "had already ended" in out
        assert ONE_LINE in err
    named = "run" if by == "folder" else run_id
    code, out, err = run_here("report", f"run={named}", tracked, "output=again")
    assert code == 0, err
    assert out.splitlines() == ["again/report.html"]
    made = {"report.html", "figures/preview.png"}
    made |= {f"figures/{name}.{kind}" for name in DRAWN for kind in ("png", "pdf")}
    assert files(Path("again")) == made
    assert made <= files(Path("run"))
    assert REPORT_ERROR not in Record.read(Path("run")).tags
    assert REPORT_ERROR not in client(store).get_run(run_id).data.tags
    assert made <= uploaded(store, run_id)


def test_a_run_without_reachable_mlflow_has_its_report(run_here):
    away = "tracking.uri=http://127.0.0.1:9"
    code, out, err = run_here("train", *SMALL, away, "hydra.run.dir=run")
    assert code == 0, err
    assert "topicell sync folders=run" in err
    assert "not delivered" in out
    assert files(Path("run")) >= KEPT | {"report.html", "figures/preview.png"}


def test_a_grid_continues_if_the_report_of_one_run_fails(run_here, monkeypatch):
    structure_plot = figures.structure_plot

    def breaks_for_two(theta_NK, *args, **settings):
        return (broken if theta_NK.shape[1] == 2 else structure_plot)(theta_NK, *args, **settings)

    monkeypatch.setattr(figures, "structure_plot", breaks_for_two)
    grid = [setting for setting in SMALL if "n_topics" not in setting]
    grid += ["model.n_topics=2,3", "tracking=off", "hydra.sweep.dir=grid"]
    code, _, err = run_here("train", "-m", *grid)
    assert code == 1
    assert f"figure structure could not be drawn ({ONE_LINE})" in err
    assert "`topicell report run=grid/0` makes the report again" in err
    assert err.splitlines()[-1].startswith("topicell: the reports of 1 of 2 runs are incomplete")
    tags = [Record.read(Path(f"grid/{job}")).tags for job in (0, 1)]
    assert [REPORT_ERROR in of_job for of_job in tags] == [True, False]
    assert Path("grid/1/report.html").exists()


def test_failed_differential_expression_is_computed_again_by_report(run_here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("topicell.evaluation.differential.differential_expression", broken)
        code, _, err = run_here("train", *SMALL, "tracking=off", "hydra.run.dir=run")
    assert code == 1
    assert ONE_LINE in err
    made = {"report.html", "figures/preview.png"} | {f"figures/{name}.png" for name in DRAWN[:2]}
    lacking = {"topics/differential_expression.csv"}
    assert files(Path("run")) == (KEPT | made | {"run.json", "topicell.log"}) - lacking
    assert run_here("report", "run=run", "tracking=off", "output=again")[0] == 0
    assert files(Path("run")) >= KEPT | made


def test_evaluate_keeps_its_scores_if_the_report_fails(run_here, monkeypatch):
    rng = np.random.default_rng(0)
    theta_NK, beta_KG = rng.dirichlet(np.ones(2), 40), rng.dirichlet(np.ones(20), 2)
    cells = AnnData(rng.poisson(200 * theta_NK @ beta_KG).astype(np.float32))
    cells.obs_names = [f"c{i}" for i in range(40)]
    cells.var_names = [f"g{i}" for i in range(20)]
    cells.write_h5ad("cells.h5ad")
    counts = cells.to_df()
    for name, values, index in (
        ("theta", theta_NK, counts.index),
        ("beta", beta_KG.T, counts.columns),
    ):
        type(counts)(values, index, ["k0", "k1"]).to_csv(f"{name}.csv")
    break_page(monkeypatch)
    arguments = ("theta=theta.csv", "beta=beta.csv", "data=cells.h5ad")
    code, out, err = run_here("evaluate", *arguments, "tracking=off", "output=out")
    assert code == 1
    assert f"the report is incomplete: {ONE_LINE}" in err
    assert "Perplexity of given matrices" in out
    record = Record.read(Path("out"))
    assert (record.status, record.tags[REPORT_ERROR]) == ("FINISHED", ONE_LINE)
    assert Path("out/adata.h5ad").exists()


def test_an_interrupt_in_the_report_is_an_interrupt(run_here, monkeypatch):
    def struck(*_):
        try:
            interrupt(15, None)
        except KeyboardInterrupt:
            raise TypeError("as compiled code makes of it") from None

    monkeypatch.setattr(figures, "structure_plot", lambda *_, **__: struck())
    assert run_here("train", *SMALL, "tracking=off", "hydra.run.dir=run")[0] == 130
    record = Record.read(Path("run"))
    assert record.status == "KILLED"
    assert REPORT_ERROR not in record.tags


def write_part(adata, path, **_):
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_no_partial_cells(run_here, monkeypatch):
    monkeypatch.setattr(AnnData, "write_h5ad", write_part)
    code, _, err = run_here(
        "train", *SMALL, "report=off", "tracking=off", "preprocess.cache=false", "hydra.run.dir=run"
    )
    assert code == 1
    assert "the disk is full" in err
    lacking = {"adata.h5ad"}
    assert {name for name in files(Path("run")) if "checkpoint" not in name} == (
        KEPT | {"run.json", "topicell.log"}
    ) - lacking
    assert json.loads(Path("run/run.json").read_text())["status"] == "FAILED"


@pytest.mark.filterwarnings("ignore:obs already has 2 columns of topics")
@pytest.mark.parametrize("suffix", [".h5ad", ".csv"])
def test_a_full_disk_leaves_no_partial_proportions(suffix, run_here, monkeypatch):
    assert run_here("train", *SMALL, "report=off", "tracking=off", "hydra.run.dir=run")[0] == 0
    before = set(Path().iterdir())
    monkeypatch.setattr(AnnData, "write_h5ad", write_part)
    monkeypatch.setattr("pandas.DataFrame.to_csv", write_part)
    output = f"output=mapped{suffix}"
    code, _, err = run_here("transform", "run=run", "input=run/adata.h5ad", output)
    assert code == 2
    assert "cannot be written" in err
    assert set(Path().iterdir()) == before
