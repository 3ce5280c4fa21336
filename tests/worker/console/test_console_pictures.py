"""The pictures of docs/console.md, with the demo model: only with --write-screenshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ...structure.public_interface import ROOT
from ..conftest import _RUN
from ..gateway.conftest import start_worker
from ..monitor_browser import MAX_SCREENSHOT_BYTES
from .conftest import Site, submit
from .test_console_browser import chromium as chromium
from .test_console_browser import signed_in

IMAGES = ROOT / "docs" / "images"
WORKER: dict[str, Any] = {
    "engine": "real",
    "model": "demo",
    "served_model_name": "smollm2",
    "max_model_len": 1024,
    "kv_cache_bytes": 64 << 20,
    "lease_s": 60,
}
#: `Mill` sets the stub for every worker.
PROGRAM = f"import os; os.environ.pop('BATCHMILL_STUB'); {_RUN}"
QUESTION = "Why do ships float although steel is heavier than water? Answer in three sentences."


def test_pictures_of_the_documentation(
    site: Site, chromium: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if not request.config.getoption("--write-screenshots"):
        pytest.skip("--write-screenshots is not given")
    worker = start_worker(site.mill, "cpu-1", program=PROGRAM, **WORKER)
    messages = [{"role": "user", "content": QUESTION}]
    asked: dict[str, Any] = {
        "model": "smollm2",
        "messages": messages,
        "max_tokens": 120,
        "logprobs": 5,
    }
    job_id = submit(site.store, **asked, tags=["physics"], webhook=site.receiver.url)
    for number in range(120):
        tenant = ("acme", "shop", "research")[number % 3]
        submit(site.store, f"load {number}", tenant=tenant, tags=["load"], max_tokens=700)
    for number in range(24):
        text = f"Write a sentence about the number {number}."
        submit(site.store, text, model="smollm2", tenant="research", max_tokens=48)
    site.mill.wait_ended(job_id, timeout_s=280)
    with signed_in(site, chromium, viewport={"width": 1280, "height": 860}) as page:
        write(page, "console-overview")
        page.goto(f"{site.root}/console/jobs/{job_id}")
        page.locator(".output").scroll_into_view_if_needed()
        token = page.locator(".heat-map .h5, .heat-map .h6, .heat-map .h7").first
        token.hover()
        write(page, "console-job")
    phone: dict[str, Any] = {"viewport": {"width": 390, "height": 760}, "color_scheme": "dark"}
    with signed_in(site, chromium, **phone) as page:
        write(page, "console-phone")
    assert worker.end() == 0


def write(page: Any, name: str) -> None:
    """Write what a page shows."""
    path = IMAGES / f"{name}.png"
    page.screenshot(path=str(path))
    assert path.stat().st_size < MAX_SCREENSHOT_BYTES
