"""Extraction of tool calls from one growing output; other text passes through."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence, Set

from .tool_calls import ToolCall, ToolCallFormat


class ToolCallReader:
    """Holds back text that may be a call, and extracts the calls at the output's end.

    Text that passed through is never retracted: the markup of a malformed call becomes text at the
    output's end. The result does not depend on how the text is split into pieces.
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
            form: Format of the model's calls.
            names: Functions that it may call.
            is_single_call: Whether the output is complete with its first call.
            prompt_token_ids: The prompt; ids of calls are derived from it and the seed.
            seed: Seed of the request, 64-bit signed.
        """
        self.calls: tuple[ToolCall, ...] = ()
        self.is_for_single_call = is_single_call
        self._form = form
        self._names = names
        self._held = ""
        self._is_beginning = True
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
        num_certain = self._form.find_start(self._held, is_beginning=self._is_beginning)
        certain, self._held = self._held[:num_certain], self._held[num_certain:]
        self._is_beginning = self._is_beginning and not certain
        return certain

    def finish(self) -> str:
        """End the output: set `calls`, and return the rest of the text."""
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
