"""The plan of a decision: every question is one short prompt after the shared state."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from batchmill.engine.contract.decision import messages_of, text_of
from batchmill.engine.contract.media import media_kinds
from batchmill.engine.errors import RequestError
from batchmill.engine.media.agreement import check_agreement
from batchmill.engine.plans.plan import Plan, PlannedJob, PlannedRequest, PlanResult
from batchmill.engine.request.outputs import RequestFailure, RequestOutput
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.text.chat import Chat

from .answers import Reading, make_answer, unsure
from .labels import label_token_ids
from .prompts import Asking, askings, reading_messages, writing_messages
from .spec import DecisionSpec, Question, read_decision

#: Code of the error of a prompt that exceeds the model's length.
TOO_LONG: Final = "context_length_exceeded"
#: Prompts that are tokenized and added together, so that other requests are not held up.
_NUM_TOGETHER: Final = 16
#: Characters of the states of prompts that are tokenized together: about a tenth of a second's.
_CHARS_TOGETHER: Final = 1 << 17
#: The first prompt of a state fills the blocks that the others share.
_NUM_FIRST: Final = 1
_T = TypeVar("_T")


def decision_plan(job: PlannedJob) -> Plan:
    """Return the plan that answers the questions of a job's `decision`.

    The first prompt is read alone. The others find the state in the prefix cache.
    """
    spec = read_decision(job.section)
    _check_media(job, spec)
    asked = askings(spec)
    readings: list[tuple[Asking, Reading]] = []
    for batch in _batches(asked, spec):
        found = yield from read_labels(job, [(spec, asking) for asking in batch])
        readings += zip(batch, found, strict=True)
    answers = {
        question.question_id: make_answer(
            question,
            _readings_of(question, readings, is_prior=False),
            _readings_of(question, readings, is_prior=True),
            spec.min_confidence,
        )
        for question in spec.questions
    }
    if unsure(answers) and spec.on_low_confidence == "generate":
        yield from _texts(job, spec, answers)
    section = {"answers": answers, "num_prompts": len(asked)}
    return PlanResult(section, _failure(spec, answers))


def check_labels(job: PlannedJob, spec: DecisionSpec, asking: Asking) -> None:
    """Check that a model can read a question: its prompt fits, and each label is a token.

    Raises:
        RequestError: as `read_labels`.
    """
    prompt = _text_token_ids(job, _chat(job, spec, reading_messages(spec, asking)))
    label_token_ids(job.engine.tokenizer, prompt, asking.labels)


def read_labels(
    job: PlannedJob, asked: Sequence[tuple[DecisionSpec, Asking]]
) -> Generator[Sequence[PlannedRequest], Sequence[RequestOutput], list[Reading]]:
    """Return what the model reads at the labels of some questions, asked side by side.

    Raises:
        RequestError: `context_length_exceeded`, or `unsupported_parameter` for a label.
    """
    label_ids, requests = [], []
    for spec, asking in asked:
        chat = _chat(job, spec, reading_messages(spec, asking))
        token_ids = _text_token_ids(job, chat)
        label_ids.append(label_token_ids(job.engine.tokenizer, token_ids, asking.labels))
        requests.append(_request(job, chat, token_ids, _reading_params(label_ids[-1])))
    outputs = yield requests
    return [_reading(ids, output) for ids, output in zip(label_ids, outputs, strict=True)]


def _readings_of(
    question: Question, readings: Sequence[tuple[Asking, Reading]], *, is_prior: bool
) -> list[Reading]:
    return [
        reading
        for asking, reading in readings
        if asking.question is question and asking.is_prior == is_prior
    ]


def _texts(
    job: PlannedJob, spec: DecisionSpec, answers: Mapping[str, dict[str, Any]]
) -> Generator[Sequence[PlannedRequest], Sequence[RequestOutput], None]:
    """Add to each unsure answer what the model writes about the question."""
    names = unsure(answers)
    questions = [each for each in spec.questions if each.question_id in names]
    params = SamplingParams(temperature=0, max_tokens=spec.max_tokens)
    for batch in _batches(questions, spec):
        chats = [_chat(job, spec, writing_messages(spec, each)) for each in batch]
        outputs = yield [_request(job, chat, _text_token_ids(job, chat), params) for chat in chats]
        for question, output in zip(batch, outputs, strict=True):
            answers[question.question_id]["text"] = output.text


def _failure(spec: DecisionSpec, answers: Mapping[str, Mapping[str, Any]]) -> RequestFailure | None:
    names = unsure(answers)
    if not names or spec.on_low_confidence != "fail":
        return None
    lowest = min(answers[name]["confidence"] for name in names)
    return RequestFailure(
        "low_confidence",
        f"{len(names)} of {len(answers)} answers have a confidence below min_confidence "
        f"{spec.min_confidence:g}, the lowest {lowest:.3g}: the result has them all the same",
    )


def _check_media(job: PlannedJob, spec: DecisionSpec) -> None:
    """Check media before the template, which may be one of text only, is given any."""
    messages = messages_of(spec.state) or ()
    if media_kinds(messages):
        model_name = Path(job.engine.config.model).name
        check_agreement(Chat(messages=messages), job.media, job.engine.media_kinds, model_name)
    elif job.media:
        raise RequestError(
            "invalid_request",
            f"decision has {len(job.media)} media, and its state has no part of type image or "
            "audio: give the state as messages with such parts",
        )


def _chat(job: PlannedJob, spec: DecisionSpec, messages: Sequence[Mapping[str, Any]]) -> Chat:
    kwargs = dict(spec.template_kwargs)
    template = job.engine.tokenizer.chat_template(Chat(messages=messages))
    if re.search(r"\benable_thinking\b", template):
        kwargs.setdefault("enable_thinking", False)
    return Chat(messages=messages, chat_template_kwargs=kwargs, control_tokens_as_text=True)


def _text_token_ids(job: PlannedJob, chat: Chat) -> list[int]:
    """Return the tokens of a chat, each picture or sound as the template writes it."""
    limit = job.engine.config.max_model_len - 1
    try:
        token_ids = job.engine.tokenizer.apply_chat_template(chat, max_num_tokens=limit)
    except RequestError as refusal:
        if refusal.code != TOO_LONG:
            raise
        raise _too_long(f"more than {limit}", limit) from None
    if len(token_ids) > limit:
        raise _too_long(str(len(token_ids)), limit)
    return token_ids


def _request(
    job: PlannedJob, chat: Chat, text_token_ids: list[int], params: SamplingParams
) -> PlannedRequest:
    """Return the request of a prompt; the engine puts features in the place of its media."""
    if not chat.media_kinds:
        return PlannedRequest(text_token_ids, params)
    return PlannedRequest(chat, params, media=job.media)


def _too_long(num_tokens: str, limit: int) -> RequestError:
    return RequestError(
        TOO_LONG,
        f"a question with its state has {num_tokens} tokens, max_model_len is {limit + 1} and one "
        "token has to be left for the answer: shorten the state or the question, or raise "
        "max_model_len",
    )


def _reading_params(label_ids: Sequence[int]) -> SamplingParams:
    """Return the controls of a prompt of which only the next token's distribution counts."""
    return SamplingParams(
        temperature=0,
        max_tokens=1,
        logprobs=0,
        logprob_token_ids=label_ids,
        ignore_eos=True,
        detokenize=False,
    )


def _reading(label_ids: Sequence[int], output: RequestOutput) -> Reading:
    assert output.logprobs is not None
    scores = output.logprobs[0]
    return Reading([scores[each] for each in label_ids], output.token_ids[0] in label_ids)


def _batches(asked: Sequence[_T], spec: DecisionSpec) -> Iterator[Sequence[_T]]:
    num_chars = len(text_of(spec.state)) + 1
    num_together = max(1, min(_NUM_TOGETHER, _CHARS_TOGETHER // num_chars))
    yield asked[:_NUM_FIRST]
    for start in range(_NUM_FIRST, len(asked), num_together):
        yield asked[start : start + num_together]
