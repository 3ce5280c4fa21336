"""The console in this process: without keys, turned off, and with clients that stand still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.store.load_history import load_history
from batchmill.worker.console import console_parts, recorder
from batchmill.worker.console.fleet import Load
from batchmill.worker.console.site import Site
from batchmill.worker.gateway.app import build_app
from batchmill.worker.gateway.settings import GatewaySettings

ROOT = "http://127.0.0.1:8000"
FORM = {"kind": "tenant", "name": "acme", "action": "pause"}


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> GatewaySettings:
    return GatewaySettings(
        broker_url=redis_url,
        gateway_files_url=str(tmp_path / "files"),
        gateway_body_timeout_s=0.05,
    )


def serve(
    settings: GatewaySettings, ask: Callable[[Starlette, httpx2.AsyncClient], Awaitable[None]]
) -> None:
    """Run a function with a client of a gateway that has a console."""

    async def run() -> None:
        app = build_app(settings, parts=console_parts(settings))
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url=ROOT) as client,
        ):
            await ask(app, client)

    asyncio.run(run())


async def post_form(app: Starlette, receive: Callable[[], Awaitable[Any]]) -> list[dict[str, Any]]:
    """Send the form of a sign-in whose body is what `receive` returns; return the response."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/console/sign-in",
        "raw_path": b"/console/sign-in",
        "query_string": b"",
        "scheme": "http",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"sec-fetch-site", b"same-origin")],
    }
    await app(scope, receive, send)
    return sent


def test_without_keys_the_console_is_open_to_this_machine_only(settings: GatewaySettings) -> None:
    async def ask(app: Starlette, client: httpx2.AsyncClient) -> None:
        assert "no API keys" in (await client.get("/console")).text
        foreign = await client.get("/console", headers={"host": "example.com"})
        assert foreign.status_code == 403
        for origin in ("https://example.com", "http://127.0.0.1:1"):
            response = await client.post("/console/queues", data=FORM, headers={"origin": origin})
            assert response.status_code == 403, origin
        response = await client.post("/console/queues", data=FORM, headers={"origin": ROOT})
        assert response.status_code == 303
        assert "paused" in (await client.get("/console/queues")).text

    serve(settings, ask)


def test_a_setting_turns_the_console_off(settings: GatewaySettings) -> None:
    async def ask(app: Starlette, client: httpx2.AsyncClient) -> None:
        response = await client.get("/console")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "unknown_url"

    serve(settings.model_copy(update={"gateway_console": False}), ask)


def test_a_form_that_comes_too_slowly_is_refused(settings: GatewaySettings) -> None:
    async def stand_still() -> None:
        await asyncio.Event().wait()

    async def ask(app: Starlette, client: httpx2.AsyncClient) -> None:
        start, *_ = await asyncio.wait_for(post_form(app, stand_still), 60)
        assert start["status"] == 408
        assert (b"connection", b"close") in start["headers"]

    serve(settings, ask)


def test_a_client_that_leaves_its_form_is_no_failure_of_the_gateway(
    settings: GatewaySettings, capfd: pytest.CaptureFixture[str]
) -> None:
    async def leave() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def ask(app: Starlette, client: httpx2.AsyncClient) -> None:
        assert await post_form(app, leave) == []

    serve(settings, ask)
    assert "console_failed" not in "".join(capfd.readouterr())


def test_one_failed_sample_does_not_end_the_history(
    settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, stored = Site(settings), threading.Event()
    record, failures = recorder._record, [OverflowError("cannot convert float infinity")]

    def fail_once(site: Site) -> None:
        if failures:
            raise failures.pop()
        record(site)
        stored.set()

    async def run() -> None:
        recording = asyncio.ensure_future(recorder.record_load(site))
        assert await asyncio.to_thread(stored.wait, 60)
        recording.cancel()
        await asyncio.wait({recording})

    monkeypatch.setattr(recorder, "_record", fail_once)
    monkeypatch.setattr(recorder, "_TRY_S", 0.01)
    asyncio.run(run())
    assert site.stores.at("").read(load_history(10))
    site.close()


def test_numbers_of_a_heartbeat_that_are_not_finite_are_unknown() -> None:
    stats: dict[str, float | str] = {
        "tokens_per_s": float("inf"),
        "running": float("nan"),
        "ttft_p50_s": "odd",
        "jobs": 2,
    }
    worker = WorkerInfo("w", "demo", "w", (), 64, 8, 0, "ready", (), stats=stats)
    load = Load.of(worker)
    assert (load.tokens_per_s, load.running, load.ttft_p50_s, load.jobs) == (None, None, None, 2)
