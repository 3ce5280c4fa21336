"""Deliveries while processes die, hang, restart or run in parallel."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import ExitStack
from typing import Any

from batchmill.producer import Client, ProducerSettings
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.endpoints import Endpoints, EndpointState
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.webhooks.local_receiver import LOOPBACK, ReceivedRequest, WebhookReceiver

from ...support.outbox import make_due
from ..cli.bulk_files import FAST
from ..conftest import Mill
from ..webhook_deliverers import (
    Deliverers,
    event_state,
    finish_job,
    now_ms,
    respond_with,
    score,
    verify,
    wait_until,
)


def test_killed_between_post_and_settle_sends_the_same_id_and_bytes_again(
    store: JobStore, deliverers: Deliverers
) -> None:
    posted, released = threading.Event(), threading.Event()

    def respond(request: ReceivedRequest) -> int:
        posted.set()
        released.wait(30)
        return 200

    with WebhookReceiver(respond) as receiver:
        event_id = finish_job(store, receiver.url)
        first = deliverers.start()
        assert posted.wait(15)
        first.send_signal(signal.SIGKILL)
        first.wait()
        released.set()
        # The dead deliverer's lease expires: the event is due at the end of the lease.
        make_due(store.client, event_id)
        deliverers.start()
        wait_until(lambda: event_state(store, event_id) == "delivered", "delivered")
        requests = receiver.requests
    assert len(requests) == 2
    assert requests[0].headers["webhook-id"] == requests[1].headers["webhook-id"] == event_id
    assert requests[0].body == requests[1].body
    assert [request.headers["x-attempt"] for request in requests] == ["1", "2"]
    for request in requests:
        verify(request)


def test_events_of_a_killed_deliverer_go_to_another_before_their_leases_end(
    store: JobStore, deliverers: Deliverers
) -> None:
    posted, released = threading.Event(), threading.Event()

    def respond(request: ReceivedRequest) -> int:
        if request.headers["x-attempt"] == "1":
            posted.set()
            released.wait(60)
        return 200

    with WebhookReceiver(respond) as receiver:
        event_id = finish_job(store, receiver.url)
        first = deliverers.start(WEBHOOK_TOTAL_TIMEOUT_S="600")
        assert posted.wait(15)
        wait_until(lambda: store.client.zcard(keys.SESSIONS) == 1, "others to see it")
        deliverers.start(WEBHOOK_TOTAL_TIMEOUT_S="600")

        first.send_signal(signal.SIGKILL)

        wait_until(lambda: event_state(store, event_id) == "delivered", "delivered", timeout_s=40)
        released.set()
        requests = receiver.requests
    assert [request.headers["webhook-id"] for request in requests] == [event_id] * 2
    assert requests[0].body == requests[1].body
    assert store.client.hlen(keys.OUTBOX_TAKERS) == 0


def test_the_time_after_which_a_deliverer_counts_as_lost_is_a_setting(
    store: JobStore, deliverers: Deliverers
) -> None:
    deliverers.start(WEBHOOK_SESSION_TIMEOUT_S="600")
    wait_until(lambda: store.client.zcard(keys.SESSIONS) == 1, "others to see it")
    client: Any = store.client
    ((_, silent_at_ms),) = client.zrange(keys.SESSIONS, 0, -1, withscores=True)
    assert 500_000 < silent_at_ms - now_ms(store) <= 600_000


def test_claimed_event_of_a_dead_deliverer_comes_back_within_its_lease(
    store: JobStore, deliverers: Deliverers
) -> None:
    """The lease is bounded by the longest attempt and a margin."""
    with WebhookReceiver(respond_with(500)) as receiver:
        event_id = finish_job(store, receiver.url)
        deliverers.start(WEBHOOK_SCHEDULE_S="0,1000", WEBHOOK_JITTER="0")
        wait_until(lambda: score(store, event_id) > now_ms(store) + 900_000, "waits for its retry")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        event_id = finish_job(store, hung, "gen_2")
        deliverers.start(WEBHOOK_TOTAL_TIMEOUT_S="5")
        wait_until(lambda: score(store, event_id) > now_ms(store) + 10_000, "claimed")
        assert score(store, event_id) <= now_ms(store) + 60_000


def test_hanging_receivers_do_not_hold_up_the_others(
    store: JobStore, deliverers: Deliverers
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent, WebhookReceiver() as good:
        hung = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        for number in range(150):
            finish_job(store, hung, f"gen_hung_{number}")
        for number in range(20):
            finish_job(store, good.url, f"gen_good_{number}")
        deliverers.start(
            WEBHOOK_CONCURRENCY="64",
            WEBHOOK_CONCURRENCY_PER_HOST="4",
            WEBHOOK_TOTAL_TIMEOUT_S="600",
        )
        assert good.wait_for(20, timeout_s=60), f"{len(good.requests)} of 20 arrived"


def test_an_endpoint_that_only_fails_is_left_alone_until_it_recovers(
    store: JobStore, deliverers: Deliverers
) -> None:
    """Its events wait without being claimed one by one; one host's other endpoint is served."""
    is_mended = threading.Event()

    def respond(request: ReceivedRequest) -> int:
        return 200 if is_mended.is_set() or request.path == "/good" else 500

    with WebhookReceiver(respond) as receiver:
        bad = [finish_job(store, f"{receiver.url}/bad", f"gen_bad_{i}") for i in range(60)]
        deliverers.start(
            WEBHOOK_SCHEDULE_S="0,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1",
            WEBHOOK_CONCURRENCY_PER_ENDPOINT="4",
            WEBHOOK_BREAKER_FAILURES="4",
            WEBHOOK_BREAKER_WAIT_S="0.4",
            WEBHOOK_BREAKER_MAX_WAIT_S="0.4",
        )
        wait_until(lambda: len(receiver.requests) >= 6, "tried again after the wait")
        good = finish_job(store, f"{receiver.url}/good", "gen_good")
        wait_until(lambda: event_state(store, good) == "delivered", "the good one is delivered")
        failing = Endpoints(store).get(f"{receiver.url}/bad")
        assert failing.state is EndpointState.FAILING
        attempts = [store.client.hget(keys.event(event_id), "attempts") for event_id in bad]
        assert attempts.count(b"0") >= 40
        is_mended.set()
        wait_until(lambda: store.counts().outbox == 0, "all are delivered")
        assert {event_state(store, event_id) for event_id in bad} == {"delivered"}


def test_hanging_receivers_hold_up_neither_generation_nor_other_receivers(mill: Mill) -> None:
    """Everything else is done before the first of them responds, though they could fill all slots.

    Eight receivers may have four deliveries each, and the deliverer has sixteen slots in all.
    """
    released = threading.Event()

    def hang(request: ReceivedRequest) -> int:
        released.wait(90)
        return 200

    deliverers = Deliverers(mill.url)
    try:
        with ExitStack() as stack:
            hanging = [stack.enter_context(WebhookReceiver(hang)) for _ in range(8)]
            good = stack.enter_context(WebhookReceiver())
            deliverers.start(
                WEBHOOK_TOTAL_TIMEOUT_S="120",
                WEBHOOK_CONCURRENCY="16",
                WEBHOOK_CONCURRENCY_PER_HOST="4",
            )
            urls = [url for number in range(40) for url in (hanging[number % 8].url, good.url)]
            local = ProducerSettings(
                webhook_allow_http=True,
                webhook_allow_ports=("1024-65535",),
                webhook_allow_networks=(LOOPBACK,),
            )
            with Client(mill.url, settings=local) as client:
                jobs = client.submit_many({"prompt": "x", "webhook": url} for url in urls)
                mill.start_worker(stub=FAST)
                ends = list(client.as_completed(jobs, timeout_s=60))
            assert {end.state for end in ends} == {JobState.COMPLETED}
            assert good.wait_for(40, timeout_s=60)
            assert 8 <= sum(len(receiver.requests) for receiver in hanging) <= 12
            hung = [f"evt_{job.id}_completed" for job in jobs[::2]]
            assert {event_state(mill.store, event_id) for event_id in hung} == {"pending"}
            released.set()
            for receiver in hanging:
                assert receiver.wait_for(5, timeout_s=60)
    finally:
        deliverers.close()


def test_many_events_for_one_receiver_each_arrive_once(
    store: JobStore, deliverers: Deliverers
) -> None:
    num_events = 400
    with WebhookReceiver() as receiver:
        for number in range(num_events):
            finish_job(store, receiver.url, f"gen_{number}")
        deliverers.start()
        deliverers.start()
        wait_until(lambda: store.counts().outbox == 0, "the outbox is empty", 30)
        requests = receiver.requests
    ids = [request.headers["webhook-id"] for request in requests]
    assert len(ids) == len(set(ids)) == num_events
    assert {request.headers["x-attempt"] for request in requests} == {"1"}


def test_deliverers_share_the_due_events(store: JobStore, deliverers: Deliverers) -> None:
    """Each may have one delivery in flight, and the receiver responds only if both have one."""
    both = threading.Barrier(2, timeout=60)

    def respond(request: ReceivedRequest) -> int:
        both.wait()
        return 200

    with WebhookReceiver(respond) as receiver:
        ids = [finish_job(store, receiver.url, f"gen_{number}") for number in range(4)]
        for _ in range(2):
            deliverers.start(WEBHOOK_CONCURRENCY="1", WEBHOOK_TOTAL_TIMEOUT_S="20")
        wait_until(lambda: {event_state(store, i) for i in ids} == {"delivered"}, "all", 30)
        assert len(receiver.requests) == 4


def test_sigterm_finishes_the_attempt_in_flight(store: JobStore, deliverers: Deliverers) -> None:
    posted, released = threading.Event(), threading.Event()

    def respond(request: ReceivedRequest) -> int:
        posted.set()
        released.wait(30)
        return 200

    with WebhookReceiver(respond) as receiver:
        event_id = finish_job(store, receiver.url)
        process = deliverers.start()
        assert posted.wait(15)
        process.send_signal(signal.SIGTERM)
        released.set()
        assert process.wait(15) == 0
    assert event_state(store, event_id) == "delivered"


def test_a_deliverer_holds_only_what_it_sends(store: JobStore, deliverers: Deliverers) -> None:
    """Events beyond the limit of their host stay due, for any other deliverer."""
    posted, released = threading.Event(), threading.Event()

    def respond(request: ReceivedRequest) -> int:
        posted.set()
        released.wait(30)
        return 200

    with WebhookReceiver(respond) as receiver:
        for number in range(3):
            finish_job(store, receiver.url, f"gen_{number}")
        process = deliverers.start(WEBHOOK_CONCURRENCY_PER_HOST="1")
        assert posted.wait(15)
        ids = [f"evt_gen_{number}_completed" for number in range(3)]
        assert sum(score(store, i) <= now_ms(store) for i in ids) == 2
        process.send_signal(signal.SIGTERM)
        released.set()
        assert process.wait(15) == 0
        assert len(receiver.requests) == 1
    due = store.outbox_claim(owner="test", limit=10, lease_ms=1000)
    assert [event.attempt for event in due] == [1, 1]


def test_deliverer_outlives_a_restart_of_redis(private_redis_server: Any) -> None:
    server = private_redis_server
    store, deliverers = JobStore.from_url(server.url), Deliverers(server.url)
    process = deliverers.start()
    try:
        with WebhookReceiver() as receiver:
            finish_job(store, receiver.url, "gen_before")
            assert receiver.wait_for(1, timeout_s=60)
            server.kill()
            server.start()
            event_id = finish_job(store, receiver.url, "gen_after")
            wait_until(lambda: event_state(store, event_id) == "delivered", "delivered", 20)
        assert process.poll() is None
    finally:
        deliverers.close()
        store.close()


def test_forged_events_stop_neither_the_deliverer_nor_other_events(
    store: JobStore, deliverers: Deliverers
) -> None:
    forged = {"url": b"https://\xff/", "num_tokens": b"many", "type": b"\xff", "secret": b"\xff"}
    with WebhookReceiver() as receiver:
        good = [finish_job(store, receiver.url, f"gen_{number}") for number in range(5)]
        bad = [finish_job(store, receiver.url, f"gen_forged_{field}") for field in forged]
        for event_id, (field, value) in zip(bad, forged.items(), strict=True):
            store.client.hset(keys.event(event_id), field, value)
        process = deliverers.start()
        wait_until(lambda: store.counts().outbox == 0, "the outbox is empty")
        assert {event_state(store, event_id) for event_id in good} == {"delivered"}
        assert {request.headers["x-attempt"] for request in receiver.requests} == {"1"}
    reasons = {letter.id: letter.reason for letter in store.dead_letters()}
    assert reasons == dict.fromkeys(bad, "unusable_event")
    assert process.poll() is None
