"""What a worker does about media that its model does not take, or that it cannot decode."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.replies import Claim
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.jobs import media_threads
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.media_threads import MediaThreads

NO_READER: Any = None


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        pytest.param(("image", "audio"), [], id="takes-both"),
        pytest.param(("audio",), ["@images"], id="takes-sounds"),
        pytest.param((), ["@images", "@sounds"], id="takes-none"),
        pytest.param(None, [], id="no-engine"),
    ],
)
def test_a_worker_without_decoders_leaves_only_media_that_its_model_takes(
    monkeypatch: pytest.MonkeyPatch, kinds: Any, expected: list[str]
) -> None:
    monkeypatch.setattr(media_threads, "can_decode", lambda kind: False)
    assert MediaThreads(NO_READER, "demo", lambda: kinds).abilities() == expected


def test_a_job_with_a_picture_that_the_model_does_not_take_is_refused_and_reads_nothing() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
    document = parse_job({"messages": [{"role": "user", "content": [part]}]})
    claim = Claim("j", "1.n", b"{}", [], 1, False, None, 0, 0, 0)
    job: Any = ActiveJob(claim, AddRequest("j", None, None, {}), NO_READER)
    found: list[JobRejected | None] = []
    is_taken = threading.Event()

    def take(job: ActiveJob, problem: JobRejected | None) -> None:
        found.append(problem)
        is_taken.set()

    MediaThreads(NO_READER, "demo", lambda: ("audio",)).prepare(job, document, take)
    assert is_taken.wait(30)
    [problem] = found
    assert problem is not None
    assert problem.code == "unsupported_parameter"
    assert "the model demo takes none" in str(problem)
