"""The report in a real browser, from disk and without a network: all it offers does what it says.

What is seen is compared with the run's AnnData, by a geometry and by colours that are worked out
here and not asked of the page.
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
"""Of the window, in pixels: both maps are side by side."""
SIDE = 11
"""Cells lie on a square of so many, far enough apart for a pointer."""
FILL = 0.94
"""Share of a map's smaller side that its cells take up."""
FAINT = "#dfe3e8"
"""Cells of groups that are not picked, on a light page."""
SPACES = ("counts", "topics")
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's AnnData and its report."""
    rng = np.random.default_rng(0)
    theta = rng.dirichlet(np.full(K, 0.3), N)
    beta = rng.dirichlet(np.full(G, 0.2), K)
    beta[0, 0] = 1  # the awkward gene leads topic 0
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
    report.add_differential_expression(adata)
    *_, path = report.write(
        adata, history, folder, ReportConfig(n_top_genes=8, dpi=50, pdf=False), seed=0
    )
    return adata, path


def watched(context, path):
    """A page that may ask for nothing but its own file, and all that goes wrong on it."""
    context.set_offline(True)
    problems = []

    def answer(route):
        if route.request.url == path.as_uri():
            route.continue_()
        else:
            problems.append(f"asked for {route.request.url}")
            route.abort()

    def hear(said):
        # The driver warns of pixels being read, which is what tests do.
        if "GPU stall due to ReadPixels" not in said.text:
            problems.append(f"{said.type}: {said.text}")

    context.route("**/*", answer)
    page = context.new_page()
    page.on("console", hear)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
    return page, problems


def open_from_disk(page, path):
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=600_000)


@contextmanager
def visit(browser, path, width=WIDTH, first="", **options):
    """A page in a window of its own; `first` is a script that runs before the page's own."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    context.add_init_script(first)
    try:
        page, problems = watched(context, path)
        open_from_disk(page, path)
        yield page
        assert problems == []
    finally:
        context.close()


@pytest.fixture(scope="module")
def window(browser, run):
    """What tests share that need nothing special: to make one takes time."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 800})
    yield watched(context, run[1])
    context.close()


@pytest.fixture
def page(window, run):
    """The page as it opens."""
    page, problems = window
    problems.clear()
    page.mouse.move(0, 0)
    open_from_disk(page, run[1])
    yield page
    assert problems == []


def decoded(png):
    """Pixels of a picture, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def pictures(page):
    """What is drawn on both maps."""
    drawn = [map_of(page, space).evaluate("canvas => canvas.toDataURL()") for space in SPACES]
    return [decoded(base64.b64decode(url.partition(",")[2])) for url in drawn]


def map_of(page, space):
    return page.locator(f"#map-{space}")


def in_view(page, space):
    """Where a map is in the window, as a whole: its corner and its size."""
    map_of(page, space).scroll_into_view_if_needed()
    box = map_of(page, space).bounding_box()
    return np.array([box["x"], box["y"]]), (box["width"], box["height"])


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def all_differ(one, other):
    return all(np.mean(np.any(a != b, axis=2)) > 0.01 for a, b in zip(one, other, strict=True))


def places(adata, space, width, height):
    """Where a map of that size has its cells, in pixels, (N, 2)."""
    xy = adata.obsm[f"X_umap_{space}"]
    low, high = xy.min(axis=0), xy.max(axis=0)
    scale = FILL * min(width, height) / (high - low).max()
    return np.array([width, height]) / 2 + (xy - (low + high) / 2) * [scale, -scale]


def colors_of_cells(adata, space, picture):
    """The pixel in the middle of each cell, (N, 3)."""
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
    """Whether a number with two digits is that number."""
    return np.isclose(float(value.replace("−", "-")), expected, rtol=relative, atol=0.006)


# Opening


@pytest.mark.parametrize("theme", THEMES)
def test_it_opens_from_disk_and_asks_for_nothing(browser, run, theme):
    with visit(browser, run[1], color_scheme=theme) as page:
        assert page.title() == f"{K} topics in cells & {EVIL}"
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = np.mean([int(part) for part in re.findall(r"\d+", background)])
        assert (lightness > 127) == (theme == "light")
        for picture in pictures(page):
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > K


def test_theme_button_switches_page_and_maps(page):
    backgrounds, maps = [], []
    for _ in range(3):
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        maps.append(pictures(page))
        page.get_by_role("button", name="Light or dark").click()
    assert backgrounds[0] == backgrounds[2] != backgrounds[1]
    assert same(maps[0], maps[2])
    assert all_differ(maps[0], maps[1])


# Maps


@pytest.mark.parametrize("theme", THEMES)
def test_cells_have_the_colour_of_their_dominant_topic(browser, run, theme):
    adata, path = run
    expected = np.array([rgb(color) for color in topic_colors(K)])
    expected = expected[np.asarray(adata.obsm["X_lda"]).argmax(axis=1)]
    with visit(browser, path, color_scheme=theme) as page:
        for space, picture in zip(SPACES, pictures(page), strict=True):
            assert np.abs(colors_of_cells(adata, space, picture) - expected).max() <= 2
            # and what is drawn is seen
            seen = decoded(map_of(page, space).screenshot())
            assert np.abs(colors_of_cells(adata, space, seen) - expected).max() <= 2


def test_a_topic_recolours_both_maps_and_back(run, page):
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


def test_a_card_shows_its_topic_on_the_maps(page):
    page.locator("#topic-2").get_by_role("button", name="Show on the maps").click()
    shown = pictures(page)
    assert page.get_by_label("Colour by").input_value() == "topic:2"
    choose(page, "Topic 2")
    assert same(shown, pictures(page))


def test_groups_are_isolated_in_the_legend(run, page):
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
    """The lines of the tip at a place in the window."""
    page.mouse.move(*place)
    return page.locator("#map-tip").inner_text().splitlines()


@pytest.mark.parametrize("space", SPACES)
def test_pointing_at_a_cell_names_it_and_finds_it_in_both_maps(run, page, space):
    adata, _ = run
    theta_NK = np.asarray(adata.obsm["X_lda"])
    in_view(page, space)
    where = {}
    for at in SPACES:
        corner, size = in_view(page, at)
        where[at] = corner + places(adata, at, *size)
    rings = page.locator(".ring").all()
    # also those at the edges, whose tip has little room
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


def test_nothing_is_named_where_there_is_no_cell(run, page):
    adata, _ = run
    corner, (width, height) = in_view(page, "counts")
    cells = places(adata, "counts", width, height)
    grid = np.stack(np.mgrid[5 : width - 5 : 5, 5 : height - 5 : 5], axis=-1).reshape(-1, 2)
    away = np.linalg.norm(grid[:, None] - cells, axis=2).min(axis=1)
    page.mouse.move(*(corner + cells[0]))
    assert page.locator("#map-tip").is_visible()
    page.mouse.move(*(corner + grid[away.argmax()]))
    assert not page.locator("#map-tip").is_visible()


def test_a_gene_that_is_shown_is_in_the_tip(run, page):
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


def test_the_wheel_scrolls_the_page_unless_a_map_was_chosen(run, page):
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
    # What was under the pointer still is, and its neighbours are further apart.
    cells = places(adata, "counts", *size)
    cell = np.linalg.norm(cells - pointer, axis=1).argmin()
    place = pointer + (cells[cell] - pointer) * np.exp(100 / 400)
    assert tip_at(page, corner + place)[0] == adata.obs_names[cell]


# Genes


def test_a_gene_is_found_whatever_its_case(run, page):
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
    shown = pictures(page)
    assert all_differ(first, shown)
    value_N = adata.X[:, 7].toarray().ravel()
    for space, picture in zip(SPACES, shown, strict=True):
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
        shown = {row.split("\t")[0].strip(): row.split("\t")[1].split("%")[0] for row in rows}
        for topic, beta in enumerate(beta_K):
            text = shown[f"Topic {topic}"].strip()
            least = text.startswith("< ")
            assert 100 * beta < float(text[2:]) if least else near(text, 100 * beta), (gene, text)


def test_an_unknown_gene_is_said_to_be_unknown(page):
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


def test_names_are_text(run, page):
    scripts = page.locator("script").count()
    page.locator("#topic-0").get_by_role("button", name=EVIL).locator("visible=true").click()
    assert page.locator("#gene-found strong").inner_text() == EVIL
    assert page.locator("#gene").input_value() == EVIL
    assert page.locator("#color-genes option").all_inner_texts() == [EVIL]
    assert EVIL in page.locator("#map-legend").inner_text()
    choose(page, "Label")
    assert EVIL in page.locator("#map-legend").inner_text()
    assert page.locator("script").count() == scripts


def test_rankings_take_turns(page):
    for ranking in ("Probability", "Relevance", "FREX"):
        page.get_by_label(ranking, exact=True).check()
        shown = page.locator("#topic-1 .genes").locator("visible=true")
        assert shown.count() == 1
        assert ranking.lower() in shown.get_attribute("class")
        assert shown.get_by_role("button").count() == 8


# Tables


def downloaded(page, name):
    with page.expect_download() as begun:
        page.get_by_role("button", name=f"{name}.csv", exact=True).click()
    assert begun.value.suggested_filename == f"{name}.csv"
    return pd.read_csv(begun.value.path(), index_col=0)


def test_every_table_is_downloaded(page):
    names = page.locator("#tables button").all_inner_texts()
    assert len(names) >= 6
    for name in names:
        assert not downloaded(page, name.removesuffix(".csv")).empty


def test_downloads_hold_the_numbers_of_the_run(run, page):
    adata, _ = run
    digits = {"rtol": 5e-6, "atol": 0}
    cells = downloaded(page, "cell_topics")
    assert list(cells.index) == list(adata.obs_names)
    np.testing.assert_allclose(cells, adata.obsm["X_lda"], **digits)
    genes = downloaded(page, "gene_topics")
    assert list(genes.index) == list(adata.var_names)
    assert list(genes) == list(adata.obsm["X_lda"])
    np.testing.assert_allclose(genes, adata.varm["lda_topics"], **digits)
    table = downloaded(page, "differential_expression").reset_index()
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


# Small screens, paper, other browsers

STICKING_OUT = """() => {
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
def test_a_narrow_screen_holds_it_all(browser, run, width):
    with visit(browser, run[1], width=width, has_touch=True) as page:
        for state in (lambda: None, lambda: choose(page, "Label"), lambda: look_up(page, "Gene-2")):
            state()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(STICKING_OUT) == []
        controls = page.locator("button, select, input, summary").locator("visible=true").all()
        assert len(controls) > 20
        assert not [c.evaluate("e => e.outerHTML") for c in controls if c.evaluate(COVERED)]
        first = pictures(page)
        choose(page, "Topic 0")
        assert all_differ(first, pictures(page))
        # The figures keep a size at which they can be read: of the 72 dots of an inch, most.
        for figure in page.locator(".sheet svg").all():
            dots = "svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
            assert figure.evaluate(dots) > 0.7


def test_paper_has_all_sections_and_no_controls(browser, run):
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


def test_without_webgl_all_else_works(browser, run):
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


def test_without_scripts_it_can_be_read(browser, run):
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


# Names from strangers

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
"""What would run, or be another text, where it is not taken for text."""
TITLE = "".join(HOSTILE[:8])


def named(n):
    """So many different names."""
    return [HOSTILE[i % len(HOSTILE)] + (f" {i}" if i >= len(HOSTILE) else "") for i in range(n)]


@pytest.fixture(scope="module")
def hostile(run, tmp_path_factory):
    """The report of the same cells under the names of somebody who means ill."""
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
    config = ReportConfig(n_top_genes=G, dpi=50, pdf=False, gene_sets=str(sets))
    report.add_differential_expression(adata)
    *_, path = report.write(adata, [], folder / "report", config, seed=0)
    return adata, path


def compared(folder):
    """A comparison of runs of such names."""
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
    """A sweep over settings of such names, with a server of such an address."""
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
    return sweep_page.write(sweep, verdict, folder, 50, pdf=False)[-1]


MADE_BY_NAMES = """() => [
  window.ran,
  document.querySelectorAll("[onerror], [onload], [onfocus], [onmouseover], [autofocus]").length,
  document.querySelectorAll("img[src=x], [href^='javascript:']").length,
]"""


def require_text_alone(page):
    """Nothing has run, and no name has become anything but text."""
    assert page.evaluate(MADE_BY_NAMES) == [None, 0, 0]
    assert page.evaluate("document.title").endswith(("side by side", TITLE))


def test_no_name_of_the_data_runs_or_is_anything_but_text(browser, hostile):
    adata, path = hostile
    # Escaping has to do it alone: the page's policy, which would forbid it, is not heeded.
    with visit(browser, path, bypass_csp=True) as page:
        require_text_alone(page)
        scripts = page.locator("script").count()
        assert page.title() == f"{K} topics in data {TITLE}"
        assert f"run run_id {TITLE}" in page.locator("header").inner_text()
        shown = page.locator("#topics .genes").all_inner_texts()
        assert all(any(name in text for text in shown) for name in HOSTILE)
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
        require_text_alone(page)
        assert page.locator("script").count() == scripts


def test_downloads_hold_names_as_they_are(browser, hostile):
    """Also those that a spreadsheet takes for formulas: tables are read again, and by name."""
    adata, path = hostile
    with visit(browser, path) as page:
        assert list(downloaded(page, "gene_topics").index) == list(adata.var_names)
        assert list(downloaded(page, "cell_topics").index) == list(adata.obs_names)
        assert set(downloaded(page, "enrichment")["gene_set"]) <= set(HOSTILE)
        assert "into a spreadsheet as text" in page.locator("#tables").inner_text()


def test_the_policy_of_a_page_lets_no_other_script_run(browser, hostile, tmp_path):
    """If a name should be let through one day, it would still not run."""
    html = hostile[1].read_text(encoding="utf-8")
    added = f"<script>{RUNS}</script><img src=x onerror={RUNS}><svg onload={RUNS}></svg>"
    path = tmp_path / "report.html"
    path.write_text(html.replace("<main>", f"<main>{added}"), encoding="utf-8")
    context = browser.new_context(viewport={"width": WIDTH, "height": 800})
    try:
        page, problems = watched(context, path)
        open_from_disk(page, path)
        assert page.evaluate("window.ran") is None
        assert sum("Content Security Policy" in problem for problem in problems) >= 3
        assert not [problem for problem in problems if problem.startswith("asked for")]
    finally:
        context.close()


@pytest.mark.parametrize("make", [compared, swept])
def test_other_pages_take_names_for_text_too(browser, make, tmp_path):
    path = make(tmp_path)
    context = browser.new_context(bypass_csp=True)
    try:
        page, problems = watched(context, path)
        page.goto(path.as_uri())
        require_text_alone(page)
        assert TITLE in page.locator("body").inner_text()
        assert page.locator("script").count() == 0
        assert problems == []
    finally:
        context.close()


EMBED = """html => {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts";
  frame.src = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  frame.style = "width: 100%; height: 700px";
  document.body.append(frame);
}"""
"""What MLflow's UI does with a page among the artifacts."""


def test_it_works_where_mlflow_shows_it(browser, run):
    context = browser.new_context()
    context.route("**/*", lambda route: route.fulfill(body="", content_type="text/html"))
    problems = []
    try:
        page = context.new_page()
        page.goto("http://mlflow.test")
        page.on("console", lambda said: problems.append(said.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.evaluate(EMBED, run[1].read_text(encoding="utf-8"))
        report = page.frame_locator("iframe")
        report.locator("html[data-ready]").wait_for(state="attached", timeout=600_000)
        for picture in pictures(report):
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > K
        look_up(report, "gene-2")
        assert report.locator("#gene-found strong").inner_text() == "Gene-2"
        report.get_by_label("Gene", exact=True).fill("gene-3")
        page.keyboard.press("Enter")
        assert report.locator("#gene-found strong").inner_text() == "Gene-3"
        report.get_by_role("link", name="All scores").click()
        assert report.locator("#scores").bounding_box()["y"] < 100
        assert report.get_by_role("button", name="cell_topics.csv").is_disabled()
        assert "no downloads" in report.locator("#tables").inner_text()
        assert problems == []
    finally:
        context.close()


# For everybody

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


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page):
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


def test_a_chosen_map_is_seen_to_be(page):
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
def test_text_is_legible(browser, run, theme):
    with visit(browser, run[1], color_scheme=theme) as page:
        look_up(page, "Gene-2")
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert [(what, contrast) for what, contrast in contrasts if contrast < 4.5] == []


def test_everything_has_a_name_and_its_place(page):
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
