"""The pieces that number the events of a stream depend on the text alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchmill.worker.gateway.text_pieces import MAX_PIECE_CHARS, TextPieces


def pieces_of(parts: list[str]) -> list[str]:
    cutter = TextPieces()
    found = [piece for part in parts for piece in cutter.add(part)]
    return found + cutter.end()


@given(st.lists(st.text(alphabet="ab \n中")))
def test_the_parts_in_which_a_text_arrives_do_not_matter(parts: list[str]) -> None:
    text = "".join(parts)
    pieces = pieces_of(parts)
    assert pieces == pieces_of([text]) == pieces_of(list(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= MAX_PIECE_CHARS for piece in pieces)


def test_a_piece_is_a_word_with_the_space_before_it() -> None:
    assert pieces_of(["The mill", " turns.\n\nIt ", "is old"]) == [
        *("The", " mill", " turns.", "\n\nIt", " is", " old"),
    ]
