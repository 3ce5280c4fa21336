"""Rewrapping: everything that an old key has sealed is sealed with a new one, beside workers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis

from batchmill.producer import Client, KeyMissing
from batchmill.producer.encryption.key_ring import NO_KEYS, EncryptionKey, KeyRing, new_key
from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import media as media_calls
from batchmill.producer.protocol.calls import outbox as outbox_calls
from batchmill.producer.protocol.calls import payloads as payload_calls
from batchmill.producer.protocol.calls import rewrap as calls
from batchmill.producer.protocol.calls.rewrap import RecordKind
from batchmill.producer.protocol.content import Content, Place
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import JobState, TokenWrite
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.plain_letters import seal_plain_letters
from batchmill.producer.store.receivers import (
    create_receiver,
    make_receiver,
    new_secret_value,
    receiver_secrets,
)
from batchmill.producer.webhook.target import TargetPolicy
from batchmill.worker.gateway.file_record import FileRecord, load_files, store_file
from batchmill.worker.gateway.file_store import FileStore
from batchmill.worker.rewrap.counts import PLAIN, Part, SealCounts
from batchmill.worker.rewrap.files import GatewayFiles
from batchmill.worker.rewrap.walk import Walk, count_everything, rewrap_everything

from .command_line import call
from .conftest import Mill, expected_tokens

OLD, NEW = new_key("old"), new_key("new")
PROMPT, TEXT = "CANARY prompt", b"CANARY text"
LARGE = json.dumps({"prompt": "CANARY " * 200, "max_tokens": 4, "seed": 7})
#: One that stays in Redis, and one that is so large that it does not.
MEDIA = tuple(b"\x89PNG\r\n\x1a\n" + b"CANARY" * number for number in (2, 200))
FILE_ID = "file-" + "0" * 32


class Site:
    """One server with an object store and files, seen with different keys."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis: Any = redis
        self.folder = folder
        self.objects = ObjectStore(
            (folder / "objects").as_uri(), threshold_bytes=512, timeout_s=5.0
        )

    def store(self, *ring: EncryptionKey) -> JobStore:
        key_ring = KeyRing(ring) if ring else NO_KEYS
        return JobStore(self.redis, key_ring=key_ring, objects=self.objects)

    def files(self, *ring: EncryptionKey) -> GatewayFiles:
        return GatewayFiles(str(self.folder / "files"), KeyRing(ring))

    def counts(self) -> SealCounts:
        return count_everything([self.store()], self.files(), lambda: None)

    def rewrap(self, limit: int | None = None) -> SealCounts:
        counts, ring = SealCounts(), (NEW, OLD)
        stores = [self.store(*ring)]
        rewrap_everything(stores, self.files(*ring), counts, limit=limit, note_page=lambda: None)
        return counts


@pytest.fixture
def place(redis_url: str, tmp_path: Path) -> Iterator[Site]:
    redis = Redis.from_url(redis_url)
    yield Site(redis, tmp_path)
    redis.close()


def settings(*ring: EncryptionKey, place: Site | None = None) -> ProducerSettings:
    text = ",".join(key.to_text() for key in ring)
    return ProducerSettings(
        encryption_keys=SecretStr(text) if ring else None,
        payload_url=None if place is None else (place.folder / "objects").as_uri(),
        payload_threshold_bytes=512,
    )


def fill(place: Site, *ring: EncryptionKey) -> None:
    """Store a value of every kind: jobs that run and have ended, and what else is sealed."""
    from batchmill.producer.job.document import GenerationJob
    from batchmill.producer.store.submission import prepare

    store = place.store(*ring)
    fields: dict[str, Any] = {"max_tokens": 4, "idempotency_key": "k"}
    job = GenerationJob(prompt=PROMPT, webhook="https://example.com/hook", **fields)
    for job_id in ("running", "ended"):
        some = job.model_copy(update={"idempotency_key": job_id})
        store.submit(prepare(some, settings(*ring), job_id=job_id))
    store.submit(prepare(GenerationJob(**json.loads(LARGE)), settings(*ring), job_id="large"))
    for job_id in ("running", "ended", "large"):
        claim = store.claim(job_id, owner="w", lease_ms=600_000, identity="i")
        fence = claim.fence  # type: ignore[union-attr]
        for at in (0, 2):
            write = TokenWrite(
                job_id, fence, at, [77_000 + at, 77_001 + at], TEXT, len(TEXT) * at // 2
            )
            store.checkpoint([write], lease_ms=600_000)
        if job_id == "ended":
            result = json.dumps({"text": "CANARY " * 200, "finish_reason": "length"})
            store.complete(job_id, fence=fence, state=JobState.COMPLETED, result=result)
    store.dead_letter_add(
        kind=DeadLetterKind.MESSAGE, reason="r", payload=b"CANARY letter", source="q", letter_id="l"
    )
    events = store.outbox_claim(owner="d", limit=9, lease_ms=60_000)
    store.run(outbox_calls.set_body_once(events[0].event_id, b"CANARY body"))
    url, policy = "https://example.com/", TargetPolicy()
    receiver, secret = make_receiver("mine", url, ("batch.completed",), policy)
    store.run(create_receiver("acme", receiver, new_secret_value(secret)))
    for content in MEDIA:
        with Client(_url(place), settings=settings(*ring, place=place)) as client:
            media = client.put_media(content)
    with Client(_url(place), settings=settings(*ring, place=place)) as client:
        picture = {"type": "image", "media": media}
        client.submit(messages=[{"role": "user", "content": [picture]}], max_tokens=4)
    kept = FileStore(str(place.folder / "files"), store.key_ring)
    with kept.open_to_write(FILE_ID) as handle:
        handle.write(b"CANARY file")
    now = 2_000_000_000
    store.read(
        store_file(
            FileRecord(
                id=FILE_ID,
                tenant="acme",
                filename="CANARY",
                bytes=11,
                sha256="0",
                created_at=now,
                expires_at=now,
            ),
            store.key_ring,
        )
    )


def read_all(place: Site, *ring: EncryptionKey) -> list[Any]:
    """Return every content, as a program with these keys reads it."""
    store = place.store(*ring)
    records = [store.load(job_id) for job_id in ("running", "ended", "large")]
    assert all(record is not None and record.unreadable is None for record in records)
    (receiver_id,) = place.redis.hkeys(keys.RECEIVER_SECRETS)
    (event_key,) = [k for k in place.redis.keys(keys.event("*")) if place.redis.hexists(k, "body")]
    event_id = event_key.decode().removeprefix(keys.event(""))
    letter = store.dead_letter("l")
    assert letter is not None
    kept = FileStore(str(place.folder / "files"), store.key_ring)
    with kept.open_to_read(FILE_ID) as handle:
        content = handle.read()
    media = [name.decode() for name in place.redis.zrange(keys.MEDIA_DUE, 0, -1)]
    return [
        *sorted(str(store.read(media_calls.content(name))) for name in media),
        *((record.document, record.result) for record in records if record is not None),
        *(store.read_tokens(job_id) for job_id in ("running", "ended", "large")),
        letter.payload,
        store.run(outbox_calls.set_body_once(event_id, b"")),
        store.read(receiver_secrets(receiver_id.decode())),
        content,
        store.read(load_files([FILE_ID])),
    ]


def test_everything_is_sealed_again_and_the_old_key_can_go(place: Site) -> None:
    fill(place, OLD)
    before = read_all(place, OLD)
    assert place.counts().key_ids() == [OLD.id]
    assert {part for part, _ in place.counts().found} == set(Part)

    done = place.rewrap()

    assert (done.num_changed, dict(done.failed)) == (0, {})
    assert place.counts().key_ids() == [NEW.id]
    assert read_all(place, NEW) == before
    for job_id, needed in (("running", NEW.id), ("large", f"@payloads {NEW.id}")):
        assert place.redis.hget(keys.job(job_id), "sealed_with").decode() == needed
    for key in place.redis.keys(keys.job("*")):
        assert place.redis.hget(key, "sealed_with").decode().split()[-1] == NEW.id
    # A second run has nothing to do. The objects of the old key are deleted later: a program may
    # just have read their names.
    assert place.rewrap().num_rewrapped == 0
    num_due, names = place.store(NEW).run(payload_calls.take_unused(100, repeat_ms=60_000))
    assert (num_due, names) == (0, [])
    all_objects = len(place.objects.names())
    for name in place.redis.zrange(keys.PAYLOADS, 0, -1):
        place.redis.zadd(keys.PAYLOADS, {name: 1})
    _, names = place.store(NEW).run(payload_calls.take_unused(100, repeat_ms=60_000))
    assert len(names) == all_objects / 2
    # The content behind an idempotency key is still known.
    with Client(_url(place), settings=settings(NEW)) as client:
        fields: dict[str, Any] = {"max_tokens": 4, "webhook": "https://example.com/hook"}
        again = client.submit(prompt=PROMPT, idempotency_key="ended", **fields)
        assert again.id == "ended"


def _url(place: Site) -> str:
    return f"unix://{place.redis.connection_pool.connection_kwargs['path']}"


def test_plain_content_is_sealed_once_keys_are_set(place: Site) -> None:
    fill(place)
    before = read_all(place)
    place.rewrap()
    left = place.counts()
    # The outputs of two running jobs are sealed by the workers that have them.
    assert left.num_left(NEW.id) == left.num_of(PLAIN, Part.OUTPUTS) == 4
    assert place.redis.exists(keys.seals("ended"))
    assert read_all(place, NEW) == before


def test_a_run_with_a_limit_is_continued_by_the_next(place: Site) -> None:
    fill(place, OLD)
    numbers = []
    while place.counts().num_left(NEW.id):
        numbers.append(place.rewrap(limit=3).num_rewrapped)
        assert len(numbers) < 30
    assert len(numbers) > 2
    assert read_all(place, NEW)


def test_what_cannot_be_opened_stays_and_is_counted(place: Site) -> None:
    fill(place, OLD)
    other, counts = new_key("other"), SealCounts()
    Walk(place.store(NEW, other), counts).rewrap()
    assert counts.num_rewrapped == 0
    assert counts.failed[KeyMissing.code] >= 5
    assert place.counts().key_ids() == [OLD.id]


def test_a_value_that_changes_meanwhile_is_left(place: Site) -> None:
    store = place.store(NEW, OLD)
    place.store(OLD).dead_letter_add(
        kind=DeadLetterKind.MESSAGE, reason="r", payload=b"one", source="q", letter_id="l"
    )
    known = place.redis.hget(keys.dead("l"), "payload")
    place.redis.hset(keys.dead("l"), "payload", "another")
    content = Content(b"one", Place("l", "payload"))
    changed = calls.replace_value(RecordKind.LETTER, "l", "payload", known, content)
    assert store.run(changed) is False
    assert place.redis.hget(keys.dead("l"), "payload") == b"another"


def test_jobs_run_on_while_they_are_sealed_again(mill: Mill) -> None:
    both = f"{OLD.to_text()},{NEW.to_text()}"
    mill.start_worker("w1", encryption_keys=both, stub={"step_time_s": 0.01})
    with Client(mill.url, settings=settings(OLD, NEW)) as client:
        jobs = [client.submit(prompt=PROMPT, max_tokens=200, seed=7) for _ in range(3)]
        for job in jobs:
            mill.store.client.delete("x")
            mill.wait_for(lambda job=job: mill.store.num_tokens(job.id) > 20, "tokens")  # type: ignore[misc]
        environment = {"BATCHMILL_ENCRYPTION_KEYS": f"{NEW.to_text()},{OLD.to_text()}"}
        shown = call("encryption", "rewrap", "--json", "--broker-url", mill.url, **environment)
        assert json.loads(shown.stdout)["rewrapped"] >= 6, shown.stdout + shown.stderr
        results = [job.result(timeout_s=60) for job in jobs]
    assert [result.token_ids for result in results] == [expected_tokens(PROMPT, 200)] * 3
    assert all(mill.record(job.id).attempts == 1 for job in jobs)
    last = call("encryption", "rewrap", "--broker-url", mill.url, **environment)
    assert (last.returncode, "0 left" in last.stdout) == (0, True), last.stdout
    with Client(mill.url, settings=settings(NEW)) as client:
        text = "".join(piece.text for piece in client.job(jobs[0].id).stream())
        assert text == results[0].text
    status = call("encryption", "status", "--broker-url", mill.url, **environment)
    assert f"{NEW.id}" in status.stdout


def test_the_fingerprint_of_a_steered_job_is_made_again(place: Site) -> None:
    vector = {"digest": "d" * 64, "model": "demo", "tenants": []}
    place.redis.hset(keys.STEERING_VECTORS, "tone", json.dumps(vector))
    fields: dict[str, Any] = {"steering": {"name": "tone"}, "idempotency_key": "k"}
    with Client(_url(place), settings=settings(OLD)) as client:
        job = client.submit(prompt=PROMPT, **fields)
    place.rewrap()
    with Client(_url(place), settings=settings(NEW)) as client:
        assert client.submit(prompt=PROMPT, **fields).id == job.id


def test_a_letter_of_another_type_does_not_stop_the_sealing_of_letters(place: Site) -> None:
    place.redis.set(keys.dead("l"), "not written by batchmill")
    place.redis.sadd(keys.PLAIN_LETTERS, "l")
    assert seal_plain_letters(place.store(NEW)) == 0
    assert place.redis.scard(keys.PLAIN_LETTERS) == 0


def test_a_file_survives_a_run_that_is_killed_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileStore(str(tmp_path), KeyRing((OLD,))).open_to_write(FILE_ID) as handle:
        handle.write(b"CANARY file")
    other, killed = (FileStore(str(tmp_path), KeyRing((NEW, OLD))) for _ in range(2))

    class DyingSource(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            other.rewrite(FILE_ID)
            raise KeyboardInterrupt

    monkeypatch.setattr(killed, "open_to_read", lambda file_id: DyingSource())
    with pytest.raises(KeyboardInterrupt):
        killed.rewrite(FILE_ID)
    (tmp_path / f"{FILE_ID}.0123.new").write_bytes(b"of one that had no time to clean up")
    other.delete_unfinished()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_ID]
    assert other.key_id(FILE_ID) == NEW.id
    with other.open_to_read(FILE_ID) as handle:
        assert handle.read() == b"CANARY file"


def test_a_file_that_a_gateway_is_deleting_does_not_come_back(place: Site) -> None:
    path = place.folder / "files"
    with FileStore(str(path), KeyRing((OLD,))).open_to_write(FILE_ID) as handle:
        handle.write(b"CANARY file")
    place.redis.zadd(keys.FILES_EXPIRING, {f"acme/{FILE_ID}": 1})
    place.rewrap()
    assert list(path.iterdir()) == []
