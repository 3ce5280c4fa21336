"""Every time that a client returns is also a datetime in UTC, to the millisecond."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from batchmill import producer
from batchmill.producer import (
    Attempt,
    BatchState,
    BatchStatus,
    EndedJob,
    JobState,
    JobStatus,
    Pause,
    PauseKind,
    WebhookEvent,
)

NOW_MS = 1_764_460_000_123
NOW = datetime(2025, 11, 29, 23, 46, 40, 123_000, UTC)


def test_times_of_a_job_are_datetimes() -> None:
    status = JobStatus(
        id="j",
        model="m",
        state=JobState.QUEUED,
        enqueued_at_ms=NOW_MS,
        deadline_at_ms=NOW_MS + 1,
        retry_at_ms=NOW_MS + 2,
    )
    assert status.enqueued_at == NOW
    assert status.deadline_at == NOW + timedelta(milliseconds=1)
    assert status.retry_at == NOW + timedelta(milliseconds=2)
    assert (status.started_at, status.finished_at, status.scheduled_at) == (None, None, None)
    assert 'enqueued_at"' not in status.model_dump_json()
    attempt = Attempt(1, "w", claimed_at_ms=NOW_MS)
    assert (attempt.claimed_at, attempt.ended_at) == (NOW, None)
    assert EndedJob("j", JobState.COMPLETED, finished_at_ms=NOW_MS).finished_at == NOW
    assert Pause(PauseKind.QUEUE, "q", NOW_MS).since == NOW


def test_times_of_a_batch_are_datetimes_by_name() -> None:
    batch = BatchStatus(
        id="b", status=BatchState.COMPLETED, created_at=NOW_MS // 1000, expires_at=0
    )
    assert batch.moments == {
        "created_at": NOW.replace(microsecond=0),
        "expires_at": datetime(1970, 1, 1, tzinfo=UTC),
    }


def test_the_time_of_an_event_is_a_datetime() -> None:
    event = WebhookEvent("e", "generation.completed", "2025-11-29T23:46:40.123Z", {})
    assert event.happened_at == NOW
    for text in ("yesterday", "2025-11-29T23:46:40"):
        with pytest.raises(ValueError, match=text):
            assert WebhookEvent("e", "t", text, {}).happened_at


def test_no_public_class_has_milliseconds_alone() -> None:
    for name in producer.__all__:
        owner = getattr(producer, name)
        names: set[str] = set()
        if isinstance(owner, type) and issubclass(owner, BaseModel):
            names = set(owner.model_fields)
        elif isinstance(owner, type) and hasattr(owner, "__dataclass_fields__"):
            names = {field.name for field in fields(owner)}
        for field in names:
            if field.endswith(("_at_ms", "since_ms")):
                assert isinstance(vars(owner)[field.removesuffix("_ms")], property), owner
