"""Media in the store: by tenant, kept as long as a job needs them, and counted once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls import media as media_calls
from batchmill.producer.protocol.calls import payloads as payload_calls
from batchmill.producer.protocol.calls.new_job import NO_LIMITS
from batchmill.producer.protocol.media import MAX_WAIT_FOR_JOB_MS, NewMedia, media_id, media_names
from batchmill.producer.protocol.payloads import is_reference
from batchmill.producer.protocol.replies import (
    JobState,
    MediaStatus,
    PinStatus,
    SubmitStatus,
)
from batchmill.producer.store.job_store import JobStore

from ..conftest import Bench

CONTENT = b"\x89PNG\r\n\x1a\n" + b"p" * 1000
ID = media_id(CONTENT)


def medium(tenant: str = "default", ttl_ms: int = 60_000) -> NewMedia:
    return NewMedia(CONTENT, ID, "image", tenant, ttl_ms)


def put(bench: Any, tenant: str = "default", ttl_ms: int = 60_000) -> str:
    """Store the medium and return the name of its key."""
    (status,) = bench.store.put_media([medium(tenant, ttl_ms)])
    assert status is MediaStatus.STORED
    return media_names(bench.store.key_ring, tenant, ID)[0]


def reserved(bench: Any) -> int:
    return int(bench.redis.hget(keys.USAGE, "reserved:default") or 0)


def end(bench: Any, job_id: str) -> None:
    bench.claim(job_id)
    bench.end(job_id, 1)


def sweep(bench: Any) -> None:
    bench.store.sweep(limit=100, reannounce_grace_ms=60_000)


def make_due(bench: Any, name: str) -> None:
    """Let the time to live of a medium be over."""
    bench.redis.hset(keys.media(name), "keep_until_ms", 1)
    bench.redis.zadd(keys.MEDIA_DUE, {name: 1})


def test_no_tenant_finds_what_another_has_stored(bench: Any) -> None:
    name = put(bench, "a")
    assert bench.store.read(media_calls.content(name)) == CONTENT
    assert bench.submit(tenant="a", media=(ID,)).status is SubmitStatus.CREATED
    for tenant in ("b", "default"):
        reply = bench.submit(tenant=tenant, media=(None, ID))
        assert (reply.status, reply.media_place) == (SubmitStatus.NO_MEDIA, 1)
    assert ID.removeprefix("med_") not in str(bench.redis.keys("*"))


def test_a_claim_has_the_names_in_order(bench: Any) -> None:
    name = put(bench)
    claim = bench.started("j", media=(ID, None, ID), version=keys.MEDIA_VERSION)
    assert claim.media == (name, "-", name)


def test_media_that_come_with_a_job_are_stored_before_it(bench: Any) -> None:
    reply = bench.submit("j", media=(ID,), new_media=(medium(),))
    assert reply.status is SubmitStatus.CREATED
    (name,) = bench.claim("j").media
    assert bench.store.read(media_calls.content(name)) == CONTENT


def test_the_bytes_of_a_medium_are_reserved_once_until_its_last_job_ends(bench: Any) -> None:
    put(bench)
    assert reserved(bench) == 0
    for job_id in ("one", "two", "three"):
        bench.submit(job_id, media=(ID, ID))
        assert reserved(bench) == len(CONTENT)
    for job_id in ("two", "one"):
        end(bench, job_id)
        assert reserved(bench) == len(CONTENT)
    end(bench, "three")
    assert reserved(bench) == 0
    bench.submit("four", media=(ID,))
    assert reserved(bench) == len(CONTENT)
    bench.store.cancel("four")
    assert reserved(bench) == 0
    bench.redis.delete(keys.USAGE)


def test_a_medium_lives_as_long_as_a_job_that_has_not_ended(bench: Any) -> None:
    name = put(bench)
    bench.submit("j", media=(ID,))
    make_due(bench, name)
    sweep(bench)
    assert bench.store.read(media_calls.content(name)) == CONTENT
    end(bench, "j")
    sweep(bench)
    assert bench.store.read(media_calls.content(name)) == CONTENT  # for its time to live
    make_due(bench, name)
    sweep(bench)
    assert bench.store.read(media_calls.content(name)) is None
    assert not bench.redis.exists(keys.media_jobs(name), keys.MEDIA_DUE)


def test_a_medium_that_no_job_names_ends_after_its_time_to_live(bench: Any) -> None:
    name = put(bench)
    sweep(bench)
    assert bench.store.read(media_calls.content(name)) == CONTENT
    make_due(bench, name)
    put(bench)  # again: it is kept longer
    sweep(bench)
    assert bench.store.read(media_calls.content(name)) == CONTENT
    make_due(bench, name)
    sweep(bench)
    assert bench.store.read(media_calls.content(name)) is None


def test_what_came_with_a_refused_job_is_kept_for_a_short_time_only(bench: Any) -> None:
    bench.submit(max_queue_depth=1)
    inside = replace(medium(ttl_ms=3_600_000), is_of_job=True)
    reply = bench.submit(media=(ID,), new_media=(inside,), max_queue_depth=1)
    assert reply.status is SubmitStatus.FULL
    name = media_names(bench.store.key_ring, "default", ID)[0]
    kept_ms = bench.redis.zscore(keys.MEDIA_DUE, name) - time.time() * 1000
    assert 0 < kept_ms <= MAX_WAIT_FOR_JOB_MS + 60_000
    make_due(bench, name)
    sweep(bench)
    assert bench.store.read(media_calls.content(name)) is None

    assert bench.submit("j", media=(ID,), new_media=(inside,)).status is SubmitStatus.CREATED
    end(bench, "j")
    assert int(bench.redis.hget(keys.media(name), "keep_until_ms")) > time.time() * 1000 + 3_000_000


def test_forget_deletes_media_that_no_other_job_of_the_tenant_names(bench: Any) -> None:
    name, other = put(bench), put(bench, "b")
    for job_id, tenant in (("one", "default"), ("two", "default"), ("three", "b")):
        bench.submit(job_id, tenant=tenant, media=(ID,))
    for job_id in ("one", "two"):
        end(bench, job_id)
    bench.store.run(job_calls.forget("one"))
    assert bench.store.read(media_calls.content(name)) == CONTENT
    bench.store.run(job_calls.forget("two"))
    assert bench.store.read(media_calls.content(name)) is None
    assert bench.store.read(media_calls.content(other)) == CONTENT


def test_a_retried_job_holds_its_media_again(bench: Any) -> None:
    name = put(bench)
    bench.submit("j", media=(ID,))
    bench.store.cancel("j")
    bench.store.run(job_calls.retry("j", NO_LIMITS))
    assert reserved(bench) == len(CONTENT)
    make_due(bench, name)
    sweep(bench)
    assert bench.claim("j").media == (name,)
    assert bench.store.read(media_calls.content(name)) == CONTENT


def test_what_a_worker_fetched_is_pinned_under_its_fence_only(bench: Any) -> None:
    claim = bench.started("j", media=(None, None))
    assert bench.store.run(media_calls.pin("j", claim.fence, 1, medium())) is PinStatus.GONE
    name = put(bench)
    assert bench.store.run(media_calls.pin("j", "9.x", 1, medium())) is PinStatus.FENCED
    for _ in range(2):  # the reply was lost
        assert bench.store.run(media_calls.pin("j", claim.fence, 1, medium())) is PinStatus.PINNED
    assert bench.redis.hget(keys.job("j"), "media") == f"- {name}".encode()
    assert reserved(bench) == len(CONTENT)
    bench.lose_lease("j")
    sweep(bench)
    assert bench.claim("j").media == ("-", name)


def test_what_came_with_a_job_and_found_no_room_is_no_missing_medium(bench: Any) -> None:
    """The document alone fits: the caller must try again, as for any full queue."""
    job = bench.new_job("j", media=(ID,), new_media=(medium(),))
    call = job_calls.submit(job)
    assert call.media == (medium(),)
    assert call.parse([b"NO_MEDIA", b"0"]).status is SubmitStatus.FULL
    named = job_calls.submit(bench.new_job("k", media=(ID,)))
    assert named.parse([b"NO_MEDIA", b"0"]).status is SubmitStatus.NO_MEDIA


def test_a_medium_in_steady_use_does_not_keep_the_names_of_all_its_jobs(bench: Any) -> None:
    name = put(bench)
    for number in range(30):
        bench.submit(f"j{number}", media=(ID,))
        end(bench, f"j{number}")
        bench.redis.delete(keys.job(f"j{number}"))
    assert bench.redis.zcard(keys.media_jobs(name)) < 20


def test_media_do_not_take_more_memory_than_the_limit(bench: Any) -> None:
    bench.redis.config_set("maxmemory", "50mb")  # of which the empty server uses more than 1 %
    try:
        assert bench.store.put_media([medium()], max_memory_percent=1) == [MediaStatus.FULL]
        assert bench.store.put_media([medium()]) == [MediaStatus.STORED]
    finally:
        bench.redis.config_set("maxmemory", "0")


@pytest.mark.parametrize("kind", ["string", "list"])
def test_a_forged_key_does_not_stop_the_sweep(bench: Any, kind: str) -> None:
    name = put(bench)
    bench.redis.delete(keys.media(name))
    if kind == "string":
        bench.redis.set(keys.media(name), "x", ex=60)
    else:
        bench.redis.rpush(keys.media(name), "x")
    bench.redis.zadd(keys.MEDIA_DUE, {name: 1})
    sweep(bench)
    assert not bench.redis.exists(keys.media(name))


@pytest.mark.parametrize("key_of", [keys.media, keys.media_jobs], ids=["medium", "jobs"])
@pytest.mark.parametrize("is_forgotten", [False, True], ids=["end", "forget"])
def test_a_forged_key_keeps_no_job_from_its_end(
    bench: Any, key_of: Any, is_forgotten: bool
) -> None:
    name = put(bench)
    bench.submit("job", media=(ID,))
    if is_forgotten:
        end(bench, "job")
    bench.redis.delete(key_of(name))
    bench.redis.set(key_of(name), "x")
    if is_forgotten:
        bench.store.run(job_calls.forget("job"))
        assert bench.store.load("job") is None
    else:
        end(bench, "job")
        assert bench.store.load("job").state is JobState.COMPLETED
    counts = bench.store.sweep(limit=100, reannounce_grace_ms=60_000)
    if not (is_forgotten and key_of is keys.media):  # with its last job, a medium is deleted
        assert counts.foreign_keys == (key_of(name),)
    assert not bench.redis.exists(keys.media(name), keys.media_jobs(name))


def test_media_are_sealed_and_large_ones_go_to_the_object_store(
    redis_url: str, tmp_path: Path
) -> None:
    first, second = new_key("first"), new_key("second")
    objects = ObjectStore(str(tmp_path), threshold_bytes=256, timeout_s=5.0)
    store = JobStore.from_url(redis_url, key_ring=KeyRing([first]), objects=objects)
    plain = media_names(KeyRing(), "default", ID)
    store.put_media([medium()])
    names = media_names(store.key_ring, "default", ID)
    assert names[0] not in plain
    value = store.client.hget(keys.media(names[0]), "media")
    assert isinstance(value, bytes)
    assert is_reference(value)
    (path,) = tmp_path.iterdir()
    assert CONTENT not in path.read_bytes()
    assert store.read(media_calls.content(names[0])) == CONTENT
    store.close()

    # Another first key: what was stored under the earlier one is found and read.
    later = JobStore.from_url(redis_url, key_ring=KeyRing([second, first]), objects=objects)
    bench = Bench(later)
    assert bench.submit("j", media=(ID,)).status is SubmitStatus.CREATED
    (name,) = bench.claim("j").media
    assert name == names[0]
    assert later.read(media_calls.content(name)) == CONTENT
    assert b"@payloads" in later.client.hget(keys.job("j"), "sealed_with")  # type: ignore[operator]
    bench.end("j", 1)
    later.run(job_calls.forget("j"))
    _, unused = later.run(payload_calls.take_unused(10, repeat_ms=1000))
    assert path.name in unused
    later.close()
