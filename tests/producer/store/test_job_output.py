"""Positions in an output, as text that comes back from outside."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.producer import InvalidQuery, JobResult, OutputRestarted, StreamPosition
from batchmill.producer.store.job_output import StreamReader

POSITIONS = st.builds(
    StreamPosition,
    *(st.integers(0, 10**9 - 1), st.integers(0, 10**12 - 1), st.integers(0, 10**9 - 1)),
    st.from_regex(r"[0-9]{0,6}\.[0-9a-f]{0,32}", fullmatch=True),
    *(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    num_thought_bytes=st.integers(1, 10**12 - 1),
    thoughts_checksum=st.integers(0, 2**32 - 1),
)


@given(POSITIONS)
def test_a_position_comes_back_from_its_text(position: StreamPosition) -> None:
    text = position.to_text()
    assert text.isascii()
    assert text.isprintable()
    assert StreamPosition.from_text(text) == position


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "1",
            "1-2-3-4-5",
            "-1-2-0-0-0-1.a",
            "1-2-0-0-0-1.a\n",
            "1-2-0-0-0-a b",
            "\u0661-2-0-0-0-",
        ),
        *("9" * 10 + "-2-0-0-0-", "1-" + "9" * 13 + "-0-0-0-", "1-2-0-0-0-" + "a" * 81),
    ],
)
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidQuery, match="read the output from its start"):
        StreamPosition.from_text(text)


def test_a_position_inside_a_character_is_refused() -> None:
    reader = StreamReader("j", StreamPosition(1, 1, claim="1.a"))
    with pytest.raises(InvalidQuery, match="does not belong to the output of job j"):
        reader.take([(b"in_progress", None, None, None, b"1", b"a"), b"", "ä".encode()[1:], b""])


def test_thoughts_are_read_apart_and_end_with_the_result() -> None:
    fields = [b"in_progress", None, None, None, b"1", b"a"]
    reader = StreamReader("j", None)
    first = reader.take([fields, bytes(4), b"", b"Hm, "])
    assert first is not None
    assert (first.text, first.reasoning_content, first.token_ids) == ("", "Hm, ", [0])
    assert StreamPosition.from_text(first.position.to_text()) == first.position

    result = JobResult.model_validate(
        {
            "id": "j",
            "model": "m",
            "status": "completed",
            "text": "Yes.",
            "reasoning_content": "Hm, well.",
            "token_ids": [0, 0],
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
    )
    ended = [b"completed", None, result.model_dump_json().encode(), None, b"1", b"a"]
    last = reader.take([ended, bytes(4), b"", b""])
    assert last is not None
    assert (last.text, last.reasoning_content) == ("Yes.", "well.")
    # Another reader begins in the middle, or finds that it read something else.
    for position in (first.position, replace(first.position, claim="0.z")):
        again = StreamReader("j", position)
        piece = again.take([ended, bytes(4), b"", b""])
        if again.must_read_again:
            piece = again.take([ended, bytes(8), b"", b""])
        assert piece is not None
        assert (piece.text, piece.reasoning_content) == ("Yes.", "well.")
    other = replace(first.position, claim="0.z", thoughts_checksum=1)
    reader = StreamReader("j", other)
    reader.take([ended, bytes(4), b"", b""])
    with pytest.raises(OutputRestarted):
        reader.take([ended, bytes(8), b"", b""])
