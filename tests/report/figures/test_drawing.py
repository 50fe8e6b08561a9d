"""Colours of the figures, their files, and their SVG on a page."""

from __future__ import annotations

import base64
import itertools
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from legibility import assert_legible, proportions
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from topicell.report import figures
from topicell.report.figures import drawing

# OKLab (Ottosson 2020)
TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Machado, Oliveira & Fernandes (2009), full severity, linear RGB
EYES = {
    "normal": np.eye(3),
    "deuteranopic": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopic": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "tritanopic": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
OKABE_ITO = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]


def linear(colors: list[str]) -> np.ndarray:
    rgb = np.array([to_rgb(color) for color in colors])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def seen(colors: list[str], eyes: str) -> np.ndarray:
    """Return the coordinates of colours in OKLab."""
    return np.cbrt(np.clip(linear(colors) @ EYES[eyes].T, 0, 1) @ TO_LMS.T) @ TO_LAB.T


def contrast(colors: list[str], ground: str) -> np.ndarray:
    """Return the contrast by WCAG 2."""
    light, of_ground = (linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (colors, [ground]))
    return np.maximum(light / of_ground, of_ground / light)


# The least distance between n colours, for normal and for colour-blind eyes.
FLOORS = {
    ("topic_colors", 10): (0.155, 0.076),
    ("topic_colors", 20): (0.100, 0.070),
    ("topic_colors", 30): (0.087, 0.061),
    ("category_colors", 10): (0.106, 0.091),
    ("category_colors", 20): (0.062, 0.054),
    ("category_colors", 30): (0.061, 0.052),
}


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize(("palette", "n"), FLOORS)
def test_colours_differ_for_normal_and_colour_blind_eyes(palette, n, eyes):
    lab = seen(getattr(figures, palette)(n), eyes)
    least = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
    assert least > FLOORS[palette, n][eyes != "normal"]


@pytest.mark.parametrize("palette", ["topic_colors", "category_colors"])
@pytest.mark.parametrize("page", ["#ffffff", "#14171c"])
def test_colours_have_contrast_on_light_and_dark_pages(palette, page):
    assert contrast(getattr(figures, palette)(30), page).min() >= 1.6


def test_no_category_looks_like_a_topic():
    topics, categories = figures.topic_colors(30), figures.category_colors(30)
    distance = np.linalg.norm(seen(topics, "normal")[:, None] - seen(categories, "normal"), axis=2)
    assert distance.min() > 0.044
    assert distance[:10].min() > 0.07
    chroma = np.linalg.norm(seen(categories, "normal")[:, 1:], axis=1)
    assert chroma.max() < 0.09  # all categories have little chroma
    assert np.linalg.norm(seen(OKABE_ITO, "normal")[:, 1:], axis=1).min() > 0.1


@pytest.mark.parametrize("palette", ["topic_colors", "category_colors"])
def test_colours_do_not_depend_on_their_number_and_do_not_repeat(palette):
    colors = getattr(figures, palette)
    many = colors(80)
    assert len(set(many)) == 80
    assert colors(7) == many[:7]
    assert colors(0) == []
    assert figures.topic_colors(6) == OKABE_ITO


def test_text_on_a_colour_has_contrast():
    greys = [f"#{level:02x}{level:02x}{level:02x}" for level in range(256)]
    for colors in (greys, figures.topic_colors(30)):
        for color in colors:
            assert contrast([drawing.readable_on(color)], color)[0] > 4.1


def some_figures() -> dict[str, Figure]:
    rng = np.random.default_rng(0)
    umap_N2, theta_NK = rng.normal(size=(60, 2)), rng.dirichlet(np.ones(3), 60)
    labels = np.array(["T & <b>cells</b>", "NK", "naïve β"])[np.arange(60) % 3]
    p_KG = rng.random((3, 40)) ** 8
    return {
        "map": figures.umap_by_category(umap_N2, labels, 'UMAP "of" <counts> & $'),
        "maps": figures.umap_by_topic(umap_N2, theta_NK, "Topics"),
        "matrix": figures.topic_by_label(theta_NK, labels),
        "structure": figures.structure_plot(theta_NK, labels, seed=0),
        "volcano": figures.volcano(
            rng.normal(size=40) * 3, p_KG[0], p_KG[0], [f"GENE-{i}" for i in range(40)], 0
        ),
        "training": figures.training_curves(
            [{"epoch": e, "train/elbo": -10 / (1 + e), "train/elbo_sd": 0.1} for e in range(20)]
        ),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    return some_figures()


def test_a_figure_is_saved_as_png_and_pdf(drawn, tmp_path):
    figure = drawn["map"]
    paths = figures.save(figure, tmp_path / "umap.counts", dpi=50)
    assert [path.name for path in paths] == ["umap.counts.png", "umap.counts.pdf"]
    png, pdf = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG")
    assert pdf.startswith(b"%PDF")
    alone = figures.save(figure, str(tmp_path / "alone"), dpi=50, pdf=False)
    assert [path.name for path in tmp_path.glob("alone*")] == [path.name for path in alone]
    assert [path.suffix for path in alone] == [".png"]
    assert int.from_bytes(png[16:20]) == int(50 * figure.get_figwidth())


@pytest.mark.parametrize("name", ["map", "matrix", "volcano"])
def test_fonts_are_embedded(name, drawn, tmp_path):
    _, pdf = figures.save(drawn[name], tmp_path / name, dpi=50)
    content = pdf.read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert b"/CreationDate" not in content


def test_points_of_a_pdf_are_a_picture_of_the_set_resolution(drawn, tmp_path):
    sizes = []
    for dpi in (50, 100):
        _, pdf = figures.save(drawn["map"], tmp_path / f"at{dpi}", dpi)
        width = re.search(rb"/Subtype /Image.*?/Width (\d+)", pdf.read_bytes(), re.DOTALL)
        sizes.append(int(width[1]))
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.05)


def saved_bytes(folder) -> dict[str, list[bytes]]:
    folder.mkdir()
    return {
        name: [
            *(path.read_bytes() for path in figures.save(figure, folder / name, dpi=50)),
            figures.as_svg(figure, name).encode(),
        ]
        for name, figure in some_figures().items()
        if name in ("map", "matrix", "volcano")
    }


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes_in_any_thread(tmp_path):
    before = dict(mpl.rcParams)
    once = saved_bytes(tmp_path / "once")
    with ThreadPoolExecutor(2) as pool:
        for again in pool.map(saved_bytes, [tmp_path / f"thread{i}" for i in range(2)]):
            assert again == once
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def svgs(drawn) -> dict[str, str]:
    return {name: figures.as_svg(figure, name) for name, figure in drawn.items()}


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def tags(root: ElementTree.Element) -> set[str]:
    return {element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in root.iter()}


def test_an_svg_is_one_element_that_scales(drawn, svgs):
    for name, svg in svgs.items():
        assert svg.startswith("<svg ")
        root = parsed(svg)
        assert root.get("aria-hidden") == "true"  # the element around it has the description
        assert "height" not in root.attrib
        assert root.get("width") == "100%"
        _, _, width, height = map(float, root.get("viewBox").split())
        inches = drawn[name].get_size_inches()
        np.testing.assert_allclose((width, height), 72 * inches, atol=0.1)
        assert f"max-width:{96 * inches[0]:.0f}px" in root.get("style")
        assert not tags(root) & {"style", "metadata", "title", "date"}
        assert "<!" not in svg
        assert "xlink" not in svg


def test_ids_are_unique_and_every_reference_has_its_target(svgs):
    names = [re.findall(r'\bid="([^"]+)"', svg) for svg in svgs.values()]
    every = list(itertools.chain.from_iterable(names))
    assert len(set(every)) == len(every) > 0
    for (name, svg), own in zip(svgs.items(), names, strict=True):
        assert all(i.startswith(f"{name}-") for i in own)
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
        assert {a or b for a, b in used} == set(own)


def test_text_and_lines_have_the_colours_of_the_page(svgs):
    for svg in svgs.values():
        styles = " ".join(
            f"{key}:{value}"
            for element in parsed(svg).iter()
            for key, value in element.attrib.items()
            if key in ("style", "fill", "stroke")
        )
        fixed = re.sub(r"var\(--\w+,#[0-9a-f]+\)", "", styles)
        assert not set(re.findall("#[0-9a-f]{6}", fixed)) & set(drawing.THEME)
        assert "black" not in fixed
        assert "font-family" not in styles
        assert "var(--ink,#24292f)" in styles
    assert "var(--line," in svgs["training"]
    assert figures.topic_colors(1)[0] in svgs["training"]


def test_the_background_is_that_of_the_page(svgs):
    # Halos and lines between squares have the colour of the page; no area is filled with it.
    for svg in svgs.values():
        assert "fill: var(--page" not in svg
    assert "fill: var(--paper" in svgs["maps"]
    assert "fill: var(--paper" not in svgs["map"]
    for image in re.findall(r'href="data:image/png;base64,([^"]+)"', svgs["map"]):
        png = base64.b64decode(image)
        assert png[25] == 6  # RGB with transparency


def test_text_is_not_drawn_as_shapes(svgs):
    def text(name: str) -> list[str]:
        return [e.text for e in parsed(svgs[name]).iter() if e.tag.endswith("}text")]

    assert 'UMAP "of" <counts> & $' in text("map")
    assert any("T & <b>cells</b>" in entry for entry in text("map"))
    assert {"1", "2", "3"} <= set(text("map"))  # also texts with a halo
    halos = [e for e in parsed(svgs["map"]).iter() if "paint-order" in e.get("style", "")]
    assert [e.text for e in halos] == ["1", "2", "3"]
    assert sum(entry.startswith("GENE-") for entry in text("volcano")) > 3
    assert "white-space:pre" in parsed(svgs["map"]).get("style")  # "1  NK" keeps its two spaces


def test_as_svg_does_not_change_the_figure(drawn):
    figure = drawn["map"]
    marks = figure.axes[0].texts
    before = [(mark.get_path_effects(), mark.get_gid()) for mark in marks]
    figures.as_svg(figure, "map")
    assert [(mark.get_path_effects(), mark.get_gid()) for mark in marks] == before
    assert all(effects for effects, _ in before)


@pytest.mark.parametrize("name", ["", "1st", "a b", 'a"', "a)", "ä"])
def test_a_name_that_is_not_an_id_is_refused(name):
    with pytest.raises(ValueError, match="must be a letter"):
        figures.as_svg(Figure(), name)


def test_dollar_signs_in_names_are_not_read_as_formulas():
    names = ["_private", "$\\frac{1$", "a$b$c", "x^{2"]
    figure = figures.umap_by_category(
        np.random.default_rng(0).normal(size=(8, 2)), names * 2, "50 $ a cell, $"
    )
    assert sorted(t.get_text().split("  ")[1] for t in figure.legends[0].get_texts()) == sorted(
        names
    )
    assert_legible(figure)
    assert_legible(figures.structure_plot(proportions(8, 2), names * 2, seed=0))
    assert_legible(figures.top_genes([names] * 2, np.full((2, 4), 0.1), "genes"))


def test_no_figure_is_registered_with_pyplot():
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )
