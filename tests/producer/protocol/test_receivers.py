"""Registered receivers get events of all jobs and batches of their tenant, by type."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.errors import ContentChanged, KeyMissing, ReceiverRefused
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import QueueLimits
from batchmill.producer.protocol.content import is_sealed
from batchmill.producer.protocol.outbox import DeliveryOutcome, OutboxEntry
from batchmill.producer.protocol.replies import JobState, SubmitStatus
from batchmill.producer.store import receivers
from batchmill.producer.store.deliveries import Deliveries, EventStatus
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.receivers import Receiver
from batchmill.producer.store.replay import Replay, ReplayQuery
from batchmill.producer.webhook.target import TargetPolicy

from ..conftest import Bench
from .batch_steps import end as end_line
from .batch_steps import ids_of, lines

HOOK = "https://example.com/hook"
POLICY = TargetPolicy()
ERROR = '{"code":"engine_error","message":"it broke"}'
RESPONSE = json.dumps({"api": "/v1/responses", "background": True})


def register(bench: Any, *event_types: str, tenant: str = "default", url: str = HOOK) -> Receiver:
    receiver, secret = receivers.make_receiver("mine", url, event_types, POLICY)
    value = receivers.new_secret_value(secret)
    assert bench.store.run(receivers.create_receiver(tenant, receiver, value))
    return receiver


def due(bench: Any) -> list[OutboxEntry]:
    """Claim all events that are due."""
    found: list[OutboxEntry] = bench.store.outbox_claim(owner="d", limit=100, lease_ms=60_000)
    return sorted(found, key=lambda entry: entry.event_id)


def end(bench: Any, job_id: str, state: JobState = JobState.COMPLETED, **fields: Any) -> None:
    given: dict[str, Any] = {"result": "{}"} if state is JobState.COMPLETED else {"error": ERROR}
    bench.store.complete(job_id, fence=bench.fence(job_id), state=state, **(given | fields))


def test_a_receiver_gets_the_ends_of_its_tenant_that_it_wants(bench: Any) -> None:
    mine = register(bench, "generation.completed", "generation.cancelled", tenant="acme")
    register(bench, "batch.completed", "response.completed", tenant="acme")
    register(bench, "generation.completed", tenant="other")
    bench.started("a", tenant="acme")
    end(bench, "a")
    bench.started("b", tenant="acme")
    end(bench, "b", JobState.FAILED)
    bench.submit("c", tenant="acme")
    bench.store.cancel("c")
    bench.started("d")
    end(bench, "d")
    found = due(bench)
    assert [(event.type, event.job_id, event.url) for event in found] == [
        ("generation.completed", "a", HOOK),
        ("generation.cancelled", "c", HOOK),
    ]
    assert {event.receiver_id for event in found} == {mine.id}
    assert [event.event_id for event in found] == [
        f"evt_a_completed_{mine.id}",
        f"evt_c_cancelled_{mine.id}",
    ]


def test_the_webhook_of_a_job_is_told_as_well(bench: Any) -> None:
    register(bench, "generation.completed")
    bench.started("j", webhook="https://example.com/own", webhook_secret="billing")
    end(bench, "j")
    assert {(event.url, event.secret_name[:3]) for event in due(bench)} == {
        ("https://example.com/own", "bil"),
        (HOOK, "@we"),
    }


@pytest.mark.parametrize(
    ("state", "result", "expected"),
    [
        (JobState.COMPLETED, '{"id":"j","finish_reason":"stop"}', "response.completed"),
        (JobState.COMPLETED, '{"id":"j","finish_reason":"length"}', "response.incomplete"),
        (JobState.FAILED, None, "response.failed"),
        (JobState.EXPIRED, None, "response.failed"),
        (JobState.CANCELLED, None, "response.cancelled"),
    ],
)
def test_a_background_response_ends_in_openais_terms(
    bench: Any, state: JobState, result: str | None, expected: str
) -> None:
    register(bench, *(each for each in receivers.EVENT_TYPES if each.startswith("response.")))
    bench.started("j", gateway=RESPONSE)
    bench.started("k", gateway=json.dumps({"api": "/v1/responses", "background": False}))
    bench.started("l", gateway=json.dumps({"api": "/v1/chat/completions"}))
    for job_id in "jkl":
        end(bench, job_id, state, result=result)
    assert [(event.type, event.job_id) for event in due(bench)] == [(expected, "j")]


def test_a_batch_tells_of_its_end(bench: Any, client: Any) -> None:
    register(bench, "batch.completed")
    batch = client.create_batch(lines(1))
    end_line(bench.store, ids_of(bench, batch.id)[0])
    assert [(event.type, event.job_id) for event in due(bench)] == [("batch.completed", batch.id)]


def test_a_retry_drops_the_event_of_the_old_end_and_has_an_event_of_its_own(
    bench: Any, client: Any
) -> None:
    mine = register(bench, "generation.completed", "generation.failed")
    bench.started("j")
    end(bench, "j", JobState.FAILED)
    client.retry("j")
    bench.claim("j")
    end(bench, "j")
    assert [event.event_id for event in due(bench)] == [f"evt_j_completed_run2_{mine.id}"]


@pytest.mark.parametrize("is_gone", [False, True])
def test_forgetting_a_job_erases_its_events(bench: Any, client: Any, *, is_gone: bool) -> None:
    register(bench, "generation.completed")
    register(bench, "response.incomplete")
    bench.started("j", gateway=RESPONSE)
    end(bench, "j", result='{"finish_reason":"length"}')
    first, second = due(bench)
    for event, outcome in ((first, DeliveryOutcome.DELIVERED), (second, DeliveryOutcome.EXHAUSTED)):
        bench.store.outbox_set_body_once(event.event_id, b"{}")
        bench.store.outbox_settle(event.event_id, fence=event.fence, outcome=outcome, reason="x")
    if is_gone:
        bench.redis.delete(keys.job("j"))
    client.forget("j")
    names = [name.decode() for name in bench.redis.scan_iter(match="batchmill:*evt_j*")]
    assert names == []
    assert bench.redis.zcard(keys.DEAD) == 0


def test_jobs_are_refused_while_too_many_events_wait_for_a_receiver(bench: Any) -> None:
    register(bench, "generation.completed")
    register(bench, "batch.completed", url="https://example.com/batches")
    limits = QueueLimits(max_endpoint_events=1)
    bench.started("j", limits=limits)
    end(bench, "j")
    reply = bench.submit("k", limits=limits)
    assert reply.status is SubmitStatus.FULL
    assert bench.submit("l", limits=limits, tenant="other").status is SubmitStatus.CREATED


@pytest.mark.parametrize(
    "value", ["{", "[]", '"text"', "{}", '{"url":1,"event_types":[]}', '{"url":"u"}', "null"]
)
def test_a_forged_receiver_stops_no_end(bench: Any, value: str) -> None:
    mine = register(bench, "generation.completed")
    bench.redis.hset(keys.receivers("default"), "we_00", value)
    bench.redis.hset(keys.receivers("default"), "a.b", mine.model_dump_json())
    bench.started("j")
    end(bench, "j")
    assert [event.receiver_id for event in due(bench)] == [mine.id]
    bench.redis.delete(keys.receivers("default"))
    bench.redis.set(keys.receivers("default"), value)
    bench.started("k")
    end(bench, "k")
    assert bench.state("k") == "completed"
    bench.redis.delete(keys.receivers("default"))


def test_an_old_secret_signs_for_a_day_or_ends_at_once(bench: Any) -> None:
    mine = register(bench, "batch.failed")
    _, value = bench.store.read(receivers.find_receiver("default", mine.id))
    for overlap_s, num_valid in ((receivers.OVERLAP_S, 2), (0, 1)):
        mine, secret, value = receivers.rotated(mine, value, overlap_s=overlap_s)
        bench.store.run(receivers.put_secrets("default", mine, value))
        valid = bench.store.read(receivers.receiver_secrets(mine.id))
        assert (valid[0], len(valid)) == (secret, num_valid)
        assert mine.signing_secret_hint.endswith(secret[-4:])
    bench.store.read(receivers.delete_receiver("default", mine.id))
    assert bench.store.read(receivers.receiver_secrets(mine.id)) == ()
    assert bench.store.read(receivers.load_receivers("default")) == []


def test_secrets_are_sealed_and_bound_to_their_receiver(bench: Any) -> None:
    sealed = Bench(JobStore(bench.redis, key_ring=KeyRing([new_key("a")])))
    mine, other = register(sealed, "batch.failed"), register(sealed, "batch.failed")
    stored = bench.redis.hgetall(keys.RECEIVER_SECRETS)
    assert all(is_sealed(value) for value in stored.values())
    found = sealed.store.read(receivers.find_receiver("default", mine.id))
    assert found is not None
    changed, secret, value = receivers.rotated(*found, overlap_s=0)
    sealed.store.run(receivers.put_secrets("default", changed, value))
    assert sealed.store.read(receivers.receiver_secrets(mine.id)) == (secret,)
    with pytest.raises(KeyMissing):
        bench.store.read(receivers.receiver_secrets(mine.id))
    bench.redis.hset(keys.RECEIVER_SECRETS, mine.id, stored[other.id.encode()])
    with pytest.raises(ContentChanged):
        sealed.store.read(receivers.receiver_secrets(mine.id))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"event_types": ()}, "event_types"),
        ({"event_types": ("eval.run.failed",)}, "event_types"),
        ({"event_types": ("batch.failed", "batch.failed")}, "event_types"),
        ({"url": "http://example.com"}, "url"),
        ({"url": "https://127.0.0.1/x"}, "url"),
        ({"url": "https://example.com/" + "x" * 2000}, "url"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], param: str) -> None:
    given: dict[str, Any] = {"name": "a", "url": HOOK, "event_types": ("batch.failed",)}
    with pytest.raises(ReceiverRefused) as caught:
        receivers.make_receiver(**(given | changes), policy=POLICY)
    assert caught.value.param == param
    receiver, _ = receivers.make_receiver(**given, policy=POLICY)
    with pytest.raises(ReceiverRefused, match=param):
        receivers.changed_receiver(receiver, changes, POLICY)
    assert receivers.changed_receiver(receiver, given, POLICY) == receiver


def test_creates_at_the_same_time_do_not_exceed_the_limit(bench: Any) -> None:
    def create(number: int) -> bool:
        receiver, secret = receivers.make_receiver(str(number), HOOK, ["batch.failed"], POLICY)
        value = receivers.new_secret_value(secret)
        return bool(bench.store.run(receivers.create_receiver("crowd", receiver, value)))

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(receivers.MAX_RECEIVERS + 12)))
    assert sum(made) == receivers.MAX_RECEIVERS
    found = bench.store.read(receivers.load_receivers("crowd"))
    assert len(found) == receivers.MAX_RECEIVERS
    secrets = bench.store.client.hkeys(keys.RECEIVER_SECRETS)
    assert {name.decode() for name in secrets} == {each.id for each in found}


def test_events_of_receivers_are_found_by_job_batch_and_receiver(bench: Any, client: Any) -> None:
    mine = register(bench, "generation.completed", "batch.completed")
    other = register(bench, "generation.completed")
    batch = client.create_batch(lines(1))
    (job_id,) = ids_of(bench, batch.id)
    end_line(bench.store, job_id)
    deliveries = Deliveries(bench.store)

    def found(events: list[EventStatus]) -> set[str]:
        return {event.id for event in events}

    of_job = {f"evt_{job_id}_completed_{each.id}" for each in (mine, other)}
    of_batch = f"evt_{batch.id}_completed_{mine.id}"
    of_mine = {f"evt_{job_id}_completed_{mine.id}", of_batch}
    assert found(deliveries.of_job(job_id)) == of_job
    assert found(deliveries.of_job(batch.id)) == {of_batch}
    assert found(deliveries.of_receiver(mine.id)) == of_mine
    for event in due(bench):
        bench.store.outbox_settle(
            event.event_id, fence=event.fence, outcome=DeliveryOutcome.DELIVERED
        )
    assert found(deliveries.of_receiver(mine.id)) == of_mine
    replay = Replay(ReplayQuery(0, receiver_id=mine.id), now_ms=2**52)
    replay.take(bench.store.run(replay.call()))
    assert replay.counts.num_replayed == 2
