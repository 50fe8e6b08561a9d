"""The report in a real browser, from disk and without a network.

Pixels are compared with the AnnData of the run; positions and colours are computed here.
"""

from __future__ import annotations

import base64
import io
import json
import re
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.stats import spearmanr

from topicell import report
from topicell.comparison import page as compare
from topicell.comparison.values import Comparison, Match, Pairing, Score, Side, Unmatched, Value
from topicell.config import ReportConfig
from topicell.report.figures import topic_colors
from topicell.sweep import page as sweep_page
from topicell.sweep.selection import select
from topicell.sweep.trials import PERPLEXITY, Sweep, Trial

EVIL = "<script>alert('x')</script>"
N, G, K = 120, 30, 3
WIDTH = 900
"""Width of the window in pixels; both maps are side by side."""
SIDE = 11
"""Cells are on a grid of SIDE × SIDE, so that a pointer separates them."""
FILL = 0.94
"""Share of the smaller side of a map that its cells fill."""
FAINT = "#dfe3e8"
"""Colour of cells in groups that are not selected, on a light page."""
SPACES = ("counts", "topics")
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the AnnData of a run and the path of its report."""
    rng = np.random.default_rng(0)
    theta = rng.dirichlet(np.full(K, 0.3), N)
    beta = rng.dirichlet(np.full(G, 0.2), K)
    beta[0, 0] = 1  # the gene EVIL leads topic 0
    beta[2, 2] = 1e-9
    beta /= beta.sum(1, keepdims=True)
    counts = np.stack([rng.multinomial(300, p / p.sum()) for p in theta @ beta]).astype(np.float32)
    cells = pd.Index([f"cell_{i}" for i in range(N)])
    adata = AnnData(
        sp.csr_matrix(np.log1p(counts)),
        obs=pd.DataFrame(index=cells),
        var=pd.DataFrame(index=[EVIL] + [f"Gene-{i}" for i in range(1, G)]),
        layers={"counts": sp.csr_matrix(counts)},
    )
    adata.obsm["X_lda"] = pd.DataFrame(theta, cells).add_prefix("topic_")
    adata.varm["lda_topics"] = beta.T
    adata.obs["split"] = pd.Categorical(["train"] * (N - 15) + ["valid"] * 5 + ["test"] * 10)
    adata.obs["kind"] = pd.Categorical(["left", EVIL] * (N // 2))
    adata.obs["leiden"] = pd.Categorical(np.arange(N) * 4 // N)
    places = np.stack(np.divmod(np.arange(SIDE**2), SIDE), axis=1)[rng.permutation(SIDE**2)]
    for space, stretch in (("counts", [1.0, 0.8]), ("topics", [0.9, 1.0])):
        jitter = rng.uniform(-0.1, 0.1, (N, 2))
        adata.obsm[f"X_umap_{space}"] = (rng.permutation(places)[:N] + jitter) * stretch - 4.0
    adata.uns["topicell"] = {
        "config": json.dumps({"seed": 0, "model": {"n_topics": K}}),
        "scores": json.dumps({"test/perplexity_folded": 42.4242, "labels/nmi": 0.5}),
        "run_id": "abc123",
        "version": "1.2.3",
        "label_key": "kind",
        "data": f"cells & {EVIL}",
        "source": "https://example.org/cells.h5ad",
        "created": "2025-01-01",
        "topic_stability": np.array([0.9, 0.65, 0.8]),
        "topic_support": np.array([4, 2, 3]),
    }
    folder = tmp_path_factory.mktemp("report")
    history = [{"epoch": e, "train/elbo": -9.0 + e, "valid/elbo": -9.5 + e} for e in range(3)]
    report.add_differential_expression(adata, 100_000, 0)
    *_, path = report.write(adata, history, folder, ReportConfig(n_top_genes=8, dpi=50), seed=0)
    return adata, path


def page_with_problems(context, path):
    """Return a page that may load only its own file, and a list of all its problems."""
    context.set_offline(True)
    problems = []

    def answer(route):
        if route.request.url == path.as_uri():
            route.continue_()
        else:
            problems.append(f"asked for {route.request.url}")
            route.abort()

    def note(message):
        # The driver warns about reading pixels, which these tests do.
        if "GPU stall due to ReadPixels" not in message.text:
            problems.append(f"{message.type}: {message.text}")

    context.route("**/*", answer)
    page = context.new_page()
    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
    return page, problems


def open_from_disk(page, path):
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=600_000)


@contextmanager
def visit(browser, path, width=WIDTH, first="", **options):
    """Open a page in its own window; `first` is a script that runs before those of the page."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    context.add_init_script(first)
    try:
        page, problems = page_with_problems(context, path)
        open_from_disk(page, path)
        yield page
        assert problems == []
    finally:
        context.close()


@pytest.fixture(scope="module")
def window(browser, run):
    """Return a window that tests share, because creating one takes time."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 800})
    yield page_with_problems(context, run[1])
    context.close()


@pytest.fixture
def page(window, run):
    """Return the freshly opened page."""
    page, problems = window
    problems.clear()
    page.mouse.move(0, 0)
    open_from_disk(page, run[1])
    yield page
    assert problems == []


def decoded(png):
    """Return the pixels of a picture, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def pictures(page):
    """Return the pixels of both maps."""
    drawn = [map_of(page, space).evaluate("canvas => canvas.toDataURL()") for space in SPACES]
    return [decoded(base64.b64decode(url.partition(",")[2])) for url in drawn]


def map_of(page, space):
    return page.locator(f"#map-{space}")


def in_view(page, space):
    """Scroll a map into view; return its corner in the window and its size."""
    map_of(page, space).scroll_into_view_if_needed()
    box = map_of(page, space).bounding_box()
    return np.array([box["x"], box["y"]]), (box["width"], box["height"])


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def all_differ(one, other):
    return all(np.mean(np.any(a != b, axis=2)) > 0.01 for a, b in zip(one, other, strict=True))


def places(adata, space, width, height):
    """Return the positions of the cells on a map of that size, in pixels, (N, 2)."""
    xy = adata.obsm[f"X_umap_{space}"]
    low, high = xy.min(axis=0), xy.max(axis=0)
    scale = FILL * min(width, height) / (high - low).max()
    return np.array([width, height]) / 2 + (xy - (low + high) / 2) * [scale, -scale]


def colors_of_cells(adata, space, picture):
    """Return the pixel in the middle of each cell, (N, 3)."""
    x, y = places(adata, space, picture.shape[1], picture.shape[0]).astype(int).T
    return picture[y, x]


def rgb(color):
    return np.rint(np.multiply(255, to_rgb(color))).astype(int)


def choose(page, label):
    page.get_by_label("Colour by").select_option(label=label)


def look_up(page, gene):
    page.get_by_label("Gene", exact=True).fill(gene)
    page.get_by_role("button", name="Find").click()


def near(value, expected, relative=0.06):
    """Return whether a number written with two digits is the expected one."""
    return np.isclose(float(value.replace("−", "-")), expected, rtol=relative, atol=0.006)


@pytest.mark.parametrize("theme", THEMES)
def test_the_page_opens_from_disk_and_loads_nothing_else(browser, run, theme):
    with visit(browser, run[1], color_scheme=theme) as page:
        assert page.title() == f"{K} topics in cells & {EVIL}"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = np.mean([int(part) for part in re.findall(r"\d+", background)])
        assert (lightness > 127) == (theme == "light")
        for picture in pictures(page):
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > K


def test_the_theme_button_changes_page_and_maps(page):
    backgrounds, maps = [], []
    for _ in range(3):
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        maps.append(pictures(page))
        page.get_by_role("button", name="Light or dark").click()
    assert backgrounds[0] == backgrounds[2] != backgrounds[1]
    assert same(maps[0], maps[2])
    assert all_differ(maps[0], maps[1])


@pytest.mark.parametrize("theme", THEMES)
def test_cells_have_the_colour_of_their_dominant_topic(browser, run, theme):
    adata, path = run
    expected = np.array([rgb(color) for color in topic_colors(K)])
    expected = expected[np.asarray(adata.obsm["X_lda"]).argmax(axis=1)]
    with visit(browser, path, color_scheme=theme) as page:
        for space, picture in zip(SPACES, pictures(page), strict=True):
            assert np.abs(colors_of_cells(adata, space, picture) - expected).max() <= 2
            # The screenshot shows the same as the canvas.
            seen = decoded(map_of(page, space).screenshot())
            assert np.abs(colors_of_cells(adata, space, seen) - expected).max() <= 2


def test_selecting_a_topic_recolours_both_maps(run, page):
    adata, _ = run
    first = pictures(page)
    choose(page, "Topic 1")
    by_topic = pictures(page)
    assert all_differ(first, by_topic)
    assert "Topic 1" in page.locator("#map-legend").inner_text()
    for space, picture in zip(SPACES, by_topic, strict=True):
        lightness = colors_of_cells(adata, space, picture).mean(axis=1)
        assert spearmanr(lightness, adata.obsm["X_lda"]["topic_1"]).statistic < -0.99
    choose(page, "Dominant topic")
    assert same(first, pictures(page))


def test_the_button_of_a_card_colours_the_maps_by_its_topic(page):
    page.locator("#topic-2").get_by_role("button", name="Show on the maps").click()
    drawn = pictures(page)
    assert page.get_by_label("Colour by").input_value() == "topic:2"
    choose(page, "Topic 2")
    assert same(drawn, pictures(page))


def test_groups_are_selected_in_the_legend(run, page):
    adata, _ = run
    choose(page, "Leiden cluster")
    all_groups = pictures(page)
    buttons = page.locator("#map-legend").get_by_role("button")
    said = [re.findall(r"\d+", text) for text in buttons.all_inner_texts()]
    sizes = adata.obs["leiden"].value_counts(sort=False)
    assert said == [[str(name), str(size)] for name, size in sizes.items()]

    def require(picked):
        states = [button.get_attribute("aria-pressed") for button in buttons.all()]
        assert states == ["true" if group in picked else "false" for group in range(4)]
        expected = adata.obs["leiden"].isin(picked).to_numpy()
        for space, picture in zip(SPACES, pictures(page), strict=True):
            from_faint = np.abs(colors_of_cells(adata, space, picture) - rgb(FAINT)).max(axis=1)
            assert ((from_faint > 2) == expected).all()

    buttons.nth(2).click()
    require({2})
    buttons.nth(0).click()
    require({0, 2})
    buttons.nth(2).click()
    require({0})
    buttons.nth(0).click()
    assert all(button.get_attribute("aria-pressed") == "false" for button in buttons.all())
    assert same(all_groups, pictures(page))


def tip_at(page, place):
    """Return the lines of the tip at a position in the window."""
    page.mouse.move(*place)
    return page.locator("#map-tip").inner_text().splitlines()


@pytest.mark.parametrize("space", SPACES)
def test_pointing_at_a_cell_names_it_and_marks_it_on_both_maps(run, page, space):
    adata, _ = run
    theta_NK = np.asarray(adata.obsm["X_lda"])
    in_view(page, space)
    where = {}
    for at in SPACES:
        corner, size = in_view(page, at)
        where[at] = corner + places(adata, at, *size)
    rings = page.locator(".ring").all()
    # Also cells at the edges, where there is little space for the tip.
    for cell in {0, 57, *where[space].argmin(axis=0), *where[space].argmax(axis=0)}:
        name, *lines = tip_at(page, where[space][cell] + [3, -3])
        assert name == adata.obs_names[cell]
        assert f"Label: {adata.obs['kind'].iloc[cell]}" in lines
        assert f"Leiden cluster: {adata.obs['leiden'].iloc[cell]}" in lines
        first = theta_NK[cell].argmax()
        (share,) = (line.split(": ")[1] for line in lines if line.startswith(f"Topic {first}: "))
        assert abs(int(share.removesuffix(" %")) - 100 * theta_NK[cell, first]) <= 1
        for at, ring in zip(SPACES, rings, strict=True):
            box = ring.bounding_box()
            center = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
            assert np.abs(center - where[at][cell]).max() < 1.5
        tip = page.locator("#map-tip").bounding_box()
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= WIDTH
    page.mouse.move(2, 2)
    assert not page.locator("#map-tip").is_visible()
    assert not any(ring.is_visible() for ring in rings)


def test_pointing_between_cells_names_nothing(run, page):
    adata, _ = run
    corner, (width, height) = in_view(page, "counts")
    cells = places(adata, "counts", width, height)
    grid = np.stack(np.mgrid[5 : width - 5 : 5, 5 : height - 5 : 5], axis=-1).reshape(-1, 2)
    away = np.linalg.norm(grid[:, None] - cells, axis=2).min(axis=1)
    page.mouse.move(*(corner + cells[0]))
    assert page.locator("#map-tip").is_visible()
    page.mouse.move(*(corner + grid[away.argmax()]))
    assert not page.locator("#map-tip").is_visible()


def test_the_tip_has_the_value_of_the_selected_gene(run, page):
    adata, _ = run
    look_up(page, "gene-3")
    corner, size = in_view(page, "counts")
    value_N = adata.X[:, 3].toarray().ravel()
    cell = np.argsort(value_N)[3 * N // 4]
    lines = tip_at(page, corner + places(adata, "counts", *size)[cell])
    (value,) = (line.split(": ")[1] for line in lines if line.startswith("Gene-3: "))
    assert abs(float(value) - value_N[cell]) <= value_N.max() / 255


def test_keys_zoom_move_and_reset_a_map(page):
    first = pictures(page)
    map_of(page, "counts").focus()
    seen = [first[0]]
    for key in ("+", "ArrowLeft", "ArrowUp", "-", "ArrowRight"):
        page.keyboard.press(key)
        picture, other = pictures(page)
        assert not any(np.array_equal(picture, before) for before in seen)
        assert np.array_equal(other, first[1])
        seen.append(picture)
    page.keyboard.press("0")
    assert same(first, pictures(page))
    page.keyboard.press("+")
    assert not same(first, pictures(page))
    page.get_by_role("button", name="Reset the view").click()
    assert same(first, pictures(page))


def test_a_tap_names_a_cell(browser, run):
    adata, path = run
    with visit(browser, path, has_touch=True) as page:
        corner, size = in_view(page, "topics")
        cells = corner + places(adata, "topics", *size)
        for cell in (3, 70):
            page.touchscreen.tap(*cells[cell])
            assert page.locator("#map-tip strong").inner_text() == adata.obs_names[cell]
        page.touchscreen.tap(2, 2)
        assert not page.locator("#map-tip").is_visible()


def test_dragging_moves_a_map_with_the_pointer(run, page):
    adata, _ = run
    corner, size = in_view(page, "counts")
    page.mouse.move(*(corner + 250))
    page.mouse.down()
    page.mouse.move(*np.add(corner, [230, 265]), steps=3)
    page.mouse.up()
    place = places(adata, "counts", *size)[5] + [-20, 15]
    assert tip_at(page, corner + place)[0] == adata.obs_names[5]


def test_the_wheel_scrolls_the_page_or_zooms_a_clicked_map(run, page):
    adata, _ = run
    first = pictures(page)
    corner, size = in_view(page, "counts")
    before = page.evaluate("scrollY")
    page.mouse.move(*(corner + np.divide(size, 2)))
    page.mouse.wheel(0, 60)
    page.wait_for_function("before => scrollY === before + 60", arg=before)
    assert same(first, pictures(page))

    corner = corner - [0, 60]
    pointer = np.array([200, 180])
    page.mouse.click(*(corner + pointer))
    drawn = map_of(page, "counts").evaluate("canvas => canvas.toDataURL()")
    page.mouse.wheel(0, -100)
    page.wait_for_function(
        "drawn => document.getElementById('map-counts').toDataURL() !== drawn", arg=drawn
    )
    assert page.evaluate("scrollY") == before + 60
    # The cell under the pointer stays there, and its neighbours move away from it.
    cells = places(adata, "counts", *size)
    cell = np.linalg.norm(cells - pointer, axis=1).argmin()
    place = pointer + (cells[cell] - pointer) * np.exp(100 / 400)
    assert tip_at(page, corner + place)[0] == adata.obs_names[cell]


def test_a_gene_is_found_in_any_case(run, page):
    adata, _ = run
    beta_KG = adata.varm["lda_topics"].T
    first = pictures(page)
    for gene in ("gene-7", "GENE-7", " Gene-7 "):
        look_up(page, gene)
        found = page.locator("#gene-found")
        assert found.locator("strong").inner_text() == "Gene-7"
        heads = found.locator("thead th").all_inner_texts()
        rows = [row.locator("th, td").all_inner_texts() for row in found.locator("tbody tr").all()]
        order = np.argsort(-beta_KG[:, 7])
        assert [row[0] for row in rows] == [f"Topic {topic}" for topic in order]
        for row, topic in zip(rows, order, strict=True):
            values = dict(zip(heads, (text.split(" %")[0] for text in row), strict=True))
            share_K = beta_KG[:, 7] / beta_KG[:, 7].sum()
            assert near(values["Proportion in the topic"], 100 * beta_KG[topic, 7])
            assert abs(float(values["Share of the gene"]) - 100 * share_K[topic]) <= 0.5001
            assert near(values["log₂ fold change"], adata.varm["lda_lfc"][7, topic])
            q = adata.varm["lda_q"][7, topic]
            assert near(values["q"], q, 0.5) if q >= 1e-30 else values["q"] == "< 1e−30"
    select = page.get_by_label("Colour by")
    assert select.input_value() == "gene:Gene-7"
    assert page.locator("#color-genes option").all_inner_texts() == ["Gene-7"]
    drawn = pictures(page)
    assert all_differ(first, drawn)
    value_N = adata.X[:, 7].toarray().ravel()
    for space, picture in zip(SPACES, drawn, strict=True):
        lightness = colors_of_cells(adata, space, picture).mean(axis=1)
        assert spearmanr(lightness, value_N).statistic < -0.98
    choose(page, "Dominant topic")
    assert same(first, pictures(page))
    page.get_by_role("button", name="Show on the maps").last.click()
    assert select.input_value() == "gene:Gene-7"


def test_proportions_of_every_gene_are_those_of_the_model(run, page):
    adata, _ = run
    for gene, beta_K in zip(adata.var_names, adata.varm["lda_topics"], strict=True):
        page.locator("#gene").fill(gene)
        page.keyboard.press("Enter")
        rows = page.locator("#gene-found tbody tr").all_inner_texts()
        shares = {row.split("\t")[0].strip(): row.split("\t")[1].split("%")[0] for row in rows}
        for topic, beta in enumerate(beta_K):
            text = shares[f"Topic {topic}"].strip()
            least = text.startswith("< ")
            assert 100 * beta < float(text[2:]) if least else near(text, 100 * beta), (gene, text)


def test_an_unknown_gene_is_named_with_similar_ones(page):
    look_up(page, "ene-1")
    said = page.locator("#gene-found").inner_text()
    assert f"ene-1 is none of the {G} genes" in said
    assert all(f"Gene-{i}" in said for i in (1, 10, 11, 12, 13, 14, 15))
    look_up(page, "nothing<b>like</b>it")
    said = page.locator("#gene-found").inner_text()
    assert "nothing<b>like</b>it is none of" in said
    assert "Like it" not in said
    look_up(page, "")
    assert page.locator("#gene-found").inner_text() == ""


def test_a_name_with_a_tag_is_text(run, page):
    scripts = page.locator("script").count()
    page.locator("#topic-0").get_by_role("button", name=EVIL).locator("visible=true").click()
    assert page.locator("#gene-found strong").inner_text() == EVIL
    assert page.locator("#gene").input_value() == EVIL
    assert page.locator("#color-genes option").all_inner_texts() == [EVIL]
    assert EVIL in page.locator("#map-legend").inner_text()
    choose(page, "Label")
    assert EVIL in page.locator("#map-legend").inner_text()
    assert page.locator("script").count() == scripts


def test_one_ranking_is_visible_at_a_time(page):
    for ranking in ("Probability", "Relevance", "FREX"):
        page.get_by_label(ranking, exact=True).check()
        visible = page.locator("#topic-1 .genes").locator("visible=true")
        assert visible.count() == 1
        assert ranking.lower() in visible.get_attribute("class")
        assert visible.get_by_role("button").count() == 8


def downloaded(page, name):
    with page.expect_download() as begun:
        page.get_by_role("button", name=f"{name}.csv", exact=True).click()
    assert begun.value.suggested_filename == f"{name}.csv"
    return pd.read_csv(begun.value.path(), index_col=0)


def test_every_table_can_be_downloaded_with_the_numbers_of_the_run(run, page):
    adata, _ = run
    names = page.locator("#tables button").all_inner_texts()
    assert len(names) >= 6
    # Chromium allows ten downloads from a page.
    tables = {name: downloaded(page, name) for name in (n.removesuffix(".csv") for n in names)}
    assert not any(table.empty for table in tables.values())
    digits = {"rtol": 5e-6, "atol": 0}
    cells = tables["cell_topics"]
    assert list(cells.index) == list(adata.obs_names)
    np.testing.assert_allclose(cells, adata.obsm["X_lda"], **digits)
    genes = tables["gene_topics"]
    assert list(genes.index) == list(adata.var_names)
    assert list(genes) == list(adata.obsm["X_lda"])
    np.testing.assert_allclose(genes, adata.varm["lda_topics"], **digits)
    table = tables["differential_expression"].reset_index()
    assert len(table) == (adata.varm["lda_q"] < 0.05).sum() > 0
    gene = adata.var_names.get_indexer(table["gene"])
    topic = table["topic"].str.removeprefix("topic_").astype(int)
    for column, key in [
        ("rate", "rate"),
        ("log2_fold_change", "lfc"),
        ("standard_error", "lfc_se"),
        ("p", "p"),
        ("q", "q"),
    ]:
        np.testing.assert_allclose(table[column], adata.varm[f"lda_{key}"][gene, topic], **digits)


OUTSIDE_THE_SCREEN = """() => {
  const scrolls = (element) => element !== document.body
    && (/auto|scroll|hidden/.test(getComputedStyle(element).overflowX)
      || scrolls(element.parentElement));
  return [...document.body.querySelectorAll("*")]
    .filter((element) => !element.matches(".skip") && !scrolls(element.parentElement))
    .map((element) => [element, element.getBoundingClientRect()])
    .filter(([, box]) => box.width && (box.left < -0.5 || box.right > innerWidth + 0.5))
    .map(([element, box]) => `${element.outerHTML.slice(0, 80)} ${box.left} ${box.right}`);
}"""
COVERED = """(element) => {
  element.scrollIntoView({ block: "center", behavior: "instant" });
  const box = element.getBoundingClientRect();
  const on_top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  return !(element === on_top || element.contains(on_top));
}"""


@pytest.mark.parametrize("width", [400, 320])
def test_everything_fits_on_a_narrow_screen(browser, run, width):
    with visit(browser, run[1], width=width, has_touch=True) as page:
        for state in (lambda: None, lambda: choose(page, "Label"), lambda: look_up(page, "Gene-2")):
            state()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(OUTSIDE_THE_SCREEN) == []
        controls = page.locator("button, select, input, summary").locator("visible=true").all()
        assert len(controls) > 20
        assert not [c.evaluate("e => e.outerHTML") for c in controls if c.evaluate(COVERED)]
        first = pictures(page)
        choose(page, "Topic 0")
        assert all_differ(first, pictures(page))
        # Figures stay large enough to read: at least 0.7 of their size.
        for figure in page.locator(".sheet svg").all():
            dots = "svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
            assert figure.evaluate(dots) > 0.7


def test_a_printed_page_has_all_sections_and_no_controls(browser, run):
    with visit(browser, run[1]) as page:
        choose(page, "Label")
        page.emulate_media(media="print")
        groups = page.locator(".groups button")
        assert groups.count() == 2
        assert all(group.is_visible() for group in groups.all())
        controls = "button:not(.gene, .groups button), select, input, nav"
        for control in page.locator(controls).all():
            assert not control.is_visible(), control.evaluate("e => e.outerHTML")
        for section in ("warnings", "maps", "topics", "figures", "scores", "how"):
            assert page.locator(f"#{section}").is_visible()
        assert page.locator(".card").count() == K
        paper = page.pdf()
        assert paper.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", paper)) > 2


def test_without_webgl_only_the_maps_are_missing(browser, run):
    none = "HTMLCanvasElement.prototype.getContext = () => null;"
    with visit(browser, run[1], first=none) as page:
        assert "WebGL" in page.locator("#map-status").inner_text()
        assert not page.locator("canvas").first.is_visible()
        assert not page.get_by_label("Colour by").is_visible()
        look_up(page, "gene-4")
        assert page.locator("#gene-found tbody tr").count() == K
        assert page.get_by_role("button", name="Show on the maps").count() == 0
        assert len(downloaded(page, "gene_topics")) == G
        page.get_by_role("button", name="Light or dark").click()
        assert page.locator("html").get_attribute("data-theme") == "dark"


def test_without_scripts_the_page_is_readable(browser, run):
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(run[1].as_uri())
        assert page.locator("noscript").is_visible()
        assert page.locator("#theme").is_hidden()
        assert page.locator(".sheet svg").count() == page.locator(".sheet").count() > 5
        assert page.locator(".card .genes").locator("visible=true").count() == K
    finally:
        context.close()


RUNS = "window.ran=true"
HOSTILE = [
    f"<script>{RUNS}</script>",
    f'"><img src=x onerror={RUNS}>',
    f"' onmouseover='{RUNS}' autofocus onfocus='{RUNS}",
    f"</script><script>{RUNS}</script>",
    f"</style></title></svg><svg onload={RUNS}>",
    f"]]><svg onload={RUNS}>",
    f"--><img src=x onerror={RUNS}>",
    f"javascript:{RUNS}",
    f"${{{RUNS}}}`${{{RUNS}}}`",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{x$ &lt;b&gt; \\u003cscript\\u003e",
    "=cmd|' /C calc'!A0",
    "__proto__",
    "constructor",
]
"""Names that would run, or change, if they were not treated as text."""
TITLE = "".join(HOSTILE[:8])


def named(n):
    """Return n different names."""
    return [HOSTILE[i % len(HOSTILE)] + (f" {i}" if i >= len(HOSTILE) else "") for i in range(n)]


@pytest.fixture(scope="module")
def hostile(run, tmp_path_factory):
    """Return the same cells with hostile names, and the path of their report."""
    folder = tmp_path_factory.mktemp("hostile")
    adata = run[0].copy()
    adata.obs_names, adata.var_names = named(N), named(G)
    adata.obs[TITLE] = pd.Categorical(named(N)[:5] * (N // 5))
    adata.obs["leiden"] = adata.obs["leiden"].cat.rename_categories(HOSTILE[5:9])
    of_run = {
        name: f"{name} {TITLE}" for name in ("run_id", "version", "data", "source", "created")
    }
    config = {"seed": 0, "tracking": {"run_name": TITLE}, TITLE: TITLE, "model": {"n_topics": K}}
    texts = {"config": json.dumps(config), "scores": json.dumps({TITLE: 1.0, "topics/used": 3})}
    adata.uns["topicell"] = adata.uns["topicell"] | of_run | texts | {"label_key": TITLE}
    sets = folder / "sets.gmt"
    lines = (
        f"{name}\t{name}\t" + "\t".join(adata.var_names[i::3]) for i, name in enumerate(HOSTILE)
    )
    sets.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = ReportConfig(n_top_genes=G, dpi=50, gene_sets=str(sets))
    report.add_differential_expression(adata, 100_000, 0)
    *_, path = report.write(adata, [], folder / "report", config, seed=0)
    return adata, path


def compared(folder):
    """Write a comparison of runs with hostile names."""
    sides = tuple(
        Side(
            letter=letter,
            name=f"{letter}{TITLE}",
            data=TITLE,
            model=TITLE,
            made="2026-01-02T03:04:05+00:00",
            run_id=TITLE if letter == "A" else "",
            folder=TITLE,
            tags={TITLE: TITLE},
            versions={TITLE: f"{letter}{TITLE}"},
            history=[],
        )
        for letter in "AB"
    )
    value = Value(3.0, 0.1, "replicates", (3.0, 3.1))
    match = Match(0, 1, 0.9, (1, 0.3), tuple(HOSTILE), 0.2, 0.5, 0.1)
    unmatched = Unmatched(1, 0, 0.6, 0.4, tuple(HOSTILE))
    pairing = Pairing(
        letters=("A", "B"),
        n_genes=(30, 20, 10),
        share=(0.5, 0.75),
        n_cells=60,
        cosine_KK=np.array([[0.1, 0.9], [0.6, 0.2]]),
        matches=(match,),
        unmatched=((unmatched,), (unmatched,)),
    )
    found = Comparison(
        sides=sides,
        warnings=((TITLE, TITLE),),
        parameters={TITLE: (TITLE, "other"), f"{TITLE}2": (TITLE, TITLE)},
        scores=(Score(TITLE, (value, value), None, TITLE), Score(PERPLEXITY, (value,) * 2, 0, "")),
        pairings=(pairing,),
        version=TITLE,
        created=TITLE,
    )
    return compare.write(found, folder)


def swept(folder):
    """Write a sweep with hostile settings, and a hostile address of the server."""
    values = {name: {"0": [3.0, 3.1], "1": [3.2, 3.1]} for name in (PERPLEXITY, "topics/used")}
    values["topics/stability"] = {"0": [0.9], "1": [0.9]}
    trials = [
        Trial(
            number=number,
            state="FAIL" if number == 3 else "COMPLETE",
            params={"model.n_topics": 2 + number, TITLE: HOSTILE[number]},
            n_topics=2 + number,
            values={} if number == 3 else values,
            curve={1: 5.0, 2: 4.0},
            epochs=2,
            seconds=1.0,
            run_id=f"{number}{TITLE}",
            run_name=TITLE,
            error=TITLE if number == 3 else "",
        )
        for number in range(4)
    ]
    sweep = Sweep(
        name=TITLE,
        data=TITLE,
        kind="sweep",
        bounds=(2, 5),
        space={"model.n_topics": "range(2,6)", TITLE: TITLE},
        trials=trials,
        importance={"model.n_topics": 0.4, TITLE: 0.6},
        storage=TITLE,
        sampler=TITLE,
        pruner=TITLE,
        parent_id=TITLE,
        experiment_id=TITLE,
        tracking=f"http://127.0.0.1/{TITLE}",
        version=TITLE,
        created=TITLE,
    )
    verdict = select(sweep.trials, bounds=sweep.bounds)
    return sweep_page.write(sweep, verdict, folder, 50)[-1]


MADE_BY_NAMES = """() => [
  window.ran,
  document.querySelectorAll("[onerror], [onload], [onfocus], [onmouseover], [autofocus]").length,
  document.querySelectorAll("img[src=x], [href^='javascript:']").length,
]"""


def require_only_text(page):
    """Check that no name has run or become an element."""
    assert page.evaluate(MADE_BY_NAMES) == [None, 0, 0]
    assert page.evaluate("document.title").endswith(("side by side", TITLE))


def test_hostile_names_are_text_everywhere_on_the_page(browser, hostile):
    adata, path = hostile
    # The browser ignores the policy of the page here, so that only escaping protects it.
    with visit(browser, path, bypass_csp=True) as page:
        require_only_text(page)
        scripts = page.locator("script").count()
        assert page.title() == f"{K} topics in data {TITLE}"
        assert f"run run_id {TITLE}" in page.locator("header").inner_text()
        genes = page.locator("#topics .genes").all_inner_texts()
        assert all(any(name in text for text in genes) for name in HOSTILE)
        drawn = "\n".join(page.locator(".sheet svg text").all_text_contents())
        assert all(name[:12] in drawn for name in HOSTILE[:9])
        assert (
            page.locator(".sheet svg script, .sheet svg a, .sheet svg image[href^=http]").count()
            == 0
        )
        settings = page.locator("#how pre").first.text_content()
        assert f"{TITLE}={json.dumps(TITLE)}" in settings
        for name in HOSTILE:
            look_up(page, name)
            assert page.locator("#gene-found strong").inner_text() == name
            assert page.locator("#gene-found tbody tr").count() == K
            assert name in page.locator("#map-legend").inner_text()
            look_up(page, f"no {name}")
            assert f"no {name} is none of" in page.locator("#gene-found").inner_text()
        for grouping, key in (("Label", TITLE), ("Leiden cluster", "leiden")):
            choose(page, grouping)
            legend = page.locator("#map-legend").inner_text()
            assert all(name in legend for name in adata.obs[key].cat.categories)
        corner, size = in_view(page, "counts")
        where = corner + places(adata, "counts", *size)
        for cell in range(len(HOSTILE)):
            name, *lines = tip_at(page, where[cell])
            assert name == HOSTILE[cell]
            assert f"Label: {adata.obs[TITLE].iloc[cell]}" in lines
        require_only_text(page)
        assert page.locator("script").count() == scripts


def test_downloads_have_unchanged_names(browser, hostile):
    """Also names that look like formulas: programs read the tables again by these names."""
    adata, path = hostile
    with visit(browser, path) as page:
        assert list(downloaded(page, "gene_topics").index) == list(adata.var_names)
        assert list(downloaded(page, "cell_topics").index) == list(adata.obs_names)
        assert set(downloaded(page, "enrichment")["gene_set"]) <= set(HOSTILE)
        assert "into a spreadsheet as text" in page.locator("#tables").inner_text()


def test_the_policy_of_the_page_forbids_other_scripts(browser, hostile, tmp_path):
    """Even a name that is not escaped does not run."""
    html = hostile[1].read_text(encoding="utf-8")
    added = f"<script>{RUNS}</script><img src=x onerror={RUNS}><svg onload={RUNS}></svg>"
    path = tmp_path / "report.html"
    path.write_text(html.replace("<main>", f"<main>{added}"), encoding="utf-8")
    context = browser.new_context(viewport={"width": WIDTH, "height": 800})
    try:
        page, problems = page_with_problems(context, path)
        open_from_disk(page, path)
        assert page.evaluate("window.ran") is None
        assert sum("Content Security Policy" in problem for problem in problems) >= 3
        assert not [problem for problem in problems if problem.startswith("asked for")]
    finally:
        context.close()


@pytest.mark.parametrize("make", [compared, swept])
def test_hostile_names_are_text_on_the_pages_of_comparisons_and_sweeps(browser, make, tmp_path):
    path = make(tmp_path)
    context = browser.new_context(bypass_csp=True)
    try:
        page, problems = page_with_problems(context, path)
        page.goto(path.as_uri())
        require_only_text(page)
        assert TITLE in page.locator("body").inner_text()
        assert page.locator("script").count() == 0
        assert problems == []
    finally:
        context.close()


STOPS = """() => {
  const all = "a[href], button, select, input, summary, [tabindex='0']";
  const stops = [...document.querySelectorAll(all)]
    .filter((one) => one.checkVisibility() && !one.disabled)
    .filter((one) => one.type !== "radio" || one.checked);
  return stops.map((one, number) => (one.dataset.stop = number));
}"""
STOP = """() => {
  const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
  return [Number(document.activeElement.dataset.stop), outlineStyle, parseFloat(outlineWidth)];
}"""
CONTRASTS = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, alpha = 1], under) =>
    [r, g, b].map((value, i) => value * alpha + under[i] * (1 - alpha));
  const behind = (element) => element === null ? [255, 255, 255]
    : over(parts(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = (color) => color
    .map((value, i) => linear(value / 255) * [0.2126, 0.7152, 0.0722][i])
    .reduce((sum, value) => sum + value);
  const written = (element) => [...element.childNodes]
    .some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...document.body.querySelectorAll("*")]
    .filter((element) => element.checkVisibility() && written(element))
    .filter((element) => !element.disabled && !element.closest("svg"))
    .map((element) => {
      const under = behind(element);
      const text = over(parts(getComputedStyle(element).color), under);
      const [dark, light] = [under, text].map(luminance).sort((a, b) => a - b);
      return [element.outerHTML.slice(0, 80), (light + 0.05) / (dark + 0.05)];
    });
}"""


def test_the_keyboard_reaches_every_control_and_the_focus_is_visible(page):
    look_up(page, "Gene-2")
    page.mouse.click(2, 2)
    expected = page.evaluate(STOPS)
    assert len(expected) > 40
    reached = []
    for _ in expected:
        page.keyboard.press("Tab")
        number, style, width = page.evaluate(STOP)
        assert style != "none"
        assert width >= 2
        reached.append(number)
    assert reached == expected


def test_a_focused_map_has_an_outline(page):
    def seen():
        page.mouse.move(2, 2)
        return decoded(page.locator(".map").first.screenshot())

    before = seen()
    for take in (map_of(page, "counts").focus, map_of(page, "counts").click):
        take()
        assert not np.array_equal(before, seen())
        map_of(page, "counts").evaluate("canvas => canvas.blur()")
        assert np.array_equal(before, seen())


@pytest.mark.parametrize("theme", THEMES)
def test_text_has_contrast(browser, run, theme):
    with visit(browser, run[1], color_scheme=theme) as page:
        look_up(page, "Gene-2")
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert [(what, contrast) for what, contrast in contrasts if contrast < 4.5] == []


def test_the_page_is_accessible(page):
    look_up(page, "Gene-2")
    session = page.context.new_cdp_session(page)
    named = {}
    for node in session.send("Accessibility.getFullAXTree")["nodes"]:
        if not node["ignored"]:
            role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
            named.setdefault(role, []).append(name)
    for role in ("button", "combobox", "link", "radio", "image", "region", "navigation"):
        assert named[role], role
        assert all(named[role]), role
    assert "img" not in named or all(named["img"])
    assert len(named["main"]) == 1
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) <= 1
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(set(ids)) == len(ids)
    for page_link in page.locator("a").all():
        assert page.locator(page_link.get_attribute("href")).count() == 1
