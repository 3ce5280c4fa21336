"""Measures the latency of healthy deliveries with fifty tarpits beside them, and without.

`python tests/bench/tarpits.py [rounds]` starts an embedded broker and one deliverer with default
settings. A healthy receiver is owed 50 events per second for ten seconds. In every second run, each
of fifty tarpits (receivers that respond with one byte per second) is owed one event per second as
well. The script prints the time from the end of a job to the arrival of its webhook.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker
from batchmill.worker.webhooks.local_receiver import LOOPBACK, ReceivedRequest, WebhookReceiver
from tests.worker.webhook_deliverers import SECRET, finish_job

NUM_TARPITS = 50
EVENTS_PER_S = 50
SECONDS = 10
SETTINGS = {
    "BATCHMILL_WEBHOOK_SECRET": SECRET,
    "BATCHMILL_WEBHOOK_ALLOW_HTTP": "1",
    "BATCHMILL_WEBHOOK_ALLOW_PORTS": "1024-65535",
    "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": LOOPBACK,
}


class Tarpits:
    """Receivers that accept a request and respond with one byte per second, without end."""

    def __init__(self) -> None:
        self.num_connections = 0
        self.urls: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Tarpits:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            drips = asyncio.all_tasks() - {asyncio.current_task()}
            for drip in drips:
                drip.cancel()
            await asyncio.gather(*drips, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _listen(self) -> None:
        for _ in range(NUM_TARPITS):
            server = await asyncio.start_server(self._drip, "127.0.0.1", 0, backlog=512)
            self.urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

    async def _drip(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with contextlib.suppress(OSError, asyncio.CancelledError):  # the latter in __exit__
            for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 3600:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)


def latencies_s(requests: list[tuple[float, ReceivedRequest]]) -> list[float]:
    """Return the seconds from each job's end to the arrival of its event, sorted."""
    return sorted(
        at - datetime.fromisoformat(json.loads(request.body)["timestamp"]).timestamp()
        for at, request in requests
    )


def measure(url: str, tarpits: Tarpits | None) -> list[float]:
    """Finish jobs at a steady rate; return the latencies of the healthy deliveries."""
    store, arrived = JobStore.from_url(url), []

    def respond(request: ReceivedRequest) -> int:
        arrived.append((time.time(), request))
        return 204

    num_events, run = EVENTS_PER_S * SECONDS, f"{time.time_ns()}"
    with WebhookReceiver(respond) as receiver:
        started_at = time.monotonic()
        for number in range(num_events):
            time.sleep(max(0.0, started_at + number / EVENTS_PER_S - time.monotonic()))
            finish_job(store, receiver.url, f"{run}_{number}")
            if tarpits is not None:  # as many events for tarpits as for the healthy receiver
                finish_job(store, tarpits.urls[number % NUM_TARPITS], f"{run}_tar_{number}")
        if not receiver.wait_for(num_events, timeout_s=60):
            print(f"only {len(arrived)} of {num_events} arrived within a minute")
    store.close()
    return latencies_s(arrived)


@contextlib.contextmanager
def deliverer(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a deliverer process with default settings."""
    with (folder / "deliver.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "batchmill.worker.cli", "deliver"],
            env=os.environ | SETTINGS | {"BATCHMILL_BROKER_URL": url},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def describe(name: str, seconds: list[float]) -> str:
    """Format the percentiles as a line."""
    p50, p99 = statistics.median(seconds), seconds[int(0.99 * (len(seconds) - 1))]
    return (
        f"{name}: {len(seconds)} deliveries, p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, "
        f"longest {1000 * seconds[-1]:.0f} ms"
    )


def main() -> None:
    """Run both in turn and print the latencies."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    for number in range(rounds):
        for name in ("without", "beside 50 tarpits"):
            with (
                tempfile.TemporaryDirectory() as folder,
                EmbeddedBroker(BrokerConfig(Path(folder))) as broker,
                Tarpits() as tarpits,
                deliverer(broker.url, Path(folder)),
            ):
                store = JobStore.from_url(broker.url)
                with WebhookReceiver() as first:  # wait until the deliverer works
                    finish_job(store, first.url, "warm_up")
                    first.wait_for(1, timeout_s=60)
                store.close()
                found = measure(broker.url, tarpits if name != "without" else None)
                print(f"round {number + 1}, {describe(name, found)}", flush=True)
                if name != "without":
                    print(f"  connections that the tarpits held: {tarpits.num_connections}")


if __name__ == "__main__":
    main()
