"""The plan of a job whose best sample a decision selects: the samples first, then a question each.

Source: a model as the judge of its own samples, Zheng et al. 2023, "Judging LLM-as-a-Judge".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.selection import read_selection_question
from batchmill.engine.errors import RequestError
from batchmill.engine.request.outputs import Completion, FinishReason
from batchmill.engine.text.chat import Chat, text_of

from .decision.answers import make_answer
from .decision.plan import check_labels, read_labels
from .decision.prompts import NO_STATE, Asking
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
    check_labels(job, *_asked(question, NO_STATE))
    (output,) = yield [PlannedRequest(job.prompt, job.params, is_output=True)]
    candidates = [
        (place, _asked(question, _state(job, each)))
        for place, each in enumerate(output.completions)
        if each.finish_reason in _ENDED
    ]
    answers: list[dict[str, Any] | None] = [None] * len(output.completions)
    for start in range(0, len(candidates), _NUM_TOGETHER):
        batch = candidates[start : start + _NUM_TOGETHER]
        readings = yield from read_labels(job, [asked for _, asked in batch])
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


def _state(job: PlannedJob, sample: Completion) -> Any:
    """Return what the question is about: the job's input, and a sample's output after it."""
    if not isinstance(job.prompt, Chat):
        echoes = job.params is not None and job.params.echo
        return sample.text if echoes else _prompt_text(job) + sample.text
    chat = job.prompt
    messages = [_plain(each) for each in chat.messages]
    answer: dict[str, Any] = {"role": "assistant", "content": sample.text}
    if sample.tool_calls:
        answer["tool_calls"] = [
            {"name": call.name, "arguments": call.arguments} for call in sample.tool_calls
        ]
    if chat.continue_final_message:
        answer["content"] = f"{messages.pop()['content']}{sample.text}"
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
