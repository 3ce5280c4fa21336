"""Positions in an output, as text that comes back from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.producer import InvalidQuery, StreamPosition
from batchmill.producer.store.job_output import StreamReader

POSITIONS = st.builds(
    StreamPosition,
    *(st.integers(0, 10**9 - 1), st.integers(0, 10**12 - 1), st.integers(0, 10**9 - 1)),
    st.from_regex(r"[0-9]{0,6}\.[0-9a-f]{0,32}", fullmatch=True),
    *(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
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
        reader.take([(b"in_progress", None, None, None, b"1", b"a"), b"", "ä".encode()[1:]])
