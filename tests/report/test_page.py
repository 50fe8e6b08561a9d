"""The page: self-contained, escaped, complete, and its warnings appear when they should."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from topicell import report
from topicell.config import ReportConfig
from topicell.report import page

EVIL = "<script>alert('x')</script>"
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
    # the awkward gene leads topic 0, so figures, table and FREX all have to show it
    beta[0, 0] = 1
    beta /= beta.sum(1, keepdims=True)
    adata.obsm["X_lda"] = pd.DataFrame(theta, index=cells).add_prefix("topic_")
    adata.varm["lda_topics"] = beta.T
    adata.obs["split"] = pd.Categorical(["train"] * (n_cells - 15) + ["valid"] * 5 + ["test"] * 10)
    adata.obs["kind"] = pd.Categorical(["left", EVIL] * (n_cells // 2))
    adata.uns["topicell"] = {
        "config": json.dumps({"seed": 0, "model": {"n_topics": n_topics, "init": EVIL}}),
        "scores": json.dumps(SCORES),
        "run_id": "abc123",
        "version": "1.2.3",
        "label_key": "kind",
        "data": f"cells & {EVIL}",
        "source": "https://example.org/cells.h5ad",
        "created": "2025-01-01",
        **uns,
    }
    return adata


class Tags(HTMLParser):
    """Every tag with its attributes, and all visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # tags close in order

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    adata = make_run(topic_stability=np.array([0.9, 0.65, 0.8]), topic_support=np.array([4, 2, 3]))
    gap = np.random.default_rng(0).exponential(3.0, adata.n_obs)
    adata.obs["amortization_gap"] = np.where(np.arange(adata.n_obs) < 50, gap, np.nan)
    paths = report.write(adata, HISTORY, directory, ReportConfig(n_top_genes=5), seed=0)
    return adata, directory, paths


@pytest.fixture(scope="module")
def html(written):
    return written[2][-1].read_text(encoding="utf-8")


def test_files(written):
    _, directory, paths = written
    names = {
        *(
            f"umap_{space}_{by}"
            for space in ("counts", "topics")
            for by in ("topics", "leiden", "labels")
        ),
        "training_curves",
        "top_genes",
        "structure",
        "amortization_gap",
    }
    assert set(paths) == {directory / "figures" / f"{n}.png" for n in names} | {
        directory / "report.html"
    }
    assert paths[-1] == directory / "report.html"
    assert names == set(page.FIGURES)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[:-1])


def test_images_on_the_page_are_the_files(written, html):
    images = [attrs for tag, attrs in Tags(html).tags if tag == "img"]
    inside = [
        base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images
    ]
    assert sorted(inside) == sorted(path.read_bytes() for path in written[2][:-1])


def test_every_figure_has_alternative_text_caption_and_size(html):
    parsed = Tags(html)
    images = [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert len(images) == len({image["alt"] for image in images}) == 10
    assert all(len(image["alt"]) > 20 and "{" not in image["alt"] for image in images)
    assert all(int(image["width"]) > 300 and int(image["height"]) > 200 for image in images)
    assert sum(tag == "figcaption" for tag, _ in parsed.tags) == 10


def test_nothing_is_loaded_from_elsewhere(html):
    for tag, attrs in Tags(html).tags:
        assert tag not in {"script", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attrs.get(name) or "#").startswith(("data:", "#")), (tag, attrs[name][:80])
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", html, re.IGNORECASE)
    assert not re.search(r"url\(|@import", html)


def test_names_are_harmless_and_still_readable(html):
    assert "<script" not in html
    # data twice, gene twice in the table at least, and the configuration
    assert Tags(html).text.count(EVIL) >= 5


def test_page_says_what_was_run(html):
    text = Tags(html).text
    assert "3 topics in cells & " in text
    assert "abc123" in text
    assert "1.2.3" in text
    assert "60 cells and 30 genes; 45 to train on, 5 to validate on, 10 kept to test on" in text
    assert "12 epochs" in text
    assert "model.n_topics=3" in text
    assert "seed=0" in text


def test_scores_are_all_there_and_explained(html):
    text = " ".join(Tags(html).text.split())
    assert text.count("42.42") == 2  # headline and table
    assert "Lower is better" in text
    assert "not defined" in text
    assert "our/new_score" in text
    assert "−3" in text


def test_gene_table_holds_the_leading_genes_with_their_proportions(written, html):
    adata, _, _ = written
    beta_GK = adata.varm["lda_topics"]
    text = " ".join(Tags(html).text.split())
    for topic in range(3):
        for gene in np.argsort(-beta_GK[:, topic])[:5]:
            assert f"{adata.var_names[gene]} {100 * beta_GK[gene, topic]:.1f} %" in text


def test_report_of_a_stored_run_is_the_same(written, html, tmp_path):
    adata, _, _ = written
    adata.copy().write_h5ad(tmp_path / "adata.h5ad")
    stored = anndata.read_h5ad(tmp_path / "adata.h5ad")
    paths = report.write(stored, HISTORY, tmp_path, ReportConfig(n_top_genes=5), seed=5)
    # maps were stored, so the seed moves nothing
    assert paths[-1].read_text(encoding="utf-8") == html


def test_without_labels_history_scores_or_split(tmp_path):
    adata = make_run(label_key="", scores="{}")
    del adata.obs["split"]
    adata.obs["leiden"] = pd.Categorical(["0", "1"] * 30)
    adata.obsm["X_umap_counts"] = adata.obsm["X_umap_topics"] = adata.obsm["X_lda"].to_numpy()[
        :, :2
    ]
    paths = report.write(adata, [], tmp_path, ReportConfig(), seed=0)
    names = {path.stem for path in paths}
    assert not names & {"umap_counts_labels", "umap_topics_labels", "training_curves"}
    text = Tags(paths[-1].read_text(encoding="utf-8")).text
    assert "60 cells and 30 genes" in text
    assert "epoch" not in text.split("Figures")[0]


def test_page_of_four_thousand_cells_is_small(tmp_path):
    adata = make_run(n_cells=4000, n_topics=10)
    rng = np.random.default_rng(0)
    adata.obs["leiden"] = pd.Categorical(rng.integers(0, 15, 4000).astype(str))
    for space in ("counts", "topics"):
        adata.obsm[f"X_umap_{space}"] = rng.normal(size=(4000, 2))
    *_, html = report.write(adata, HISTORY, tmp_path, ReportConfig(), seed=0)
    assert html.stat().st_size < 5e6


# Warnings


def distinct(n_topics: int = 4, n_genes: int = 40) -> np.ndarray:
    beta_KG = np.kron(np.eye(n_topics), np.ones(n_genes // n_topics)) + 1e-3
    return beta_KG / beta_KG.sum(1, keepdims=True)


def balanced(n_topics: int = 4, n_cells: int = 400) -> np.ndarray:
    return 0.8 * np.eye(n_topics)[np.arange(n_cells) % n_topics] + 0.2 / n_topics


def test_no_cautions_for_a_sound_fit():
    assert list(page.cautions(balanced(), distinct(), np.full(4, 0.7))) == []
    assert list(page.cautions(balanced(), distinct(), None)) == []


@pytest.mark.parametrize(("n_dominant", "warned"), [(0, True), (4, True), (5, False)])
def test_unused_topic(n_dominant, warned):
    theta_NK = balanced(3)[np.arange(400)]
    theta_NK = np.column_stack([theta_NK, np.zeros(400)])
    theta_NK[:n_dominant] = [0, 0, 0, 1]
    found = list(page.cautions(theta_NK, distinct(), None))
    if warned:
        ((heading, text),) = found
        assert heading == "1 of 4 topics hardly used"
        assert text.startswith("Topic 3 is")
    else:
        assert found == []


@pytest.mark.parametrize(("cosine", "warned"), [(0.94, False), (0.96, True)])
def test_near_copies(cosine, warned):
    beta_KG = distinct()
    unit_KG = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    between = unit_KG[0] @ unit_KG[2]
    # the mix of topics 0 and 2 whose cosine with topic 0 is the one asked for
    weight = next(
        w
        for w in np.linspace(0, 1, 100_001)
        if (1 - w + w * between) / np.sqrt((1 - w) ** 2 + w**2 + 2 * w * (1 - w) * between)
        <= cosine
    )
    beta_KG[2] = (1 - weight) * unit_KG[0] + weight * unit_KG[2]
    beta_KG[2] /= beta_KG[2].sum()
    found = list(page.cautions(balanced(), beta_KG, None))
    assert bool(found) == warned
    if warned:
        assert f"topics 0 and 2 ({cosine:.3f})" in found[0][1]


def test_unstable_topics():
    ((heading, text),) = page.cautions(balanced(), distinct(), np.array([0.9, 0.69, 0.7, 0.1]))
    assert heading == "2 of 4 topics not found again"
    assert "topics 1 (0.690), 3 (0.100)" in text


def test_cautions_are_on_the_page(html):
    text = " ".join(Tags(html).text.split())
    assert "1 of 3 topics not found again" in text
    assert "No warnings" not in text


def test_limits():
    assert list(page.limits(30, replicated=True)) == []
    assert list(page.limits(0, replicated=True)) == []
    assert [heading for heading, _ in page.limits(29, replicated=False)] == [
        "Only 29 test cells",
        "One replicate, so no stability",
    ]


def test_a_sound_run_says_so():
    adata = make_run(n_cells=200, n_topics=4, n_genes=40, topic_stability=np.ones(4))
    adata.obsm["X_lda"] = balanced(4, 200)
    adata.varm["lda_topics"] = distinct().T
    text = Tags(page.render(adata, HISTORY, {})).text
    assert "Only 10 test cells" in text
    assert "No warnings" not in text
    adata.obs["split"] = pd.Categorical(["train", "test"] * 100)
    text = Tags(page.render(adata, HISTORY, {})).text
    assert "No warnings" in text
    assert "near copy of another or unstable." in " ".join(text.split())
