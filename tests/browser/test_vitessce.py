"""The folder of ``topicell export vitessce`` in a real browser, by Vitessce itself.

The page loads Vitessce and React from unpkg.com, which has the files of npm packages. Here they
come from the packages in the folder TOPICELL_NPM, and the browser checks the digests in the page.
"""

import functools
import http.server
import json
import tarfile
import threading

import anndata
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from topicell.export.vitessce import write

pytestmark = pytest.mark.slow
N, K = 90, 3
CDN = "https://unpkg.com/"
DONE = """() => document.body.innerText.includes("Leiden cluster")
    && !document.querySelector("[role=progressbar]")"""


@pytest.fixture
def site(tmp_path):
    """Serve the folder of 90 cells, and return its address."""
    rng = np.random.default_rng(0)
    kind_N = np.arange(N) % K
    center_K2 = np.array([[0.0, 0.0], [6.0, 0.0], [3.0, 5.0]])
    theta_NK = np.full((N, K), 0.05)
    theta_NK[np.arange(N), kind_N] = 0.9
    xy_N2 = (center_K2[kind_N] + rng.normal(0, 0.6, (N, 2))).astype(np.float32)
    adata = anndata.AnnData(
        rng.poisson(2, (N, 5)).astype(np.float32),
        obs=pd.DataFrame(
            {
                "kind": pd.Categorical(np.array(["T cell", "B cell", "Monocyte"])[kind_N]),
                "leiden": pd.Categorical(kind_N.astype(str)),
            },
            index=[f"c{i}" for i in range(N)],
        ),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(5)]),
        obsm={"X_lda": theta_NK, "X_umap_counts": xy_N2, "X_umap_topics": -xy_N2},
        uns={"topicell": {"label_key": "kind"}},
    )
    write(adata, np.arange(5), "Ninety cells", tmp_path)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def page(browser, npm_packages):
    """Return a page with the packages in place of unpkg.com; it has a list of its problems."""
    page = browser.new_page(viewport={"width": 1300, "height": 800})
    page.problems = []

    def packed(route):
        package, _, path = route.request.url.removeprefix(CDN).partition("/")
        with tarfile.open(npm_packages / f"{package.replace('@', '-')}.tgz") as package_file:
            body = package_file.extractfile(f"package/{path}").read()
        types = {"content-type": "text/javascript", "access-control-allow-origin": "*"}
        route.fulfill(body=body, headers=types)

    def message(logged):
        # Vitessce asks for files of older versions of zarr first, and says that it expects this.
        if logged.type == "error" and "404" not in logged.text:
            page.problems.append(logged.text)

    def answer(response):
        name = response.url.rpartition("/")[2]
        if response.status >= 400 and name not in (".zattrs", ".zarray", ".zgroup"):
            page.problems.append(response.url)

    page.on("console", message)
    page.on("response", answer)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.route(f"{CDN}**", packed)
    # Vitessce's own table of symbols by identifier.
    page.route("https://data-1.vitessce.io/**", lambda route: route.fulfill(body=json.dumps({})))
    yield page
    page.close()


def n_colors(locator, path):
    """Return the number of distinct saturated colors with 20 pixels or more in a picture."""
    locator.screenshot(path=path)
    rgb_P3 = np.round(matplotlib.image.imread(path)[..., :3].reshape(-1, 3) * 15).astype(int)
    colors, counts = np.unique(rgb_P3, axis=0, return_counts=True)
    return int(((np.ptp(colors, axis=1) > 4) & (counts >= 20)).sum())


def test_vitessce_shows_cells_topics_and_genes(page, site, tmp_path):
    page.goto(site)
    page.wait_for_function(DONE, timeout=300_000)
    text = page.inner_text("body")
    for words in ("Label (kind)", "Dominant topic", "Leiden cluster", "topic_2", "GENE4"):
        assert words in text, text
    assert text.count("90 cells") >= 4, text
    assert page.title() == "Ninety cells"
    maps = page.locator("canvas")
    assert maps.count() >= 4
    # Three groups of cells, each with the color of its label.
    assert n_colors(maps.first, tmp_path / "map.png") >= 3
    assert page.problems == []


def test_without_vitessce_the_page_says_so(page, site):
    page.unroute(f"{CDN}**")
    page.route(f"{CDN}**", lambda route: route.abort())
    page.goto(site)
    page.wait_for_function("document.body.innerText.includes('could not be loaded from unpkg.com')")


def test_as_a_file_the_page_says_how_to_open_it(page, site, tmp_path):
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_function("document.body.innerText.includes('python -m http.server')")
