"""The schemas in `schema/` equal those of the code, and describe the real wire formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema

from batchmill.producer import (
    BatchRequest,
    JobError,
    JobResult,
    JobState,
    ProducerSettings,
)
from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.job.validation import parse_job
from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.corpora import Corpus
from batchmill.producer.protocol.calls.jobs import complete, retry
from batchmill.producer.protocol.calls.new_job import BatchPlace, QueueLimits
from batchmill.producer.protocol.outbox import OutboxEntry
from batchmill.producer.protocol.records import JobRecord, read_job
from batchmill.producer.protocol.replies import Claim, HeldJob, PlanState, ReleaseCause, TokenWrite
from batchmill.producer.schemas import render, schemas
from batchmill.producer.store import batch_calls, receivers
from batchmill.producer.store.adapters import RegisteredAdapter, register_adapter
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.submission import prepare
from batchmill.producer.webhook.target import TargetPolicy
from batchmill.worker.engine_host.stub_output import stub_decision
from batchmill.worker.webhooks.payload import render_body

from ..structure.public_interface import ROOT

FOLDER = ROOT / "schema"


def is_valid(name: str, data: Any) -> bool:
    schema = schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    return bool(jsonschema.Draft202012Validator(schema).is_valid(data))


def test_files_are_those_of_the_code() -> None:
    assert {path.name for path in FOLDER.glob("*.schema.json")} == set(schemas())
    stale = [
        name for name, schema in schemas().items() if (FOLDER / name).read_text() != render(schema)
    ]
    assert not stale, "run: python -m batchmill.producer.schemas schema"


def test_results_and_events_fit_their_schemas() -> None:
    error = JobError(code="engine_error", message="x")
    result = JobResult(id="gen_1", model="demo", status=JobState.FAILED, error=error)
    assert is_valid("result.schema.json", json.loads(result.model_dump_json()))
    entry = OutboxEntry(
        "evt_gen_1_failed", "generation.failed", "gen_1", "https://e", 1, "1.n", 5, None
    )
    for record in (None, _record(result)):
        event = json.loads(render_body(entry, record))
        assert is_valid("webhook-event.schema.json", event)
        assert event["data"]["tags"] == ([] if record is None else ["night", "run-7"])
        event["data"]["status"] = "lost"
        assert not is_valid("webhook-event.schema.json", event)


def test_the_event_of_a_decision_has_its_answers_on_request() -> None:
    entry = OutboxEntry(
        "evt_gen_1_completed", "generation.completed", "gen_1", "https://e", 1, "1.n", 5, None
    )
    for num_questions in (1, 64):
        questions = {
            f"question {n}": {"type": "choice", "criteria": {f"option {m}": None for m in range(9)}}
            for n in range(num_questions)
        }
        decision = stub_decision({"state": "s", "questions": questions})
        result = JobResult.model_validate(
            {"id": "gen_1", "model": "demo", "status": "completed", "decision": decision}
        )
        for is_asked in (False, True):
            record = _record(result, state="completed", include_output=is_asked)
            event = json.loads(render_body(entry, record))
            assert is_valid("webhook-event.schema.json", event)
            fits = num_questions == 1
            assert ("decision" in event["data"]) is is_asked
            if is_asked:
                assert event["data"]["truncated"] is not fits
                assert event["data"]["decision"] == (
                    result.model_dump()["decision"] if fits else None
                )


def test_real_records_fit_their_schema_and_hold_no_field_that_it_does_not_know(
    redis_url: str, tmp_path: Path
) -> None:
    store = JobStore.from_url(redis_url)
    settings = ProducerSettings()
    everything = {
        "webhook": "https://example.com/hook",
        "webhook_events_filter": ["started", "output", "failed"],
        "webhook_secret": "theirs",
        "idempotency_key": "k",
        "ttl_s": 60.0,
        "tags": ["a", "b"],
        "delay_s": 0.001,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    documents: list[dict[str, Any]] = [{"prompt": "x"}, {"prompt": "x", **everything}]
    ids = []
    hook, types = "https://example.com/hook", ["generation.cancelled"]
    receiver, secret = receivers.make_receiver("mine", hook, types, TargetPolicy())
    value = receivers.new_secret_value(secret)
    store.run(receivers.create_receiver("default", receiver, value))
    store.run(batch_calls.create(BatchRequest(), settings, "batch_1"))
    for number, fields in enumerate(documents):
        new = prepare(parse_job(fields), settings, job_id=f"job-{number}")
        if number == 1:
            place = BatchPlace("batch_1", 0, "c0", "/v1/completions")
            new = replace(new, celery_result=True, batch=place, start_by_ms=10**15)
            new = replace(new, api_key="key_1", gateway="{}", media=(None,))
            new = replace(new, celery_headers='{"group":"g"}', celery_embed='{"chain":null}')
        store.submit(new)
        ids.append(new.job_id)
    known = set(schemas()["record.schema.json"]["properties"])

    seen: set[str] = set()

    def check() -> None:
        for job_id in ids:
            reply: Any = store.client.hgetall(keys.job(job_id))
            record = {name.decode(): value.decode() for name, value in reply.items()}
            assert is_valid("record.schema.json", record)
            seen.update(record)
        assert seen <= known, f"add them to producer/protocol/record_schema.py: {seen - known}"

    check()
    store.client.hset(keys.job("job-1"), "v", 99)
    store.claim("job-1", owner="w", lease_ms=0, identity="i")
    store.client.hset(keys.job("job-1"), "v", keys.PROTOCOL_VERSION)
    check()
    store.announce_due()
    store.cancel("job-0")
    store.run(retry("job-0", QueueLimits()))
    assert isinstance(store.claim("job-1", owner="w", lease_ms=0, identity="i"), Claim)
    assert store.sweep().requeued == 1
    for _ in range(5):
        claim = store.claim("job-1", owner="w", lease_ms=60_000, identity="i")
        assert isinstance(claim, Claim)
        held = HeldJob("job-1", claim.fence)
        store.checkpoint([TokenWrite("job-1", claim.fence, 0, [1, 2])], lease_ms=60_000)
        store.cancel("job-0")
        check()
        store.release([held], cause=ReleaseCause.ENGINE_DEATH)
    claim = store.claim("job-1", owner="w", lease_ms=60_000, identity="another")
    assert isinstance(claim, Claim)
    error = '{"code":"out_of_memory","message":"m","retryable":true}'
    store.complete("job-1", fence=claim.fence, state=JobState.FAILED, error=error, retry_in_ms=1)
    check()
    store.client.zadd(keys.SCHEDULED, {"job-1": 1})
    store.announce_due()
    claim = store.claim("job-1", owner="w", lease_ms=60_000, identity="another")
    assert isinstance(claim, Claim)
    store.cancel("job-1")
    store.complete(
        "job-1", fence=claim.fence, state=JobState.CANCELLED, result='{"text": ""}', error="{}"
    )
    check()
    store.run(retry("job-1", QueueLimits()))
    store.client.hset(keys.batch("batch_1"), "deadline_at_ms", 1)
    claim = store.claim("job-1", owner="w", lease_ms=60_000, identity="another")
    assert isinstance(claim, Claim)
    store.complete("job-1", fence=claim.fence, state=JobState.EXPIRED)
    check()
    objects = ObjectStore(str(tmp_path), threshold_bytes=1, timeout_s=5.0)
    sealing = JobStore.from_url(redis_url, key_ring=KeyRing((new_key("a"),)), objects=objects)
    sealing.submit(prepare(parse_job({"prompt": "x"}), settings, job_id="sealed"))
    store.claim("sealed", owner="w", lease_ms=60_000, identity="i")
    style = RegisteredAdapter(name="style", digest="0" * 32, model="demo")
    register_adapter(store, style)
    vector = style.model_copy(update={"name": "formal"})
    register_adapter(store, vector, keys.STEERING_VECTORS)
    for name in "xyz":
        fields = {"prompt": name * 600, "lora": "style", "steering": {"name": "formal"}}
        store.submit(prepare(parse_job(fields), settings, job_id=name))
    claim = store.claim("y", owner="w", lease_ms=60_000, identity="i", session="s")
    assert isinstance(claim, Claim)
    store.save_plans([PlanState("y", claim.fence, "i", b"a state")])
    store.release([HeldJob("y", claim.fence)], cause=ReleaseCause.SLICED)
    prefix: Any = store.client.hget(keys.job("z"), "prefix")
    store.claim("x", owner="w", lease_ms=0, identity="i", session="s", prefixes=(prefix.decode(),))
    claim = store.claim("z", owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    write = TokenWrite("z", claim.fence, 0, [1, 2])
    corpus = Corpus(keys.DEFAULT_TENANT, "a1", 9)
    store.run(complete(write, JobState.COMPLETED, "{}", None, corpus=corpus))
    for job_id in ("sealed", "x", "y", "z"):
        names: Any = store.client.hkeys(keys.job(job_id))
        seen.update(name.decode() for name in names)
    assert seen <= known
    assert known - seen == set()
    sealing.close()
    store.close()


def _record(result: JobResult, *, state: str = "failed", include_output: bool = False) -> JobRecord:
    document = {"prompt": "hi", "metadata": {"order": "1"}, "include_output": include_output}
    error = {} if result.error is None else {b"error": result.error.model_dump_json().encode()}
    record = read_job(
        {
            b"id": b"gen_1",
            b"state": state.encode(),
            b"doc": json.dumps(document).encode(),
            b"model": b"demo",
            b"tags": b"night,run-7",
            b"enqueued_at_ms": b"1",
            b"result": result.model_dump_json().encode(),
            **error,
        }
    )
    assert record is not None
    return record
