"""Runs every program on one broker: worker, deliverer, gateway, Flower, both clients, commands."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from batchmill.producer import AsyncClient, Client, new_secret
from batchmill.producer.store.job_store import JobStore

from .processes import (
    CLI,
    DEADLINE_S,
    STUB,
    accepts,
    free_port,
    process,
    ready_worker,
    run,
    wait_until,
)


def check_every_program(given: str | Mapping[str, str], folder: Path) -> None:
    """Run all programs on a broker, and fail unless each of them reaches it.

    Args:
        given: URL of the broker; or one for each user: worker, deliverer, gateway, flower and
            producer.
        folder: for logs and runtime files.
    """
    urls = defaultdict(lambda: given) if isinstance(given, str) else given
    url = urls["producer"]
    gateway_port, flower_port = free_port(), free_port()
    environment = {
        **STUB,
        "BATCHMILL_BROKER_URL": url,
        "BATCHMILL_RUNTIME_DIR": str(folder),
        "BATCHMILL_WEBHOOK_SECRET": new_secret(),
        "BATCHMILL_GATEWAY_PORT": str(gateway_port),
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    flower = ("flower", f"--port={flower_port}")
    with ExitStack() as stack:
        store = JobStore.from_url(url)
        stack.callback(store.close)
        at_worker = environment | {"BATCHMILL_BROKER_URL": urls["worker"]}
        stack.enter_context(ready_worker(urls["worker"], store, folder, at_worker))
        others = {"deliverer": ("deliver",), "gateway": ("gateway",), "flower": flower}
        for user, words in others.items():
            log = folder / f"{words[0]}.log"
            its_own = environment | {"BATCHMILL_BROKER_URL": urls[user]}
            stack.enter_context(process(*CLI, *words, environment=its_own, log=log))

        with Client(url) as client:
            assert client.submit("Once", max_tokens=4).result(timeout_s=DEADLINE_S).text

        async def stream() -> str:
            async with AsyncClient(url) as client:
                job = await client.submit("Once", max_tokens=4)
                return "".join([piece.text async for piece in job.stream(timeout_s=DEADLINE_S)])

        assert asyncio.run(stream())
        assert run(*CLI, "submit", "Once", "--raw", "--wait", environment=environment).strip()
        for service in ("worker", "deliverer"):

            def is_ready(service: str = service) -> bool:
                command = [sys.executable, *CLI, "healthcheck", service, "--ready"]
                done = subprocess.run(
                    command, env={**os.environ, **environment}, timeout=DEADLINE_S
                )
                return done.returncode == 0

            wait_until(is_ready, f"the {service} becoming ready")
        wait_until(lambda: accepts(gateway_port), "starting the gateway")
        models = json.loads(get(f"http://127.0.0.1:{gateway_port}/v1/models"))
        assert [each["id"] for each in models["data"]] == ["demo"]
        wait_until(lambda: accepts(flower_port), "starting Flower")
        workers = f"http://127.0.0.1:{flower_port}/api/workers?refresh=1"
        wait_until(lambda: "demo-" in get(workers), "Flower seeing the worker")
        # Flower shows an empty page if the broker does not reply within its two seconds.
        page = f"http://127.0.0.1:{flower_port}/broker"
        wait_until(lambda: "batchmill.demo.normal" in get(page), "Flower showing the queue")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
        return str(response.read().decode())
