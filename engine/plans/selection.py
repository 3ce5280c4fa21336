"""The plan of a job whose best sample a decision selects: the samples first, then a question each.

Source: a model as the judge of its own samples, Zheng et al. 2023, "Judging LLM-as-a-Judge".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.selection import read_selection_question
from batchmill.engine.errors import RequestError
from batchmill.engine.request.outputs import FinishReason
from batchmill.engine.text.chat import Chat, text_of
from batchmill.engine.text.tool_calls import ToolCall

from .decision.answers import make_answer
from .decision.plan import TOO_LONG, check_labels, read_labels
from .decision.prompts import Asking
from .decision.spec import DecisionSpec, read_decision
from .plan import Plan, PlannedJob, PlannedRequest, PlanResult

#: Finish reasons of samples that are candidates.
_ENDED: Final = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS)
_NAME: Final = "select"
#: Prompts that are tokenized and added together, so that other requests are not held up.
_NUM_TOGETHER: Final = 16


def selection_plan(job: PlannedJob) -> Plan:
    """Return the plan that generates a job's samples and asks the question of `select` about each.

    The sample with the highest probability of yes, or with the highest mean level, is selected; the
    earlier one of equals.
    """
    assert job.params is not None
    assert job.prompt is not None
    question = _question(job)
    try:  # before anything is generated: a sample only makes the question longer
        check_labels(job, *_asked(question, _state(job, "")))
    except RequestError as refusal:
        raise _explained(job, refusal) from None
    (output,) = yield [PlannedRequest(job.prompt, job.params, is_output=True)]
    candidates = [
        (place, _asked(question, _state(job, each.text, each.tool_calls)))
        for place, each in enumerate(output.completions)
        if each.finish_reason in _ENDED
    ]
    answers: list[dict[str, Any] | None] = [None] * len(output.completions)
    for start in range(0, len(candidates), _NUM_TOGETHER):
        batch = candidates[start : start + _NUM_TOGETHER]
        try:
            readings = yield from read_labels(job, [asked for _, asked in batch])
        except RequestError as refusal:
            raise _explained(job, refusal) from None
        for (place, (_, asking)), reading in zip(batch, readings, strict=True):
            answers[place] = make_answer(asking.question, [reading], [], None)
    return PlanResult({"index": _best(answers), "answers": answers})


def _question(job: PlannedJob) -> dict[str, Any]:
    try:
        return read_selection_question(job.section.get("question"))
    except ContractError as refusal:
        raise RequestError.of(refusal) from None


def _asked(question: Mapping[str, Any], state: Any) -> tuple[DecisionSpec, Asking]:
    spec = read_decision({"state": state, "questions": {_NAME: question}})
    return spec, Asking(spec.questions[0])


def _explained(job: PlannedJob, refusal: RequestError) -> RequestError:
    """Return the error of a question in terms of the job's own fields."""
    if refusal.code != TOO_LONG:
        return refusal
    return RequestError(
        refusal.code,
        "the question of select, the job's input and a sample's output together exceed "
        f"max_model_len ({job.engine.config.max_model_len}): shorten the question or the input, "
        "lower max_tokens, or select by likelihood or vote",
    )


def _state(job: PlannedJob, text: str, tool_calls: Sequence[ToolCall] = ()) -> Any:
    """Return what the question is about: the job's input, and a sample's output after it."""
    if not isinstance(job.prompt, Chat):
        echoes = job.params is not None and job.params.echo
        return text if echoes else _prompt_text(job) + text
    chat = job.prompt
    messages = [_plain(each) for each in chat.messages]
    answer: dict[str, Any] = {"role": "assistant", "content": text}
    if tool_calls:
        answer["tool_calls"] = [
            {"name": call.name, "arguments": call.arguments} for call in tool_calls
        ]
    if chat.continue_final_message:
        answer["content"] = f"{messages.pop()['content']}{text}"
    messages.append(answer)
    return {"documents": list(chat.documents), "messages": messages} if chat.documents else messages


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its parts of text as one."""
    return {**message, "content": text_of(message.get("content"))}


def _prompt_text(job: PlannedJob) -> str:
    if isinstance(job.prompt, str):
        return job.prompt
    token_ids = cast("Sequence[int]", job.prompt)
    return job.engine.tokenizer.decode(token_ids, skip_special_tokens=True)


def _best(answers: Sequence[Mapping[str, Any] | None]) -> int | None:
    known = [(_rank(each), -place) for place, each in enumerate(answers) if each is not None]
    return -max(known)[1] if known else None


def _rank(answer: Mapping[str, Any]) -> float:
    rank = answer["score"] if answer["type"] == "score" else answer["probabilities"]["yes"]
    return float(rank)
