"""Extraction of tool calls from one growing output; other text passes through."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Sequence, Set
from typing import Final

from .tool_calls import ToolCall, ToolCallFormat, find_marker

#: What reasoning models write around their thoughts: the ends by the beginnings.
_THOUGHTS: Final = {"<think>": "</think>", "[THINK]": "[/THINK]"}
_THOUGHT_START: Final = re.compile("|".join(map(re.escape, _THOUGHTS)))


def end_of_open_thought(prompt: str) -> str:
    """Return what ends the thought that a prompt begins for the model; "" if it begins none."""
    prompt = prompt.rstrip()
    return next((end for start, end in _THOUGHTS.items() if prompt.endswith(start)), "")


class ToolCallReader:
    """Holds back text that may be a call, and extracts the calls at the output's end.

    Text that passed through is never retracted: the markup of a malformed call becomes text at the
    output's end. The result does not depend on how the text is split into pieces.

    A thought before the first call is text, and so is a call inside it: the model only considers
    that one.
    """

    def __init__(
        self,
        form: ToolCallFormat,
        names: Set[str],
        *,
        is_single_call: bool,
        prompt_token_ids: Sequence[int],
        seed: int,
        end_of_thought: str = "",
    ) -> None:
        """Begin an output.

        Args:
            form: Format of the model's calls.
            names: Functions that it may call.
            is_single_call: Whether the output is complete with its first call.
            prompt_token_ids: The prompt; ids of calls are derived from it and the seed.
            seed: Seed of the request, 64-bit signed.
            end_of_thought: What ends the thought in which the output begins; "" if in none.
        """
        self.calls: tuple[ToolCall, ...] = ()
        self.is_for_single_call = is_single_call
        self._form = form
        self._names = names
        self._held = ""
        self._is_beginning = True
        self._end_of_thought = end_of_thought
        # A resumed request makes the same ids; the next turn of the same chat makes others.
        self._id_root = array("q", [seed, *prompt_token_ids]).tobytes()

    @property
    def has_call(self) -> bool:
        """Whether the text held back contains a complete call."""
        # In every format, a call's object ends with a brace.
        return "}" in self._held and bool(self._form.parse(self._held, self._names).calls)

    def append(self, text: str) -> str:
        """Append a piece of the output; return what is now certain to be text."""
        self._held += text
        shown = ""
        # Each round but the last ends at the beginning or the end of a thought.
        while (end := self._next_turn()) is not None:
            shown += self._take(end)
            self._is_beginning = not self._end_of_thought  # the answer begins again after a thought
        return shown + self._take(self._num_certain())

    def _next_turn(self) -> int | None:
        """Return where the next thought begins, or this one ends; None if that is not there yet."""
        if self._end_of_thought:
            end = self._held.find(self._end_of_thought)
            if end < 0:
                return None
            end += len(self._end_of_thought)
            self._end_of_thought = ""
            return end
        before_call = self._form.find_start(self._held, is_beginning=self._is_beginning)
        start = _THOUGHT_START.search(self._held, 0, before_call)
        if start is None:
            return None
        self._end_of_thought = _THOUGHTS[start[0]]
        return start.end()

    def _num_certain(self) -> int:
        if self._end_of_thought:
            return find_marker(self._held, self._end_of_thought)
        before_call = self._form.find_start(self._held, is_beginning=self._is_beginning)
        return min(before_call, *(find_marker(self._held, start) for start in _THOUGHTS))

    def _take(self, num_characters: int) -> str:
        taken, self._held = self._held[:num_characters], self._held[num_characters:]
        self._is_beginning = self._is_beginning and not taken
        return taken

    def finish(self) -> str:
        """End the output: set `calls`, and return the rest of the text."""
        if self._end_of_thought:
            rest, self._held = self._held, ""
            return rest
        parsed = self._form.parse(self._held, self._names)
        self._held = ""
        self.calls += tuple(
            ToolCall(self._call_id(index), call.name, call.arguments)
            for index, call in enumerate(parsed.calls)
        )
        return parsed.text

    def _call_id(self, index: int) -> str:
        digest = hashlib.blake2b(self._id_root + array("q", [index]).tobytes(), digest_size=12)
        length = self._form.id_length
        # Mistral's ids consist of letters and digits only.
        return ("call_" if length > 9 else "") + digest.hexdigest()[:length]
