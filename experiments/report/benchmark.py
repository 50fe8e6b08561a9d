"""Measure how long it takes to make, to open and to recolour a report, in Chromium without a GPU.

Run as ``python experiments/report/benchmark.py [--quick]``; the extra ``test`` has Playwright.
Prints one line for each measurement: the median of several, with threads and sizes.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from playwright.sync_api import sync_playwright

import topicell
from topicell import report
from topicell.config import ReportConfig
from topicell.report import page

CHROMIUM = os.environ.get("TOPICELL_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
RECOLOUR = """(by) => {
    const select = document.getElementById("color-by");
    const started = performance.now();
    select.value = by;
    select.dispatchEvent(new Event("change"));
    for (const canvas of document.querySelectorAll(".frame canvas")) {
        // Reading a pixel waits until the picture is drawn.
        const gl = canvas.getContext("webgl2");
        gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    }
    return performance.now() - started;
}"""


def cells(n_cells: int, n_genes: int = 1000, n_topics: int = 20) -> AnnData:
    """Return random cells, topics and maps, for a page of any size."""
    rng = np.random.default_rng(0)
    theta_NK = rng.dirichlet(np.full(n_topics, 0.1), n_cells)
    beta_KG = rng.dirichlet(np.full(n_genes, 0.05), n_topics)
    density = 0.09  # for 1,000 variable genes of blood cells
    counts = sp.random(n_cells, n_genes, density, format="csr", dtype=np.float32, random_state=0)
    counts.data = np.ceil(counts.data * 4)
    dominant_N = theta_NK.argmax(axis=1)
    umap_N2 = rng.normal(size=(n_topics, 2))[dominant_N] * 6 + rng.normal(size=(n_cells, 2))
    adata = AnnData(
        counts.log1p(),
        obs=pd.DataFrame(index=[f"CELL{i:08d}-1" for i in range(n_cells)]),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)]),
        layers={"counts": counts},
        obsm={"X_lda": theta_NK, "X_umap_counts": umap_N2, "X_umap_topics": umap_N2[:, ::-1]},
        varm={"lda_topics": beta_KG.T.copy()},
    )
    report.add_differential_expression(adata, adata.n_obs, 0)
    adata.obs["leiden"] = pd.Categorical(dominant_N.astype(str))
    adata.obs["split"] = "train"
    adata.uns["topicell"] = {
        "config": json.dumps({"seed": 0, "model": {"n_topics": n_topics}}),
        "scores": "{}",
        "run_id": "",
        "version": "",
        "label_key": "",
        "data": "random cells",
        "source": "",
        "created": "",
    }
    return adata


def made(folder: Path, repeats: int, data: str) -> Path:
    """Measure the seconds to make the report of real cells, whose maps are already computed."""
    adata = topicell.preprocess(topicell.load_dataset(data))
    fit = topicell.fit(adata, n_topics=10, n_replicates=1)
    labels = next((name for name in adata.obs if adata.obs[name].dtype == "category"), "")
    adata.obsm["X_lda"] = fit.cell_topics().to_numpy()
    adata.varm["lda_topics"] = fit.gene_topics().to_numpy()
    adata.uns["topicell"] = cells(10).uns["topicell"] | {"data": data, "label_key": labels}
    report.write(adata, fit.history, folder / "first", ReportConfig(), 0)
    pages, seconds = [], []
    for repeat in range(repeats):
        for name in [name for name in adata.varm if name != "lda_topics"]:
            del adata.varm[name]
        started, began = time.perf_counter(), time.time()
        report.add_differential_expression(adata, adata.n_obs, 0)
        *_, html = report.write(adata, fit.history, folder / str(repeat), ReportConfig(), 0)
        seconds.append(time.perf_counter() - started)
        # The page is written before the files of the figures.
        pages.append(html.stat().st_mtime - began)
    print(
        f"report of {adata.n_obs:,} cells, 10 topics, maps already computed: page after "
        f"{statistics.median(pages):.1f} s (median of {repeats}; target 10), with all figures as "
        f"PNG and PDF after {statistics.median(seconds):.1f} s; {html.stat().st_size / 1e6:.1f} MB"
    )
    return html


def browsed(html: Path, repeats: int, n_cells: int) -> None:
    """Measure the seconds until the page responds, and the milliseconds to recolour both maps."""
    ready, recoloured = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for _ in range(repeats):
            tab = browser.new_page(viewport={"width": 1200, "height": 900})
            tab.goto(html.as_uri())
            tab.wait_for_selector("html[data-ready]", timeout=120_000)
            ready.append(tab.evaluate("performance.now()") / 1000)
            times = [tab.evaluate(RECOLOUR, by) for by in ("topic:1", "topic:2", "category:0") * 3]
            recoloured += times[1:]  # the first one waits until the page is drawn
            tab.close()
        browser.close()
    print(
        f"page of {n_cells:,} cells: answers after {statistics.median(ready):.2f} s (median of "
        f"{repeats}; target 2 at 4,000), both maps recoloured in "
        f"{statistics.median(recoloured):.0f} ms (median of {len(recoloured)}, largest "
        f"{max(recoloured):.0f}; target 200 at 100,000)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shipped cells, few repeats")
    quick = parser.parse_args().quick
    if CHROMIUM is None:
        raise SystemExit("no Chromium found; install one, or name it in TOPICELL_CHROMIUM")
    repeats = 1 if quick else 5
    data = "pbmc68k" if quick else "pbmc_facs"
    print(f"{platform.machine()}, {os.cpu_count()} cores, software WebGL (SwiftShader)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        html = made(folder, repeats, data)
        browsed(html, repeats, 700 if quick else 3774)
        for n_cells in (10_000,) if quick else (10_000, 100_000):
            large = folder / f"{n_cells}.html"
            started = time.perf_counter()
            large.write_text(page.render(cells(n_cells), [], {}), encoding="utf-8")
            print(
                f"page of {n_cells:,} random cells, 1,000 genes, 20 topics: made in "
                f"{time.perf_counter() - started:.1f} s, {large.stat().st_size / 1e6:.1f} MB"
            )
            browsed(large, repeats, n_cells)


if __name__ == "__main__":
    main()
