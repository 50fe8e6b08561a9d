"""A real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import sync_playwright

# Without a GPU, Chromium draws WebGL on the CPU only with these options; compositing pages on the
# CPU too would take a third longer.
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-gpu-compositing",
]


@pytest.fixture(scope="module")
def browser(chromium):
    """Start Chromium."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()
