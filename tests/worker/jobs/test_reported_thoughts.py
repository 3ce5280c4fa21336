"""Thoughts in a result, in OpenAI's form of it, in a stream and in the next turn of a chat."""

from __future__ import annotations

import json

from openai.types.chat import ChatCompletion

from batchmill.producer.bulk.result_lines import response_body
from batchmill.producer.job.line import LineKind
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.results import JobResult
from batchmill.worker.engine_host.messages import AddRequest, Finished, FinishedSample
from batchmill.worker.gateway.completion_request import CompletionOptions
from batchmill.worker.gateway.completion_stream import ChunkWriter
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.job_end import finished_end

from ..celery_tasks import a_task


def result_of(thoughts: str, num_tokens: int, *, samples: tuple[FinishedSample, ...] = ()) -> str:
    """Return the JSON of a result as its worker writes it."""
    claim = Claim("j", "1.n", b"{}", [], 1, False, None, 0, 0, 0)
    finished = Finished(
        *("j.1", "Yes.", [1, 2, 3], "stop", 3),
        reasoning=thoughts,
        num_reasoning_tokens=num_tokens,
        samples=samples,
    )
    job = ActiveJob(claim, AddRequest("j.1", "prompt", None, {}), a_task("j"))
    written = finished_end(job, finished, worker="w1", model="demo").result
    assert written is not None
    return written if isinstance(written, str) else bytes(written).decode()


def test_a_result_has_thoughts_apart_from_its_text() -> None:
    result = JobResult.model_validate_json(result_of("Hm.", 2))
    assert (result.text, result.reasoning_content) == ("Yes.", "Hm.")
    assert result.usage.completion_tokens_details is not None
    assert result.usage.completion_tokens_details.reasoning_tokens == 2
    # Models think again in each turn.
    assert result.message == {"role": "assistant", "content": "Yes."}

    body = response_body(LineKind.CHAT, result)
    completion = ChatCompletion.model_validate(body)
    assert completion.choices[0].message.content == "Yes."
    assert body["choices"][0]["message"]["reasoning_content"] == "Hm."
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    assert completion.usage.completion_tokens_details.reasoning_tokens == 2


def test_a_result_without_thoughts_says_nothing_of_them() -> None:
    written = result_of("", 0)
    assert "reasoning" not in written
    assert "completion_tokens_details" not in written
    body = response_body(LineKind.CHAT, JobResult.model_validate_json(written))
    assert "reasoning" not in json.dumps(body)


def test_each_sample_has_its_own_thoughts_and_the_usage_is_their_sum() -> None:
    samples = (
        FinishedSample("Yes.", [1, 2], "stop", reasoning="Hm.", num_reasoning_tokens=1),
        FinishedSample("No.", [1, 2], "stop", reasoning="Oh.", num_reasoning_tokens=2),
    )
    result = JobResult.model_validate_json(result_of("Hm.", 1, samples=samples))
    assert [each.reasoning_content for each in result.completions] == ["Hm.", "Oh."]
    assert result.usage.completion_tokens_details is not None
    assert result.usage.completion_tokens_details.reasoning_tokens == 3


def test_a_stream_shows_thoughts_as_such_and_never_as_content() -> None:
    result = JobResult.model_validate_json(result_of("Hm.", 2))
    writer = ChunkWriter(LineKind.CHAT, "j", "demo", CompletionOptions())
    thoughts = writer.thoughts(0, result.reasoning_content)
    chunks = b"".join([*thoughts, *writer.end(result, 0, result.completions[0])]).decode()
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in chunks.splitlines()
        if line.startswith("data: ")
    ]
    assert {"reasoning_content": "Hm."} in deltas
    assert [each for each in deltas if "content" in each] == []
