"""Jobs whose content is sealed: against a real server, with stores that have other keys."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer import ContentChanged, EncryptionUnavailable, KeyMissing
from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.encryption.settings import find_key_ring
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls import outbox as outbox_calls
from batchmill.producer.protocol.content import MAGIC, Place
from batchmill.producer.protocol.replies import (
    Claim,
    ClaimRefusal,
    CompleteStatus,
    HeldJob,
    JobState,
    ReleaseCause,
    SubmitStatus,
    TokenWrite,
    WriteStatus,
)
from batchmill.producer.results import JobResult
from batchmill.producer.store.ended_jobs import ended_jobs
from batchmill.producer.store.job_output import StreamReader
from batchmill.producer.store.job_store import JobStore

from ..conftest import Bench

OLD, NEW = new_key("old"), new_key("new")
DOCUMENT = '{"prompt":"CANARY prompt"}'
TOKENS = list(range(77_000, 77_012))
TEXT = "CANARY text äöü".encode()


def result_json(text: str = "CANARY result") -> str:
    return JobResult.model_validate(
        {
            "id": "j",
            "model": "demo",
            "status": "completed",
            "text": text,
            "finish_reason": "length",
            "usage": {"prompt_tokens": 1, "completion_tokens": 12, "total_tokens": 13},
        }
    ).model_dump_json()


def with_keys(bench: Bench, *ring: Any) -> Bench:
    return Bench(JobStore(bench.redis, key_ring=KeyRing(ring)))


@pytest.fixture
def sealed(bench: Bench) -> Bench:
    return with_keys(bench, NEW)


def write(claim: Claim, position: int, *tokens: int, text: bytes = b"", at: int = 0) -> TokenWrite:
    return TokenWrite(claim.job_id, claim.fence, position, tokens, text, at, claim.identity)


def save(bench: Bench, *writes: TokenWrite) -> list[WriteStatus]:
    return bench.store.checkpoint(writes, lease_ms=60_000)


def run(bench: Bench, job_id: str = "j", **fields: Any) -> None:
    """Run a job to its end, with two checkpoints."""
    bench.submit(job_id, document=DOCUMENT, **fields)
    claim = bench.claim(job_id)
    assert save(bench, write(claim, 0, *TOKENS[:5], text=TEXT)) == [WriteStatus.OK]
    assert save(bench, write(claim, 5, *TOKENS[5:8])) == [WriteStatus.OK]
    status = bench.store.complete(
        job_id,
        fence=claim.fence,
        state=JobState.COMPLETED,
        result=result_json(),
        position=8,
        token_ids=TOKENS[8:],
    )
    assert status is CompleteStatus.OK


def result_of(bench: Bench, job_id: str = "j") -> JobResult:
    return bench.store.read(ended_jobs([job_id]))[0].result()


def dump(redis: Any) -> bytes:
    """Return everything in Redis, as it is stored."""
    parts: list[bytes] = []
    for key in redis.scan_iter():
        match redis.type(key):
            case b"hash":
                values = [part for pair in redis.hgetall(key).items() for part in pair]
            case b"string":
                values = [redis.get(key)]
            case b"list":
                values = redis.lrange(key, 0, -1)
            case b"zset":
                values = redis.zrange(key, 0, -1)
            case _:
                values = list(redis.smembers(key))
        parts += [key, *values]
    return b"\n".join(parts)


def stream(bench: Bench, job_id: str = "j") -> Iterator[bytes]:
    """Yield the text of each piece of a stream, with its tokens checked by the reader."""
    reader = StreamReader(job_id, None)
    while True:
        piece = reader.take(bench.store.read(reader.next_read()))
        if reader.must_read_again:
            continue
        yield b"" if piece is None else piece.text.encode()


def test_redis_has_no_content_of_a_sealed_job(sealed: Bench) -> None:
    run(sealed, idempotency_key="k", fingerprint="0" * 64, webhook="https://example.com/hook")
    (event,) = sealed.store.outbox_claim(owner="d", limit=1, lease_ms=1000)
    body = b'{"output":"CANARY"}'
    assert sealed.store.outbox_set_body_once(event.event_id, body) == body

    stored = dump(sealed.redis)

    assert b"CANARY" not in stored
    assert b"0" * 64 not in stored
    assert all(id_.to_bytes(4, "little") not in stored for id_ in TOKENS)
    assert result_of(sealed).text == "CANARY result"
    assert result_of(sealed).token_ids == TOKENS
    assert sealed.store.read_tokens("j", 3) == TOKENS[3:]
    record = sealed.store.load("j")
    assert record is not None
    assert record.document.decode() == DOCUMENT


def test_another_attempt_continues_from_sealed_tokens(sealed: Bench) -> None:
    sealed.submit("j", document=DOCUMENT)
    first = sealed.claim("j")
    save(sealed, write(first, 0, *TOKENS[:5], text=TEXT))
    sealed.store.release([HeldJob("j", first.fence)], cause=ReleaseCause.DRAIN)

    again = sealed.claim("j")

    assert again.document.decode() == DOCUMENT
    assert again.token_ids == TOKENS[:5]
    assert not again.must_rewrite_output


def test_a_checkpoint_whose_reply_was_lost_may_be_repeated_with_more(sealed: Bench) -> None:
    sealed.submit("j", document=DOCUMENT)
    claim = sealed.claim("j")
    save(sealed, write(claim, 0, *TOKENS[:4]))
    for end in (6, 6, 9):  # the second is the first again
        assert save(sealed, write(claim, 4, *TOKENS[4:end], text=TEXT[:end])) == [WriteStatus.OK]
    assert sealed.store.read_tokens("j") == TOKENS[:9]
    assert save(sealed, write(claim, 11, TOKENS[11])) == [WriteStatus.GAP]
    # In the middle of a piece: the holder sends all of its output again.
    assert save(sealed, write(claim, 5, *TOKENS[5:])) == [WriteStatus.GAP]
    assert save(sealed, write(claim, 0, *TOKENS)) == [WriteStatus.OK]
    assert sealed.store.read_tokens("j") == TOKENS


def test_a_stream_follows_a_piece_that_grows(sealed: Bench) -> None:
    sealed.submit("j", document=DOCUMENT)
    claim = sealed.claim("j")
    pieces = stream(sealed)
    save(sealed, write(claim, 0, *TOKENS[:2], text=TEXT[:6]))
    assert next(pieces) == TEXT[:6]
    save(sealed, write(claim, 0, *TOKENS[:4], text=TEXT[:9]))
    assert next(pieces) == TEXT[6:9]
    save(sealed, write(claim, 4, *TOKENS[4:], text=TEXT[9:], at=9))
    assert next(pieces) == TEXT[9:]


def test_jobs_with_old_new_and_no_keys_are_in_one_queue(bench: Bench) -> None:
    old, both = with_keys(bench, OLD), with_keys(bench, NEW, OLD)
    none = with_keys(bench)
    run(old, "a")
    run(none, "b")
    run(both, "c")

    assert [result_of(both, job_id).text for job_id in "abc"] == ["CANARY result"] * 3
    assert result_of(none, "b").token_ids == TOKENS
    for reader, job_id, name in ((old, "c", "new"), (none, "a", "old")):
        with pytest.raises(KeyMissing, match=f"key '{name}'.*BATCHMILL_ENCRYPTION_KEYS"):
            result_of(reader, job_id)
        with pytest.raises(KeyMissing):
            next(stream(reader, job_id))


def test_a_job_begun_without_keys_is_sealed_as_a_whole_from_its_next_claim(bench: Bench) -> None:
    plain, sealed = with_keys(bench), with_keys(bench, NEW)
    plain.submit("j", document=DOCUMENT)
    first = plain.claim("j")
    save(plain, write(first, 0, *TOKENS[:5], text=TEXT[:6]))
    plain.store.release([HeldJob("j", first.fence)], cause=ReleaseCause.DRAIN)

    claim = sealed.claim("j")
    assert claim.must_rewrite_output
    assert claim.token_ids == TOKENS[:5]
    assert save(sealed, write(claim, 0, *TOKENS[:7], text=TEXT)) == [WriteStatus.OK]

    assert sealed.store.read_tokens("j") == TOKENS[:7]
    assert TOKENS[0].to_bytes(4, "little") not in bench.redis.get(keys.tokens("j"))
    assert next(stream(sealed)) == TEXT


def test_a_worker_without_the_key_leaves_the_job_to_others(bench: Bench) -> None:
    sealed, other = with_keys(bench, NEW), with_keys(bench, OLD)
    # The same name, but another key: it counts as missing, and nothing is taken for a forgery.
    namesake = with_keys(bench, new_key("new"))
    sealed.submit("j", document=DOCUMENT)
    for worker in (other, namesake, with_keys(bench)):
        refusal = worker.store.claim("j", owner="w", lease_ms=1000, identity="model-1")
        assert refusal is ClaimRefusal.MISSING_KEY
    assert sealed.state("j") == "queued"
    # It is announced again, by the sweep, once the wait is over.
    bench.redis.zadd(keys.queued("batchmill.demo.normal"), {"j": 0})
    bench.redis.delete(keys.announced("batchmill.demo.normal"))
    bench.store.sweep(reannounce_grace_ms=1)
    assert sealed.announced() == ["j"]
    assert sealed.claim("j").document.decode() == DOCUMENT


@pytest.mark.parametrize("field", ["doc", "tokens", "seals", "swapped", "removed seals"])
def test_what_was_changed_in_redis_is_not_run(sealed: Bench, field: str) -> None:
    for job_id in ("j", "other"):
        sealed.submit(job_id, document=DOCUMENT)
        claim = sealed.claim(job_id)
        save(sealed, write(claim, 0, *TOKENS[:5]))
        save(sealed, write(claim, 5, *TOKENS[5:8]))
        sealed.store.release([HeldJob(job_id, claim.fence)], cause=ReleaseCause.DRAIN)
    redis = sealed.redis
    match field:
        case "doc":
            redis.hset(keys.job("j"), "doc", redis.hget(keys.job("j"), "doc")[:-1] + b"\0")
        case "tokens":
            redis.setrange(keys.tokens("j"), 0, b"\1\1\1\1")
        case "seals":
            redis.hset(keys.seals("j"), "tokens:20", redis.hget(keys.seals("j"), "tokens:0"))
        case "swapped":
            redis.hset(keys.job("j"), "doc", redis.hget(keys.job("other"), "doc"))
        case _:
            redis.delete(keys.seals("j"))

    claim = sealed.claim("j")

    assert isinstance(claim.unreadable, ContentChanged)
    assert claim.unreadable.code == "integrity"
    assert (claim.document, claim.token_ids) == (b"", [])
    assert sealed.claim("other").unreadable is None


@pytest.mark.parametrize("field", ["result", "tokens", "seals"])
def test_a_changed_result_is_an_error_that_hides_no_other(sealed: Bench, field: str) -> None:
    run(sealed)
    run(sealed, "other")
    redis = sealed.redis
    match field:
        case "result":
            redis.hset(keys.job("j"), "result", redis.hget(keys.job("other"), "result"))
        case "tokens":
            redis.setrange(keys.tokens("j"), 36, b"\1\1\1\1")
        case _:
            redis.delete(keys.seals("j"))
    changed, whole = sealed.store.read(ended_jobs(["j", "other"]))
    with pytest.raises(ContentChanged, match="of j was changed in Redis"):
        changed.result()
    assert whole.result().token_ids == TOKENS


def test_a_changed_body_of_an_event_is_not_sent(sealed: Bench) -> None:
    run(sealed, webhook="https://example.com/hook")
    (event,) = sealed.store.outbox_claim(owner="d", limit=1, lease_ms=0)
    assert sealed.store.run(outbox_calls.set_body_once(event.event_id, b"CANARY")) == b"CANARY"
    (again,) = sealed.store.outbox_claim(owner="d", limit=1, lease_ms=0)
    assert again.body == b"CANARY"
    sealed.redis.hset(keys.event(event.event_id), "body", MAGIC + b"\3new" + bytes(40))
    (changed,) = sealed.store.outbox_claim(owner="d", limit=1, lease_ms=0)
    assert changed.body is None
    assert isinstance(changed.unreadable, KeyMissing)


def test_an_idempotency_key_survives_new_keys(bench: Bench) -> None:
    fields: dict[str, Any] = {"idempotency_key": "k", "fingerprint": "f" * 64}
    stages = [with_keys(bench), with_keys(bench, OLD), with_keys(bench, NEW, OLD)]
    assert stages[0].submit("a", **fields).status is SubmitStatus.CREATED
    assert stages[1].submit("b", **fields).status is SubmitStatus.EXISTING
    assert stages[1].submit("c", **fields | {"idempotency_key": "l"}).job_id == "c"
    for number, stage in enumerate(stages[1:]):
        again = stage.submit(f"d{number}", **fields | {"idempotency_key": "l"})
        assert (again.status, again.job_id) == (SubmitStatus.EXISTING, "c")
    other = stages[2].submit("e", **fields | {"idempotency_key": "l", "fingerprint": "0" * 64})
    assert other.status is SubmitStatus.CONFLICT
    # Equal content of two tenants does not look equal.
    stages[2].submit("f", tenant="x", **fields)
    stages[2].submit("g", tenant="y", **fields)
    stored = [bench.redis.hget(keys.idempotency(name, "k"), "fingerprint") for name in "xy"]
    assert stored[0] != stored[1]


def test_a_dead_letter_keeps_the_document_sealed(sealed: Bench) -> None:
    sealed.submit("j", document=DOCUMENT)
    sealed.redis.hset(keys.job("j"), mapping={"suspect": 3, "crashes": 2})
    claim = sealed.claim("j")
    sealed.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_DEATH)
    assert b"CANARY" not in dump(sealed.redis)
    letter = sealed.store.dead_letter("j")
    assert letter is not None
    assert letter.payload.decode() == DOCUMENT
    unreadable = with_keys(sealed, OLD).store.dead_letter("j")
    assert unreadable is not None
    assert isinstance(unreadable.unreadable, KeyMissing)


def test_forgetting_a_sealed_job_leaves_nothing(sealed: Bench) -> None:
    run(sealed)
    assert sealed.redis.pttl(keys.seals("j")) > 0
    sealed.store.run(job_calls.forget("j"))
    assert not sealed.redis.exists(keys.job("j"), keys.tokens("j"), keys.seals("j"))


def test_a_moved_value_cannot_be_opened() -> None:
    ring = KeyRing([NEW])
    value = ring.seal(b"text", Place("a", "doc"))
    assert ring.open(value, Place("a", "doc")) == b"text"
    for place in (Place("b", "doc"), Place("a", "result")):
        with pytest.raises(ContentChanged):
            ring.open(value, place)
    for cut in range(len(value) - 1, len(value) - 20, -1):
        with pytest.raises(ContentChanged):
            ring.open(value[:cut], Place("a", "doc"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secret", "an entry without a colon"),
        ("a:" + base64.b64encode(b"short").decode(), "base64 of 32 bytes"),
        ("a:%%%", "base64 of 32 bytes"),
        ("a b:c", "an entry without a colon"),
        ("ä:" + base64.b64encode(bytes(32)).decode(), "1 to 32 letters"),
        (f"{OLD.to_text()},{new_key('old').to_text()}", "a name twice"),
    ],
    ids=["no colon", "short", "no base64", "blank", "no ascii", "twice"],  # keys are random
)
def test_a_malformed_setting_is_refused_without_its_secrets(text: str, message: str) -> None:
    with pytest.raises(EncryptionUnavailable, match=message) as caught:
        find_key_ring({"BATCHMILL_ENCRYPTION_KEYS": text})
    assert base64.b64encode(OLD.secret).decode() not in str(caught.value)
