"""What `submit` does with the names of LoRA adapters when its call is repeated."""

from __future__ import annotations

from typing import Any

from batchmill.producer.job.batch import BatchRequest
from batchmill.producer.protocol.calls.new_job import BatchPlace
from batchmill.producer.protocol.replies import SubmitStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.adapters import RegisteredAdapter, register_adapter, remove_adapter


def register(bench: Any, digest: str) -> None:
    register_adapter(bench.store, RegisteredAdapter(name="style", digest=digest, model="demo"))


def test_a_repeated_call_finds_its_job_though_the_adapter_is_gone(bench: Any) -> None:
    register(bench, "1" * 32)
    fields: dict[str, Any] = {"lora": "style", "idempotency_key": "k", "fingerprint": "f"}
    assert bench.submit("one", **fields).status is SubmitStatus.CREATED
    register(bench, "2" * 32)
    assert bench.submit("one", **fields).status is SubmitStatus.EXISTING
    assert bench.submit("two", **fields).status is SubmitStatus.CONFLICT
    remove_adapter(bench.store, "style")
    assert bench.submit("one", **fields).status is SubmitStatus.EXISTING
    assert bench.submit("two", **fields).status is SubmitStatus.NO_ADAPTER


def test_a_batch_that_is_submitted_again_keeps_the_versions_of_its_lines(bench: Any) -> None:
    bench.store.run(batch_calls.create(BatchRequest(), ProducerSettings(), "batch_1"))
    fields: dict[str, Any] = {"lora": "style", "fingerprint": "f"}
    fields["batch"] = BatchPlace("batch_1", 0)
    register(bench, "1" * 32)
    assert bench.submit("one", **fields).status is SubmitStatus.CREATED
    register(bench, "2" * 32)
    again = bench.submit("another id", **fields)
    assert (again.status, again.job_id) == (SubmitStatus.EXISTING, "one")
    remove_adapter(bench.store, "style")
    assert bench.submit("another id", **fields).status is SubmitStatus.EXISTING
    other = fields | {"fingerprint": "g"}
    assert bench.submit("another id", **other).status is SubmitStatus.CONFLICT
    assert bench.claim("one").lora == "1" * 32
