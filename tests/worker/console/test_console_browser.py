"""The console in a real Chromium: real jobs, live parts, forms, and no violation of its policy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.protocol.replies import JobState

from ...support.processes import wait_until
from ..monitor_browser import find_chromium
from .conftest import CANARY, HOSTILE, Site, submit, submit_unserved

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@contextmanager
def signed_in(site: Site, chromium: Any, who: str = "operator", **options: Any) -> Iterator[Any]:
    """Yield a page of a new session. No page may violate its policy, or report an error."""
    context = chromium.new_context(**{"viewport": DESKTOP, **options})
    context.set_default_timeout(60_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda told: problems.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    page.goto(f"{site.root}/console")
    page.get_by_label("API key").fill(site.keys[who])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{site.root}/console")
    yield page
    context.close()
    assert problems == []


def pages(site: Site) -> dict[str, str]:
    """Return the paths of all pages, by name."""
    ids = site.ids
    return {
        "overview": "",
        "workers": "/workers",
        "queues": "/queues",
        "batches": "/batches",
        "batch": f"/batches/{ids['batch']}",
        "jobs": "/jobs",
        "job": f"/jobs/{ids['done']}",
        "hostile": f"/jobs/{ids['hostile']}",
        "decision": f"/jobs/{ids['decision']}",
        "explained": f"/jobs/{ids['explained']}",
        "interrupted": f"/jobs/{ids['interrupted']}",
        "dead-letters": "/dead-letters",
        "webhooks": "/webhooks",
        "event": f"/webhooks/events/{ids['failed_event']}",
    }


#: Words that each page shows.
WORDS = {
    "overview": ("Backlog", "Tokens per second", "Newest jobs", "completed"),
    "workers": ("w1@test", "ready", "of 64", "KV cache"),
    "queues": ("batchmill.demo.normal", "1 worker", "acme"),
    "batches": ("completed", "30 of 30", "EUR"),
    "batch": ("100 %", "30 completed", "Download results"),
    "jobs": ("acme", "night-run", "numerical_error"),
    "job": ("Submitted", "Attempt 1 claimed", "w1@test", "Webhook attempt 1", "204", "61 %"),
    "hostile": (HOSTILE,),
    "decision": (f"Is a refund due? {HOSTILE}", "billing charges", "confidence", "mean level", "%"),
    "explained": (HOSTILE, "1,234 tokens in 43 requests", "2.25", "Open the report"),
    "interrupted": ("the worker was stopped in order", "continues from 3 tokens", "an output"),
    "dead-letters": ("attempts_exhausted", "engine_death 6", "exhausted"),
    "webhooks": ("Endpoints", "Registered receivers"),
    "event": ("http_400", "Redeliver", "127.0.0.1"),
}


def test_every_page_shows_its_facts_and_fits_a_phone(site: Site, chromium: Any) -> None:
    for viewport, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
        options: dict[str, Any] = {"viewport": viewport, "color_scheme": scheme}
        with signed_in(site, chromium, **options) as page:
            for name, path in pages(site).items():
                page.goto(f"{site.root}/console{path}")
                text = page.inner_text("main")
                for word in WORDS[name]:
                    assert word in text, (name, word, text)
                assert page.title().endswith("batchmill"), name
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= viewport["width"], (name, viewport)


def test_the_report_of_an_explained_job_opens_and_runs_nothing(site: Site, chromium: Any) -> None:
    with signed_in(site, chromium, "acme") as page:
        page.goto(f"{site.root}/console/jobs/{site.ids['explained']}")
        with page.expect_popup() as opened:
            page.get_by_role("link", name="Open the report").click()
        report = opened.value
        report.wait_for_load_state()
        assert report.url.endswith("/explanation")
        assert report.locator(".heat").first.inner_text() == HOSTILE
        assert "top-1 drop" in report.inner_text("main")
        color = report.locator(".heat").first.evaluate("e => getComputedStyle(e).backgroundColor")
        assert color != "rgba(0, 0, 0, 0)"
        assert report.locator("script").count() == 0
    with signed_in(site, chromium, "reader") as page:
        page.goto(f"{site.root}/console/jobs/{site.ids['explained']}")
        assert page.get_by_role("link", name="Open the report").count() == 0
        response = page.request.get(f"{site.root}/console/jobs/{site.ids['explained']}/explanation")
        assert response.status == 403


def test_a_tenant_signs_in_and_sees_its_own(site: Site, chromium: Any) -> None:
    with signed_in(site, chromium, "reader") as page:
        text = page.inner_text("body")
        assert "Tenant acme" in text
        assert "Workers" not in text
        page.get_by_role("link", name="Jobs", exact=True).click()
        page.get_by_label("Id of a job, batch or event").fill(site.ids["done"])
        page.get_by_role("button", name="Open").click()
        page.wait_for_url(f"**/jobs/{site.ids['done']}")
        assert CANARY not in page.content()
        assert "right texts" in page.inner_text("main")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_text("You are signed out.").wait_for()
        page.goto(f"{site.root}/console/jobs")
        assert "/console/sign-in" in page.url


def test_a_page_follows_what_happens_without_a_reload(site: Site, chromium: Any) -> None:
    with signed_in(site, chromium, "acme") as page:
        job_id = submit(site.store, "live", max_tokens=3000)
        page.goto(f"{site.root}/console/jobs/{job_id}")
        page.evaluate("window.notReloaded = true")
        page.locator(".head .badge", has_text="completed").wait_for()
        assert page.evaluate("window.notReloaded") is True
        assert page.locator(".steps li", has_text="Completed").count() == 1
    with signed_in(site, chromium) as page:
        before = int(page.inner_text("#waiting"))
        new = submit_unserved(site.store, CANARY)
        page.locator("#waiting", has_text=re.compile(f"^{before + 1}$")).wait_for()
        site.mill.store.cancel(new)
        page.locator("#waiting", has_text=re.compile(f"^{before}$")).wait_for()


def test_a_page_says_that_it_is_stale_while_the_gateway_fails(site: Site, chromium: Any) -> None:
    with signed_in(site, chromium) as page:
        page.evaluate("void (window.kept = window.fetch)")
        page.evaluate("void (window.fetch = async () => new Response('', { status: 503 }))")
        page.locator("html.is-stale").wait_for()
        page.evaluate("void (window.fetch = window.kept)")
        page.locator("html:not(.is-stale)").wait_for()


def test_the_charts_are_drawn_of_the_history(site: Site, chromium: Any) -> None:
    wait_until(lambda: site.store.client.llen("batchmill:load_history") >= 2, "two samples")
    with signed_in(site, chromium) as page:
        for title in ("Backlog", "Tokens per second", "Batch and KV cache"):
            chart = page.locator(".chart", has=page.get_by_role("heading", name=title))
            assert chart.locator("path.line").count() >= 1, title
        chart = page.locator(".chart").first
        chart.focus()
        page.keyboard.press("ArrowLeft")
        assert re.search(r"UTC · waiting \d+ · running \d+", chart.locator(".reading").inner_text())
        page.get_by_role("link", name="6 h").click()
        page.wait_for_url("**/console?period=6h")
        assert page.locator(".chart").count() == 6


def test_a_dead_letter_is_retried_and_another_dropped(site: Site, chromium: Any) -> None:
    from .conftest import dead_job

    retried, dropped = dead_job(site.store), dead_job(site.store)
    with signed_in(site, chromium, "admin") as page:
        page.goto(f"{site.root}/console/dead-letters")
        row = page.locator("tr", has=page.locator(f'a[href$="{retried}"]'))
        row.get_by_role("button", name="Retry").click()
        page.get_by_text("The dead letter is retried.").wait_for()
        assert site.mill.state(retried) is JobState.QUEUED
        row = page.locator("tr", has=page.locator(f'a[href$="{dropped}"]'))
        row.get_by_role("button", name="Drop").click()
        page.get_by_role("button", name="Back").click()
        assert site.store.dead_letter(dropped) is not None
        row.get_by_role("button", name="Drop").click()
        page.get_by_role("button", name="Yes").click()
        page.get_by_text("The dead letter is deleted.").wait_for()
        assert page.locator(f'a[href$="{dropped}"]').count() == 0
    assert site.store.dead_letter(dropped) is None
    site.store.cancel(retried)


def test_a_batch_is_cancelled(site: Site, chromium: Any) -> None:
    with Client(site.server.url) as client:
        lines = [{"prompt": "a", "model": "other", "max_tokens": 8} for _ in range(60)]
        batch_id = client.create_batch(lines, tenant="acme").id
        with signed_in(site, chromium, "acme") as page:
            page.goto(f"{site.root}/console/batches")
            page.locator(f'a[href$="{batch_id}"]').click()
            assert "0 completed" in page.inner_text("main")
            page.get_by_role("link", name="Further lines").click()
            page.wait_for_url("**?after=49")
            page.get_by_role("button", name="Cancel").click()
            page.get_by_role("button", name="Yes").click()
            page.locator(".head .badge", has_text="cancelled").wait_for()
        assert client.batch(batch_id).request_counts.failed == 60


def test_a_queue_is_paused_and_resumed(site: Site, chromium: Any) -> None:
    queue = "batchmill.other.normal"
    job_id = submit_unserved(site.store, CANARY)
    with signed_in(site, chromium) as page:
        page.goto(f"{site.root}/console/queues")
        row = page.locator("tr", has=page.get_by_text(queue, exact=True))
        row.get_by_text("Pause…").click()
        row.get_by_label("Reason").fill("maintenance <b>")
        row.get_by_role("button", name="Pause queue").click()
        page.get_by_text("It is paused.").wait_for()
        assert "maintenance <b>" in row.inner_text()
        row.get_by_role("button", name="Resume").click()
        page.get_by_text("It is resumed.").wait_for()
    site.store.cancel(job_id)


def test_webhook_endpoints_and_events_are_changed(site: Site, chromium: Any) -> None:
    job_id = submit(site.store, webhook=f"{site.receiver.url}/later")
    event_id = f"evt_{job_id}_completed"
    with signed_in(site, chromium, "admin") as page:
        wait_until(lambda: site.receiver_got(event_id) == 1, "the first delivery")
        page.goto(f"{site.root}/console/webhooks/events/{event_id}")
        page.locator(".head .badge", has_text="delivered").wait_for()
        page.get_by_role("button", name="Redeliver").click()
        page.get_by_text("The event will be sent again.").wait_for()
        wait_until(lambda: site.receiver_got(event_id) == 2, "the second delivery")
        with Client(site.server.url) as client:
            client.pause(endpoint=f"{site.receiver.url}/later", tenant="acme")
        page.goto(f"{site.root}/console/webhooks")
        row = page.locator("tr", has=page.get_by_text("/later"))
        row.get_by_role("button", name="Resume").click()
        page.get_by_text("It is resumed.").wait_for()
        assert "/later" not in page.inner_text("main")


def test_the_heat_map_shows_alternatives_to_pointer_and_keyboard(site: Site, chromium: Any) -> None:
    with signed_in(site, chromium, "acme") as page:
        page.goto(f"{site.root}/console/jobs/{site.ids['done']}")
        tokens = page.locator(".heat-map .heat")
        assert tokens.count() == 40
        tokens.nth(3).hover()
        card = page.locator("#token-card")
        assert card.locator("li").count() == 4
        assert "60.7 %" in card.locator("li.chosen").inner_text()
        tokens.first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        chosen = card.locator("li.chosen code").inner_text()
        assert chosen.lstrip("·") == tokens.nth(2).inner_text().strip()
        page.keyboard.press("Escape")
        assert not card.is_visible()


def test_pages_work_without_scripts_and_colours_are_switched(site: Site, chromium: Any) -> None:
    job_id = submit_unserved(site.store, CANARY)
    with signed_in(site, chromium, "acme", java_script_enabled=False) as page:
        page.goto(f"{site.root}/console/jobs/{job_id}")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("The job is cancelled.").wait_for()
    assert site.mill.state(job_id) is JobState.CANCELLED
    with signed_in(site, chromium, "acme", color_scheme="light") as page:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.get_by_role("button", name="Switch between light and dark").click()
        dark = page.evaluate(ground)
        assert light != dark
        page.reload()
        assert page.evaluate(ground) == dark
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
