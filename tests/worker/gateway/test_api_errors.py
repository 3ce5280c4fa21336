"""Errors of the queue as responses of the gateway."""

from __future__ import annotations

import pytest

from batchmill.producer.errors import (
    BatchmillError,
    BrokerUnavailable,
    ContentChanged,
    JobFailed,
    KeyMissing,
    NotReplicated,
    PayloadUnreachable,
    ShardMismatch,
)
from batchmill.producer.shard_list import read_shard_list
from batchmill.producer.store.shard_mark import check_mark, unknown_shard_error
from batchmill.worker.gateway.api_errors import api_error


def test_a_job_that_too_few_replicas_have_is_not_repeated_without_a_key() -> None:
    error = api_error(NotReplicated("stored, but 0 of 1 replicas", job_ids=["gen_1"]))
    assert error is not None
    assert (error.status, error.code) == (503, "not_replicated")
    # Stock clients repeat a 503 by themselves, and that would make a second job.
    assert error.headers == {"retry-after": "1", "x-should-retry": "false"}
    assert "the same Idempotency-Key" in str(error)


@pytest.mark.parametrize(
    "cause",
    [BrokerUnavailable("nothing replied"), PayloadUnreachable("it took too long")],
    ids=["broker", "object store"],
)
def test_a_store_that_is_away_is_tried_again(cause: BatchmillError) -> None:
    error = api_error(cause)
    assert error is not None
    assert (error.status, error.headers) == (503, {"retry-after": "1"})


def test_content_that_cannot_be_opened_says_why() -> None:
    missing = api_error(KeyMissing("the prompt …", key_id="old.1a2b3c4d"))
    assert missing is not None
    assert (missing.status, missing.code) == (503, "missing_key")
    assert "old.1a2b3c4d" in str(missing)
    changed = api_error(ContentChanged("the file file-1 was changed"))
    assert changed is not None
    assert (changed.status, changed.code) == (500, "integrity")
    assert changed.headers == {"x-should-retry": "false"}


def test_a_decision_that_fails_as_it_asked_to_is_no_error_of_the_server() -> None:
    error = api_error(JobFailed("too unsure", job_id="gen_1", code="low_confidence"))
    assert error is not None
    assert (error.status, error.headers) == (422, {"x-should-retry": "false"})
    assert error.openai_body()["error"]["type"] == "invalid_request_error"


def test_an_id_of_a_shard_that_was_removed_is_not_found_and_a_wrong_list_is_said() -> None:
    shards = read_shard_list("b=redis://two.example:6379/0")
    gone = api_error(unknown_shard_error("a", "batch_1-a", shards))
    assert gone is not None
    assert (gone.status, str(gone)) == (
        404,
        "it is in shard a, which this gateway does not have (any more)",
    )
    with pytest.raises(ShardMismatch) as caught:
        check_mark(None, shards.shards[0], shards)
    wrong = api_error(caught.value)
    assert wrong is not None
    assert (wrong.status, wrong.code) == (503, "shard_mismatch")


def test_a_shard_that_is_away_is_named_without_its_address() -> None:
    error = api_error(BrokerUnavailable("redis://secret.example").of_shards(["a", "b"]))
    assert error is not None
    assert str(error) == "shard a and b of the queue cannot be reached at the moment; try again"
