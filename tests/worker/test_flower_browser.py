"""Every page of Flower in a real Chromium, with real jobs: facts, buttons, and no content."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.worker.local.flower import free_port as prefer_port

from ..conftest import RedisServer
from ..structure.public_interface import ROOT
from ..support.processes import CLI, accepts, free_port, process, wait_until
from .conftest import Mill, expected_tokens
from .monitor_browser import Browser, find_chromium, opened

PROMPT = "CANARY-PROMPT-7f3a"
QUEUE = keys.queue_name("demo", "normal")
LONG = 200_000
USER, PASSWORD = "operator", "pass-word"


@contextmanager
def flower(url: str, folder: Path, log_name: str = "flower.log") -> Iterator[str]:
    """Run `batchmill flower` with a password and a history; yield its address."""
    port = free_port()
    environment = {
        "BATCHMILL_BROKER_URL": url,
        "FLOWER_PORT": str(port),
        "FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}",
        "FLOWER_PERSISTENT": "true",
        "FLOWER_DB": str(folder / "history"),
        "FLOWER_TASKS_COLUMNS": "uuid,state,kwargs,result,received,runtime",
    }
    with process(*CLI, "flower", environment=environment, log=folder / log_name):
        wait_until(lambda: accepts(port), "starting Flower")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def tcp_mill(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mill]:
    """A mill whose broker listens on a port: the pictures show a URL as users have it."""
    find_chromium()  # skips before anything starts
    is_for_pictures = request.config.getoption("--write-screenshots")
    port = prefer_port(6379) if is_for_pictures else free_port()
    server = RedisServer("--bind", "127.0.0.1", "--port", str(port))
    server.start()
    mill = Mill(f"redis://127.0.0.1:{port}/0", tmp_path)
    yield mill
    mill.close()
    server.close()


@pytest.fixture
def site(tcp_mill: Mill, tmp_path: Path) -> Iterator[tuple[Mill, Browser]]:
    """Flower, started before the worker, as the worst case; then the worker and a browser."""
    with ExitStack() as stack:
        url = stack.enter_context(flower(tcp_mill.url, tmp_path))
        listening = tcp_mill.store.client
        wait_until(lambda: listening.pubsub_numpat() >= 1, "Flower to listen")
        start_worker(tcp_mill, stub={"step_time_s": 0.01})
        yield tcp_mill, stack.enter_context(opened(url, user=USER, password=PASSWORD))


def start_worker(mill: Mill, **options: Any) -> None:
    """Start a worker; a browser beside it makes the machine slow."""
    worker = mill.launch(**options)
    wait_until(lambda: mill.heartbeat(worker) is not None, "starting the worker")


def send_task(mill: Mill, **fields: Any) -> str:
    """Send a job as any Celery service does; return its id."""
    kwargs = {"job": {"prompt": PROMPT, "seed": 7, **fields}}
    return str(mill.celery.send_task(keys.TASK_NAME, kwargs=kwargs, queue=QUEUE).id)


def facts_on(page_text: str) -> dict[str, Any]:
    """Return the facts in the line of the keyword arguments of a task's page."""
    found = re.search(r"Keyword arguments\s*(\{.*?\})", page_text, re.DOTALL | re.IGNORECASE)
    assert found is not None, page_text
    facts: dict[str, Any] = ast.literal_eval(found[1])
    return facts


def wait_page(browser: Browser, path: str, *words: str) -> str:
    """Open a page again and again until it shows some words."""
    deadline = time.monotonic() + 90
    while True:
        text = browser.open(path)
        if all(word in text for word in words):
            return text
        assert time.monotonic() < deadline, (words, text)
        time.sleep(0.5)


def test_pages_show_facts_and_no_content_and_buttons_end_jobs(
    site: tuple[Mill, Browser], request: pytest.FixtureRequest
) -> None:
    mill, browser = site
    words = [f"w{token}" for token in expected_tokens(PROMPT, 3)]
    done = mill.submit(PROMPT, tenant="acme", tags=["night-run"], max_tokens=60)
    failed = mill.submit(f"{PROMPT} <<error@4>>", tenant="shop")
    plain_done = send_task(mill, max_tokens=20)
    running = mill.submit(PROMPT, tenant="acme", max_tokens=LONG)
    plain_running = send_task(mill, max_tokens=LONG, tenant="shop")
    unserved = mill.submit(PROMPT, model="gpt-4")
    mill.submit(PROMPT, delay_s=3600)
    mill.wait_ended(done, failed, timeout_s=90)

    text = wait_page(browser, f"/task/{done}", "SUCCESS", "tok/s")
    facts = facts_on(text)
    assert (facts["model"], facts["tenant"], facts["class"]) == ("demo", "acme", "normal")
    assert (facts["tags"], facts["max_tokens"], facts["tokens"]) == ("night-run", 60, 60)
    assert re.search(r"<60 tokens, [0-9.]+ tok/s, first token after [0-9.]+ s>", text)
    text = wait_page(browser, f"/task/{failed}", "FAILURE")
    assert "numerical_error" in text
    wait_page(browser, f"/task/{plain_done}", "SUCCESS", "<20 tokens")

    # Flower was there before the worker, and shows its queues all the same.
    text = wait_page(browser, "/broker", QUEUE, "batchmill.gpt-4.normal", "delayed jobs")
    rows = dict(re.findall(r"^(batchmill\.\S+)\s+(\d+)", text, re.MULTILINE))
    assert rows["batchmill.gpt-4.normal"] == "1"
    assert rows[QUEUE] == "1"  # the delayed one
    assert unserved

    for task_id in (running, plain_running):
        text = wait_page(browser, f"/task/{task_id}", "STARTED", "'tokens'", "tok/s")
        assert facts_on(text)["max_tokens"] == LONG
    write = request.config.getoption("--write-screenshots")
    images = ROOT / "docs" / "images"
    if write:
        browser.screenshot(images, "flower-task")
        browser.open("/broker", expect=QUEUE)
        browser.screenshot(images, "flower-queues")
        browser.open("/tasks", expect="night-run")
        browser.screenshot(images, "flower-tasks")

    for task_id in (running, plain_running):
        browser.open(f"/task/{task_id}", expect="Terminate")
        browser.page.click("#task-terminate")
        wait_until(lambda task_id=task_id: mill.state(task_id).is_terminal, "the end")  # type: ignore[misc]
        assert mill.state(task_id) is JobState.CANCELLED
        wait_page(browser, f"/task/{task_id}", "REVOKED")

    worker = mill.workers[0].name
    for path in ("/", "/workers", "/tasks", "/broker", f"/worker/{worker}", "/metrics"):
        browser.open(path)
    browser.open("/tasks", expect="night-run")
    for path in ("/api/tasks", "/api/workers?refresh=1", "/api/queues/length"):
        browser.open(path)
    shown = "".join(browser.shown.values())
    assert "night-run" in shown
    for canary in (PROMPT, *words):
        assert canary not in shown


@pytest.mark.nightly
def test_history_outlives_a_restart_of_flower(private_mill: Mill, tmp_path: Path) -> None:
    find_chromium()
    with flower(private_mill.url, tmp_path) as url:
        wait_until(lambda: private_mill.store.client.pubsub_numpat() >= 1, "Flower to listen")
        start_worker(private_mill)
        job_id = private_mill.submit(PROMPT, tenant="acme", max_tokens=5)
        private_mill.wait_ended(job_id, timeout_s=60)
        with opened(url, user=USER, password=PASSWORD) as browser:
            wait_page(browser, f"/task/{job_id}", "SUCCESS", "<5 tokens")
    with (
        flower(private_mill.url, tmp_path, "again.log") as url,
        opened(url, user=USER, password=PASSWORD) as browser,
    ):
        text = wait_page(browser, f"/task/{job_id}", "SUCCESS", "<5 tokens")
    assert facts_on(text)["tenant"] == "acme"
