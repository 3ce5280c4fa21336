"""The document of a decision: three spellings, one form; what is wrong is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.engine.contract.kinds import Kind
from batchmill.producer.errors import JobRejected, UnsupportedParameter
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.media import media_id
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare

from ...support.pictures import data_url

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 40
STATE = "I was charged twice and want a refund."
TEAM = {"type": "choice", "criteria": {"billing": "payments", "shipping": None}}
OURS = {
    "state": STATE,
    "questions": {
        "refund": {"type": "yes_no", "instructions": "A refund?", "criteria": {"yes": "asked"}},
        "team": {**TEAM, "instructions": "Which team?"},
        "urgency": {"type": "score", "instructions": "How urgent?", "criteria": ["low", "high"]},
    },
}
TRANSFORMERS = {
    "state": STATE,
    "questions": {
        "refund": {"type": "noul", "instructions": "A refund?", "criteria": {"true": "asked"}},
        "team": {**TEAM, "instructions": "Which team?"},
        "urgency": {"type": "score", "instructions": "How urgent?", "criteria": ["low", "high"]},
    },
}
SGLANG = {
    "input": STATE,
    "questions": [
        {"id": "refund", "type": "yes_no", "question": "A refund?", "yes": "asked"},
        {
            "id": "team",
            "type": "choice",
            "question": "Which team?",
            "options": {"billing": "payments", "shipping": None},
        },
        {"id": "urgency", "type": "score", "question": "How urgent?", "levels": ["low", "high"]},
    ],
}


def decision(**fields: Any) -> dict[str, Any]:
    """Return a job with a decision that has some fields."""
    return {"decision": {"state": STATE, "questions": {"team": TEAM}} | fields}


def question(**fields: Any) -> dict[str, Any]:
    """Return a job with a decision of one question."""
    return decision(questions={"q": fields})


@pytest.mark.parametrize("given", [TRANSFORMERS, SGLANG], ids=["transformers", "SGLang"])
def test_other_spellings_are_read_as_ours(given: dict[str, Any]) -> None:
    expected = parse_job({"decision": OURS})
    job = parse_job({"decision": given})
    assert job == expected
    assert parse_document(job.model_dump_json(exclude_none=True)) == expected
    assert (job.kind, job.section_name) == (Kind.DECIDE, "decision")


def test_a_list_of_options_has_no_descriptions() -> None:
    job = parse_job(question(type="choice", options=["a", "b"]))
    assert job.decision is not None
    assert job.decision.questions["q"].criteria == {"a": None, "b": None}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (decision() | {"prompt": "x"}, "prompt has no effect beside decision"),
        (decision() | {"max_tokens": 5}, "max_tokens has no effect beside decision"),
        (decision() | {"logprobs": 2}, "logprobs has no effect beside decision"),
        (decision() | {"messages": [{"role": "user", "content": "x"}]}, "messages has no effect"),
        (decision(state=None), "decision.state: Field required"),
        (decision(state=3), "must be text, or JSON"),
        (decision(state={"x": float("nan")}), "decision.state: must be JSON: .*float"),
        (
            decision(
                state=[{"role": "user", "name": "Ann", "content": [{"type": "image", "url": "x"}]}]
            ),
            r"state\[0\].content\[0\] is a part of type image, and state is not a chat",
        ),
        (decision(state=[{"role": "judge", "content": "x"}]), r"state\[0\].role is 'judge'"),
        (decision(state={"x": b"y"}), "decision.state: must be JSON: .*bytes"),
        (decision() | {"embedding": {"input": "x"}}, "embedding has no effect beside decision"),
        (decision(state="x" * (1 << 20)), "decision has .* bytes, the limit is 1048576"),
        (decision(questions={}), "at least 1 item"),
        (decision(questions={str(n): TEAM for n in range(65)}), "at most 64 items"),
        (decision(questions={"x" * 65: TEAM}), "at most 64 characters"),
        (decision(questions=[TEAM]), r"questions\[0\] has no id"),
        (decision(questions=[{"id": "a", **TEAM}] * 2), "id is given twice"),
        (decision(input="x"), "input is another name for state"),
        (decision(rotations=0), "decision.rotations"),
        (decision(min_confidence=2), "decision.min_confidence is 2: it should be .* equal to 1"),
        (decision(on_low_confidence="fail"), "no effect without min_confidence"),
        (decision(seed=1), "decision.seed"),
        (decision(chat_template_kwargs={"tools": 1}), "must not have a key 'tools'"),
        (question(type="noul", criteria={"maybe": "x"}), "must describe yes and no only"),
        (question(type="yes_no", criteria={"yes": "a"}, no="b"), "yes and no are given beside"),
        (question(type="maybe"), "decision.questions.q.type"),
        (question(type="choice"), "must have option names"),
        (question(type="choice", criteria={}), "must have option names"),
        (question(type="choice", options=["a", "a"]), "given twice"),
        (question(type="choice", options=["a"], criteria=["a"]), "options is another name"),
        (question(type="choice", criteria={"x" * 257: None}), "1 to 256 characters"),
        (question(type="choice", options=[str(n) for n in range(27)]), "the limit is 26"),
        (question(type="score", criteria={"a": None}), "must have a list of levels"),
        (question(type="score", criteria=[None]), "must be text, or JSON"),
    ],
)
def test_a_wrong_decision_is_refused_by_name(job: dict[str, Any], message: str) -> None:
    with pytest.raises(JobRejected, match=message):
        parse_job(job)


def test_a_decision_is_stored_as_a_record_that_old_workers_leave_alone() -> None:
    new = prepare(GenerationJob.model_validate(decision()), ProducerSettings())
    assert new.version == keys.KINDS_VERSION
    assert '"seed"' not in new.document
    text = prepare(GenerationJob(prompt="x"), ProducerSettings())
    assert text.version == keys.PROTOCOL_VERSION
    assert '"decision"' not in text.document


def test_the_queue_counts_every_prompt_and_the_text_that_may_follow() -> None:
    plain = parse_job(decision()).decision
    more = parse_job(
        decision(
            rotations=9,
            prior_correction=True,
            min_confidence=0.5,
            on_low_confidence="generate",
            max_tokens=7,
        )
    ).decision
    assert plain is not None
    assert more is not None
    assert plain.num_output_tokens == 1
    assert more.num_output_tokens == 2 * 2 + 7
    assert plain.num_input_bytes < more.num_input_bytes
    assert plain.num_result_bytes < more.num_result_bytes


def test_the_pictures_of_a_state_are_taken_out_of_the_document() -> None:
    inline = {"type": "image", "image": PNG}
    spelled = {"type": "image_url", "image_url": {"url": data_url(PNG)}}
    normal = {"type": "image", "media": media_id(PNG)}
    text = {"type": "text", "text": "Look."}
    for given in (inline, spelled, normal):
        for state in ([given, text], [{"role": "user", "content": [given, text]}]):
            job = parse_job(decision(state=state))
            assert job.decision is not None
            assert job.decision.state == [{"role": "user", "content": [normal, text]}]
            assert [part.media for part in job.media] == [media_id(PNG)]
            assert job.media[0].content == (None if given is normal else PNG)
            again = parse_document(job.model_dump_json(exclude_none=True))
            assert again.model_dump() == job.model_dump()
            assert [part.media for part in again.media] == [media_id(PNG)]


def test_the_parts_of_texts_in_a_state_are_one_text() -> None:
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    job = parse_job(decision(state=[{"role": "user", "content": parts}]))
    assert job.decision is not None
    assert job.decision.state == [{"role": "user", "content": "One.\nTwo."}]
    assert job.media == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([{"type": "image", "path": "/etc/passwd"}], "names a path, which is never opened"),
        ([{"type": "image", "base64": "AAAA"}], "part 0"),
        (
            [
                {"role": "user", "content": "What is this?"},
                {"role": "user", "content": [{"type": "text", "text": "It"}, {"type": "image"}]},
            ],
            "message 1 of the state: part 1 must have exactly one of media, url",
        ),
        (
            [{"role": "assistant", "content": [{"type": "image", "image": PNG}]}],
            r"state\[0\] is a message of the assistant",
        ),
        (
            [{"type": "image", "image": PNG}] * 17,
            "decision.state: 17 pictures and sounds, the operator's limit is 16",
        ),
        ([{"type": "image", "url": "http://a.example/"}], "decision.state: the URL of a part"),
    ],
)
def test_pictures_that_cannot_be_seen_are_refused(state: Any, message: str) -> None:
    with pytest.raises(JobRejected, match=message):
        prepare(parse_job(decision(state=state)), ProducerSettings())


URL_PART = {"type": "image_url", "image_url": {"url": data_url(PNG)}}


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ([URL_PART, {"type": "input_text", "text": "Look."}], "state[0]"),
        ([URL_PART, {"type": "text", "text": 3}], "state[0]"),
        ([URL_PART, "Look."], "state[0]"),
        ([{"type": "text", "text": "Look."}, {"type": "video"}, URL_PART], "state[2]"),
        (URL_PART, "state"),
        ([[URL_PART]], "state[0][0]"),
        ({"role": "user", "content": [URL_PART]}, "state.content[0]"),
        ({"messages": [{"role": "user", "content": [URL_PART]}]}, "state.messages[0].content[0]"),
        ([{"role": "user", "content": [[URL_PART]]}], "state[0].content[0][0]"),
        ([{"role": "user", "content": URL_PART}], "state[0].content"),
        (
            [{"role": "user", "content": [{"type": "input_text"}, {"type": "image"}]}],
            "state[0].content[1]",
        ),
        ({"it": {"type": "input_image", "image_url": "https://a.example/"}}, "state.it"),
        ({"it": {"type": "image", "url": data_url(PNG).replace("data", "DATA")}}, "state.it"),
        ({"it": {"type": "image", "media": media_id(PNG)}}, "state.it"),
        (
            {"it": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}},
            "state.it",
        ),
    ],
)
def test_a_picture_inside_json_is_not_read_as_text(state: Any, place: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        parse_job(decision(state=state))
    assert str(refusal.value).startswith(f"{place} is a part of type ")


@pytest.mark.parametrize(
    "state",
    [
        {"items": [{"type": "image", "title": "A view of Rome"}]},
        {"blocks": [{"type": "image", "image_url": "https://a.example/", "alt_text": "Rome"}]},
        [{"type": "doc", "content": [{"type": "image", "attrs": {"src": "a.png"}}]}],
        [{"type": "image", "title": "A view of Rome"}, {"type": "text", "title": "Rome"}],
        {"role": "editor", "content": {"type": "page", "image": "a.png"}},
    ],
)
def test_other_json_of_these_types_is_read_as_json(state: Any) -> None:
    job = parse_job(decision(state=state))
    assert job.decision is not None
    assert job.decision.state == state
    assert job.media == []
