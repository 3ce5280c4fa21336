"""What `submit` does with names of LoRA adapters and steering vectors, also when repeated."""

from __future__ import annotations

from typing import Any

from batchmill.producer.job.batch import BatchRequest
from batchmill.producer.protocol import keys
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


def test_a_steering_vector_is_resolved_beside_an_adapter_of_the_same_name(bench: Any) -> None:
    register(bench, "1" * 32)
    vector = RegisteredAdapter(name="style", digest="3" * 32, model="demo", tenants=("acme",))
    fields: dict[str, Any] = {"steering": "style", "idempotency_key": "k", "fingerprint": "f"}
    refused = bench.submit("one", **fields)
    assert refused.status is SubmitStatus.NO_ADAPTER
    assert (refused.adapter_param, refused.adapter_model) == ("steering", "")
    register_adapter(bench.store, vector, keys.STEERING_VECTORS)
    assert bench.submit("one", **fields).status is SubmitStatus.NO_ADAPTER  # another tenant
    for version in ("3", "4"):
        everyone = vector.model_copy(update={"tenants": (), "digest": version * 32})
        register_adapter(bench.store, everyone, keys.STEERING_VECTORS)
        if version == "3":
            assert bench.submit("one", **fields).status is SubmitStatus.CREATED
    assert bench.submit("two", **fields).status is SubmitStatus.CONFLICT
    claim = bench.claim("one")
    assert (claim.steering, claim.lora) == ("3" * 32, None)
    both = bench.submit("both", steering="style", lora="style")
    assert both.status is SubmitStatus.CREATED
    claim = bench.claim("both")
    assert (claim.steering, claim.lora) == ("4" * 32, "1" * 32)
    other = vector.model_copy(update={"model": "other", "tenants": ()})
    register_adapter(bench.store, other, keys.STEERING_VECTORS)
    wrong = bench.submit("three", steering="style")
    assert (wrong.status, wrong.adapter_model) == (SubmitStatus.NO_ADAPTER, "other")
