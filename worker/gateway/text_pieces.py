"""A text in pieces that depend on the text alone, whenever and in whatever parts it arrives."""

from __future__ import annotations

#: Longest piece, for scripts without spaces.
MAX_PIECE_CHARS = 24


class TextPieces:
    """Cuts a growing text before each word, so that the n-th piece is always the same.

    The events of a stream are numbered by these pieces. The checkpoints in which a text arrives
    cannot number them: they differ between two readings of the same output.
    """

    def __init__(self) -> None:
        self._rest = ""

    def add(self, text: str) -> list[str]:
        """Take the next part of the text, and return the pieces that are complete."""
        rest, pieces = self._rest + text, []
        start, has_word = 0, False
        for place, char in enumerate(rest):
            if (has_word and char.isspace()) or place - start == MAX_PIECE_CHARS:
                pieces.append(rest[start:place])
                start, has_word = place, False
            has_word = has_word or not char.isspace()
        self._rest = rest[start:]
        return pieces

    def end(self) -> list[str]:
        """Return the last piece, if there is one."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []
