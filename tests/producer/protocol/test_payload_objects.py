"""Large content by reference: against a real server, with objects in a folder."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from batchmill.producer import (
    AsyncClient,
    ContentChanged,
    PayloadMissing,
    PayloadsUnavailable,
    PayloadUnreachable,
)
from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.payloads.settings import PayloadSettings, find_object_store
from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls import payloads as calls
from batchmill.producer.protocol.content import Place
from batchmill.producer.protocol.payloads import (
    READS_OBJECTS,
    Reference,
    is_reference,
    read_reference,
)
from batchmill.producer.protocol.replies import (
    Claim,
    ClaimRefusal,
    JobState,
    SubmitStatus,
    TokenWrite,
)
from batchmill.producer.results import JobResult
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.ended_jobs import ended_jobs
from batchmill.producer.store.job_output import StreamReader
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.payload_check import PayloadCounts, check_payloads
from batchmill.worker.jobs import payload_sweep
from batchmill.worker.jobs.payload_sweep import PayloadSweep
from batchmill.worker.metrics.worker_meter import JobMeter

from ...conftest import RedisServer
from ..conftest import Bench

DOCUMENT = '{"prompt":"' + "CANARY prompt " * 100 + '"}'
KEY = new_key("a")


def result_json() -> str:
    return JobResult.model_validate(
        {
            "id": "j",
            "model": "demo",
            "status": "completed",
            "text": "CANARY result " * 100,
            "finish_reason": "length",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
    ).model_dump_json()


def object_store(folder: Path, *, timeout_s: float = 5.0) -> ObjectStore:
    return ObjectStore(f"file://{folder}", threshold_bytes=256, timeout_s=timeout_s)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture(params=[(), (KEY,)], ids=["plain", "sealed"])
def large(request: pytest.FixtureRequest, bench: Bench, folder: Path) -> Bench:
    """A bench whose store has an object store, and keys in one of two cases."""
    ring = KeyRing(request.param)
    return Bench(JobStore(bench.redis, key_ring=ring, objects=object_store(folder)))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def complete(bench: Bench, claim: Claim) -> None:
    bench.store.complete(
        claim.job_id, fence=claim.fence, state=JobState.COMPLETED, result=result_json()
    )


def sweep(bench: Bench) -> None:
    """Sweep as a worker does, as if an hour had passed for every object."""
    for name in bench.redis.zrange(keys.PAYLOADS, 0, -1):
        bench.redis.zadd(keys.PAYLOADS, {name: 1})
    sweep_now(bench)


def sweep_now(bench: Bench) -> None:
    assert bench.store.objects is not None
    PayloadSweep(bench.store, bench.store.objects, JobMeter()).sweep()


def opened(bench: Bench, claim: Claim) -> bytes:
    return bench.store.open_object(claim.document, Place(claim.job_id, "doc"))


def test_a_record_holds_references_and_every_reader_finds_the_content(
    large: Bench, folder: Path
) -> None:
    claim = large.started("j", document=DOCUMENT)
    assert is_reference(claim.document)  # the claimer reads it elsewhere
    assert opened(large, claim) == DOCUMENT.encode()
    complete(large, claim)
    fields = large.redis.hgetall(keys.job("j"))
    assert is_reference(fields[b"doc"])
    assert is_reference(fields[b"result"])
    assert sum(map(len, fields.values())) < 1500
    record = large.store.load("j")
    assert record is not None
    assert record.document == DOCUMENT.encode()
    assert record.result == result_json().encode()
    (ended,) = large.store.read(ended_jobs(["j"]))
    assert ended.result().text == "CANARY result " * 100
    is_sealed = bool(large.store.key_ring.key_ids)
    for path in folder.iterdir():
        assert (b"CANARY" in path.read_bytes()) is not is_sealed


def test_the_output_of_a_job_with_a_large_prompt_can_be_streamed(large: Bench) -> None:
    claim = large.started("j", document=DOCUMENT)
    write = TokenWrite("j", claim.fence, position=0, token_ids=[1, 2], text=b"ab")
    large.store.checkpoint([write], lease_ms=60_000)
    reader = StreamReader("j", None)
    piece = reader.take(large.store.read(reader.next_read()))
    assert piece is not None
    assert (piece.text, piece.token_ids) == ("ab", [1, 2])


def test_short_content_stays_in_redis_and_costs_no_call(large: Bench, folder: Path) -> None:
    claim = large.started("j")
    large.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")
    assert names_in(folder) == []
    assert large.redis.exists(keys.PAYLOADS) == 0
    assert large.redis.hget(keys.job("j"), "payloads") is None


def test_without_an_object_store_a_job_takes_the_same_commands(bench: Bench) -> None:
    def run(job_id: str, document: str) -> dict[str, int]:
        """Return how often each command ran, also those in scripts, for a job from start to end."""
        bench.redis.config_resetstat()
        complete(bench, bench.started(job_id, document=document))
        stats = bench.redis.info("commandstats")
        return {name: values["calls"] for name, values in stats.items()}

    run("warm", DOCUMENT)
    assert run("small", "{}") == run("large", DOCUMENT)
    assert bench.redis.exists(keys.PAYLOADS, keys.PAYLOADS_UNUSED) == 0


def test_the_same_idempotent_job_leaves_one_object(large: Bench, folder: Path) -> None:
    fields = {"document": DOCUMENT, "idempotency_key": "k", "fingerprint": "f"}
    assert large.submit("a", **fields).status is SubmitStatus.CREATED
    assert large.submit("b", **fields).status is SubmitStatus.EXISTING
    sweep_now(large)
    assert [name.partition(".")[0] for name in names_in(folder)] == ["a"]
    assert opened(large, large.claim("a")) == DOCUMENT.encode()


def test_a_repeated_call_keeps_the_object_that_the_record_refers_to(
    large: Bench, folder: Path
) -> None:
    large.submit("j", document=DOCUMENT)
    (kept,) = names_in(folder)
    assert large.submit("j", document=DOCUMENT).status is SubmitStatus.EXISTING
    sweep_now(large)
    sweep(large)
    assert names_in(folder) == [kept]


def test_objects_of_a_process_that_was_killed_before_the_record_are_swept(
    large: Bench, folder: Path
) -> None:
    assert large.store.objects is not None
    reference = Reference.to(b"x", "j", "doc", None)
    large.store.run(calls.note([reference.name]))
    large.store.objects.write({reference.name: b"x"})
    sweep_now(large)
    assert names_in(folder) == [reference.name]  # its record may come yet
    sweep(large)
    assert names_in(folder) == []
    assert large.redis.exists(keys.PAYLOADS, keys.PAYLOADS_UNUSED) == 0


def test_a_call_that_comes_after_the_sweep_stores_no_job(large: Bench, folder: Path) -> None:
    objects = large.store.objects
    assert objects is not None
    write = objects.write

    def write_and_sweep(contents: Any) -> None:
        write(contents)
        sweep(large)

    objects.write = write_and_sweep  # type: ignore[method-assign, assignment]
    with pytest.raises(Exception, match="PAYLOADGONE"):
        large.submit("j", document=DOCUMENT)
    assert large.store.load("j") is None
    assert names_in(folder) == []


def test_forgetting_a_job_deletes_its_objects(large: Bench, folder: Path) -> None:
    for job_id in ("j", "k"):
        complete(large, large.started(job_id, document=DOCUMENT, tags=("t",)))
    assert len(names_in(folder)) == 4
    large.store.run(job_calls.forget("j"))
    sweep_now(large)
    assert {name.partition(".")[0] for name in names_in(folder)} == {"k"}


def test_expired_records_lose_their_objects(large: Bench, folder: Path) -> None:
    complete(large, large.started("j", document=DOCUMENT, result_ttl_ms=1))
    deadline = time.monotonic() + 10
    while names_in(folder):
        assert time.monotonic() < deadline
        sweep_now(large)


def test_a_failed_deletion_is_tried_again(large: Bench, folder: Path) -> None:
    complete(large, large.started("j", document=DOCUMENT))
    large.store.run(job_calls.forget("j"))
    objects = large.store.objects
    assert objects is not None
    system, objects._system = objects._system, None  # any call fails
    sweep_now(large)
    objects._system = system
    assert large.redis.zcard(keys.PAYLOADS_UNUSED) == len(names_in(folder)) == 2
    for name in names_in(folder):
        large.redis.zadd(keys.PAYLOADS_UNUSED, {name: 1})
    sweep_now(large)
    assert names_in(folder) == []
    assert large.redis.exists(keys.PAYLOADS_UNUSED) == 0


def test_a_sweep_ends_at_the_first_failure(large: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one that has many objects to delete asks a store that hangs for hours."""
    complete(large, large.started("j", document=DOCUMENT))
    large.store.run(job_calls.forget("j"))
    monkeypatch.setattr(payload_sweep, "_LIMIT", 1)
    objects = large.store.objects
    assert objects is not None
    tried: list[str] = []

    def fail(names: Iterable[str]) -> list[str]:
        tried.extend(names)
        return []

    monkeypatch.setattr(objects, "delete", fail)
    sweep_now(large)
    assert len(tried) == 1


def test_a_dead_letter_keeps_the_object_after_the_record(large: Bench, folder: Path) -> None:
    large.submit("j", document=DOCUMENT)
    large.redis.hset(keys.job("j"), "fence", "forged")
    large.store.claim("j", owner="w", lease_ms=1000, identity="i")
    large.store.sweep(limit=10, reannounce_grace_ms=1000)
    large.redis.delete(keys.job("j"))
    sweep(large)
    letter = large.store.dead_letter("j")
    assert letter is not None
    assert letter.payload == DOCUMENT.encode()
    large.store.run(job_calls.forget("j"))
    sweep_now(large)
    assert names_in(folder) == []


@pytest.mark.parametrize("change", ["other bytes", "longer", "moved"])
def test_a_changed_object_is_noticed(large: Bench, folder: Path, change: str) -> None:
    large.submit("j", document=DOCUMENT)
    large.submit("k", document=DOCUMENT)
    (path,) = folder.glob("j.*")
    content = path.read_bytes()
    if change == "other bytes":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "longer":
        path.write_bytes(content + b"!")
    else:
        large.redis.hset(keys.job("j"), "doc", large.redis.hget(keys.job("k"), "doc"))
    with pytest.raises(ContentChanged):
        opened(large, large.claim("j"))
    assert opened(large, large.claim("k")) == DOCUMENT.encode()


def test_a_missing_object_and_a_missing_store_have_names(large: Bench, folder: Path) -> None:
    complete(large, large.started("j", document=DOCUMENT))
    without = Bench(JobStore(large.redis, key_ring=large.store.key_ring))
    assert without.state("j") == "completed"
    (ended,) = without.store.read(ended_jobs(["j"]))
    with pytest.raises(PayloadMissing, match="BATCHMILL_PAYLOAD_URL"):
        ended.result()
    for path in folder.iterdir():
        path.unlink()
    (ended,) = large.store.read(ended_jobs(["j"]))
    with pytest.raises(PayloadMissing, match="was deleted"):
        ended.result()


def test_a_worker_without_the_store_leaves_the_job_to_others(large: Bench) -> None:
    large.submit("j", document=DOCUMENT)
    without = JobStore(large.redis, key_ring=large.store.key_ring)
    refusal = without.claim("j", owner="w", lease_ms=1000, identity="i")
    assert refusal is ClaimRefusal.NO_PAYLOAD_STORE
    assert READS_OBJECTS in large.store.reads
    assert opened(large, large.claim("j")) == DOCUMENT.encode()


class HangingSystem:
    """A file system that does not come back."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: time.sleep(3600)


def test_a_store_that_hangs_ends_in_time_and_blocks_no_later_call_for_long(folder: Path) -> None:
    objects = object_store(folder, timeout_s=0.05)
    objects._system = HangingSystem()
    for _ in range(12):  # more than there are threads
        with pytest.raises(PayloadUnreachable, match="took too long") as caught:
            objects.write({"j.doc.x": b"x"})
        assert caught.value.retryable


class LateSystem:
    """A file system that writes when it is told to, and notes what it deletes."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self.may_write, self.deleted = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def open(self, path: str, mode: str) -> Any:
        assert self.may_write.wait(60)
        return self._system.open(path, mode)

    def rm_file(self, path: str) -> None:
        self._system.rm_file(path)
        self.deleted.set()


def test_an_object_that_is_written_after_its_call_gave_up_is_deleted_again(folder: Path) -> None:
    objects = object_store(folder, timeout_s=0.05)
    late = objects._system = LateSystem(objects._system)
    name = Reference.to(b"x", "j", "doc", None).name
    with pytest.raises(PayloadUnreachable):
        objects.write({name: b"x"})
    late.may_write.set()
    assert late.deleted.wait(60)
    assert names_in(folder) == []


def test_a_lost_index_is_found_again_for_living_records(large: Bench, folder: Path) -> None:
    large.submit("waiting", document=DOCUMENT)
    complete(large, large.started("ended", document=DOCUMENT))
    before = set(large.redis.zrange(keys.PAYLOADS, 0, -1))
    large.redis.delete(keys.PAYLOADS)
    for _ in range(4):
        large.redis.hdel(keys.REPAIR, "page_at_ms")
        large.store.sweep(repair_interval_ms=1)
    assert set(large.redis.zrange(keys.PAYLOADS, 0, -1)) == before
    assert large.redis.zrangebyscore(keys.PAYLOADS, "-inf", time.time() * 1000) == []
    for job_id in ("waiting", "ended"):
        large.store.cancel(job_id)
        large.store.run(job_calls.forget(job_id))
    sweep_now(large)
    assert names_in(folder) == []


def test_the_check_finds_what_redis_has_lost_and_notes_it_again(large: Bench, folder: Path) -> None:
    assert large.store.objects is not None
    assert check_payloads(large.store.objects, [large.store], repairs=True) == PayloadCounts()
    large.submit("known", document=DOCUMENT)
    large.submit("lost", document=DOCUMENT)
    orphan = Reference.to(b"x", "gone", "result", None).name
    large.store.objects.write({orphan: b"x"})
    (folder / "of another program").write_text("x")
    (lost,) = [name for name in names_in(folder) if name.startswith("lost.")]
    large.redis.zrem(keys.PAYLOADS, lost)

    found = check_payloads(large.store.objects, [large.store], repairs=False)
    assert found == PayloadCounts(noted=1, lost=1, orphaned=1, foreign=1)
    assert check_payloads(large.store.objects, [large.store], repairs=True).repaired == 2
    now = check_payloads(large.store.objects, [large.store], repairs=False)
    assert now == PayloadCounts(noted=3, foreign=1)
    sweep(large)
    assert orphan not in names_in(folder)
    assert {lost, "of another program"} <= set(names_in(folder))


def test_the_check_looks_at_every_shard(
    large: Bench, folder: Path, private_redis_server: RedisServer
) -> None:
    objects = large.store.objects
    assert objects is not None
    other = Redis.from_url(private_redis_server.url)
    second = Bench(JobStore(other, key_ring=large.store.key_ring, objects=objects))
    large.submit("first", document=DOCUMENT)
    second.submit("second", document=DOCUMENT)
    for redis in (large.redis, other):
        redis.delete(keys.PAYLOADS)
    stores = [large.store, second.store]
    assert check_payloads(objects, stores, repairs=True).lost == 2
    assert [redis.zcard(keys.PAYLOADS) for redis in (large.redis, other)] == [1, 1]
    other.close()


def test_nothing_is_stored_if_the_store_cannot_be_written(bench: Bench, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = JobStore(bench.redis, objects=object_store(blocked / "objects"))
    with pytest.raises(PayloadUnreachable, match="could not be written"):
        Bench(store).submit("j", document=DOCUMENT)
    assert store.load("j") is None


def test_a_forged_name_deletes_nothing(large: Bench, folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    folder.mkdir()
    large.redis.zadd(keys.PAYLOADS, {"../victim": 1, "j.doc.x/../../victim": 1})
    sweep_now(large)
    assert victim.exists()
    assert large.redis.exists(keys.PAYLOADS, keys.PAYLOADS_UNUSED) == 0


def test_an_asyncio_client_submits_and_reads_without_blocking_its_loop(
    redis_url: str, folder: Path
) -> None:
    settings = ProducerSettings(payload_url=str(folder), payload_threshold_bytes=256)
    objects = settings.object_store
    assert objects is not None
    system, ticks = objects._system, [0]

    class SlowSystem:
        def __getattr__(self, name: str) -> Any:
            if name == "open":
                start = ticks[0]  # on the client's loop it would stay as it is
                deadline = time.monotonic() + 10
                while ticks[0] < start + 3 and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert ticks[0] >= start + 3
            return getattr(system, name)

    objects._system = SlowSystem()

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.001)
            ticks[0] += 1

    async def submit_and_read() -> None:
        ticking = asyncio.create_task(tick())
        async with AsyncClient(redis_url, settings=settings) as client:
            job = await client.submit(prompt="CANARY " * 100)
            assert is_reference(_doc(redis_url, job.id))
            store = await client._shards.of_job(job.id)
            record = await store.read(reads.job(job.id))
            assert record is not None
            assert b"CANARY" in record.document
        ticking.cancel()

    try:
        asyncio.run(submit_and_read())
    finally:
        objects._system = system


def _doc(redis_url: str, job_id: str) -> bytes:
    store = JobStore.from_url(redis_url)
    try:
        redis: Any = store.client
        value: bytes = redis.hget(keys.job(job_id), "doc")
        return value
    finally:
        store.close()


@pytest.mark.parametrize(
    "url", ["nosuch://x", "s3://bucket/a"], ids=["unknown kind", "missing library"]
)
def test_a_url_that_cannot_be_used_is_refused_by_name(url: str) -> None:
    with pytest.raises(PayloadsUnavailable, match="BATCHMILL_PAYLOAD_URL") as caught:
        find_object_store({"BATCHMILL_PAYLOAD_URL": url}) or PayloadSettings(payload_url=url)
    assert "bucket" not in str(caught.value)


def test_a_reference_reads_back_and_a_malformed_one_is_none() -> None:
    reference = Reference.to(b"content", "j", "doc", KEY.id)
    assert read_reference(reference.to_bytes()) == reference
    assert reference.matches(b"content")
    assert not reference.matches(b"other")
    for text in ("x", "../x.doc.00 1 00 -", f"{reference.name} 9 {reference.sha256}"):
        assert read_reference(b"\xb5BMR" + text.encode()) is None
