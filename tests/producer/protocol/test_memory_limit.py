"""A job is accepted only if Redis has room for its output as well."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer import Client, JobFields, JobRejected, ProducerSettings, QueueFull
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.replies import JobState, TokenWrite
from batchmill.producer.store.output_memory import output_bytes
from batchmill.producer.store.submission import prepare
from batchmill.producer.store.tenants import set_tenant

MIB = 1 << 20
OUTPUT: JobFields = {"prompt": "p" * 300, "max_tokens": 256}


def used_bytes(bench: Any) -> int:
    """Return the bytes that count against `maxmemory`."""
    info = bench.redis.info("memory")
    return int(info["used_memory"]) - int(info["mem_not_counted_for_evict"])


def counters(bench: Any) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in bench.redis.hgetall(keys.USAGE).items()}


def fill(bench: Any, client: Client) -> int:
    """Submit jobs until one is refused; return how many were accepted."""
    refused: list[Exception] = []
    jobs = (OUTPUT for _ in range(100_000))
    handles = client.iter_submit(jobs, on_rejected=lambda _, error: refused.append(error))
    number = 0
    for _ in handles:
        number += 1
        if refused:
            break
    assert isinstance(refused[0], QueueFull)
    return number


def submit_one_by_one(client: Client, number: int) -> None:
    """Submit jobs. A few may fit after `fill`, because the buffers of its calls counted as well."""
    for _ in range(number):
        client.submit(**OUTPUT)


def run_to_the_end(bench: Any) -> None:
    """Complete every waiting job with its longest output."""
    tokens, text = [7] * 256, "five " * 256
    while (job_id := bench.take_next()) is not None:
        fence = bench.fence(job_id)
        write = TokenWrite(job_id, fence, 0, tokens[:250], text.encode()[:1000], 0)
        bench.store.checkpoint([write], lease_ms=60_000)
        bench.store.complete(
            job_id,
            fence=fence,
            state=JobState.COMPLETED,
            result=json.dumps({"text": text, "usage": "0" * 400}),
            position=250,
            token_ids=tokens[250:],
        )


def test_a_store_full_of_waiting_jobs_does_not_outgrow_maxmemory(
    bench: Any, redis_url: str
) -> None:
    limit = used_bytes(bench) + 6 * MIB
    bench.redis.config_set("maxmemory", limit)
    with Client(redis_url) as client:
        accepted = fill(bench, client)
        message = r"its limit is \d+; try later, .*maxmemory or BATCHMILL_MAX_MEMORY_PERCENT"
        with pytest.raises(QueueFull, match=message) as caught:
            submit_one_by_one(client, accepted)
    assert caught.value.retryable
    waiting = used_bytes(bench)
    assert accepted > 100
    run_to_the_end(bench)
    assert waiting < used_bytes(bench) <= limit
    assert bench.store.counts().queued == 0


def test_the_promise_is_released_at_the_end(bench: Any) -> None:
    bench.submit("a", tenant="acme", reserved_bytes=1000)
    bench.submit("b", reserved_bytes=500)
    claim = bench.claim("a")
    usage = counters(bench)
    assert (usage["reserved"], usage["reserved:acme"], usage["jobs"]) == (1500, 1000, 1)
    bench.lose_lease("a")
    bench.store.sweep()
    assert counters(bench)["reserved"] == 1500
    claim = bench.claim("a")
    bench.store.complete("a", fence=claim.fence, state=JobState.FAILED, error="{}")
    assert counters(bench)["reserved"] == 500
    bench.store.run(job_calls.retry("a", bench.new_job().limits))
    assert counters(bench)["reserved:acme"] == 1000
    bench.store.cancel("a")
    bench.store.cancel("b")
    assert counters(bench) == {}


def test_a_limit_on_bytes_counts_what_outputs_may_take(bench: Any, redis_url: str) -> None:
    settings = ProducerSettings(max_queued_bytes=20_000)
    with Client(redis_url, settings=settings) as client:
        client.submit(prompt="short", max_tokens=1000)
        job_id = bench.take_next()  # its output is still to come
        client.submit(prompt="short", max_tokens=10)
        with pytest.raises(QueueFull, match=r"outputs to come.*BATCHMILL_MAX_QUEUED_BYTES"):
            client.submit(prompt="short")
        set_tenant(bench.store, "acme", {"max_bytes": 1})
        bench.end(job_id, 1)
        client.submit(prompt="short", tenant="acme")
        with pytest.raises(QueueFull, match="tenants set acme --max-bytes"):
            client.submit(prompt="short", tenant="acme")


def test_a_job_that_can_never_fit_is_refused_for_good(bench: Any, redis_url: str) -> None:
    bench.redis.config_set("maxmemory", used_bytes(bench) + 10 * MIB)
    with Client(redis_url) as client:
        with pytest.raises(JobRejected, match=r"may need \d+ bytes .*max_tokens") as caught:
            client.submit(prompt="x", n=128, max_tokens=20_000, logprobs=20)
        assert (caught.value.code, caught.value.retryable) == ("job_too_large", False)
    no_limit = ProducerSettings(max_memory_percent=None)
    with Client(redis_url, settings=no_limit) as client:
        client.submit(prompt="x", n=128, max_tokens=20_000, logprobs=20)


def test_a_retry_needs_room_too(bench: Any, redis_url: str) -> None:
    bench.submit("j", reserved_bytes=8 * MIB)
    bench.store.cancel("j")
    bench.redis.config_set("maxmemory", used_bytes(bench) + 6 * MIB)
    with Client(redis_url) as client, pytest.raises(JobRejected):
        client.retry("j")
    assert bench.state("j") == "cancelled"


@pytest.mark.parametrize(
    ("fields", "per_token"),
    [
        ({}, 14),
        ({"logprobs": 0}, 49),
        ({"logprobs": 5}, 179),
        ({"logprobs": 20}, 611),
        ({"entropy": True}, 34),
        ({"n": 8, "logprobs": 5}, 8 * 188),
    ],
)
def test_the_reservation_covers_the_measured_output(fields: dict[str, Any], per_token: int) -> None:
    """The figures are those of docs/BENCHMARKS.md, for 200 output tokens."""
    job = parse_job({"prompt": "x", "max_tokens": 200, **fields})
    reserved = output_bytes(job, 1)
    assert 200 * per_token <= reserved <= 200 * per_token * 1.3 + 6000
    assert prepare(job, ProducerSettings()).reserved_bytes == reserved


def test_prompt_scores_are_reserved() -> None:
    plain = parse_job({"prompt": "x", "max_tokens": 1})
    scored = parse_job({"prompt": "x", "max_tokens": 1, "prompt_logprobs": 20})
    assert output_bytes(scored, 101) - output_bytes(plain, 101) >= 58_025 - 582
