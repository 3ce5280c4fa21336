"""A broken promise is reported with what explains it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.protocol.replies import Claim, HeldJob, ReleaseCause
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.connection import connect
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.chaos.evidence import Evidence, gather, lines_about
from batchmill.worker.chaos.observed import Observed
from batchmill.worker.chaos.oracle import Broken, Promise
from batchmill.worker.chaos.plan import PlannedFault
from batchmill.worker.chaos.receiver import Post
from batchmill.worker.chaos.timeline import Timeline, now_ms


@pytest.fixture
def store(redis_url: str) -> JobStore:
    return JobStore(connect(redis_url))


def submit(redis_url: str) -> str:
    with Client(redis_url, settings=ProducerSettings(model="chaos")) as client:
        return client.submit(prompt="a prompt", max_tokens=9).id


def evidence_of(store: JobStore, broken: Broken, folder: Path, **options: Any) -> Evidence:
    timeline = options.pop("timeline", Timeline())
    observed = options.pop("observed", Observed())
    (found,) = gather(store, observed, [broken], timeline, folder / "computed")
    return found


def test_evidence_has_the_record_its_claims_and_both_texts(
    store: JobStore, redis_url: str, tmp_path: Path
) -> None:
    job_id = submit(redis_url)
    (tmp_path / "computed").write_text(f"{job_id}.1.a 0\n{job_id}.1.a 1\n{job_id}.2.b 1\nx.1.a 5\n")
    texts = {"seen": "one", "wanted": "two"}

    found = evidence_of(
        store, Broken(Promise.WRONG, "job", "its text differs", (job_id,), texts), tmp_path
    )

    assert (found["promise"], found["seen"], found["wanted"]) == ("wrong", "one", "two")
    assert found["about"][job_id]["record"]["state"] == "queued"
    assert found["about"][job_id]["computed"] == {
        f"{job_id}.1.a": [0, 1, 2],
        f"{job_id}.2.b": [1, 1, 1],
    }


def test_evidence_has_the_posts_and_bodies_of_an_event(store: JobStore, tmp_path: Path) -> None:
    observed = Observed()
    observed.deliveries.bodies["evt_1"] = {b"one", b"two"}
    observed.deliveries.posts["evt_1"] = [Post(5, 503), Post(9, 204)]

    found = evidence_of(
        store,
        Broken(Promise.WRONG, "evt_1", "different bodies", ("evt_1",)),
        tmp_path,
        observed=observed,
    )

    about = found["about"]["evt_1"]
    assert about["bodies"] == ["one", "two"]
    assert [post["status"] for post in about["posts"]] == [503, 204]


def test_evidence_names_the_faults_of_the_jobs_time(
    store: JobStore, redis_url: str, tmp_path: Path
) -> None:
    timeline = Timeline(started_at_ms=now_ms() - 3_600_000)
    job_id = submit(redis_url)
    old, recent = PlannedFault(0, "redis_kill", 0, 0, 0), PlannedFault(1, "kill_worker", 0, 0, 0)
    timeline.begin(old, timeline.started_at_ms, "")
    timeline.end(old)
    timeline.happenings[0].to_ms = timeline.started_at_ms + 1
    timeline.begin(recent, now_ms(), "w0@chaos")
    timeline.end(recent)

    found = evidence_of(
        store, Broken(Promise.LOST, "job", "not ended", (job_id,)), tmp_path, timeline=timeline
    )

    (happening,) = found["meanwhile"]
    assert (happening["what"], happening["program"]) == ("kill_worker", "w0@chaos")
    lines = list(lines_about(found, timeline))
    assert job_id in lines[0]
    assert re.search(r"queued, submitted 36\d\d\.", lines[0])  # an hour after the start
    assert "kill_worker w0@chaos" in lines[-1]


def test_the_lines_list_the_claims_of_a_record(
    store: JobStore, redis_url: str, tmp_path: Path
) -> None:
    job_id = submit(redis_url)
    claim = store.claim(job_id, owner="w1", lease_ms=60_000, identity="stub")
    assert isinstance(claim, Claim)
    store.release([HeldJob(job_id, claim.fence)], cause=ReleaseCause.DRAIN)
    timeline = Timeline()

    found = evidence_of(store, Broken(Promise.LOST, "job", "not ended", (job_id,)), tmp_path)

    (line, _) = lines_about(found, timeline)
    assert "1 w1 " in line
    assert "drain (tokens 0-0)" in line


def test_of_many_broken_promises_of_a_kind_the_first_have_evidence(
    store: JobStore, tmp_path: Path
) -> None:
    broken = [Broken(Promise.LOST, f"job {n}", "gone", (f"gen_{n}",)) for n in range(60)]
    broken.append(Broken(Promise.WRONG, "job", "text", ("gen_x",)))

    found = gather(store, Observed(), broken, Timeline(), tmp_path / "computed")

    assert [each["subject"] for each in found] == [f"job {n}" for n in range(50)] + ["job"]
