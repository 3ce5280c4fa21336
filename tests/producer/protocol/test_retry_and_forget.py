"""A job that did not complete can run again under its id; a job that ended can be forgotten."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer import (
    Client,
    JobFailed,
    JobState,
    ProducerSettings,
    QueueFull,
    UnknownJob,
    WrongState,
)
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NO_LIMITS
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import (
    CompleteStatus,
    HeldJob,
    ReleaseCause,
    RetryStatus,
    TokenWrite,
    WriteStatus,
)

HOOK = "https://example.com/hook"


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def fail(bench: Any, job_id: str = "j", token_ids: tuple[int, ...] = (5, 6)) -> None:
    fence = bench.claim(job_id).fence
    status = bench.store.complete(
        job_id,
        fence=fence,
        state=JobState.FAILED,
        result='{"id":"j","model":"demo","status":"failed","text":"so far"}',
        error='{"code":"engine_error","message":"it broke"}',
        token_ids=token_ids,
    )
    assert status is CompleteStatus.OK


def die_alone(bench: Any, job_id: str = "j") -> None:
    """Let the engine die until the job runs alone and then crashes three times."""
    for _ in range(6):
        held = HeldJob(job_id, bench.claim(job_id).fence)
        bench.store.release([held], cause=ReleaseCause.ENGINE_DEATH)
    assert bench.state(job_id) == "failed"


def test_a_failed_job_continues_from_its_tokens(bench: Any, client: Client) -> None:
    bench.submit("j", idempotency_key="k", fingerprint="f")
    fail(bench)
    before = bench.store.load("j")
    assert client.retry("j") == 2
    record = bench.store.load("j")
    assert (record.state, record.run, record.attempts) == (JobState.QUEUED, 2, 1)
    assert (record.result, record.error, record.finished_at_ms) == (None, None, None)
    assert record.started_at_ms is None
    assert record.enqueued_at_ms >= before.finished_at_ms
    for key in (keys.job("j"), keys.tokens("j")):
        assert bench.redis.ttl(key) == -1
    assert bench.redis.ttl(keys.idempotency("default", "k")) > 30 * 24 * 3600
    claim = bench.claim("j")
    assert (claim.token_ids, claim.attempts) == ([5, 6], 2)
    assert claim.fence.startswith("2.")


def test_tokens_of_another_model_are_not_continued(bench: Any, client: Client) -> None:
    bench.submit("j")
    fail(bench)
    client.retry("j")
    assert bench.claim("j", identity="model-2").token_ids == []


def test_a_retried_job_is_announced_once(bench: Any, client: Client) -> None:
    bench.submit("j")
    fail(bench)
    bench.take_announcement()
    client.retry("j")
    assert b'"j"' in bench.take_announcement()
    assert bench.take_announcement() is None


def test_the_worker_of_the_first_run_cannot_write_any_more(bench: Any, client: Client) -> None:
    claim = bench.started("j")
    client.cancel("j")
    bench.lose_lease("j")
    bench.store.sweep()
    assert bench.state("j") == "cancelled"
    client.retry("j")
    assert not bench.store.load("j").cancel_requested
    second = bench.claim("j")
    [status] = bench.store.checkpoint([TokenWrite("j", claim.fence, 0, [9])], lease_ms=60_000)
    assert status is WriteStatus.FENCED
    result = bench.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")
    assert result is CompleteStatus.FENCED
    result = bench.store.complete("j", fence=second.fence, state=JobState.COMPLETED, result="{}")
    assert result is CompleteStatus.OK


def test_a_call_repeated_after_a_lost_reply_retries_once(bench: Any) -> None:
    bench.submit("j")
    fail(bench)
    bench.take_announcement()
    call = job_calls.retry("j", NO_LIMITS)
    assert [bench.store.run(call).run for _ in range(2)] == [2, 2]
    bench.claim("j")
    assert bench.store.run(call).status is RetryStatus.RETRIED
    assert bench.redis.llen(keys.announced(keys.queue_name("demo", "normal"))) == 1
    assert bench.store.run(job_calls.retry("j", NO_LIMITS)).status is RetryStatus.ACTIVE


def test_a_job_that_was_given_up_loses_its_crashes_and_its_dead_letter(
    bench: Any, client: Client
) -> None:
    bench.submit("j")
    die_alone(bench)
    client.retry("j")
    record = bench.store.load("j")
    assert (record.suspect, record.crashes, record.alone) == (0, 0, False)
    assert bench.store.dead_letters() == []
    assert not bench.claim("j").alone


def test_a_deadline_that_has_passed_is_dropped_and_a_later_one_kept(
    bench: Any, client: Client
) -> None:
    bench.submit("late", ttl_ms=3_600_000)
    bench.pass_deadline("late")
    bench.store.sweep()
    assert bench.state("late") == "expired"
    client.retry("late")
    bench.store.sweep()
    assert bench.state("late") == "queued"
    in_an_hour = round(time.time() * 1000) + 3_600_000
    bench.submit("early", deadline_at_ms=in_an_hour)
    client.cancel("early")
    client.retry("early")
    assert bench.claim("early").deadline_at_ms == in_an_hour


def test_each_run_ends_with_its_own_webhook(bench: Any, client: Client) -> None:
    events = "cancelled,completed,expired,failed,started"
    bench.submit("j", webhook=HOOK, webhook_events=events)
    fail(bench)
    first = {entry.event_id for entry in deliver_all(bench)}
    client.retry("j")
    fail(bench)
    second = {entry.event_id for entry in deliver_all(bench)}
    assert first == {"evt_j_started", "evt_j_failed"}
    assert second == {"evt_j_started_run2", "evt_j_failed_run2"}


def deliver_all(bench: Any) -> list[Any]:
    entries = bench.store.outbox_claim(owner="d", limit=9, lease_ms=60_000)
    for entry in entries:
        bench.store.outbox_settle(
            entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.DELIVERED
        )
    return list(entries)


def test_the_event_of_the_first_end_does_not_arrive_after_a_retry(
    bench: Any, client: Client
) -> None:
    bench.submit("j", webhook=HOOK)
    fail(bench)
    [entry] = bench.store.outbox_claim(owner="d", limit=9, lease_ms=0)
    client.retry("j")
    assert bench.store.outbox_claim(owner="d", limit=9, lease_ms=0) == []
    status = bench.store.outbox_settle(
        entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.RETRY
    )
    assert status is WriteStatus.FENCED


@pytest.mark.parametrize("state", ["queued", "in_progress", "completed"])
def test_a_job_that_did_not_end_badly_is_not_retried(
    bench: Any, client: Client, state: str
) -> None:
    bench.submit("j")
    if state != "queued":
        fence = bench.claim("j").fence
        if state == "completed":
            bench.store.complete("j", fence=fence, state=JobState.COMPLETED, result="{}")
    before = bench.redis.hgetall(keys.job("j"))
    with pytest.raises(WrongState, match=f"j {state}|j is {state}") as refused:
        client.retry("j")
    assert (refused.value.job_id, refused.value.state) == ("j", state)
    assert bench.redis.hgetall(keys.job("j")) == before


def test_a_retry_into_a_full_queue_changes_nothing(redis_url: str, bench: Any) -> None:
    bench.submit("j")
    fail(bench)
    bench.submit("other")
    settings = ProducerSettings(max_queue_depth=1)
    with Client(redis_url, settings=settings) as client, pytest.raises(QueueFull):
        client.retry("j")
    assert bench.state("j") == "failed"
    assert bench.redis.ttl(keys.job("j")) > 0


def test_an_unknown_job_is_neither_retried_nor_forgotten(client: Client) -> None:
    for verb in (client.retry, client.forget):
        with pytest.raises(UnknownJob):
            verb("unknown")


def test_a_result_is_waited_for_again_after_a_retry(bench: Any, client: Client) -> None:
    job = client.submit(prompt="hi")
    fail(bench, job.id)
    with pytest.raises(JobFailed):
        job.result(timeout_s=0)
    job.retry()
    fence = bench.claim(job.id).fence
    result = '{"id":"j","model":"demo","status":"completed","text":"well"}'
    bench.store.complete(
        job.id, fence=fence, state=JobState.COMPLETED, result=result, position=2, token_ids=[7]
    )
    assert job.result(timeout_s=0).text == "well"
    assert job.result(timeout_s=0).token_ids == [5, 6, 7]


def test_a_forgotten_job_leaves_nothing(bench: Any, client: Client) -> None:
    events = "cancelled,completed,expired,failed,output,started"
    changes = {"idempotency_key": "k", "fingerprint": "f", "tags": ("t", "u")}
    bench.submit("j", webhook=HOOK, webhook_events=events, **changes)
    claim = bench.claim("j")
    write = TokenWrite("j", claim.fence, 0, [1, 2], b"words", 0)
    bench.store.checkpoint([write], lease_ms=60_000)
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN)
    fail(bench, token_ids=())
    for entry in bench.store.outbox_claim(owner="d", limit=9, lease_ms=60_000):
        bench.store.outbox_set_body_once(entry.event_id, b"a body")
        outcome = DeliveryOutcome.EXHAUSTED
        bench.store.outbox_settle(entry.event_id, fence=entry.fence, outcome=outcome)
    client.retry("j")
    die_alone(bench)
    bench.take_announcement()
    # As if a worker had submitted it from the inbox and died before settling the document.
    bench.redis.zadd(keys.INBOX_TAKEN, {"j": 1})
    bench.redis.hset(keys.INBOX_DOCUMENTS, "j", "a prompt")
    client.forget("j")
    queue = keys.queue_name("demo", "normal")
    # An announcement contains only an id, the use of a tenant is only a number, and the state of a
    # host is when it has its next turn.
    numbers = (keys.used(queue), keys.host("https://example.com"), keys.MEMORY)
    bench.redis.delete(keys.announced(queue), *numbers)
    left = {name.decode() for name in bench.redis.keys("*")}
    # The sums of used tokens name no job.
    left = {name for name in left if not name.startswith(keys.USED_TOKENS)}
    assert left == {keys.QUEUES, keys.TOTALS, keys.CLOCK, keys.forgotten("j")}
    assert bench.redis.get(keys.forgotten("j")) == b""
    with pytest.raises(UnknownJob):
        client.status("j")


def test_forgetting_again_succeeds_for_an_hour(bench: Any, client: Client) -> None:
    bench.submit("j")
    fail(bench)
    client.forget("j")
    client.forget("j")  # as after a lost reply
    assert 0 < bench.redis.ttl(keys.forgotten("j")) <= 3600
    bench.submit("j")  # the id is used again
    with pytest.raises(WrongState):
        client.forget("j")
    bench.store.cancel("j")
    client.forget("j")
    bench.redis.delete(keys.forgotten("j"))  # an hour later
    with pytest.raises(UnknownJob):
        client.forget("j")


@pytest.mark.parametrize(
    ("field", "forged", "most_calls"),
    [("output_events", 4000, 6), ("output_events", 10**12, 6), ("run", 10**12, 1006)],
)
def test_forged_counts_of_events_do_not_keep_redis_busy(
    bench: Any, client: Client, field: str, forged: int, most_calls: int
) -> None:
    """Only names that a job of its age can have had are tried, however many keys there are."""
    for job_id in ("j", "j_failed"):  # its event names have the same prefix
        bench.submit(job_id, webhook=HOOK, webhook_events="failed,output,started")
        claim = bench.claim(job_id)
        write_output(bench, job_id, claim.fence, 0)
        deliver_all(bench)
    bench.redis.hset(keys.job("j"), field, forged)
    bench.redis.mset({f"other-{number}": "" for number in range(5000)})
    bench.redis.hset(keys.job("j"), "output_due_ms", 0)
    write_output(bench, "j", bench.fence("j"), 1)
    for job_id in ("j", "j_failed"):
        complete_as_failed(bench, job_id)
    names = {name.decode() for name in bench.redis.keys("batchmill:event:evt_j_*")}
    number = forged + 1 if field == "output_events" else 2
    suffix = f"_run{forged}" if field == "run" else ""
    own = {f"evt_j_{name}" for name in ("started", "output_1", f"output_{number}")}
    assert {keys.event(name) for name in own | {f"evt_j_failed{suffix}"}} < names
    others = {f"evt_j_failed_{name}" for name in ("started", "output_1", "failed")}
    before = num_deletions(bench)
    client.forget("j")
    assert num_deletions(bench) - before <= most_calls
    left = {name.decode() for name in bench.redis.keys("*evt_j_*")}
    assert left == {keys.event(name) for name in others}
    assert bench.redis.zscore(keys.OUTBOX, f"evt_j_failed{suffix}") is None
    bench.redis.delete(*(f"other-{number}" for number in range(5000)))


def write_output(bench: Any, job_id: str, fence: str, position: int) -> None:
    bench.store.checkpoint([TokenWrite(job_id, fence, position, [1])], lease_ms=60_000)


def complete_as_failed(bench: Any, job_id: str) -> None:
    status = bench.store.complete(
        job_id, fence=bench.fence(job_id), state=JobState.FAILED, error="{}"
    )
    assert status is CompleteStatus.OK


def num_deletions(bench: Any) -> int:
    """Return how many DEL calls the server has counted."""
    return int(bench.redis.info("commandstats").get("cmdstat_del", {}).get("calls", 0))


def test_a_dead_letter_that_outlived_its_record_is_forgotten(bench: Any, client: Client) -> None:
    bench.submit("j")
    die_alone(bench)
    bench.redis.delete(keys.job("j"), keys.EXPIRING, keys.state_index("failed"))
    client.forget("j")
    assert bench.store.dead_letters() == []
    letter = bench.store.dead_letter_add(
        kind=DeadLetterKind.MESSAGE, reason="malformed", payload=b"x", source="q"
    )
    client.forget(letter)
    assert bench.store.dead_letter(letter) is None
    with pytest.raises(UnknownJob):
        client.forget("another")


@pytest.mark.parametrize("is_running", [False, True])
def test_a_job_that_has_not_ended_is_not_forgotten(
    bench: Any, client: Client, is_running: bool
) -> None:
    bench.submit("j")
    if is_running:
        bench.claim("j")
    with pytest.raises(WrongState, match="cancel it") as refused:
        client.forget("j")
    assert refused.value.state == ("in_progress" if is_running else "queued")
    assert bench.store.load("j") is not None


def test_a_forgotten_key_may_be_used_again_by_another_job(client: Client) -> None:
    first = client.submit(prompt="one", idempotency_key="k")
    first.cancel()
    first.forget()
    second = client.submit(prompt="two", idempotency_key="k")
    assert second.id != first.id


def test_the_worker_of_a_forgotten_job_can_write_nothing(bench: Any, client: Client) -> None:
    bench.submit("j")
    fail(bench)
    fence = bench.fence("j")
    client.forget("j")
    [status] = bench.store.checkpoint([TokenWrite("j", fence, 0, [9])], lease_ms=60_000)
    assert status is WriteStatus.FENCED
    status = bench.store.complete("j", fence=fence, state=JobState.COMPLETED, result="{}")
    assert status is CompleteStatus.FENCED
    assert bench.store.outbox_set_body_once("evt_j_failed", b"a body") == b"a body"
    assert bench.redis.keys("*evt*") == []
