"""One run: jobs, kills of the primary while its replica is cut off, and the figures of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchmill.producer import BrokerUnavailable, Client, JobState, UnknownJob
from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.webhook.signature import new_secret
from batchmill.worker.chaos.programs import Program
from batchmill.worker.engine_host.stub_output import stub_text, stub_token
from batchmill.worker.service_errors import BenchFailed, BrokerNotInstalled
from batchmill.worker.webhooks.local_receiver import LOOPBACK, ReceivedRequest, WebhookReceiver

from .oracle import Broken, Promise, TrackedJob, judge
from .watched import WatchedService

_MODEL = "failover"
_JOB_SEED = 7
_SECRET = new_secret()
_TARGETS: dict[str, object] = {
    "WEBHOOK_ALLOW_HTTP": "true",
    "WEBHOOK_ALLOW_PORTS": "1-65535",
    "WEBHOOK_ALLOW_NETWORKS": LOOPBACK,
}
_POLL_S = 0.05
#: Ends and submissions that a kill must lose, if the replica lacks them.
_LOST_ENDS, _LATE_JOBS = 3, 3
#: Seconds in which they must come: later the Sentinels repair the replication.
_CUT_S = 6.0
_STOP_S = 20.0
_CALL_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class FailoverOptions:
    """Options of a run."""

    seed: int = 1
    num_jobs: int = 60
    num_kills: int = 2
    num_workers: int = 2
    #: Replicas that must have a submission before its sender is told; 0 or 1.
    min_replicas: int = 0
    #: Seconds per step of the stub engine.
    step_time_s: float = 0.02
    #: Seconds that jobs may take to end after the last kill.
    settle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class FailoverReport:
    """The figures of a run: a row of the table in `docs/failover.md`."""

    seed: int
    min_replicas: int
    jobs: int
    kills: int
    #: Jobs that the new primary did not know, and that were submitted again.
    resubmitted: int
    #: Ends that were lost, so that the job ran again.
    repeated_ends: int
    computed_tokens: int
    recomputed_tokens: int
    #: Longest time until the Sentinels named another primary, seconds.
    max_failover_s: float
    broken: tuple[Broken, ...]

    def count(self, promise: Promise) -> int:
        """Return how often a promise was broken."""
        return sum(each.promise is promise for each in self.broken)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {promise.value: self.count(promise) for promise in Promise}


def run_failover(options: FailoverOptions, say: Callable[[str], None]) -> FailoverReport:
    """Run jobs while primaries are killed, and judge. Call it in the main thread.

    Raises:
        BenchFailed: the programs do not start.
        BrokerNotInstalled: there is no server program.
    """
    folder = Path(tempfile.mkdtemp(prefix="batchmill-failover-"))
    try:
        with _site(folder, options) as site:
            report = _Run(site, options, say).report()
    except BrokerNotInstalled:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        say(f"the logs are in {folder}")
        raise
    if report.broken:
        say(f"the logs are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return report


class _Site:
    """The programs of a run."""

    def __init__(self, folder: Path, options: FailoverOptions) -> None:
        self.trace_path = folder / "computed"
        self.receiver = WebhookReceiver()
        self.service = WatchedService(folder)
        stub = {"step_time_s": options.step_time_s, "trace_path": str(self.trace_path)}
        self.programs = [
            _program(
                folder,
                f"w{number}@failover",
                "worker",
                {
                    "BROKER_URL": self.service.url,
                    "ENGINE": "stub",
                    "STUB": json.dumps(stub),
                    "MODEL": _MODEL,
                    "WORKER_NAME": f"w{number}@failover",
                    "LEASE_S": 3,
                    "SWEEP_INTERVAL_S": 0.5,
                    "REANNOUNCE_GRACE_S": 2,
                    **_TARGETS,
                },
            )
            for number in range(options.num_workers)
        ]
        self.programs.append(
            _program(
                folder,
                "deliverer",
                "deliver",
                {
                    "BROKER_URL": self.service.url,
                    "WEBHOOK_SECRET": _SECRET,
                    "WEBHOOK_POLL_INTERVAL_S": 0.1,
                    **_TARGETS,
                },
            )
        )


@contextmanager
def _site(folder: Path, options: FailoverOptions) -> Iterator[_Site]:
    site = _Site(folder, options)
    try:
        with site.receiver:
            for program in site.programs:
                program.start()
            yield site
            for program in site.programs:
                program.signal(signal.SIGTERM, ends=True)
            for program in site.programs:
                program.wait_until_ended(_STOP_S)
    finally:
        for program in site.programs:
            program.wait_until_ended(0)
        site.service.close()


class _Run:
    """Follows the plan of a seed."""

    def __init__(self, site: _Site, options: FailoverOptions, say: Callable[[str], None]) -> None:
        self._site = site
        self._options = options
        self._say = say
        self._rng = random.Random(options.seed)
        self._jobs: list[TrackedJob] = []
        self._repeated_ends = 0
        self._failovers_s: list[float] = []
        settings = ProducerSettings(
            model=_MODEL,
            webhook_allow_http=True,
            webhook_allow_ports=("1-65535",),
            webhook_allow_networks=(LOOPBACK,),
        )
        self._client = Client(
            site.service.url,
            timeout_s=_CALL_TIMEOUT_S,
            min_replicas=options.min_replicas,
            settings=settings,
        )

    def report(self) -> FailoverReport:
        """Run, and return the figures."""
        options = self._options
        with self._client:
            for number in range(options.num_kills):
                self._submit(share(options.num_jobs, options.num_kills, number))
                self._wait_for_ends(_LOST_ENDS)
                self._lose_writes(number)
                self._find_lost_jobs()
            self._say("waiting until all jobs have ended")
            self._settle()
            broken = tuple(judge(self._jobs, self._expected(), self._webhooks()))
        computed, distinct = self._count_computed()
        return FailoverReport(
            seed=options.seed,
            min_replicas=options.min_replicas,
            jobs=len(self._jobs),
            kills=options.num_kills,
            resubmitted=sum(len(job.job_ids) - 1 for job in self._jobs),
            repeated_ends=self._repeated_ends,
            computed_tokens=computed,
            recomputed_tokens=computed - distinct,
            max_failover_s=round(max(self._failovers_s, default=0.0), 1),
            broken=broken,
        )

    def _submit(self, num_jobs: int) -> None:
        for _ in range(num_jobs):
            number = len(self._jobs)
            key = f"failover-{self._options.seed}-{number}"
            job = TrackedJob(key, f"prompt {key}", self._rng.randint(20, 150))
            self._jobs.append(job)
            self._send(job)

    def _send(self, job: TrackedJob) -> None:
        try:
            job_id = self._client.submit(
                job.prompt,
                max_tokens=job.max_tokens,
                seed=_JOB_SEED,
                idempotency_key=job.key,
                webhook=f"{self._site.receiver.url}/{job.key}",
                include_output=True,
            ).id
        except BrokerUnavailable as error:  # also `NotReplicated`: it says which job is stored
            ids = getattr(error, "job_ids", ())
            if not ids:
                raise
            job_id = ids[0]
        if job_id not in job.job_ids:
            job.job_ids.append(job_id)

    def _lose_writes(self, number: int) -> None:
        """Kill the primary once it has written what its replica lacks."""
        service = self._site.service
        ended_before = len(self._ended())
        service.cut_replica()
        self._submit(_LATE_JOBS)
        deadline_s = time.monotonic() + _CUT_S
        while time.monotonic() < deadline_s:
            if len(self._ended()) >= ended_before + _LOST_ENDS:
                break
            time.sleep(_POLL_S)
        seen = self._read_results()
        self._say(
            f"kill {number + 1} of {self._options.num_kills}"
            + ("" if service.is_cut() else "; the Sentinels had repaired the replication before")
        )
        self._failovers_s.append(service.kill_primary())
        service.restart_killed()
        ended = self._ended()
        self._repeated_ends += sum(job.key in seen and job.key not in ended for job in self._jobs)

    def _find_lost_jobs(self) -> None:
        """Submit again what the new primary does not know, as the sender of a job does."""
        for job in self._jobs:
            try:
                self._client.status(job.job_ids[-1])
            except UnknownJob:
                self._send(job)

    def _settle(self) -> None:
        deadline_s = time.monotonic() + self._options.settle_s
        while time.monotonic() < deadline_s:
            if len(self._ended()) == len(self._jobs) and self._have_webhooks_arrived():
                break
            time.sleep(0.2)
        self._read_results()
        for job in self._jobs:
            names = ("state", "fence", "claim_nonce", "completed_fence")
            client: Any = self._client._shards.first.client
            values = client.hmget(keys.job(job.job_ids[-1]), *names)
            state, fence, nonce, completed = ((value or b"").decode() for value in values)
            job.state, job.fence, job.completed_fence = state, f"{fence}.{nonce}", completed

    def _ended(self) -> set[str]:
        found = set()
        for job in self._jobs:
            try:
                if self._client.status(job.job_ids[-1]).state.is_terminal:
                    found.add(job.key)
            except UnknownJob:
                continue
        return found

    def _wait_for_ends(self, num_ends: int) -> None:
        wanted = min(len(self._ended()) + num_ends, len(self._jobs))
        deadline_s = time.monotonic() + self._options.settle_s
        while len(self._ended()) < wanted:
            if time.monotonic() > deadline_s:
                raise BenchFailed(f"no {num_ends} jobs ended in {self._options.settle_s:g} s")
            time.sleep(_POLL_S)

    def _read_results(self) -> set[str]:
        """Read the results that there are, as users do; return the keys of their jobs."""
        seen = set()
        for job in self._jobs:
            try:
                if self._client.status(job.job_ids[-1]).state is JobState.COMPLETED:
                    job.texts.add(self._client.result(job.job_ids[-1], 0).text)
                    seen.add(job.key)
            except UnknownJob:
                continue
        return seen

    def _have_webhooks_arrived(self) -> bool:
        arrived = self._webhooks()
        return all(arrived.get(job.job_ids[-1]) for job in self._jobs)

    def _webhooks(self) -> dict[str, set[str]]:
        """Return the ids of events by job, and note the texts that they carried."""
        by_key = {job.key: job for job in self._jobs}
        found: dict[str, set[str]] = defaultdict(set)
        for request in self._site.receiver.requests:
            data = json.loads(request.body)["data"]
            found[data["id"]].add(request.headers["webhook-id"])
            _note_text(by_key, request, data)
        return found

    def _expected(self) -> dict[str, str]:
        return {
            job.key: stub_text(
                [stub_token(job.prompt, _JOB_SEED, place) for place in range(job.max_tokens)]
            )
            for job in self._jobs
        }

    def _count_computed(self) -> tuple[int, int]:
        """Return how many tokens engines computed, and how many different ones."""
        kept = {job.job_ids[-1] for job in self._jobs}
        path = self._site.trace_path
        lines = path.read_text().splitlines() if path.exists() else []
        pairs = [tuple(line.rsplit(" ", 1)) for line in lines]
        tokens = [(name.split(".")[0], place) for name, place in pairs]
        own = [token for token in tokens if token[0] in kept]
        return len(own), len(set(own))


def share(num_jobs: int, num_kills: int, number: int) -> int:
    """Return how many of the jobs are submitted before a kill, by its number from 0."""
    return num_jobs * (number + 1) // num_kills - num_jobs * number // num_kills


def _note_text(
    by_key: dict[str, TrackedJob], request: ReceivedRequest, data: dict[str, Any]
) -> None:
    job = by_key.get(request.path.removeprefix("/"))
    if job is not None and data.get("output") is not None:
        job.texts.add(data["output"])


def _program(folder: Path, name: str, command: str, values: dict[str, object]) -> Program:
    kept = {key: text for key, text in os.environ.items() if not key.startswith("BATCHMILL_")}
    given = {f"BATCHMILL_{key}": str(value) for key, value in values.items()}
    arguments = [sys.executable, "-m", "batchmill.worker.cli", command]
    return Program(name, arguments, kept | given | {"PYTHONSAFEPATH": "1"}, folder / f"{name}.log")
