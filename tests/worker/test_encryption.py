"""Encryption at rest through real workers: nothing readable in Redis, keys that are missing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from batchmill.producer import Client, JobFailed
from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.token_bytes import encode_tokens
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore

from .command_line import call
from .conftest import Mill, expected_tokens

KEY, OTHER = new_key("current"), new_key("other")
#: With the quotation marks and letters that JSON escapes.
PROMPT = 'CANARY "prompt" äöü'
NUM_TOKENS = 120


def stored_values(redis: Any) -> Iterator[bytes]:
    """Yield every key and every value in Redis."""
    for key in redis.scan_iter():
        yield key
        match redis.type(key):
            case b"hash":
                yield from (part for pair in redis.hgetall(key).items() for part in pair)
            case b"string":
                yield redis.get(key)
            case b"list":
                yield from redis.lrange(key, 0, -1)
            case b"zset":
                yield from redis.zrange(key, 0, -1)
            case b"set":
                yield from redis.smembers(key)


def assert_nothing_readable(mill: Mill) -> None:
    tokens = expected_tokens(PROMPT, NUM_TOKENS)
    pieces = [encode_tokens(tokens[at : at + 2]) for at in range(NUM_TOKENS - 1)]
    words = "".join(f" w{token}" for token in tokens[:3]).strip().encode()
    for value in stored_values(mill.store.client):
        assert b"CANARY" not in value
        assert words not in value
        assert not any(piece in value for piece in pieces)


@pytest.fixture
def sealed_mill(mill: Mill) -> Mill:
    """A mill whose own store has the key."""
    mill.store = JobStore(mill.store.client, key_ring=KeyRing([KEY]))
    return mill


@pytest.fixture
def client(sealed_mill: Mill) -> Iterator[Client]:
    settings = ProducerSettings(encryption_keys=SecretStr(KEY.to_text()))
    with Client(sealed_mill.url, settings=settings) as client:
        yield client


def test_a_killed_workers_job_continues_and_redis_never_holds_its_content(
    sealed_mill: Mill, client: Client
) -> None:
    mill = sealed_mill
    stub = {"step_time_s": 0.02}
    first = mill.start_worker("w1", encryption_keys=KEY.to_text(), stub=stub)
    fields = {"seed": 7, "idempotency_key": "CAN-key", "webhook": "https://example.com/hook"}
    job = client.submit(prompt=PROMPT, max_tokens=NUM_TOKENS, **fields)  # type: ignore[arg-type]
    mill.wait_tokens(job.id, 10)
    assert_nothing_readable(mill)
    first.end(signal.SIGKILL)
    mill.start_worker("w2", encryption_keys=f"{KEY.to_text()},{OTHER.to_text()}", stub=stub)

    result = job.result(timeout_s=60)

    assert result.token_ids == expected_tokens(PROMPT, NUM_TOKENS)
    assert mill.record(job.id).attempts == 2
    assert "".join(piece.text for piece in job.stream()) == result.text
    assert_nothing_readable(mill)
    assert mill.store.client.hget(keys.job(job.id), "sealed_with") == KEY.id.encode()


def test_a_worker_without_the_key_says_so_and_another_runs_the_job(
    sealed_mill: Mill, client: Client
) -> None:
    without = sealed_mill.start_worker("w1", encryption_keys=OTHER.to_text())
    job = client.submit(prompt=PROMPT, max_tokens=8, seed=7)
    sealed_mill.wait_for(lambda: "encryption_key_missing" in without.log, "the worker's warning")
    assert job.status().state == "queued"
    sealed_mill.start_worker("w2", encryption_keys=KEY.to_text())
    without.end()
    assert job.result(timeout_s=60).token_ids == expected_tokens(PROMPT, 8)


def test_jobs_move_only_to_a_worker_with_the_same_keys(sealed_mill: Mill, client: Client) -> None:
    mill, stub = sealed_mill, {"step_time_s": 0.01}
    mill.start_worker("w1", encryption_keys=KEY.to_text(), stub=stub, takeover=True)
    jobs = [client.submit(prompt=f"{PROMPT} {i}", max_tokens=4000, seed=7).id for i in range(4)]
    for job_id in jobs:
        mill.wait_tokens(job_id, 20)

    mill.start_worker("w2", stub=stub, takeover=True)  # asks first, and could open none of them
    mill.start_worker("w3", encryption_keys=KEY.to_text(), stub=stub, takeover=True)

    def owners() -> list[str]:
        return sorted(str(mill.record(job_id).owner) for job_id in jobs)

    mill.wait_for(lambda: owners() == ["w1@test"] * 2 + ["w3@test"] * 2, "two jobs on each worker")
    # Nothing was given up for w2, though it may see an announcement before w3 does.
    moves = [len(mill.record(job_id).history) for job_id in jobs]
    assert sorted(moves) == [0, 0, 1, 1]


def test_a_changed_job_fails_as_integrity_and_the_others_run(
    sealed_mill: Mill, client: Client
) -> None:
    changed, good = (client.submit(prompt=PROMPT, max_tokens=8, seed=7) for _ in range(2))
    redis = sealed_mill.store.client
    redis.hset(keys.job(changed.id), "doc", redis.hget(keys.job(good.id), "doc"))
    sealed_mill.start_worker("w1", encryption_keys=KEY.to_text())
    with pytest.raises(JobFailed, match="changed in Redis after it was sealed") as caught:
        changed.result(timeout_s=60)
    assert (caught.value.code, caught.value.retryable) == ("integrity", False)
    assert good.result(timeout_s=60).token_ids == expected_tokens(PROMPT, 8)


def test_the_command_line_makes_keys_and_never_shows_those_that_are_set() -> None:
    made = call("encryption", "new-key", "2026-12").stdout.strip()
    ring = KeyRing.from_text(made)
    listed = call("encryption", "list-keys", BATCHMILL_ENCRYPTION_KEYS=f"{made},{KEY.to_text()}")
    assert listed.stdout == f"{ring.key_ids[0]}  seals and opens\n{KEY.id}  opens\n"
    assert call("encryption", "new-key", "a b").returncode == 2
    wrong = call("encryption", "list-keys", BATCHMILL_ENCRYPTION_KEYS="a:b")
    assert wrong.returncode != 0
    assert "base64 of 32 bytes" in wrong.stderr
