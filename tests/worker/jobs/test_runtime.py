"""Races that show only at one moment: of a drain, of an engine's start, of a long step."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from batchmill.producer.protocol.replies import Claim, WriteStatus
from batchmill.worker.engine_host.engine_link import EngineLink
from batchmill.worker.engine_host.messages import AddRequest, EngineSpec
from batchmill.worker.jobs import lease_renewal
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.active_jobs import ActiveJobs
from batchmill.worker.jobs.lease_renewal import LeaseRenewal
from batchmill.worker.jobs.runtime import WorkerRuntime
from batchmill.worker.settings import WorkerSettings

from ..celery_tasks import a_task, ignore
from ..conftest import Mill


@pytest.fixture
def runtime(mill: Mill) -> Iterator[WorkerRuntime]:
    """A worker's parts in this process, its stub engine ready."""
    runtime = WorkerRuntime(
        WorkerSettings(broker_url=mill.url, engine="stub"),
        mill.store,
        name="w@test",
        on_room=ignore,
        on_fatal=ignore,
        must_stop=lambda: False,
    )
    runtime.start()
    mill.wait_for(lambda: runtime.link.ready is not None, "the engine")
    yield runtime
    runtime.begin_drain()
    runtime.finish_drain(5.0)


def test_a_draining_worker_claims_no_more_jobs(mill: Mill, runtime: WorkerRuntime) -> None:
    # A reply may still come to a request made before the drain; the job would not be given back.
    job_id = mill.submit()
    runtime.begin_drain()

    assert not runtime.claimer.claim(a_task(job_id))

    record = mill.record(job_id)
    assert (record.state, record.attempts) == ("queued", 0)
    mill.wait_for(runtime.is_drained, "the end")


def test_an_engine_that_is_starting_at_shutdown_does_not_load_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Listener:
        on_ready = on_report = on_start_failed = staticmethod(ignore)

        def on_gone(self, *, orderly: bool) -> None:
            pass

    def popen(*args: Any, **options: Any) -> Any:
        link.shut_down()
        return start(*args, **options)

    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)
    spec = EngineSpec("stub", "demo", {"load_time_s": 60.0}, checkpoint_tokens=8)
    link = EngineLink(spec, Listener())
    link.start()

    assert link.join(10.0)


def test_leases_are_renewed_during_a_long_step_until_the_engine_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, is_stuck = 1000.0, False
    renewals: list[float] = []

    def renew(held: list[Any], *, lease_ms: int) -> list[WriteStatus]:
        renewals.append(now)
        return [WriteStatus.OK for _ in held]

    monkeypatch.setattr(
        lease_renewal, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep)
    )
    jobs = ActiveJobs(ignore)
    claim = Claim("gen_1", "1.n", b"{}", [], 1, False, None, 0, 0, 0)
    jobs.add(ActiveJob(claim, AddRequest("gen_1.1", "x", None, {}), a_task("gen_1")))
    renewal = LeaseRenewal(
        SimpleNamespace(renew=renew),  # type: ignore[arg-type]
        jobs,
        lease_s=15.0,
        is_engine_stuck=lambda: is_stuck,
    )
    for now, is_stuck in ((1005.0, False), (1010.1, False), (1014.9, False), (1016.0, True)):  # noqa: B007
        renewal.renew_if_due()

    # Every third of a lease, however long the step takes.
    assert renewals == [pytest.approx(1005.0), pytest.approx(1010.1)]
