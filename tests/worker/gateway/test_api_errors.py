"""Errors of the queue as responses of the gateway."""

from __future__ import annotations

import pytest

from batchmill.producer.errors import (
    BatchmillError,
    BrokerUnavailable,
    JobFailed,
    NotReplicated,
    PayloadUnreachable,
)
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


def test_a_decision_that_fails_as_it_asked_to_is_no_error_of_the_server() -> None:
    error = api_error(JobFailed("too unsure", job_id="gen_1", code="low_confidence"))
    assert error is not None
    assert (error.status, error.headers) == (422, {"x-should-retry": "false"})
    assert error.openai_body()["error"]["type"] == "invalid_request_error"
