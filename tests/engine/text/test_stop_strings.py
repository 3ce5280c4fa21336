"""Stop strings: found wherever the text is cut, and never shown in part."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchmill.engine.text.stop_strings import StopStrings

few_letters = st.text(alphabet="ab\n", max_size=12)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Return the end and the text of the stop string that ends first."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end, max(complete, key=len)
    return None


def feed(pieces: list[str], stops: list[str], *, include: bool) -> tuple[list[str], str | None]:
    """Return the pieces of text that became certain, and the stop string that ended them."""
    matcher = StopStrings(stops, include_in_text=include)
    certain = []
    for piece in pieces:
        matched = matcher.append(piece)
        certain.append(matched.text)
        if matched.stop is not None:
            return certain, matched.stop
    return [*certain, matcher.flush()], None


@pytest.mark.feature("stop", "include_stop_str_in_output")
@given(
    pieces=st.lists(few_letters, max_size=8),
    stops=st.lists(few_letters.filter(bool), min_size=1, max_size=3),
    include=st.booleans(),
)
@example(pieces=["a", "a", "b"], stops=["aab"], include=False)
@example(pieces=["ab", "ab", "aba"], stops=["ababb", "aba"], include=False)
@example(pieces=["a", "b"], stops=["b", "ab"], include=False)
def test_result_is_that_of_reading_the_whole_text(
    pieces: list[str], stops: list[str], include: bool
) -> None:
    certain, stop = feed(pieces, stops, include=include)
    found = first_stop("".join(pieces), stops)
    if found is None:
        assert ("".join(certain), stop) == ("".join(pieces), None)
        return
    end, expected = found
    shown = end if include else end - len(expected)
    assert ("".join(certain), stop) == ("".join(pieces)[:shown], expected)


@given(pieces=st.lists(few_letters, max_size=8), stop=few_letters.filter(bool))
def test_only_a_possible_beginning_is_held_back(pieces: list[str], stop: str) -> None:
    matcher = StopStrings([stop], include_in_text=False)
    text = shown = ""
    for piece in pieces:
        matched = matcher.append(piece)
        text, shown = text + piece, shown + matched.text
        if matched.stop is not None:
            return
        held = text[len(shown) :]
        assert stop.startswith(held)
        longer = [text[-n:] for n in range(len(held) + 1, len(stop)) if n <= len(text)]
        assert not any(stop.startswith(tail) for tail in longer)


def test_false_beginning_of_a_stop_string_is_shown() -> None:
    assert feed(["x\n", "\n", "Q", "z"], ["\n\nQ:"], include=False) == (
        ["x", "", "", "\n\nQz", ""],
        None,
    )
