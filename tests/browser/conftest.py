"""A real browser, which looks at what was written."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

# Without a GPU, Chromium draws WebGL on the CPU, and only if it is told to.
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]


@pytest.fixture(scope="module")
def browser():
    """Chromium; its tests are skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = os.environ.get("TOPICELL_CHROMIUM") or next(
        filter(None, map(shutil.which, names)), None
    )
    if executable is None:
        pytest.skip(f"no {', '.join(names)} on this machine; TOPICELL_CHROMIUM names another")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()
