"""The calls in one growing output: text that is certain to be none is let through."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence, Set

from .tool_calls import ToolCall, ToolCallFormat


class ToolCallReader:
    """Holds back what may be a call, and takes the calls out at the output's end.

    Text that was let through is never taken back: the markup of a call that goes wrong comes as
    text with the output's end. A function of the output's text alone, however it is cut.
    """

    def __init__(
        self,
        form: ToolCallFormat,
        names: Set[str],
        *,
        is_single_call: bool,
        prompt_token_ids: Sequence[int],
        seed: int,
    ) -> None:
        """Begin an output.

        Args:
            form: How the model spells calls.
            names: Functions that it may call.
            is_single_call: Whether the output is complete with its first call.
            prompt_token_ids: With the seed, where the ids of calls come from.
            seed: The request's, 64-bit signed.
        """
        self.calls: tuple[ToolCall, ...] = ()
        self.is_for_single_call = is_single_call
        self._form = form
        self._names = names
        self._held = ""
        self._is_beginning = True
        # A resumed request makes the same ids, and another turn of the same chat makes others.
        self._id_root = array("q", [seed, *prompt_token_ids]).tobytes()

    @property
    def has_call(self) -> bool:
        """Whether what is held back holds a call by now."""
        # Whatever the spelling, a call's object ends with a brace.
        return "}" in self._held and bool(self._form.parse(self._held, self._names).calls)

    def append(self, text: str) -> str:
        """Take a piece of the output; what is certain to be text by now."""
        self._held += text
        num_certain = self._form.find_start(self._held, is_beginning=self._is_beginning)
        certain, self._held = self._held[:num_certain], self._held[num_certain:]
        self._is_beginning = self._is_beginning and not certain
        return certain

    def finish(self) -> str:
        """End the output: its calls are in `calls`, and what is left of its text is returned."""
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
        # Mistral's ids are nothing but letters and digits.
        return ("call_" if length > 9 else "") + digest.hexdigest()[:length]
