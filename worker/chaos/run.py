"""One run: starts the site, follows the plan, waits until all is settled, and judges."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchmill.producer import Client
from batchmill.producer.store.connection import connect
from batchmill.worker.engine_host.stub_output import stub_text, stub_token
from batchmill.worker.service_errors import BenchFailed

from .calm_texts import measure_texts
from .evidence import describe_keys, gather
from .fault_kinds import KINDS, SERVER_KINDS
from .faults import ActiveFault, Faults
from .hindered import hindered_jobs
from .killed_engines import count_killed_engines
from .observed import forget_all, observe, open_work, wait_until_settled
from .oracle import Allowances, Broken, Expect, Promise, judge_jobs, judge_resources
from .plan import Plan, PlannedFault
from .planned_jobs import PlannedJob
from .recovery import RecoveryWatch
from .report import ChaosReport, cost_of
from .resources import Resources
from .schedule import Schedule
from .site import Site, SiteOptions
from .timeline import now_ms
from .traffic import Traffic

#: Served name of the run's model, and so the name of its queues.
MODEL = "chaos"
_TICK_S = 0.01
_SAMPLE_S = 1.0
#: Seconds that threads which submit may take to end.
_GIVE_UP_S = 20.0
#: Kinds of open work, or jobs, that are named.
_MAX_SHOWN = 10


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run, apart from its plan."""

    #: `stub` or `real`.
    engine: str
    num_workers: int
    lease_s: float
    #: Seconds per step of the stub engine.
    step_time_s: float
    #: Jobs that a worker runs together; None is the workers' default.
    num_places: int | None
    #: Tokens of the first time slice of a job; 0 is off.
    slice_tokens: int
    #: Seconds after the last fault until all jobs must have ended.
    settle_s: float
    #: URL of a server; None starts one.
    broker_url: str | None
    #: Folder for logs, which are kept; None uses one that is kept only if a promise is broken.
    keep_logs: Path | None


def run_chaos(plan: Plan, options: RunOptions, say: Callable[[str], None]) -> ChaosReport:
    """Do what a plan says, and judge the outcome. Call it in the main thread.

    Args:
        plan: the jobs and faults.
        options: of the run.
        say: shows a line of progress.

    Raises:
        BenchFailed: the site cannot run: a worker does not start, or the given broker is not empty
            or cannot be disturbed as the plan says.
        BrokerError: no server can be started.
    """
    _check_broker(plan, options)
    folder = _make_folder(options.keep_logs)
    try:
        report = _run_in(folder, plan, options, say)
    except KeyboardInterrupt:
        if options.keep_logs is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        say(f"the logs are in {folder}")
        raise
    if report.is_kept and options.keep_logs is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        (folder / "report.json").write_text(json.dumps(report.as_json()), encoding="utf-8")
        say(f"the logs and the whole report are in {folder}")
    return report


def _run_in(
    folder: Path, plan: Plan, options: RunOptions, say: Callable[[str], None]
) -> ChaosReport:
    started_at_s = time.monotonic()
    site = Site(
        SiteOptions(
            folder=folder,
            engine=options.engine,
            num_workers=options.num_workers,
            lease_s=options.lease_s,
            step_time_s=options.step_time_s,
            num_places=options.num_places,
            slice_tokens=options.slice_tokens,
            model=MODEL,
            server_url=options.broker_url,
            has_replica=any(fault.kind.startswith("failover") for fault in plan.faults),
        )
    )
    try:
        site.start(say)
        expect = expect_stub if options.engine == "stub" else measure_texts(site, plan, say)
        run = _Run(site, plan, options.settle_s, say)
        try:
            run.follow()
            return run.report(expect, started_at_s)
        finally:
            run.close()
    finally:
        site.stop()


def expect_stub(job: PlannedJob) -> str:
    """Return the text that the stub engine must produce for a job."""
    tokens = [stub_token(job.prompt, job.seed, at) for at in range(job.max_tokens)]
    return stub_text(tokens)


class _Run:
    """One run on a site that is ready."""

    def __init__(self, site: Site, plan: Plan, settle_s: float, say: Callable[[str], None]) -> None:
        self._site = site
        self._plan = plan
        self._settle_s = settle_s
        self._say = say
        self._faults = Faults(site)
        self._schedule = Schedule(plan)
        self._active: list[ActiveFault] = []
        self._victims: dict[int, dict[str, int]] = {}
        self._watch = RecoveryWatch(site.observer_link.url)
        self._resources = Resources()
        self._next_sample_s = 0.0
        self._start_s = 0.0
        self._is_settled = False
        self._traffic = Traffic(site, plan.orders, plan.duration_s + settle_s)

    def follow(self) -> None:
        """Submit the jobs and bring the faults about, then wait until all has ended."""
        plan = self._plan
        self._start_s = time.monotonic()
        self._site.timeline.started_at_ms = now_ms()
        self._traffic.start()
        self._say(f"{plan.duration_s:g} s of jobs and {len(plan.faults)} faults")
        while self._schedule or self._active or self._elapsed_s() < plan.duration_s:
            self._tick()
            time.sleep(_TICK_S)
        self._say("the faults are over; waiting until all jobs have ended")
        deadline_s = time.monotonic() + self._settle_s
        while not self._traffic.wait(_TICK_S) and time.monotonic() < deadline_s:
            self._tick()
        self._is_settled = wait_until_settled(
            self._site.store,
            self._traffic.submitted,
            max(1.0, deadline_s - time.monotonic()),
            self._tick,
        )

    def report(self, expect: Expect, started_at_s: float) -> ChaosReport:
        """Read what is left, forget it, and judge."""
        site, plan = self._site, self._plan
        submitted = self._traffic.submitted
        self._watch.close()
        broken = list(self._unsettled())
        observed = observe(site.store, submitted, site.receiver.deliveries, site.trace_path)
        jobs = observed.jobs.values()
        allowances = Allowances(
            hindered_jobs(jobs, site.timeline), count_killed_engines(jobs, site.timeline)
        )
        broken += judge_jobs(plan, observed, expect, allowances)
        evidence = gather(site.store, observed, broken, site.timeline, site.trace_path)
        if self._is_settled:
            with Client(site.observer_link.url, settings=site.client_settings) as client:
                observed.leftovers = forget_all(client, site.store)
        uses = self._resources.by_pid
        broken += [*judge_resources(uses, observed.leftovers), *self._self_inflicted()]
        evidence += describe_keys(site.store, observed.leftovers)
        return ChaosReport(
            plan=plan,
            wall_s=time.monotonic() - started_at_s,
            faults=self._faults.counts,
            recovery_s=self._watch.times_s,
            cost=cost_of(plan, observed, allowances),
            broken=broken,
            uses=list(uses.values()),
            observed=observed,
            timeline=site.timeline,
            evidence=evidence,
        )

    def close(self) -> None:
        """End the threads, also if the run has failed."""
        self._watch.close()
        self._traffic.give_up()
        if self._traffic.wait(_GIVE_UP_S):
            self._traffic.close()

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    def _tick(self) -> None:
        now_s = time.monotonic()
        for fault in [fault for fault in self._active if fault.ends_at_s <= now_s]:
            self._active.remove(fault)
            self._end(fault)
        active = [fault.planned for fault in self._active]
        for planned in self._schedule.take_due(self._elapsed_s(), active):
            self._begin(planned)
        for fault in self._active:
            if fault.tick is not None:
                fault.tick()
        self._site.restart_ended()
        if now_s >= self._next_sample_s:
            self._next_sample_s = now_s + _SAMPLE_S
            self._resources.sample(self._site.programs)

    def _begin(self, planned: PlannedFault) -> None:
        kind = KINDS[planned.kind]
        everyones = self._watch.victims()
        from_ms = now_ms()
        fault = self._faults.begin(planned)
        if fault is None:
            return
        self._site.timeline.begin(planned, from_ms, fault.program)
        victims = _of_worker(everyones, fault.worker)
        self._active.append(fault)
        self._victims[planned.number] = victims
        if not kind.recovers_at_end:
            self._watch.watch(planned.kind, victims)

    def _end(self, fault: ActiveFault) -> None:
        kind = KINDS[fault.planned.kind]
        if fault.end is not None:
            fault.end()
        self._site.timeline.end(fault.planned)
        victims = self._victims.pop(fault.planned.number)
        if kind.recovers_at_end:
            self._watch.watch(fault.planned.kind, victims)

    def _self_inflicted(self) -> Iterator[Broken]:
        for end in self._site.self_inflicted_ends:
            detail = f"exit code {end.exit_code}; end of its log: {end.log_tail}"
            yield Broken(Promise.ENDED, end.program, detail)

    def _unsettled(self) -> Iterator[Broken]:
        if not self._is_settled:
            left = open_work(self._site.store, self._traffic.submitted)
            shown = ", ".join(left[:_MAX_SHOWN]) or "nothing"
            detail = f"it had not settled after {self._settle_s:g} s; still under way: {shown}"
            yield Broken(Promise.LOST, "the run", detail)


def _of_worker(jobs: Mapping[str, tuple[str, int]], worker: str | None) -> dict[str, int]:
    """Return the jobs of a worker, or of all, with the bytes of their tokens."""
    return {job_id: size for job_id, (owner, size) in jobs.items() if worker in (None, owner)}


def _check_broker(plan: Plan, options: RunOptions) -> None:
    """Refuse a given broker that is in use, or that the plan would have to restart."""
    if options.broker_url is None:
        return
    if not options.broker_url.startswith("redis://"):
        raise BenchFailed("--broker-url must begin with redis://, because a proxy stands before it")
    needed = sorted({fault.kind for fault in plan.faults} & set(SERVER_KINDS))
    if needed:
        raise BenchFailed(
            f"{', '.join(needed)} need a server that this command starts: leave out --broker-url, "
            "or choose other --faults"
        )
    client: Any = connect(options.broker_url, num_retries=0)
    try:
        num_keys = client.dbsize()
    finally:
        client.close()
    if num_keys:
        raise BenchFailed(
            f"the database of --broker-url has {num_keys} keys; chaos needs an empty one"
        )


def _make_folder(given: Path | None) -> Path:
    if given is None:
        return Path(tempfile.mkdtemp(prefix="batchmill-chaos-"))
    given.mkdir(mode=0o700, parents=True, exist_ok=True)
    return given
