"""The report of an explained job in a real Chromium: its parts, no network, and no foreign script.

The picture of docs/explaining.md is of a job of the demo model: only with --write-screenshots.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.result_sections import Explanation
from batchmill.producer.results import JobResult
from batchmill.worker.console.explain_report import explanation_page
from batchmill.worker.console.heat_map import NUM_STEPS

from ...structure.public_interface import ROOT
from ..gateway.conftest import start_worker
from ..monitor_browser import MAX_SCREENSHOT_BYTES
from .conftest import Site, submit
from .test_console_browser import PHONE
from .test_console_browser import chromium as chromium
from .test_console_pictures import PROGRAM, WORKER

ATTACK = "<script>window.attacked = 1</script><img src='http://127.0.0.1:9/x' onerror='attacked=2'>"
DOCUMENTS = (
    "Arlo is a baker who lives in Lima.",
    "Bryn is a pilot who lives in Cairo.",
    "Cato is a nurse who lives in Kyoto.",
    "Dara is a tailor who lives in Quito.",
)
QUESTION = "In which town does Cato live? Answer in one short sentence."


def report(folder: Path) -> Path:
    """Write the report of a job whose texts are all hostile."""
    sure = {"text": ATTACK, "probability": 0.999, "entropy": 0.0, "rank": 1, "margin": 0.99}
    unsure = {"text": " last", "probability": 0.02, "entropy": 3.0, "rank": None, "margin": -0.3}
    other = {
        "position": 1,
        "token": ATTACK,
        "probability": 0.02,
        "other_token": ATTACK,
        "other_probability": 0.32,
        "text": ATTACK,
    }
    segments = [
        {"source": "messages.0", "text": f"{n} {ATTACK}", "leave_one_out": n, "weight": n}
        for n in (0.5, 2.0, -0.25)
    ]
    explanation = {
        "confidence": [sure, unsure],
        "alternatives": [other],
        "attribution": {"segments": segments, "top_k_drop": {"1": 2.5}, "lds": 0.875},
        "uncertainty": {
            "num_samples": 8,
            "groups": [{"text": ATTACK, "count": 8}],
            "entropy": 0.0,
            "agreement": 1.0,
        },
    }
    result = JobResult(
        id="gen_1",
        model=ATTACK,
        status=JobState.COMPLETED,
        text=ATTACK,
        explain=Explanation.model_validate(explanation),
    )
    path = folder / "report.html"
    path.write_text(explanation_page(result), encoding="utf-8")
    return path


def test_a_report_shows_all_parts_loads_nothing_and_runs_nothing(
    chromium: Any, tmp_path: Path
) -> None:
    url = report(tmp_path).as_uri()
    context = chromium.new_context(viewport=PHONE)
    page = context.new_page()
    requested: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda told: problems.append(told.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url, wait_until="networkidle")
    assert requested == [url]
    assert problems == []
    assert page.evaluate("window.attacked") is None
    assert page.locator("script, img").count() == 0

    tokens = page.locator(".heat")
    assert tokens.all_inner_texts() == [ATTACK, " last"]
    assert [tokens.nth(n).get_attribute("class") for n in (0, 1)] == [
        *("heat h0", f"heat h{NUM_STEPS - 1}"),
    ]
    assert "2 %" in (tokens.nth(1).get_attribute("title") or "")
    red = "getComputedStyle(document.querySelectorAll('.heat')[{}]).backgroundColor"
    assert page.evaluate(red.format(0)) != page.evaluate(red.format(1))
    widths = page.locator(".bar").evaluate_all("bars => bars.map(bar => bar.clientWidth)")
    assert widths[1] > widths[0] > widths[2]
    text = page.inner_text("main")
    for word in ("What the output rests on", "What else it could have said", "Further samples"):
        assert word in text
    for word in ("top-1 drop", "2.50 nats", "0.88", "100 %", "32 %"):
        assert word in text
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    context.close()


def test_the_picture_of_the_documentation(
    site: Site, chromium: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if not request.config.getoption("--write-screenshots"):
        pytest.skip("--write-screenshots is not given")
    worker = start_worker(site.mill, "cpu-1", program=PROGRAM, **WORKER)
    parts = ["confidence", "alternatives", "attribution", "uncertainty"]
    messages = [{"role": "user", "content": "\n\n".join([*DOCUMENTS, QUESTION])}]
    job_id = submit(
        site.store,
        model="smollm2",
        messages=messages,
        max_tokens=24,
        temperature=0,
        explain=parts,
    )
    site.mill.wait_ended(job_id, timeout_s=280)
    path = tmp_path / "report.html"
    with Client(site.server.url) as client:
        path.write_text(explanation_page(client.result(job_id, 10)), encoding="utf-8")
    context = chromium.new_context(viewport={"width": 1100, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.goto(path.as_uri())
    picture = ROOT / "docs" / "images" / "explanation.png"
    page.screenshot(path=str(picture))
    assert picture.stat().st_size < MAX_SCREENSHOT_BYTES
    context.close()
    assert worker.end() == 0
