"""A response as it is stored: a job, and OpenAI's object of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer import JobResult
from batchmill.producer.bulk.openai_logprobs import chat_logprobs
from batchmill.producer.bulk.result_lines import own_fields
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.content import Cipher, Unopened
from batchmill.producer.protocol.opening import open_fields
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.result_parts import JobError
from batchmill.producer.results import Completion
from batchmill.producer.store.api_keys import ApiKey

from .api_errors import not_found
from .backend import Backend
from .openai_api import RESPONSES

_FIELDS = ("tenant", "gateway", "state", "doc", "model", "enqueued_at_ms", "finished_at_ms")
_END_FIELDS = ("result", "error")


def response_id(job_id: str) -> str:
    """Return the id of a job's response."""
    return f"resp_{job_id.removeprefix('gen_')}"


def job_id_of(name: str) -> str:
    """Return the job of a response's id; an id that cannot exist names no job either."""
    job_id = f"gen_{name.removeprefix('resp_')}"
    return job_id if name.startswith("resp_") and keys.is_job_id(job_id) else "gen_none"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, as its job's record says."""

    job_id: str
    tenant: str
    details: dict[str, Any]
    state: JobState
    document: bytes
    model: str
    created_at: int
    finished_at: int | None
    result: JobResult | None
    error: JobError | None

    @property
    def status(self) -> str:
        """OpenAI's name for the state."""
        if self.state is JobState.EXPIRED:
            return "failed"
        if self.state is JobState.COMPLETED and self.is_cut:
            return "incomplete"
        return self.state.value

    @property
    def is_cut(self) -> bool:
        """Whether the output ended because of its length."""
        return self.result is not None and self.result.finish_reason == "length"

    def to_object(self) -> dict[str, Any]:
        """Return OpenAI's object, with the output as far as the job has ended."""
        known = self.opening(self.status)
        if not self.state.is_terminal:
            return known
        known["completed_at"] = self.finished_at if self.state is JobState.COMPLETED else None
        if self.result is not None:
            known["output"] = output_items(self.job_id, self.result)
            known["usage"] = _usage(self.result)
            known |= own_fields(self.result)
        if self.status == "incomplete":
            known["incomplete_details"] = {"reason": "max_output_tokens"}
        if self.status == "failed":
            error = self.error or JobError(code="server_error", message="the job failed")
            known["error"] = {"code": error.code, "message": error.message}
        return known

    def opening(self, status: str) -> dict[str, Any]:
        """Return the object before there is any output, as the first events of a stream have it."""
        job = json.loads(self.document)
        messages = job["messages"]
        form = job.get("response_format") or {"type": "text"}
        if form.get("type") == "json_schema":
            form = {"type": "json_schema", **form["json_schema"]}
        return {
            "id": response_id(self.job_id),
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": self.details["background"],
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": messages[0]["content"] if self.details["instructions"] else None,
            "max_output_tokens": job["max_tokens"],
            "max_tool_calls": None,
            "metadata": job.get("metadata", {}),
            "model": self.model,
            "output": [],
            "parallel_tool_calls": job.get("parallel_tool_calls") is not False,
            "previous_response_id": self.details.get("previous_response_id"),
            "service_tier": "default",
            "store": self.details["store"],
            "temperature": job.get("temperature"),
            "text": {"format": form},
            "tool_choice": _flat(job.get("tool_choice") or "auto"),
            "tools": [_flat(tool) for tool in job.get("tools", [])],
            "top_logprobs": job.get("logprobs") or 0,
            "top_p": job.get("top_p"),
            "truncation": "disabled",
            "usage": None,
        }


async def load_response(backend: Backend, key: ApiKey, name: str) -> StoredResponse:
    """Return a response of a caller.

    Raises:
        ApiError: there is none, or it belongs to another tenant.
    """
    job_id = job_id_of(name)
    store = await backend.shards.of_job(job_id)
    (found,) = await store.read(stored_responses([job_id]))
    if found is None or found.tenant != key.tenant:
        raise not_found("response", name)
    return found


def output_items(job_id: str, result: JobResult) -> list[dict[str, Any]]:
    """Return the output: thoughts, a message, if there is text or no call, and the calls."""
    completion = result.completions[0]
    status = (
        "incomplete" if result.finish_reason != "stop" and not result.tool_calls else "completed"
    )
    items = []
    if completion.reasoning_content:
        items.append(reasoning_item(job_id, "completed", completion.reasoning_content))
    if completion.text or not completion.tool_calls:
        part = text_part(completion.text, result, completion)
        items.append(message_item(job_id, status, [part]))
    return items + [
        call_item(job_id, place, call.id, call.function.name, call.function.arguments, "completed")
        for place, call in enumerate(completion.tool_calls)
    ]


def reasoning_item(job_id: str, status: str, thoughts: str | None) -> dict[str, Any]:
    """Return the item of thoughts; it has no part yet if they are None."""
    return {
        "id": f"rs_{job_id.removeprefix('gen_')}",
        "type": "reasoning",
        "summary": [],
        "content": [] if thoughts is None else [reasoning_part(thoughts)],
        "status": status,
    }


def reasoning_part(thoughts: str) -> dict[str, Any]:
    """Return the part that is an item's thoughts."""
    return {"type": "reasoning_text", "text": thoughts}


def message_item(job_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the item of a message."""
    return {
        "id": f"msg_{job_id.removeprefix('gen_')}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def call_item(
    job_id: str, place: int, call_id: str, name: str, arguments: str, status: str
) -> dict[str, Any]:
    """Return the item of a function's call."""
    return {
        "id": f"fc_{job_id.removeprefix('gen_')}_{place}",
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def text_part(
    text: str, result: JobResult | None = None, completion: Completion | None = None
) -> dict[str, Any]:
    """Return the part of a message that is its text, with log probabilities if there are any."""
    logprobs = None
    if result is not None and completion is not None:
        logprobs = chat_logprobs(result, completion)
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": logprobs["content"] if logprobs else [],
    }


def _usage(result: JobResult) -> dict[str, Any]:
    usage = result.usage
    details = usage.completion_tokens_details
    reasoning_tokens = 0 if details is None else details.reasoning_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _flat(value: Any) -> Any:
    """Return a tool or a choice as this API writes them: the function's fields beside its type."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        return {"type": "function", **value["function"]}
    return value


def response_details(
    *, background: bool, store: bool, instructions: bool, previous_response_id: str | None
) -> str:
    """Return what the record of a response's job says about it, as JSON.

    Args:
        background: whether it is fetched later.
        store: whether it is kept.
        instructions: whether its first message is the instructions.
        previous_response_id: the response that it follows.
    """
    details = {"background": background, "store": store, "instructions": instructions}
    return json.dumps({"api": RESPONSES, **details, "previous_response_id": previous_response_id})


def stored_responses(job_ids: Sequence[str]) -> Read[list[StoredResponse | None]]:
    """Read the responses of jobs in order; None for a job that is not one."""
    fields = (*_FIELDS, *_END_FIELDS)

    def queue(pipeline: Any) -> None:
        for job_id in job_ids:
            pipeline.hmget(keys.job(job_id), fields)

    def opens(replies: list[Any], cipher: Cipher) -> list[Any]:
        return [
            open_fields(cipher, job_id, fields, values)
            for job_id, values in zip(job_ids, replies, strict=True)
        ]

    return Read(queue, lambda replies: list(map(_stored, job_ids, replies)), opens=opens)


def _stored(job_id: str, reply: Any) -> StoredResponse | None:
    tenant, details, state, document, model, enqueued, finished, result, error = reply
    if tenant is None or details is None or state is None:
        return None
    for value in (document, result):
        if isinstance(value, Unopened):
            raise value.error
    known = json.loads(details)
    if known.get("api") != RESPONSES:
        return None
    return StoredResponse(
        job_id=job_id,
        tenant=tenant.decode(),
        details=known,
        state=JobState(state.decode()),
        document=document,
        model=model.decode(),
        created_at=int(enqueued) // 1000,
        finished_at=None if finished is None else int(finished) // 1000,
        result=None if result is None else JobResult.model_validate_json(result),
        error=None if error is None else JobError.model_validate_json(error),
    )
