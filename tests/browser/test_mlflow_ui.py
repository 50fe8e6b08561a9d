"""A grid of two runs in MLflow's own UI, at the address that ``topicell ui`` opens."""

from __future__ import annotations

import re
import signal
import socket
import time
import urllib.request

import pandas as pd
import pytest

from topicell.config import TrackingConfig
from topicell.tracking.store import client, experiment_id

pytestmark = pytest.mark.slow

SECONDS = 600
"""Longer than a page or the server takes on a busy machine."""
GRID = [
    "report.dpi=60",
    "model.n_topics=2,3",
    "data=simulated",
    "data.simulation.n_cells=150",
    "data.simulation.n_genes=80",
    "data.simulation.n_topics=3",
    "model.n_hidden=8",
    "train.n_replicates=2",
    "train.epochs=5",
    "train.progress=false",
    "evaluate.n_coherence_genes=5",
]
PARENT, THREE_TOPICS, TWO_TOPICS = range(3)


@pytest.fixture(scope="module")
def runs(browser, topicell, tmp_path_factory):
    """Return the folder, and the parent with its runs of three and two topics."""
    folder = tmp_path_factory.mktemp("grid")
    command = topicell("train", "-m", *GRID, cwd=folder, env={"MLFLOW_TRACKING_URI": None})
    assert command.returncode == 0, command.stderr
    config = TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}")
    store = client(config)
    found = store.search_runs([experiment_id(store, config)])
    return folder, sorted(found, key=lambda run: -int(run.data.params.get("model.n_topics", 99)))


@pytest.fixture(scope="module")
def address(runs, start_process):
    """Start ``topicell ui``, and return its address."""
    folder, _ = runs
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    elsewhere = {"MLFLOW_TRACKING_URI": None}
    server = start_process("ui", f"port={port}", "browser=false", cwd=folder, env=elsewhere)

    def printed():
        """Return the address, once it is printed and the server answers."""
        assert server.poll() is None, server.stderr
        found = re.search(r"http://\S+", server.stdout)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return found and found.group()
        except OSError:
            return None

    try:
        until = time.monotonic() + SECONDS
        while not (shown := printed()):
            assert time.monotonic() < until, server.stderr
            time.sleep(0.1)
        yield shown
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(SECONDS)
        server.end()


@pytest.fixture(scope="module")
def page(browser, address):
    """Return a window that reaches only the server; it loads MLflow's program once."""
    context = browser.new_context(viewport={"width": 1500, "height": 900})
    context.set_default_timeout(1000 * SECONDS)
    server = address.partition("#")[0]
    context.route(lambda url: not url.startswith(server), lambda route: route.abort())
    yield context.new_page()
    context.close()


def run_page(address, run, artifact=""):
    """Return the address of a run, or of one of its artifacts."""
    place = f"{address.partition('?')[0]}/{run.info.run_id}"
    return f"{place}/artifacts/{artifact}" if artifact else place


def open_artifact(page, address, run, artifact):
    """Open an artifact by its address, from the page of its run."""
    # MLflow's page of artifacts ignores a change of its own address.
    page.goto(run_page(address, run))
    page.get_by_role("heading", name=name_of(run)).wait_for()
    page.goto(run_page(address, run, artifact))


def name_of(run):
    return run.info.run_name


def test_runs_are_listed_under_their_parent(runs, address, page):
    parent, child, other = runs[1]
    page.goto(address)
    row = page.get_by_role("row").filter(has_text=name_of(parent))
    row.first.wait_for()
    for run in (child, other):
        assert page.get_by_role("link", name=name_of(run)).count() == 0
    row.get_by_role("button").last.click()
    for run in (child, other):
        page.get_by_role("link", name=name_of(run)).wait_for()
    page.get_by_role("link", name=name_of(child)).click()
    page.get_by_role("heading", name=name_of(child)).wait_for()
    assert child.info.run_id in page.url


def test_a_parent_has_links_to_its_runs(runs, address, page):
    parent, *nested = runs[1]
    page.goto(run_page(address, parent))
    for run in nested:
        link = page.get_by_role("link", name=name_of(run))
        link.wait_for()
        assert run.info.run_id in link.get_attribute("href")


def test_a_run_has_scores_and_a_picture(runs, address, page):
    child = runs[1][THREE_TOPICS]
    page.goto(run_page(address, child))
    page.get_by_text("Show more").first.click()
    note = child.data.tags["mlflow.note.content"]
    assert note.startswith("**3 topics in simulated** (")
    scores = note.splitlines()[0].partition("): ")[2].split(", ")
    assert any(score.startswith("Perplexity ") for score in scores)
    for score in scores:
        page.get_by_text(score).first.wait_for()
    picture = page.locator("img[src^='get-artifact']")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector(\"img[src^='get-artifact']\").complete")
    # MLflow does not scale pictures.
    assert 100 < picture.evaluate("image => image.naturalWidth") <= 600


def test_the_report_of_a_run_works_in_mlflow(runs, address, page):
    errors = []
    page.on("console", lambda m: errors.append(m.text) if "blob:" in m.text else None)
    open_artifact(page, address, runs[1][THREE_TOPICS], "report.html")
    report = page.frame_locator("iframe")
    report.locator("html[data-ready]").wait_for(state="attached")
    report.get_by_role("heading", name="3 topics in simulated").wait_for()
    canvas = report.locator("#map-counts")
    drawn = canvas.evaluate("canvas => canvas.toDataURL()")
    report.get_by_label("Colour by").select_option(value="topic:1")
    assert canvas.evaluate("canvas => canvas.toDataURL()") != drawn
    report.get_by_label("Gene", exact=True).fill("GENE_1")
    report.get_by_role("button", name="Find").click()
    assert report.locator("#gene-found tbody tr").count() == 3
    report.get_by_label("Gene", exact=True).fill("GENE_2")
    page.keyboard.press("Enter")
    assert report.locator("#gene-found strong").inner_text() == "gene_2"
    # MLflow shows the page in a sandbox without downloads.
    assert report.get_by_role("button", name="cell_topics.csv").is_disabled()
    assert "no downloads" in report.locator("#tables").inner_text()
    report.get_by_role("link", name="All scores").click()
    assert report.locator("#scores").bounding_box()["y"] < 900
    assert errors == []


def test_the_report_of_the_grid_opens_in_mlflow(runs, address, page):
    open_artifact(page, address, runs[1][PARENT], "report.html")
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name="Number of topics of simulated").wait_for()
    for image in report.locator("img").all():
        assert image.evaluate("image => image.naturalWidth") > 100


def test_figures_and_tables_open_in_mlflow(runs, address, page):
    folder, (_, child, _) = runs
    # By its address, because a click while the page loads may be lost.
    open_artifact(page, address, child, "figures/umap_counts_topics.png")
    picture = page.locator("img[src^='blob:']").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    page.get_by_text("topics", exact=True).click()
    page.get_by_text("gene_topics.csv", exact=True).click()
    page.get_by_text("Previewing the first").wait_for()
    (stored,) = folder.glob(f"mlartifacts/**/{child.info.run_id}/artifacts/topics/gene_topics.csv")
    table = pd.read_csv(stored)
    # The text appears before the table.
    page.get_by_role("columnheader").get_by_text(list(table)[-1]).first.wait_for()
    page.get_by_role("cell").get_by_text(table["gene"][0], exact=True).first.wait_for()
    heads = page.get_by_role("columnheader").all_inner_texts()
    assert [head.strip() for head in heads if head.strip()] == list(table)
    rows = page.get_by_role("row").filter(has=page.get_by_role("cell")).all_inner_texts()
    first = next(row.split() for row in rows if row.split()[0] == table["gene"][0])
    assert [float(value) for value in first[1:]] == pytest.approx(list(table.iloc[0, 1:]))
