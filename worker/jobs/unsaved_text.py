"""Text of a running job that its record does not have yet."""

from __future__ import annotations

from collections import deque


class UnsavedText:
    """Holds pieces of text until the tokens that make them certain are saved with them.

    One thread appends; another one, the record writer's, takes.

    Attributes:
        position: Bytes of the text that are saved.
    """

    __slots__ = ("_certain", "_pieces", "position")

    def __init__(self) -> None:
        self.position = 0
        # Each with the number of output tokens that make it certain.
        self._pieces: deque[tuple[int, str]] = deque()
        self._certain = bytearray()

    def append(self, num_tokens: int, text: str) -> None:
        """Append a piece that this many output tokens make certain."""
        self._pieces.append((num_tokens, text))

    def up_to(self, num_tokens: int) -> bytes:
        """Return the text that so many output tokens make certain, from `position` on."""
        pieces = self._pieces
        certain = []
        while pieces and pieces[0][0] <= num_tokens:
            certain.append(pieces.popleft()[1])
        self._certain += "".join(certain).encode()
        return bytes(self._certain)

    def mark_saved(self, num_bytes: int) -> None:
        """Note that the next bytes are saved."""
        self.position += num_bytes
        del self._certain[:num_bytes]
