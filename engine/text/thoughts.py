"""Thoughts in an output: the text that a reasoning model writes before it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What models write around their thoughts: the ends by the beginnings.
THOUGHTS: Final = {"<think>": "</think>", "[THINK]": "[/THINK]"}
#: All of them; some tokenizers have them as special tokens.
THOUGHT_MARKERS: Final = (*THOUGHTS, *THOUGHTS.values())
#: "auto" takes thoughts out of the text if the chat template has their markup; "none" leaves them.
REASONING_PARSERS: Final = ("auto", "none")


def end_of_open_thought(prompt: str, thoughts: Mapping[str, str] = THOUGHTS) -> str:
    """Return what ends the thought that a prompt begins for the model; "" if it begins none."""
    prompt = prompt.rstrip()
    return next((end for start, end in thoughts.items() if prompt.endswith(start)), "")


def writes_thoughts(template: str) -> bool:
    """Return whether a chat template has the markup of thoughts."""
    return any(marker in template for marker in THOUGHT_MARKERS)


class Thoughts:
    """Collects the thoughts of one output, in pieces that are never taken back.

    Blanks around a thought are left out, and an empty line stands between two.

    Attributes:
        pieces: Joined, they are the thoughts so far. Only ever appended to.
    """

    def __init__(self) -> None:
        self.pieces: list[str] = []
        # Blanks that belong to the thought if more of it follows.
        self._blanks = ""
        self._is_begun = False

    def begin(self) -> None:
        """Begin a thought."""
        self._blanks = ""
        self._is_begun = False

    def append(self, text: str) -> None:
        """Append a piece to the thought that has begun."""
        text = self._blanks + text if self._is_begun else text.lstrip()
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        if kept:
            gap = "" if self._is_begun or not self.pieces else "\n\n"
            self.pieces.append(gap + kept)
            self._is_begun = True

    @property
    def text(self) -> str:
        """The thoughts so far."""
        return "".join(self.pieces)
