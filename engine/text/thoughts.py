"""Thoughts in an output: the text that a reasoning model writes before it answers."""

from __future__ import annotations

import re
from typing import Final

#: What models write around their thoughts: the ends by the beginnings.
THOUGHTS: Final = {"<think>": "</think>", "[THINK]": "[/THINK]"}
THOUGHT_START: Final = re.compile("|".join(map(re.escape, THOUGHTS)))
#: All of them; some tokenizers have them as special tokens.
THOUGHT_MARKERS: Final = (*THOUGHTS, *THOUGHTS.values())
#: "auto" takes thoughts out of the text if the chat template has their markup; "none" leaves them.
REASONING_PARSERS: Final = ("auto", "none")


def end_of_open_thought(prompt: str) -> str:
    """Return what ends the thought that a prompt begins for the model; "" if it begins none."""
    prompt = prompt.rstrip()
    return next((end for start, end in THOUGHTS.items() if prompt.endswith(start)), "")


def writes_thoughts(template: str) -> bool:
    """Return whether a chat template has the markup of thoughts."""
    return any(marker in template for marker in THOUGHT_MARKERS)


class Thoughts:
    """Collects the thoughts of one output."""

    def __init__(self) -> None:
        self._parts: list[list[str]] = []

    def begin(self) -> None:
        """Begin a thought."""
        self._parts.append([])

    def append(self, text: str) -> None:
        """Append a piece to the thought that has begun."""
        self._parts[-1].append(text)

    @property
    def text(self) -> str:
        """The thoughts, without the blanks around each, and with an empty line between two."""
        stripped = ("".join(part).strip() for part in self._parts)
        return "\n\n".join(part for part in stripped if part)
