"""The page of a run: self-contained, escaped and complete; a figure is added by one row."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from webpage import EVIL, Page, assert_self_contained

from topicell import report
from topicell.config import ReportConfig
from topicell.evaluation import ranking
from topicell.evaluation.conditions import compare_conditions
from topicell.evaluation.metrics import METRICS, Metric
from topicell.report import figure_set, figures, page, tables
from topicell.report.figures.drawing import LITTLE_SUPPORT
from topicell.report.summary import summary

ON_PAGE = {name for name, spec in figure_set.FIGURES.items() if spec.caption}
DRAWN = ON_PAGE - {"enrichment", "conditions"}
"""Figures of a run without gene sets and conditions."""
HISTORY = [
    {
        "epoch": epoch,
        "train/elbo": -100.0 + epoch,
        "train/kl_cells": 1.0,
        "train/kl_topics": 1.0,
        "train/kl_weight": 1.0,
        "train/learning_rate": 0.1,
        "valid/elbo": -101.0 + epoch,
        "valid/perplexity": 50.0 - epoch,
    }
    for epoch in range(12)
]
SCORES = {
    "test/perplexity_folded": 42.4242,
    "topics/stability": 0.9,
    "labels/nmi": float("nan"),
    "our/new_score": -3.0,
}


def make_run(n_cells: int = 60, n_topics: int = 3, n_genes: int = 30, **uns: object) -> AnnData:
    rng = np.random.default_rng(0)
    theta = rng.dirichlet(np.full(n_topics, 0.3), n_cells)
    beta = rng.dirichlet(np.full(n_genes, 0.2), n_topics)
    counts = np.stack([rng.multinomial(200, p) for p in theta @ beta]).astype(np.float32)
    genes = [EVIL] + [f"GENE{i}" for i in range(1, n_genes)]
    cells = [f"cell{i}" for i in range(n_cells)]
    adata = AnnData(
        sp.csr_matrix(np.log1p(counts)),
        obs=pd.DataFrame(index=cells),
        var=pd.DataFrame(index=genes),
    )
    # This gene leads topic 0, so that figures, table and FREX contain it.
    beta[0, 0] = 1
    beta /= beta.sum(1, keepdims=True)
    adata.obsm["X_lda"] = pd.DataFrame(theta, index=cells).add_prefix("topic_")
    adata.varm["lda_topics"] = beta.T
    adata.layers["counts"] = sp.csr_matrix(counts)
    adata.obs["split"] = pd.Categorical(["train"] * (n_cells - 15) + ["valid"] * 5 + ["test"] * 10)
    adata.obs["kind"] = pd.Categorical(["left", EVIL] * (n_cells // 2))
    adata.obs["lab"] = pd.Categorical(np.where(np.arange(n_cells) % 3, EVIL, "other"))
    adata.varm["batch_factors"] = np.exp(np.random.default_rng(1).normal(0, 0.3, (n_genes, 2)))
    adata.varm["lda_deviations"] = np.random.default_rng(2).normal(0, 1, (n_genes, n_topics))
    adata.uns["topicell"] = {
        "config": json.dumps({"seed": 0, "model": {"n_topics": n_topics, "init": EVIL}}),
        "scores": json.dumps(SCORES),
        "run_id": "abc123",
        "version": "1.2.3",
        "label_key": "kind",
        "batch_key": "lab",
        "batches": sorted([EVIL, "other"]),
        "prior_correlation": np.corrcoef(theta.T),
        "seeds": pd.DataFrame(
            {
                "seed": EVIL,
                "genes": 4,
                "prior_log2_lift": 3.0,
                "log2_lift": [2.5],
                "correlation": np.nan,
                "highest_topic": "topic_0",
            },
            index=pd.Index(["topic_0"], name="topic"),
        ),
        "data": f"cells & {EVIL}",
        "source": "https://example.org/cells.h5ad",
        "created": "2025-01-01",
        **uns,
    }
    return adata


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    adata = make_run(
        topic_stability=np.array([0.9, 0.65, 0.8]),
        topic_support=np.array([3, 1, 2]),
        topic_matches=np.array([[0.9, 0.6, 0.8], [1.0, 1.0, 1.0], [0.9, 0.7, 0.8]]),
        shown=1,
        sample_key="kind",
    )
    gap = np.random.default_rng(0).exponential(3.0, adata.n_obs)
    adata.obs["amortization_gap"] = np.where(np.arange(adata.n_obs) < 50, gap, np.nan)
    report.add_differential_expression(adata, 100_000, 0)
    paths = report.write(adata, HISTORY, directory, ReportConfig(n_top_genes=5, pdf=True), seed=0)
    return adata, directory, paths


@pytest.fixture(scope="module")
def html(written):
    return written[2][-1].read_text(encoding="utf-8")


def test_every_figure_is_written_as_png_and_pdf(written):
    _, directory, paths = written
    by = ("topics", "leiden", "labels", "batches")
    maps = {f"umap_{space}_{name}" for space in ("counts", "topics") for name in by}
    figures = maps | DRAWN
    assert set(paths) == {
        directory / "figures" / f"{name}.{kind}" for name in figures for kind in ("png", "pdf")
    } | {directory / "figures" / "preview.png", directory / "report.html"}
    assert paths[-1] == directory / "report.html"
    for path in paths[:-1]:
        magic = b"\x89PNG" if path.suffix == ".png" else b"%PDF"
        assert path.read_bytes().startswith(magic)


def test_a_figure_is_added_by_one_row(written, tmp_path, monkeypatch):
    """Its files are written, and it is on the page with caption and alternative text."""
    cells = written[0]

    def draw(run):
        figure = figures.drawing.new_figure(3, 2, "Depth")
        figure.subplots().hist(np.asarray(run.adata.layers["counts"].sum(1)).ravel())
        return figure

    rows = (
        figure_set.FigureSpec(
            name="depth", draw=draw, caption="Depth of the cells.", alt="Of {n_cells} cells"
        ),
        figure_set.FigureSpec(name="never", draw=draw, applies=lambda run: False),
    )
    # Without the other rows, to save time.
    for module in (figure_set, page):
        monkeypatch.setattr(module, "FIGURES", {row.name: row for row in rows})
    report.write(cells, [], tmp_path, ReportConfig(), 0)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Depth of the cells." in html
    assert f"Of {cells.n_obs} cells" in html
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["depth.png"]


def test_every_figure_has_alternative_text_and_caption(html):
    tags = Page(html).tags
    sheets = [attrs for _, attrs in tags if attrs.get("class") == "sheet"]
    assert len(sheets) == len({sheet["aria-label"] for sheet in sheets}) == len(DRAWN)
    assert all(len(s["aria-label"]) > 20 and "{" not in s["aria-label"] for s in sheets)
    assert sum(tag == "figcaption" for tag, _ in tags) == len(sheets) + 2  # two maps
    assert sum(tag == "svg" for tag, _ in tags) == len(sheets)
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert [image["alt"] for image in images] == [
        f"Topic {name} on the map by counts" for name in ("0", "1*", "2")
    ]


def test_a_page_is_self_contained_and_allows_only_its_own_script(html):
    """The policy names the script by its hash; data blocks are not scripts."""
    assert_self_contained(html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in Page(html).policy
    kinds = [(attrs.get("type"), "src" in attrs) for attrs in Page(html).all("script")]
    assert set(kinds) == {(None, False), ("application/gzip;base64", False)}


def test_names_are_escaped(html):
    assert EVIL not in html
    # Twice the data; the gene in its card and in figures; the label; the configuration.
    assert Page(html).text.count(EVIL) >= 5


def test_the_page_contains_data_model_and_settings(html):
    text = Page(html).text
    assert "3 topics in cells & " in text
    assert "abc123" in text
    assert "1.2.3" in text
    assert "60 cells and 30 genes; 45 for training, 5 for validation, 10 for testing" in text
    assert "12 epochs" in text
    assert "model.n_topics=3" in text
    assert "seed=0" in text


def test_every_score_is_in_the_table_with_its_meaning(html):
    text = Page(html).words
    assert text.count("42.42") == 2  # headline and table
    assert "Lower is better" in text
    assert "not defined" in text
    assert "our/new_score" in text
    assert "−3" in text


def test_a_metric_with_a_row_in_the_table_is_named_and_explained(written, monkeypatch):
    """tests/evaluation/test_metrics.py has the rest of a run with a toy metric."""
    toy = Metric(name="our/new_score", title="Toy score", meaning="A toy.", better=1, headline=True)
    monkeypatch.setitem(METRICS, toy.name, toy)
    adata, _, _ = written
    text = Page(page.render(adata, HISTORY, {})).words
    # Once at the top of the page, once in the table of all scores.
    assert text.count("Toy score") == 2
    assert text.count("A toy. Higher is better.") == 2
    assert "Toy score −3" in summary(adata)
    assert "A toy. Higher is better." in summary(adata)


def test_cards_have_the_leading_genes_of_each_ranking(written, html):
    adata, _, _ = written
    beta_KG = adata.varm["lda_topics"].T
    text = Page(html).words
    frequency_G = tables.gene_frequency(adata)
    scores = tables.scores_of_genes(adata, beta_KG, frequency_G)
    assert set(page.RANKINGS) <= set(scores)
    for by in page.RANKINGS:
        genes_KT = ranking.top_genes(scores[by], 5)
        for topic, genes in enumerate(genes_KT):
            leading = [f"{adata.var_names[g]} {100 * beta_KG[topic, g]:.1f} %" for g in genes]
            assert " ".join(leading) in text


def table_of(html, name):
    """Return a table of the page as its button downloads it."""
    (block,) = re.findall(rf'id="table-{name}">([^<]*)<', html)
    return pd.read_csv(io.BytesIO(gzip.decompress(base64.b64decode(block))), index_col=0)


def test_tables_of_the_page_are_those_of_the_run(written, html):
    adata, _, _ = written
    cells = table_of(html, "cell_topics")
    assert list(cells.index) == list(adata.obs_names)
    np.testing.assert_allclose(cells, adata.obsm["X_lda"], rtol=1e-5, atol=1e-12)
    genes = table_of(html, "gene_topics")
    assert list(genes.index) == list(adata.var_names)
    np.testing.assert_allclose(genes, adata.varm["lda_topics"], rtol=1e-5, atol=1e-12)
    tests = table_of(html, "differential_expression")
    assert len(tests) == (adata.varm["lda_q"] < tables.FDR).sum() > 0
    for topic, of_one in tests.groupby(level=0):
        lfc_GK = pd.DataFrame(adata.varm["lda_lfc"], index=adata.var_names)
        found = of_one.set_index("gene")["log2_fold_change"]
        own = lfc_GK[int(topic.removeprefix("topic_"))]
        np.testing.assert_allclose(found, own[found.index], rtol=1e-5)
        assert of_one["p"].is_monotonic_increasing
    scores = table_of(html, "score_summary")["value"]
    assert scores["test/perplexity_folded"] == pytest.approx(42.4242, rel=1e-5)


def test_a_table_that_is_too_large_is_only_named(written, monkeypatch):
    adata, _, _ = written
    monkeypatch.setattr(page, "MAX_TABLE_VALUES", adata.n_obs * 3 - 1)
    html = page.render(adata, HISTORY, {})
    assert 'id="table-cell_topics"' not in html
    assert "cell_topics.csv: cells × topics; too large for this page" in Page(html).text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph 31")
def test_90_groups_with_control_characters_are_drawn(tmp_path):
    adata = make_run(n_cells=200)
    adata.obs["kind"] = pd.Categorical([f"group\x1f{i % 90}" for i in range(200)])
    adata.obs["leiden"] = pd.Categorical(["0", "1"] * 100)
    for space in ("counts", "topics"):
        adata.obsm[f"X_umap_{space}"] = np.random.default_rng(0).normal(size=(200, 2))
    *_, html = report.write(adata, [], tmp_path, ReportConfig(), seed=0)
    assert "31 other groups" in Page(html.read_text(encoding="utf-8")).text


def test_gene_sets_have_a_table_and_a_figure(written, tmp_path, monkeypatch):
    adata, _, _ = written
    # Without the other figures, to save time.
    for module in (figure_set, page):
        monkeypatch.setattr(module, "FIGURES", {"enrichment": module.FIGURES["enrichment"]})
    (tmp_path / "sets.gmt").write_text(
        "first\tx\tGENE1\tGENE2\tGENE3\nother\tx\t" + "\t".join(adata.var_names[4:12]) + "\n"
    )
    config = ReportConfig(gene_sets=str(tmp_path / "sets.gmt"), n_enrichment_genes=5)
    paths = report.write(adata, HISTORY, tmp_path / "out", config, seed=0)
    table = pd.read_csv(tmp_path / "out" / "topics" / "enrichment.csv")
    assert (tmp_path / "out" / "topics" / "enrichment.csv") in paths
    assert len(table) == 3 * 2
    leading = ranking.top_genes(ranking.frex(adata.varm["lda_topics"].T), 5)
    for topic, genes in enumerate(leading):
        names = set(adata.var_names[genes])
        row = table[(table["topic"] == f"topic_{topic}") & (table["gene_set"] == "first")]
        assert row["overlap"].item() == len(names & {"GENE1", "GENE2", "GENE3"})
    html = paths[-1].read_text(encoding="utf-8")
    assert 'id="enrichment"' in html
    assert len(table_of(html, "enrichment")) == 6


def test_conditions_have_a_section_a_table_and_a_figure(written, tmp_path, monkeypatch):
    adata = written[0].copy()
    adata.obs["donor"] = [f"d{i % 7}" for i in range(adata.n_obs)]
    adata.obs["state"] = np.where(np.arange(adata.n_obs) % 7 < 3, "well", EVIL)
    found = compare_conditions(
        np.asarray(adata.obsm["X_lda"]), adata.obs, "state", "donor", min_cells=8
    )
    adata.uns["topicell"] = adata.uns["topicell"] | {"conditions": found.stored()}
    for module in (figure_set, page):
        monkeypatch.setattr(module, "FIGURES", {"conditions": module.FIGURES["conditions"]})
    adata.write_h5ad(tmp_path / "adata.h5ad")
    adata = anndata.read_h5ad(tmp_path / "adata.h5ad")
    *_, path = report.write(adata, HISTORY, tmp_path / "out", ReportConfig(), seed=0)
    html = path.read_text(encoding="utf-8")
    assert 'id="conditions"' in html
    assert EVIL not in html
    table = table_of(html, "conditions")
    np.testing.assert_allclose(table["effect"], found.table["effect"], rtol=1e-5)
    text = Page(html).text
    assert "Which topics change with state, tested with 7 samples" in " ".join(text.split())
    assert f"{found.table['q'].min():.2g}" in text
    assert "cannot be below" not in text  # 35 arrangements
    assert "Conditions" not in Page(page.render(written[0], HISTORY, {})).text


def test_the_report_of_a_stored_run_is_the_same(written, html, tmp_path):
    adata, _, _ = written
    adata.copy().write_h5ad(tmp_path / "adata.h5ad")
    stored = anndata.read_h5ad(tmp_path / "adata.h5ad")
    config = ReportConfig(n_top_genes=5)
    paths = report.write(stored, HISTORY, tmp_path, config, seed=5)
    # The maps were stored, so that the seed has no effect.
    assert paths[-1].read_text(encoding="utf-8") == html


def test_a_run_without_labels_history_scores_and_split_has_a_report(tmp_path):
    adata = make_run(label_key="", scores="{}")
    del adata.obs["split"]
    adata.obs["leiden"] = pd.Categorical(["0", "1"] * 30)
    adata.obsm["X_umap_counts"] = adata.obsm["X_umap_topics"] = adata.obsm["X_lda"].to_numpy()[
        :, :2
    ]
    paths = report.write(adata, [], tmp_path, ReportConfig(), seed=0)
    names = {path.stem for path in paths}
    assert not names & {"umap_counts_labels", "umap_topics_labels", "training_curves"}
    text = Page(paths[-1].read_text(encoding="utf-8")).text
    assert "60 cells and 30 genes" in text
    assert "epoch" not in text.split("Warnings")[0]


@pytest.mark.slow
def test_a_page_of_4000_cells_is_small(tmp_path):
    adata = make_run(n_cells=4000, n_topics=10)
    rng = np.random.default_rng(0)
    adata.obs["leiden"] = pd.Categorical(rng.integers(0, 15, 4000).astype(str))
    for space in ("counts", "topics"):
        adata.obsm[f"X_umap_{space}"] = rng.normal(size=(4000, 2))
    *_, html = report.write(adata, HISTORY, tmp_path, ReportConfig(), seed=0)
    assert html.stat().st_size < 5e6


def test_warnings_are_on_the_page(html):
    text = Page(html).words
    assert "1 of 3 topics with little support" in text
    assert "No warnings" not in text


def test_topics_with_little_support_are_marked_everywhere(html):
    text = Page(html).words
    assert "* At most half of the 3 replicates have this topic" in text
    # The card, the maps' control, and the data of the viewer have the same names.
    assert html.count('<option value="topic:1">Topic 1*</option>') == 1
    assert re.search(r"Topic 1\* [\d.]+ % of the average cell[^*]*found in 1 of 3 rep", text)
    assert "Topic 2*" not in text
    # A figure of topics names them with the mark, and its title says what it means.
    svg = html.split('id="figures"')[1].split("<figure")[1:]
    of_topics = [figure for figure in svg if ">Topic 1" in figure]
    assert len(of_topics) >= 5
    for figure in of_topics:
        assert ">Topic 1*<" in figure
        assert ">Topic 1<" not in figure
        assert f"({LITTLE_SUPPORT})" in figure


def test_a_run_without_warnings_says_so():
    adata = make_run(
        n_cells=200, n_topics=4, n_genes=40, topic_support=np.full(4, 2),
        topic_matches=np.ones((2, 4)),
    )  # fmt: skip
    adata.obsm["X_lda"] = 0.8 * np.eye(4)[np.arange(200) % 4] + 0.05
    beta_KG = np.kron(np.eye(4), np.ones(10)) + 1e-3
    adata.varm["lda_topics"] = (beta_KG / beta_KG.sum(1, keepdims=True)).T
    adata.obs["leiden"] = pd.Categorical(["0", "1"] * 100)
    for space in ("counts", "topics"):
        adata.obsm[f"X_umap_{space}"] = np.asarray(adata.obsm["X_lda"])[:, :2]
    text = Page(page.render(adata, HISTORY, {})).text
    assert "Only 10 test cells" in text
    assert "No warnings" not in text
    adata.obs["split"] = pd.Categorical(["train", "test"] * 100)
    text = Page(page.render(adata, HISTORY, {})).text
    assert "No warnings" in text
    assert "near copy of another or has little support." in " ".join(text.split())


def test_the_page_names_the_topics_that_it_omits():
    adata = make_run(n_topics=36)
    adata.obsm["X_umap_counts"] = adata.obsm["X_umap_topics"] = np.random.default_rng(0).normal(
        size=(adata.n_obs, 2)
    )
    adata.obs["leiden"] = "0"
    theta = np.asarray(adata.obsm["X_lda"])
    least = sorted(np.argsort(theta.mean(axis=0))[:6].tolist())
    topics = figure_set.shown_topics(theta)
    assert topics == [topic for topic in range(36) if topic not in least]
    html = page.render(adata, [], {})
    assert html.count('<article class="card"') == 30
    assert not any(f'id="topic-{topic}"' in html for topic in least)
    assert html.count('<option value="topic:') == 36
    assert f"They leave out 6: {page._ranges(least)}." in html
    # Every figure of topics has the others, with their own numbers.
    figure = figures.umap_by_topic(adata.obsm["X_umap_counts"], theta, "title", topics)
    assert [axes.get_title() for axes in figure.axes[:30]] == [f"Topic {k}" for k in topics]
    drawing = dict(figure_set.drawings(figure_set.ReportedRun(adata, [], ReportConfig(), 0, None)))
    legend = drawing["structure"]().legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["6 others", *(f"Topic {k}" for k in topics[::-1])]


def test_no_topic_is_omitted_if_they_are_few():
    adata = make_run()
    assert figure_set.shown_topics(adata.obsm["X_lda"]) is None


@pytest.mark.parametrize(
    ("numbers", "words"), [([0], "0"), ([1, 2, 5], "1, 2, 5"), ([0, 2, 3, 4, 9], "0, 2–4, 9")]
)
def test_consecutive_omitted_topics_are_a_range(numbers, words):
    assert page._ranges(numbers) == words
