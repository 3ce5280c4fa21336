"""Extraction of thoughts and tool calls from one growing output; other text passes through."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Mapping, Sequence

from .call_reading import find_marker
from .thoughts import THOUGHTS, Thoughts
from .tool_calls import ToolCall, ToolCallFormat


class ToolCallReader:
    """Holds back text that may be a call, and extracts the calls at the output's end.

    Text that passed through is never retracted: the markup of a malformed call becomes text at the
    output's end. The result does not depend on how the text is split into pieces.

    A call inside a thought is none: the model only considers it. A thought before the first call is
    taken out as well, with its markup and the blanks around it; if `thoughts` is None it is text.
    """

    def __init__(
        self,
        form: ToolCallFormat,
        names: Collection[str],
        *,
        is_single_call: bool,
        prompt_token_ids: Sequence[int],
        seed: int,
        end_of_thought: str = "",
        thoughts: Thoughts | None = None,
        thought_markers: Mapping[str, str] = THOUGHTS,
    ) -> None:
        """Begin an output.

        Args:
            form: Format of the model's calls.
            names: Functions that it may call; best a mapping to the schemas of their arguments.
            is_single_call: Whether the output is complete with its first call.
            prompt_token_ids: The prompt; ids of calls are derived from it and the seed.
            seed: Seed of the request, 64-bit signed.
            end_of_thought: What ends the thought in which the output begins; "" if in none.
            thoughts: Takes the thoughts; None leaves them in the text.
            thought_markers: The ends of thoughts by their beginnings; empty if there are none.
        """
        self.thoughts = thoughts
        self.calls: tuple[ToolCall, ...] = ()
        self.is_for_single_call = is_single_call
        self._form = form
        self._thought_markers = thought_markers
        self._names = names
        self._held = ""
        self._is_beginning = True
        self._end_of_thought = end_of_thought
        self._follows_thought = False
        if thoughts is not None and end_of_thought:
            thoughts.begin()
        # A resumed request makes the same ids; the next turn of the same chat makes others.
        self._id_root = array("q", [seed, *prompt_token_ids]).tobytes()

    @property
    def is_thinking(self) -> bool:
        """Whether the output is inside of a thought that is taken out."""
        return self.thoughts is not None and bool(self._end_of_thought)

    @property
    def end_of_thought(self) -> str:
        """What ends the thought that the output is in, taken out or not; "" if in none."""
        return self._end_of_thought

    @property
    def has_call(self) -> bool:
        """Whether the text held back contains a complete call."""
        # In every format, a call ends with a brace, or with a tag.
        return ("}" in self._held or ">" in self._held) and bool(
            self._form.parse(self._held, self._names).calls
        )

    def append(self, text: str) -> str:
        """Append a piece of the output; return what is now certain to be text."""
        self._held += text
        shown = ""
        # Each round but the last ends at the beginning or the end of a thought.
        while (turn := self._next_turn()) is not None:
            shown += self._turn(*turn)
            self._is_beginning = not self._end_of_thought  # the answer begins again after a thought
        certain = self._take(self._num_certain())
        return shown + (self._to_thought(certain) if self.is_thinking else certain)

    def _next_turn(self) -> tuple[int, str] | None:
        """Return where a thought begins or this one ends, and the markup; None if nowhere yet."""
        if self._end_of_thought:
            end = self._held.find(self._end_of_thought)
            return None if end < 0 else (end, self._end_of_thought)
        before_call = self._form.find_start(self._held, is_beginning=self._is_beginning)
        starts = [
            (at, start)
            for start in self._thought_markers
            if (at := self._held.find(start, 0, before_call)) >= 0
        ]
        return min(starts, default=None)

    def _turn(self, position: int, marker: str) -> str:
        """Pass the beginning or the end of a thought; return the text before and of it."""
        was_thinking = self.is_thinking
        self._end_of_thought = "" if self._end_of_thought else self._thought_markers[marker]
        if self.thoughts is None:
            return self._take(position + len(marker))
        before = self._take(position)
        self._held = self._held[len(marker) :]
        if was_thinking:
            self._follows_thought = True
            return self._to_thought(before)
        self.thoughts.begin()
        return before.rstrip()

    def _to_thought(self, text: str) -> str:
        assert self.thoughts is not None
        self.thoughts.append(text)
        return ""

    def _num_certain(self) -> int:
        if self._end_of_thought:
            return find_marker(self._held, self._end_of_thought)
        before_call = self._form.find_start(self._held, is_beginning=self._is_beginning)
        certain = min(
            [before_call, *(find_marker(self._held, start) for start in self._thought_markers)]
        )
        if self.thoughts is None:
            return certain
        # Blanks before a thought are not text.
        return len(self._held[:certain].rstrip())

    def _take(self, num_characters: int) -> str:
        if self._follows_thought and not self._end_of_thought:
            num_blanks = len(self._held) - len(self._held.lstrip())
            self._held = self._held[num_blanks:]
            num_characters = max(0, num_characters - num_blanks)
            self._follows_thought = not self._held
        taken, self._held = self._held[:num_characters], self._held[num_characters:]
        self._is_beginning = self._is_beginning and not taken
        return taken

    def finish(self) -> str:
        """End the output: set `calls`, and return the rest of the text."""
        if self._end_of_thought:
            rest, self._held = self._held, ""
            return self._to_thought(rest) if self.is_thinking else rest
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
