"""Claims by workers that hold the prefixes of some jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer.job.prefix import prefix_digest
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, ClaimRefusal

from ...support.session_connections import SessionConnections

WORKER = keys.new_session("worker@host")
QUEUE = keys.queue_name("demo", "normal")
LONG = "Answer the question. " * 40


@pytest.fixture(autouse=True)
def sessions(bench: Any) -> Iterator[None]:
    """The worker is connected."""
    connections = SessionConnections(bench.redis)
    connections.connect(WORKER)
    yield
    connections.close()


def take(bench: Any, *prefixes: str) -> tuple[str, Claim | ClaimRefusal] | None:
    """Take the next message and claim its job, as a worker that holds prefixes does."""
    message = bench.redis.rpop(keys.handed(WORKER)) or bench.take_announcement()
    if message is None:
        return None
    job_id = json.loads(message)["headers"]["id"]
    claim = bench.store.claim(
        job_id, owner="w", lease_ms=60_000, identity="m", session=WORKER, prefixes=prefixes
    )
    return job_id, claim


def taken(bench: Any, *prefixes: str) -> list[str]:
    """Take all jobs; return them in the order of their claims."""
    order = []
    while found := take(bench, *prefixes):
        if isinstance(found[1], Claim):
            order.append(found[0])
    return order


@pytest.mark.parametrize("window", [8, 1], ids=["announced", "backlog"])
def test_a_worker_takes_jobs_of_its_prefix_first(bench: Any, window: int) -> None:
    bench.redis.set(keys.WINDOW, window)
    for number, prefix in enumerate("abab"):
        bench.submit(f"{prefix}{number}", prefix=prefix)
    assert taken(bench, "b") == ["b1", "b3", "a0", "a2"]


def test_no_job_is_passed_over_more_than_four_times(bench: Any) -> None:
    bench.redis.set(keys.WINDOW, 1)
    bench.submit("a", prefix="a")
    for number in range(6):
        bench.submit(f"b{number}", prefix="b")
    assert taken(bench, "b") == ["b0", "b1", "b2", "b3", "a", "b4", "b5"]


def test_a_forged_count_ends_its_own_job_and_stops_no_claim(bench: Any) -> None:
    bench.submit("a", prefix="a")
    bench.submit("b", prefix="b")
    bench.redis.hset(keys.job("a"), "passed_over", "rubbish")
    assert take(bench, "b") == ("a", ClaimRefusal.UNUSABLE)
    assert taken(bench, "b") == ["b"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"prefix": "a"}, {"prefix": "b", "tenant": "other"}),
        ({"prefix": "a"}, {"prefix": "b", "delay_ms": 60_000}),
        ({"prefix": "a"}, {"prefix": "c"}),
        ({}, {"prefix": "b"}),
    ],
    ids=["other tenant", "delayed", "not held", "no prefix"],
)
def test_a_job_is_not_passed_over_for_one_that_does_not_help(
    bench: Any, first: dict[str, Any], second: dict[str, Any]
) -> None:
    bench.submit("first", **first)
    bench.submit("second", **second)
    found = take(bench, "b")
    assert found is not None
    assert found[0] == "first"
    assert isinstance(found[1], Claim)
    assert found[1].prefix == first.get("prefix", "")


def test_a_message_that_another_worker_has_taken_is_not_taken_again(bench: Any) -> None:
    bench.submit("b", prefix="b")
    assert bench.take_announcement() is not None  # by a worker that has not claimed it yet
    bench.submit("a", prefix="a")
    found = take(bench, "b")
    assert found is not None
    assert isinstance(found[1], Claim)


def test_an_overwritten_record_does_not_stop_the_claims_of_others(bench: Any) -> None:
    for job_id, prefix in (("a", "a"), ("bad", "b"), ("b", "b")):
        bench.submit(job_id, prefix=prefix)
    bench.redis.rename(keys.job("bad"), "its record")
    bench.redis.set(keys.job("bad"), "no record")
    assert taken(bench, "b") == ["b", "a"]
    bench.redis.rename("its record", keys.job("bad"))


def test_the_fair_share_between_tenants_stays(bench: Any) -> None:
    for number in range(6):
        bench.submit(f"a{number}", prefix="ab"[number % 2], tenant="x", cost=10)
        bench.submit(f"b{number}", prefix="ab"[number % 2], tenant="y", cost=10)
    order = [job_id[0] for job_id in taken(bench, "b")]
    for num_taken in range(0, 13, 2):
        assert abs(order[:num_taken].count("a") - num_taken / 2) <= 1


def test_a_claim_of_a_held_prefix_costs_redis_as_much_as_without(bench: Any) -> None:
    for number in range(4):
        bench.submit(f"j{number}", prefix="a")

    def num_calls(*prefixes: str) -> int:
        bench.redis.config_resetstat()
        assert take(bench, *prefixes)
        stats = bench.redis.info("commandstats")
        return sum(each["calls"] for name, each in stats.items() if "config" not in name)

    num_calls()  # loads the script
    assert num_calls() == num_calls("a") == num_calls("b", "a")


def test_prompts_with_the_same_long_beginning_have_the_same_digest() -> None:
    def digest(**fields: Any) -> str:
        return prefix_digest(parse_job({"model": "demo", "max_tokens": 4, **fields}))

    def chat(system: str, user: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return digest(messages=messages)

    assert digest(prompt=LONG + "a") == digest(prompt=LONG + "b") != ""
    assert digest(prompt="x" + LONG) != digest(prompt=LONG)
    assert digest(prompt="short") == ""
    assert chat(LONG, "a") == chat(LONG, "b") != digest(prompt=LONG)
    assert chat("short", "a") == ""
    assert digest(prompt=[1] * 200) == digest(prompt=[1] * 300) != ""
    assert digest(prompt=LONG, cache_salt="s") != digest(prompt=LONG)
