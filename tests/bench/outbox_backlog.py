"""Measures webhook deliveries beside a long backlog for one tarpit, and to many endpoints.

`python tests/bench/outbox_backlog.py tarpit [events]` writes that many events (150,000) for one
receiver that accepts connections and never responds. Then it ends four jobs per second for a
healthy receiver, for 60 seconds, and prints how late their webhooks are, the CPU time of the
deliverer and the scripts that it calls.

`python tests/bench/outbox_backlog.py endpoints [endpoints] [events each]` writes events for 10,000
endpoints on 20 healthy hosts, three each, and prints how long one deliverer takes for them.

Both start an embedded broker and a deliverer with default settings.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from quick_receivers import QuickReceivers, Tarpit
from tarpits import deliverer, describe

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

QUEUE = keys.queue_name("demo", "normal")
HEALTHY_SECONDS, HEALTHY_EVENTS_PER_S = 60, 4


def owe_events(store: JobStore, urls: list[str], name: str) -> None:
    """Submit and cancel one job per URL: each owes one event."""
    for start in range(0, len(urls), 500):
        page = range(start, min(start + 500, len(urls)))
        jobs = [
            NewJob(f"{name}_{i}", "demo", QUEUE, '{"prompt":"x"}', 600_000, webhook=urls[i])
            for i in page
        ]
        store.run_all([job_calls.submit(job) for job in jobs])
        store.run_all([job_calls.cancel(job.job_id) for job in jobs])


class Load:
    """Counts the scripts that Redis ran and the CPU time of a process, from now on."""

    def __init__(self, store: JobStore, pid: int) -> None:
        self._store, self._process = store, psutil.Process(pid)
        self._start = self._read()

    def _read(self) -> tuple[float, float, float]:
        stats = self._store.client.info("commandstats")
        times = self._process.cpu_times()
        calls = float(stats.get("cmdstat_evalsha", {}).get("calls", 0))
        return time.monotonic(), calls, times.user + times.system

    def describe(self) -> str:
        """Format the use since the start as a line."""
        seconds, calls, cpu_s = (b - a for a, b in zip(self._start, self._read(), strict=True))
        memory_mb = self._process.memory_info().rss >> 20
        return (
            f"in {seconds:.1f} s: {calls / seconds:.0f} scripts/s, deliverer {cpu_s / seconds:.0%} "
            f"of a core, {memory_mb} MB"
        )


def measure_tarpit(store: JobStore, url: str, folder: Path, num_events: int) -> None:
    """Print the latencies of healthy webhooks beside a backlog for one tarpit."""
    with Tarpit() as tarpit, QuickReceivers(1) as healthy:
        owe_events(store, [tarpit.url] * num_events, "tarpit")
        print(f"{num_events} events wait for the tarpit", flush=True)
        with deliverer(url, folder) as process:
            time.sleep(5.0)
            load, sent = Load(store, process.pid), {}
            start_s = time.monotonic()
            for number in range(HEALTHY_SECONDS * HEALTHY_EVENTS_PER_S):
                due_s = start_s + number / HEALTHY_EVENTS_PER_S
                time.sleep(max(0.0, due_s - time.monotonic()))
                sent[f"evt_healthy_{number}_0_cancelled"] = time.monotonic()
                owe_events(store, [healthy.urls[0]], f"healthy_{number}")
            line = load.describe()
            healthy.wait_for(len(sent), timeout_s=120.0)
    arrived = healthy.arrived_at_s
    print(f"{len(sent) - len(arrived)} of {len(sent)} did not arrive within two minutes")
    if arrived:
        print(describe("healthy", sorted(arrived[i] - sent[i] for i in arrived)))
    print(line)


def measure_endpoints(
    store: JobStore, url: str, folder: Path, num_endpoints: int, num_each: int
) -> None:
    """Print how long one deliverer takes for a few events of each of many endpoints."""
    with QuickReceivers(20) as receivers:
        urls = [
            f"{receivers.urls[i % len(receivers.urls)]}hook/{i}"
            for _ in range(num_each)
            for i in range(num_endpoints)
        ]
        owe_events(store, urls, "job")
        with deliverer(url, folder) as process:
            receivers.wait_for(1, timeout_s=30.0)
            load, start_s = Load(store, process.pid), time.monotonic()
            receivers.wait_for(len(urls), timeout_s=600.0)
            seconds = time.monotonic() - start_s
            print(
                f"{len(receivers.arrived_at_s)} of {len(urls)} events in {seconds:.1f} s: ", end=""
            )
            num_arrived = len(receivers.arrived_at_s)
            print(f"{num_arrived} of {len(urls)} events, {num_arrived / seconds:.0f}/s")
            print(load.describe())


@contextlib.contextmanager
def broker() -> Iterator[tuple[JobStore, str, Path]]:
    """Run a broker in a folder of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedBroker(BrokerConfig(Path(folder))) as started,
    ):
        store = JobStore.from_url(started.url)
        yield store, started.url, Path(folder)
        store.close()


def main() -> None:
    """Run the measurement that the command line names."""
    kind, *numbers = sys.argv[1:] or ["tarpit"]
    given = [int(number) for number in numbers]
    with broker() as (store, url, folder):
        if kind == "tarpit":
            measure_tarpit(store, url, folder, *(given or [150_000]))
        else:
            measure_endpoints(store, url, folder, *(given or [10_000, 3]))


if __name__ == "__main__":
    main()
