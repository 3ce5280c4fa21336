"""Search for stop strings in a growing text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopMatch(NamedTuple):
    """The result of appending a piece of text."""

    #: Text that is now certain to be part of the output.
    text: str
    #: The stop string that ended it, or None.
    stop: str | None


class StopStrings:
    """Finds the first stop string, and holds back text that may be the beginning of one.

    There must be at least one stop string. The result does not depend on how the text is split into
    pieces. Of several stop strings, the one that ends first counts; of several that end together,
    the longest.

    Source: string matching by prefix function, Knuth, Morris and Pratt 1977, section 2.
    """

    def __init__(self, stops: Sequence[str], *, include_in_text: bool) -> None:
        # Longest first: the first that is complete is the one that counts.
        self._matchers = [_Matcher(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._include_in_text = include_in_text
        self._held = ""

    def append(self, text: str) -> StopMatch:
        """Append a piece of text. Nothing may be appended after a stop string was found."""
        pending = self._held + text
        for index, character in enumerate(text, start=len(self._held)):
            for matcher in self._matchers:
                if matcher.completes_with(character):
                    end = index + 1
                    start = end if self._include_in_text else end - len(matcher.stop)
                    self._held = ""
                    return StopMatch(pending[:start], matcher.stop)
        num_held = max(matcher.num_matched for matcher in self._matchers)
        num_certain = len(pending) - num_held
        self._held = pending[num_certain:]
        return StopMatch(pending[:num_certain], None)

    def flush(self) -> str:
        """Return the text held back, when the output ends without a stop string."""
        held, self._held = self._held, ""
        for matcher in self._matchers:
            matcher.num_matched = 0
        return held


class _Matcher:
    """Tracks how much of one stop string the text ends with."""

    __slots__ = ("_fallback", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        # _fallback[n]: length of the longest proper prefix of stop[:n] that is also its suffix.
        self._fallback = [0, 0]
        for character in stop[1:]:
            length = self._fallback[-1]
            while length and stop[length] != character:
                length = self._fallback[length]
            self._fallback.append(length + 1 if stop[length] == character else 0)

    def completes_with(self, character: str) -> bool:
        while self.num_matched and self.stop[self.num_matched] != character:
            self.num_matched = self._fallback[self.num_matched]
        if self.stop[self.num_matched] == character:
            self.num_matched += 1
        return self.num_matched == len(self.stop)
