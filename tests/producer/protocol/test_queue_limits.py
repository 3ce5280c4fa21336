"""Soft limits on waiting jobs, of the store and of each tenant; errors name the remedy."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    Client,
    JobRejected,
    ProducerSettings,
    QueueFull,
)
from batchmill.producer.errors import TenantRefused
from batchmill.producer.store.tenants import (
    list_tenants,
    load_tenant,
    set_tenant,
    set_window,
    unset_tenant,
)

PROMPT: dict[str, Any] = {"prompt": "four words and more", "max_tokens": 95}  # 5 + 95 tokens


@pytest.mark.parametrize(
    ("setting", "limit"),
    [("max_queued_jobs", 2), ("max_queued_bytes", 5000), ("max_queued_tokens", 200)],
)
def test_waiting_jobs_of_the_whole_store_are_limited(
    redis_url: str, setting: str, limit: int
) -> None:
    with Client(redis_url, settings=ProducerSettings.model_validate({setting: limit})) as client:
        client.submit(**PROMPT, priority="high")
        client.submit(**PROMPT, tenant="other", seed=1)
        message = rf"its limit is {limit}; try later.*BATCHMILL_{setting.upper()}"
        with pytest.raises(QueueFull, match=message) as caught:
            client.submit(**PROMPT)
    assert (caught.value.code, caught.value.retryable) == ("queue_full", True)


@pytest.mark.parametrize(
    ("name", "limit"), [("max_jobs", 2), ("max_bytes", 5000), ("max_tokens", 200)]
)
def test_waiting_jobs_of_a_tenant_are_limited(
    redis_url: str, bench: Any, name: str, limit: int
) -> None:
    set_tenant(bench.store, "acme", {name: limit})
    with Client(redis_url) as client:
        for _ in range(2):
            client.submit(**PROMPT, tenant="acme")
        flag = name.replace("_", "-")
        with pytest.raises(QueueFull, match=f"tenant acme holds .*tenants set acme --{flag}"):
            client.submit(**PROMPT, tenant="acme")
        client.submit(**PROMPT, tenant="other")
        unset_tenant(bench.store, "acme")
        client.submit(**PROMPT, tenant="acme")


def test_a_claim_makes_room_and_a_job_given_back_takes_it_again(bench: Any) -> None:
    set_tenant(bench.store, "acme", {"max_jobs": 1})
    bench.submit("a", tenant="acme", cost=7)
    claim = bench.claim("a")
    assert load_tenant(bench.store, "acme").usage.jobs == 0
    bench.lose_lease("a")
    bench.store.sweep()
    usage = load_tenant(bench.store, "acme").usage
    assert (usage.jobs, usage.bytes, usage.tokens) == (1, len(claim.document), 7)


def test_tenants_with_something_waiting_or_set_are_listed(bench: Any) -> None:
    set_tenant(bench.store, "set", {"weight": 2.5, "max_jobs": 9})
    set_tenant(bench.store, "set", {"max_jobs": 10})
    bench.submit("j", tenant="waits")
    names = {tenant.name: tenant for tenant in list_tenants(bench.store)}
    assert set(names) == {"set", "waits"}
    assert (names["set"].limits.weight, names["set"].limits.max_jobs) == (2.5, 10)
    assert names["waits"].usage.jobs == 1


@pytest.mark.parametrize(
    ("name", "changes"),
    [("a:b", {"weight": 1}), ("", {}), ("a", {"weight": 0}), ("a", {"max_jobs": 0})],
)
def test_invalid_tenant_settings_are_refused(
    bench: Any, name: str, changes: dict[str, float]
) -> None:
    with pytest.raises(TenantRefused):
        set_tenant(bench.store, name, changes)
    assert list_tenants(bench.store) == []


def test_a_window_must_be_a_small_number(bench: Any) -> None:
    with pytest.raises(TenantRefused, match="from 1 to"):
        set_window(bench.store, 0)


@pytest.mark.parametrize("tenant", ["", "a b", "a:b", "ä", "x" * 65])
def test_a_malformed_tenant_name_is_refused(redis_url: str, tenant: str) -> None:
    with Client(redis_url) as client, pytest.raises(JobRejected, match="tenant") as caught:
        client.submit(prompt="hi", tenant=tenant)
    assert (caught.value.param, caught.value.retryable) == ("tenant", False)


def test_the_status_shows_the_tenant(redis_url: str) -> None:
    with Client(redis_url) as client:
        assert client.submit(prompt="hi").status().tenant == "default"
        assert client.submit(prompt="hi", tenant="acme").status().tenant == "acme"


def test_submit_many_waits_for_room_if_asked(redis_url: str, bench: Any) -> None:
    settings = ProducerSettings(max_queued_jobs=3)
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.01):
            bench.take_next()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with Client(redis_url, settings=settings) as client:
            handles = client.submit_many(
                ({"prompt": "hi", "seed": number} for number in range(12)), wait_when_full_s=30
            )
    finally:
        done.set()
        worker.join()
    assert len({handle.id for handle in handles}) == 12


def test_waiting_for_room_times_out(redis_url: str) -> None:
    refused: list[int] = []
    with Client(redis_url, settings=ProducerSettings(max_queued_jobs=2)) as client:
        handles = client.submit_many(
            ({"prompt": "hi"} for _ in range(4)),
            on_rejected=lambda index, _: refused.append(index),
            wait_when_full_s=0.01,
        )
        assert len(handles) == 2
    assert refused == [2, 3]


def test_the_asyncio_client_waits_for_room_too(redis_url: str) -> None:
    async def submit() -> int:
        settings = ProducerSettings(max_queued_jobs=2)
        async with AsyncClient(redis_url, settings=settings) as client:
            handles = await client.submit_many(
                ["hi"] * 3, on_rejected=lambda *_: None, wait_when_full_s=0.01
            )
            return len(handles)

    assert asyncio.run(submit()) == 2


@pytest.mark.parametrize(
    ("setting", "other_is_refused"), [("max_outbox_events", True), ("max_endpoint_events", False)]
)
def test_jobs_with_a_webhook_are_refused_while_its_events_reach_a_limit(
    redis_url: str, setting: str, other_is_refused: bool
) -> None:
    settings = ProducerSettings.model_validate({setting: 2})
    hook, other = "https://example.com/hook", "https://example.com/other"
    with Client(redis_url, settings=settings) as client:
        jobs = [client.submit(**PROMPT, webhook=hook) for _ in range(2)]
        failed = client.submit(**PROMPT)
        for job in [*jobs, failed]:
            job.cancel()
        message = rf"holds 2 webhook events .*its limit is 2; .*BATCHMILL_{setting.upper()}"
        with pytest.raises(QueueFull, match=message):
            client.submit(**PROMPT, webhook=hook)
        with pytest.raises(QueueFull, match=message):
            jobs[0].retry()
        client.submit(**PROMPT)
        failed.retry()
        if other_is_refused:
            with pytest.raises(QueueFull, match=message):
                client.submit(**PROMPT, webhook=other)
        else:
            client.submit(**PROMPT, webhook=other)
        assert jobs[0].status().state == "cancelled"
