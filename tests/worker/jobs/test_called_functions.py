"""Function calls in outputs: in the result, the webhook and the line of a bulk run."""

from __future__ import annotations

import json

import pytest
from openai.types.chat import ChatCompletion

from batchmill.producer.bulk.result_lines import result_line
from batchmill.producer.job.line import LineKind
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.outbox import OutboxEntry
from batchmill.producer.protocol.records import read_job
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.results import JobResult
from batchmill.worker.engine_host.messages import (
    AddRequest,
    Finished,
    FinishedCall,
    FinishedSample,
)
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.job_end import finished_end
from batchmill.worker.webhooks.payload import MAX_OUTPUT_BYTES, render_body

from ..celery_tasks import a_task

CALL = FinishedCall("call_1", "clock", '{"zone": "Zürich"}')
OPENAI_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "clock", "arguments": '{"zone": "Zürich"}'},
}


def result_of(text: str, *, samples: tuple[FinishedSample, ...] = ()) -> JobResult:
    """Return a job's result as it is read from the record that its worker wrote."""
    claim = Claim("j", "1.n", b"{}", [], 1, False, None, 0, 0, 0)
    finished = Finished("j.1", text, [1], "tool_calls", 3, tool_calls=[CALL], samples=samples)
    job = ActiveJob(claim, AddRequest("j.1", "prompt", None, {}), a_task("j"))
    end = finished_end(job, finished, worker="w1", model="demo")
    assert end.result is not None
    return JobResult.model_validate_json(end.result)


def test_a_result_has_the_calls_and_its_message_continues_the_chat() -> None:
    result = result_of("")
    assert result.status == "completed"
    assert result.message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [OPENAI_CALL],
    }
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "Noon."}
    job = parse_job({"messages": [{"role": "user", "content": "?"}, result.message, answer]})
    assert job.messages is not None
    assert result_of("Let me see.").message["content"] == "Let me see."


def test_each_sample_has_its_own_calls() -> None:
    samples = (
        FinishedSample("", [1], "tool_calls", tool_calls=[CALL]),
        FinishedSample("Noon.", [2], "stop"),
    )
    first, second = result_of("", samples=samples).completions
    assert [call.id for call in first.tool_calls] == ["call_1"]
    assert second.message == {"role": "assistant", "content": "Noon."}


def test_a_line_of_a_bulk_run_has_openais_format() -> None:
    line = result_line("batch_req_1", "a", LineKind.CHAT, result_of(""), finished_at_ms=7_999)
    completion = ChatCompletion.model_validate(line["response"]["body"])
    assert completion.created == 7
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].model_dump() == OPENAI_CALL


@pytest.mark.parametrize("state", ["queued", "completed"])
def test_a_webhook_of_an_end_has_nothing_of_a_later_run(state: str) -> None:
    entry = OutboxEntry("evt_j_failed", "generation.failed", "j", "https://a/", 1, "1.n", 0, None)
    result = result_of("of the second run").model_dump_json().encode()
    fields = {b"state": state.encode(), b"doc": b'{"include_output": true}', b"run": b"2"}
    data = json.loads(render_body(entry, read_job(fields | {b"result": result})))["data"]
    assert (data["status"], data["finish_reason"], data["usage"]) == ("failed", None, None)
    assert "output" not in data


@pytest.mark.parametrize(("text", "fits"), [("So:", True), ("x" * MAX_OUTPUT_BYTES, False)])
def test_a_webhook_has_the_calls_if_it_has_the_text(text: str, fits: bool) -> None:
    entry = OutboxEntry(
        "evt_j_completed", "generation.completed", "j", "https://a/", 1, "1.n", 0, None
    )
    for wants_output in (True, False):
        document = json.dumps({"include_output": wants_output}).encode()
        result = result_of(text).model_dump_json().encode()
        record = read_job({b"state": b"completed", b"doc": document, b"result": result})
        data = json.loads(render_body(entry, record))["data"]
        assert data["finish_reason"] == "tool_calls"
        if wants_output:
            assert data["tool_calls"] == ([OPENAI_CALL] if fits else None)
            assert data["truncated"] is not fits
        else:
            assert "tool_calls" not in data
