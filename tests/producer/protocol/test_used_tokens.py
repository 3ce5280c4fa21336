"""The sums of used tokens: counted once per job, in the script that ends it."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from batchmill.producer.job.batch import BatchUsage, CachedTokensDetails, ReasoningTokensDetails
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import ClaimRefusal, CompleteStatus, JobState
from batchmill.producer.protocol.used_tokens import Amounts, UsedTokens
from batchmill.producer.store.usage_sums import LABELS, UsageSum, grouped, usage_sums

from .batch_steps import ids_of, lines

EPOCH = date(1970, 1, 1)
ERROR = '{"code":"engine_error","message":"it broke"}'


def today(bench: Any) -> date:
    return EPOCH + timedelta(seconds=bench.redis.time()[0])


def sums(bench: Any, *by: Any) -> dict[tuple[str | None, ...], Amounts]:
    """Return the sums of yesterday and today: a test may run at midnight."""
    day = today(bench)
    found = bench.store.read(usage_sums(day - timedelta(days=1), day))
    return {
        tuple(label for name, label in zip(LABELS, each.labels, strict=True) if name in by): (
            each.amounts
        )
        for each in grouped(found, by)
    }


def total(bench: Any) -> Amounts:
    return sums(bench).get((), Amounts())


def end(bench: Any, job_id: str, used: UsedTokens | None, **fields: Any) -> CompleteStatus:
    given: dict[str, Any] = {"state": JobState.COMPLETED, "result": "{}", **fields}
    fence = bench.fence(job_id)
    status: CompleteStatus = bench.store.complete(job_id, fence=fence, used=used, **given)
    return status


def test_the_tokens_of_a_job_count_once_by_tenant_key_and_model(bench: Any) -> None:
    bench.started("a", tenant="acme", api_key="key_1")
    bench.started("b", tenant="acme", api_key="key_2")
    bench.started("c", model="a/b:c", queue=keys.queue_name("a/b:c", "normal"))
    assert total(bench) == Amounts()
    for _ in range(2):
        status = end(bench, "a", UsedTokens(10, 5, 4))
    assert status is CompleteStatus.ALREADY_DONE
    end(bench, "b", UsedTokens(1, 2, 0))
    end(bench, "c", UsedTokens(100, 0, 64))
    assert total(bench) == Amounts(3, 111, 7, 68)
    assert sums(bench, "tenant", "key") == {
        ("acme", "key_1"): Amounts(1, 10, 5, 4),
        ("acme", "key_2"): Amounts(1, 1, 2, 0),
        ("default", ""): Amounts(1, 100, 0, 64),
    }
    assert sums(bench, "model") == {
        ("a/b:c",): Amounts(1, 100, 0, 64),
        ("demo",): Amounts(2, 11, 7, 4),
    }


def test_an_end_without_a_report_counts_the_stored_output(bench: Any) -> None:
    bench.submit("waiting")
    bench.store.cancel("waiting")
    assert total(bench) == Amounts(1, 0, 0, 0)
    bench.started("late")
    end(bench, "late", None, state=JobState.EXPIRED, result=None, token_ids=[1, 2, 3])
    assert total(bench) == Amounts(2, 0, 3, 0)


def test_a_job_that_expires_at_its_claim_counts_once_under_its_labels(
    bench: Any, client: Any
) -> None:
    bench.started("j", tenant="acme", api_key="key_1")
    end(bench, "j", UsedTokens(10, 2, 0), state=JobState.FAILED, result=None, error=ERROR)
    client.retry("j")
    bench.redis.hset(keys.job("j"), "deadline_at_ms", 1)
    refusal = bench.store.claim("j", owner="w", lease_ms=60_000, identity="i")
    assert refusal is ClaimRefusal.EXPIRED
    assert sums(bench, "tenant", "key", "model") == {
        ("acme", "key_1", "demo"): Amounts(1, 10, 2, 0)
    }


def test_an_attempt_that_is_followed_by_another_counts_nothing(bench: Any) -> None:
    bench.started("j")
    failed: Any = {"state": JobState.FAILED, "result": None, "error": ERROR, "token_ids": [1, 2]}
    status = end(bench, "j", UsedTokens(10, 2, 0), retry_in_ms=1, **failed)
    assert status is CompleteStatus.RETRYING
    assert total(bench) == Amounts()


def test_a_retry_after_the_end_adds_only_what_is_more(bench: Any, client: Any) -> None:
    bench.started("j")
    end(bench, "j", UsedTokens(10, 2, 0), state=JobState.FAILED, result=None, error=ERROR)
    client.retry("j")
    bench.claim("j")
    end(bench, "j", UsedTokens(10, 7, 8))
    assert total(bench) == Amounts(1, 10, 7, 8)
    assert bench.redis.hget(keys.job("j"), "used_tokens") == b"1 10 7 8 0"


def test_a_shorter_output_of_a_retry_takes_nothing_back(bench: Any, client: Any) -> None:
    bench.started("j")
    end(bench, "j", UsedTokens(10, 9, 0), state=JobState.FAILED, result=None, error=ERROR)
    client.retry("j")
    bench.claim("j")
    end(bench, "j", UsedTokens(10, 3, 0))
    assert total(bench) == Amounts(1, 10, 9, 0)


def test_a_batch_has_the_sums_of_its_jobs_until_its_end(bench: Any, client: Any) -> None:
    batch = client.create_batch(lines(2))
    first, second = ids_of(bench, batch.id)
    bench.claim(first)
    end(bench, first, UsedTokens(10, 5, 3, 2))
    usage = client.batch(batch.id).usage
    assert usage == BatchUsage(
        input_tokens=10,
        input_tokens_details=CachedTokensDetails(cached_tokens=3),
        output_tokens=5,
        output_tokens_details=ReasoningTokensDetails(reasoning_tokens=2),
        total_tokens=15,
    )
    bench.claim(second)
    end(bench, second, UsedTokens(1, 1, 0), state=JobState.FAILED, result=None, error=ERROR)
    assert client.batch(batch.id).usage.total_tokens == 17
    client.retry(second)
    bench.claim(second)
    end(bench, second, UsedTokens(1, 4, 0))
    assert client.batch(batch.id).usage.total_tokens == 17
    assert total(bench) == Amounts(2, 11, 9, 3, 2)


def test_erasing_a_job_keeps_the_sums(bench: Any, client: Any) -> None:
    bench.started("j")
    end(bench, "j", UsedTokens(10, 5, 4))
    client.forget("j")
    assert total(bench) == Amounts(1, 10, 5, 4)


def test_a_day_has_a_bounded_number_of_rows(bench: Any) -> None:
    day = (today(bench) - EPOCH).days
    for each in (day, day + 1):
        rows = {f"tenant{number}::demo": "1 1 1 0" for number in range(10_000)}
        bench.redis.hset(keys.used_tokens(each), mapping=rows)
    for tenant in ("tenant7", "new1", "new2"):
        bench.started(tenant, tenant=tenant)
        end(bench, tenant, UsedTokens(5, 5, 0))
    found = sums(bench, "tenant")
    assert found[("tenant7",)] == Amounts(2, 6, 6, 0)
    assert found[("",)] == Amounts(2, 10, 10, 0)
    assert ("new1",) not in found
    bench.redis.delete(keys.used_tokens(day + 1))


def test_the_sweep_forgets_old_days(bench: Any) -> None:
    bench.started("j")
    end(bench, "j", UsedTokens(10, 5, 4))
    day = (today(bench) - EPOCH).days
    for old in (day - 5, day - 40):
        bench.redis.hset(keys.used_tokens(old), "acme::demo", "1 1 1 0")
        bench.redis.zadd(keys.USED_TOKENS, {str(old): old})
    bench.store.sweep()
    bench.store.sweep(usage_days=30)
    assert bench.redis.exists(keys.used_tokens(day - 5))
    assert not bench.redis.exists(keys.used_tokens(day - 40))
    bench.store.sweep(usage_days=3)
    assert not bench.redis.exists(keys.used_tokens(day - 5))
    assert total(bench) == Amounts(1, 10, 5, 4)


@pytest.mark.parametrize("value", ["nonsense", "1 2 3", "-1 nan 1e999 0", "9 9 9 9 9 9"])
def test_forged_sums_and_keys_stop_no_end(bench: Any, value: str) -> None:
    day = (today(bench) - EPOCH).days
    for each in (day, day + 1):
        bench.redis.set(keys.used_tokens(each), "a text")
    bench.redis.set(keys.USED_TOKENS, "a text")
    bench.started("j")
    end(bench, "j", UsedTokens(10, 5, 4))
    assert total(bench) == Amounts(1, 10, 5, 4)
    bench.redis.delete(keys.used_tokens(day + 1))
    bench.redis.hset(keys.used_tokens(day), "default::demo", value)
    bench.started("k")
    bench.redis.hset(keys.job("k"), "used_tokens", value)
    assert end(bench, "k", UsedTokens(10, 5, 4)) is CompleteStatus.OK


def test_a_period_has_a_limit() -> None:
    with pytest.raises(ValueError, match="1 to 800 days"):
        usage_sums(date(2020, 1, 1), date(2026, 1, 1))
    with pytest.raises(ValueError, match="1 to 800 days"):
        usage_sums(date(2026, 1, 2), date(2026, 1, 1))


def test_sums_are_grouped_in_the_order_of_the_labels() -> None:
    rows = [
        UsageSum("2026-12-02", "b", "", "m", Amounts(1, 1, 1, 0)),
        UsageSum("2026-12-01", "b", "", "m", Amounts(1, 2, 3, 0)),
        UsageSum("2026-12-01", "a", "k", "m", Amounts(1, 4, 5, 1)),
    ]
    assert [each.labels for each in grouped(rows, ["tenant", "day"])] == [
        ("2026-12-01", "a", None, None),
        ("2026-12-01", "b", None, None),
        ("2026-12-02", "b", None, None),
    ]
    assert grouped(rows, []) == [UsageSum(None, None, None, None, Amounts(3, 7, 9, 1))]
    assert grouped([], ["day"]) == []


def test_a_batch_without_sums_has_zeros(bench: Any, client: Any) -> None:
    assert client.batch(client.create_batch(lines(1)).id).usage == BatchUsage()
