"""A marked output is called so in its result, its event, its bulk line and for monitors."""

from __future__ import annotations

import json

import pytest

from batchmill.producer.bulk.result_lines import result_line
from batchmill.producer.job.line import LineKind
from batchmill.producer.protocol.outbox import OutboxEntry
from batchmill.producer.protocol.records import read_job
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.results import JobResult
from batchmill.worker.engine_host.messages import AddRequest, Finished
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.job_end import finished_end
from batchmill.worker.webhooks.payload import render_body

from ..celery_tasks import a_task


@pytest.mark.parametrize("is_watermarked", [True, False])
def test_a_marked_output_is_called_so_everywhere(is_watermarked: bool) -> None:
    claim = Claim("j", "1.n", b"{}", [], 1, False, None, 0, 0, 0)
    finished = Finished("j.1", "text", [1], "stop", 3, is_watermarked=is_watermarked)
    job = ActiveJob(claim, AddRequest("j.1", "prompt", None, {}), a_task("j"))
    end = finished_end(job, finished, worker="w1", model="demo")
    assert end.result is not None
    result = JobResult.model_validate_json(end.result)
    record = read_job(
        {b"state": b"completed", b"doc": b"{}", b"result": end.result.encode()},
    )
    entry = OutboxEntry(
        "evt_j_completed", "generation.completed", "j", "https://a/", 1, "1.n", 0, None
    )
    event = json.loads(render_body(entry, record))
    line = result_line("r", "c", LineKind.TEXT, result, finished_at_ms=1)
    assert result.watermarked is is_watermarked
    assert ("watermarked" in json.loads(end.result)) is is_watermarked
    for found in (event["data"], line["response"]["body"], end.outcome.facts):
        assert found.get("watermarked") is (True if is_watermarked else None)
