"""Kills workers, and measures when their jobs go on; then disturbs workers that live.

`python tests/bench/worker_kills.py [kills]` runs three workers with the stub engine and default
settings. It kills one after another (`kill -9`) and starts a new one each time, and prints the
time from each kill until each job of the killed worker has a new token elsewhere. Then it cuts
connections, freezes and restarts Redis, freezes a worker for less than a lease, stalls one for two
seconds and loads the machine, and prints which jobs were taken from a worker that lived: none may
be.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_mill import BulkMill, load_average

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

NUM_WORKERS = 3
NUM_JOBS = 24
SETTINGS = {
    "BATCHMILL_ENGINE": "stub",
    "BATCHMILL_STUB": json.dumps({"step_time_s": 0.02}),
    "BATCHMILL_MAX_NUM_SEQS": "16",
}
#: Longer than a session's timeout, shorter than a lease.
CUT_S = 8.0
Worker = subprocess.Popen[bytes]


class Fleet:
    """Workers that always have jobs."""

    def __init__(self, mill: BulkMill) -> None:
        self.mill = mill
        self.workers: dict[str, Worker] = {}
        self._number = 0
        for _ in range(NUM_WORKERS):
            self.add_worker()
        self.fill()

    def add_worker(self) -> None:
        before = {info.name for info in self.mill.store.list_workers()}
        worker = self.mill.start_worker()
        [name] = {info.name for info in self.mill.store.list_workers()} - before
        self.workers[name] = worker

    def fill(self) -> None:
        """Submit jobs until enough run or wait."""
        client = self.mill.store.client
        missing = NUM_JOBS - client.zcard(keys.LEASES)
        for _ in range(missing):
            self._number += 1
            job = GenerationJob(prompt=f"prompt {self._number}", max_tokens=2000, seed=7)
            self.mill.store.submit(prepare(job, ProducerSettings()))
        self.mill.wait_for(lambda: client.zcard(keys.LEASES) >= NUM_JOBS)

    @property
    def first_pid(self) -> int:
        return next(iter(self.workers.values())).pid

    def owned(self) -> dict[str, tuple[str, int]]:
        """Return owner and attempts of the jobs that run, by id."""
        found = {}
        for member in self.mill.store.client.zrange(keys.LEASES, 0, -1):
            record = self.mill.store.load(member.decode())  # type: ignore[union-attr]
            if record is not None and record.owner is not None:
                found[record.id] = (record.owner, record.attempts)
        return found

    def num_tokens(self, job_id: str) -> int:
        return self.mill.store.num_tokens(job_id)


def kill_one(fleet: Fleet) -> list[float]:
    """Kill the worker with the most jobs; return for each job the seconds to its next token."""
    owned = fleet.owned()
    names = [owner for owner, _ in owned.values()]
    victim = max(fleet.workers, key=names.count)
    worker = fleet.workers.pop(victim)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    killed_at = time.monotonic()
    lost = {j: fleet.num_tokens(j) for j, (owner, _) in owned.items() if owner == victim}
    delays = []
    while lost and time.monotonic() - killed_at < 60:
        for job_id in [job_id for job_id, num in lost.items() if fleet.num_tokens(job_id) > num]:
            delays.append(time.monotonic() - killed_at)
            del lost[job_id]
        time.sleep(0.01)
    delays += [60.0] * len(lost)
    fleet.add_worker()
    fleet.fill()
    return delays


def disturb(fleet: Fleet, name: str, action: Callable[[], None]) -> None:
    """Disturb the fleet for a while, and print how many jobs were taken from living workers."""
    fleet.fill()
    time.sleep(6)  # every worker may judge the others again
    before = fleet.owned()
    action()
    time.sleep(CUT_S)
    records = {job_id: fleet.mill.store.load(job_id) for job_id in before}
    taken = [
        job_id
        for job_id, (_, attempts) in before.items()
        if (record := records[job_id]) is None or record.attempts > attempts
    ]
    print(f"{name:50s} {len(taken)} of {len(before)} jobs taken", flush=True)


def cut_connections(fleet: Fleet, *types: str) -> None:
    until = time.monotonic() + CUT_S
    while time.monotonic() < until:
        for kind in types:
            fleet.mill.store.client.execute_command("CLIENT", "KILL", "TYPE", kind)
        time.sleep(0.2)


def freeze(pid: int | None, seconds: float) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def burn(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def load_machine() -> None:
    burners = [multiprocessing.Process(target=burn, args=(CUT_S * 2,)) for _ in range(8)]
    for burner in burners:
        burner.start()
    for burner in burners:
        burner.join()


def restart_redis(broker: EmbeddedBroker) -> None:
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    broker.stop()
    time.sleep(CUT_S)
    broker.start()


def measure_kills(fleet: Fleet, num_kills: int) -> None:
    """Kill workers and print the delays."""
    delays = []
    for number in range(num_kills):
        one = kill_one(fleet)
        print(f"kill {number + 1}: {', '.join(f'{delay:.1f}' for delay in sorted(one))} s")
        delays += one
    delays.sort()
    print(
        f"{len(delays)} jobs of {num_kills} killed workers: "
        f"p50 {statistics.median(delays):.1f} s, "
        f"p99 {delays[int(len(delays) * 0.99)]:.1f} s, longest {delays[-1]:.1f} s",
        flush=True,
    )


def main(num_kills: int) -> None:
    """Print both tables."""
    print(f"before: {load_average()}")
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedBroker(BrokerConfig(Path(folder))) as broker,
    ):
        mill = BulkMill(broker.url, Path(folder), SETTINGS)
        try:
            fleet = Fleet(mill)
            time.sleep(6)
            if num_kills:
                measure_kills(fleet, num_kills)
            for name, action in (
                ("nothing", lambda: None),
                ("CLIENT KILL, all", lambda: cut_connections(fleet, "normal", "pubsub")),
                ("CLIENT KILL, pubsub", lambda: cut_connections(fleet, "pubsub")),
                ("CLIENT KILL, normal", lambda: cut_connections(fleet, "normal")),
                ("a worker frozen for 8 s", lambda: freeze(fleet.first_pid, CUT_S)),
                ("a worker stalled for 2 s", lambda: freeze(fleet.first_pid, 2.0)),
                ("Redis frozen for 8 s", lambda: freeze(broker.pid, CUT_S)),
                ("Redis away for 8 s", lambda: restart_redis(broker)),
                ("8 busy processes", load_machine),
            ):
                disturb(fleet, name, action)
        finally:
            mill.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
