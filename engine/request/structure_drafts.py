"""Draft tokens of a structured output: those that its structure forces, or allows of a lookup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .prompt_lookup import PromptLookup

if TYPE_CHECKING:  # it imports tokenizers, which tools without a model do not have
    from batchmill.engine.text.structure import Structure


class StructureDrafter:
    """Proposes draft tokens for one request whose output follows a structure.

    Where the structure allows only one text (the name of a key, the rest of a choice), its usual
    tokens are proposed without asking the model. Another split of the same text stays possible, so
    they are drafts like others: each counts only if the token sampled at its place equals it.
    """

    __slots__ = ("_lookup", "_structure")

    def __init__(self, structure: Structure, lookup: PromptLookup | None) -> None:
        """Bind to the request's structure.

        Args:
            structure: Has seen all output tokens whenever a proposal is asked for.
            lookup: Proposes other tokens; None if there are none.
        """
        self._structure = structure
        self._lookup = lookup

    def forced(self, max_tokens: int) -> tuple[int, ...]:
        """Return the next tokens that the structure forces, at most `max_tokens`."""
        return self._structure.forced_tokens()[:max_tokens] if max_tokens > 0 else ()

    def propose(self, output_token_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Propose tokens of the lookup, up to the first that the structure does not allow."""
        if self._lookup is None:
            return ()
        drafts = self._lookup.propose(output_token_ids, max_tokens)
        return drafts[: self._structure.num_allowed(drafts)]
