"""A real browser, which looks at what was written."""

from __future__ import annotations

import pytest
from playwright.sync_api import sync_playwright

# Without a GPU, Chromium draws WebGL on the CPU, and only if it is told to; pages that it composes
# with the same take a third longer.
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",
]


@pytest.fixture(scope="module")
def browser(chromium):
    """Chromium."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()
