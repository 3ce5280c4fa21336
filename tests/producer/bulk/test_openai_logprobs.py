"""Log probabilities of bulk lines have OpenAI's shapes, whatever the tokens are."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from batchmill.producer import JobResult, JobState, LogprobDetails
from batchmill.producer.bulk.result_lines import result_line
from batchmill.producer.job.line import LineKind

#: Token ids and their bytes: 3 and 4 are one character together, 5 is special.
TOKENS = {1: b"So", 2: b" it", 3: "\u65e5".encode()[:2], 4: "\u65e5".encode()[2:], 5: b"<s>"}


def body_of(kind: LineKind, **fields: Any) -> dict[str, Any]:
    """Return the body of the line of a result, which has been stored and read."""
    result = JobResult(id="gen_1", model="demo", status=JobState.COMPLETED, **fields)
    stored = JobResult.model_validate_json(result.model_dump_json())
    line = result_line("r", "c", kind, stored, finished_at_ms=1)
    body: dict[str, Any] = line["response"]["body"]
    return body


def details(num_top: int | None, echoed: list[int] | None = None) -> LogprobDetails:
    """Return the details of all tokens."""
    return LogprobDetails(num_top=num_top, token_bytes=TOKENS, echoed_token_ids=echoed)


def test_a_chat_has_each_token_with_its_bytes_and_the_likeliest_ones() -> None:
    scores: list[dict[int, float] | None] = [{2: -3.0, 1: -0.5, 3: -2.0}, {3: -0.1, 1: -4.0}]
    body = body_of(
        LineKind.CHAT,
        text=" it",
        finish_reason="length",
        logprobs=scores,
        logprob_details=details(2),
    )
    choice = ChatCompletion.model_validate(body).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    first, second = choice.logprobs.content
    assert (first.token, first.bytes, first.logprob) == (" it", list(b" it"), -3.0)
    # The token itself is not one of the two likeliest.
    assert [(each.token, each.logprob) for each in first.top_logprobs] == [
        ("So", -0.5),
        ("\N{REPLACEMENT CHARACTER}", -2.0),
    ]
    assert second.bytes == list(TOKENS[3])
    assert [each.logprob for each in second.top_logprobs] == [-0.1, -4.0]


def test_a_completion_has_four_lists_whose_offsets_are_those_of_its_text() -> None:
    scores: list[dict[int, float] | None] = [
        {token_id: -float(token_id), 1: -0.5} for token_id in (2, 3, 4, 2)
    ]
    body = body_of(
        LineKind.TEXT,
        text=" it\u65e5 it",
        finish_reason="stop",
        logprobs=scores,
        logprob_details=details(1),
    )
    logprobs = Completion.model_validate(body).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [" it", "bytes:\\xe6\\x97", "bytes:\\xa5", " it"]
    assert logprobs.token_logprobs == [-2, -3, -4, -2]
    assert logprobs.text_offset == [0, 3, 3, 4]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[1] == {"bytes:\\xe6\\x97": -3, "So": -0.5}


@pytest.mark.parametrize("output", [[], [{2: -1.0}]], ids=["prompt alone", "and one token"])
def test_an_echoed_prompt_is_scored_from_its_second_token(output: list[Any]) -> None:
    body = body_of(
        LineKind.TEXT,
        text="it it" if output else "it",
        finish_reason="length",
        logprobs=output,
        prompt_logprobs=[None, {2: -7.0, 1: -0.5}],
        logprob_details=details(1, [5, 2]),
    )
    logprobs = body["choices"][0]["logprobs"]
    # `<s>` is not in the text, and neither is the space before the first word.
    assert logprobs["tokens"] == ["<s>", " it", *[" it"] * len(output)]
    assert logprobs["token_logprobs"] == [None, -7.0, *[-1.0] * len(output)]
    assert logprobs["top_logprobs"] == [None, {" it": -7, "So": -0.5}, *[{" it": -1}] * len(output)]
    assert logprobs["text_offset"] == [0, 0, *[2] * len(output)]


def test_a_line_that_asked_for_no_log_probabilities_has_none() -> None:
    scored = {"prompt_logprobs": [None, {2: -7.0}], "logprob_details": details(None, [5, 2])}
    for kind in (LineKind.CHAT, LineKind.TEXT):
        for fields in ({}, scored):
            body = body_of(kind, text="it", finish_reason="stop", **fields)
            assert body["choices"][0]["logprobs"] is None
