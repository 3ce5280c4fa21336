"""A real Chromium that looks at Flower, driven by Playwright."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: Of a screenshot that the documentation shows.
MAX_SCREENSHOT_BYTES = 200_000


def find_chromium() -> str:
    """Return the path of a Chromium; skip the test, and say so, if it or Playwright is missing.

    With REQUIRE_BROWSER in the environment, as in CI, the test fails instead.
    """
    miss = pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip
    if importlib.util.find_spec("playwright") is None:
        miss("playwright is not installed: make setup")
    found = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        miss("no Chromium is installed: apt-get install chromium")
    assert found is not None
    return found


class Browser:
    """Opens pages of Flower, and keeps everything that they have shown."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self._url = url
        #: Source and text of the pages, by path.
        self.shown: dict[str, str] = {}

    def open(self, path: str, *, expect: str = "") -> str:
        """Open a page, wait until it shows a text, keep it and return what it shows."""
        self.page.goto(self._url + path, wait_until="load")
        if expect:
            self.page.get_by_text(expect).first.wait_for(timeout=30_000)
        text: str = self.page.inner_text("body")
        self.shown[path] = self.shown.get(path, "") + self.page.content() + text
        return text

    def screenshot(self, folder: Path, name: str) -> None:
        """Write what the page shows as a picture for the documentation."""
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.png"
        self.page.screenshot(path=str(path))
        assert path.stat().st_size < MAX_SCREENSHOT_BYTES


@contextmanager
def opened(url: str, *, user: str, password: str) -> Iterator[Browser]:
    """Start a browser that logs in to Flower."""
    program = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        context = chromium.new_context(
            http_credentials={"username": user, "password": password},
            viewport={"width": 1280, "height": 560},
        )
        context.set_default_timeout(60_000)
        try:
            yield Browser(context.new_page(), url)
        finally:
            chromium.close()
