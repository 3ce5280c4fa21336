"""The drafter of a request: it asks its sources for draft tokens, the surest first."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # it imports tokenizers, which tools without a model do not have
    from batchmill.engine.text.structure import Structure

    from .corpus import CorpusLookup


class DraftSource(enum.StrEnum):
    """Where draft tokens come from."""

    #: The structure of the output allows no other text.
    STRUCTURE = "structure"
    #: Outputs of earlier requests of the same kind.
    CORPUS = "corpus"
    #: An earlier place of the request's own prompt and output.
    PROMPT = "prompt"


class Draft(NamedTuple):
    """Draft tokens of one request for one step."""

    token_ids: tuple[int, ...]
    source: DraftSource


class DraftLimits(NamedTuple):
    """Most draft tokens of one request in one step, by source."""

    num_forced_tokens: int = 0
    num_corpus_tokens: int = 0
    #: Least probability that all tokens from the corpus are right.
    corpus_probability: float = 0.5
    num_looked_up_tokens: int = 0

    def within(self, most: int) -> DraftLimits:
        """Return the limits, none of them above `most`."""
        return DraftLimits(
            min(most, self.num_forced_tokens),
            min(most, self.num_corpus_tokens),
            self.corpus_probability,
            min(most, self.num_looked_up_tokens),
        )


class Lookup(Protocol):
    """Proposes tokens from what the request itself has; `PromptLookup` does."""

    def propose(self, output_token_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Propose the next tokens, at most `max_tokens`."""


class Drafter:
    """Proposes draft tokens for one request.

    Where its structure allows only one text (the name of a key, the rest of a choice), its usual
    tokens are proposed without asking the model. Another split of the same text stays possible, so
    they are drafts like others: each counts only if the token sampled at its place equals it.
    """

    __slots__ = ("_corpus", "_lookup", "_structure")

    def __init__(
        self,
        *,
        structure: Structure | None = None,
        corpus: CorpusLookup | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        """Bind to the sources.

        Args:
            structure: What the output follows; it has seen all output tokens whenever a proposal
                is asked for.
            corpus: Outputs of earlier requests.
            lookup: The request's own tokens.
        """
        self._structure = structure
        self._corpus = corpus
        self._lookup = lookup

    @property
    def can_propose(self) -> bool:
        """Whether a source may have tokens now: a corpus without outputs has none."""
        has_own = self._structure is not None or self._lookup is not None
        return has_own or (self._corpus is not None and not self._corpus.is_empty)

    def propose(self, output_token_ids: Sequence[int], limits: DraftLimits) -> Draft | None:
        """Propose the next tokens, of one source; None if there are none.

        Args:
            output_token_ids: All output tokens; those of the last call, and possibly more.
            limits: Most tokens of each source.
        """
        forced = self._forced(limits.num_forced_tokens)
        found = self._from_corpus(output_token_ids, limits)
        # Outputs split the forced text as the model does, and know what comes after it.
        if len(found) > len(forced):
            return Draft(found, DraftSource.CORPUS)
        if forced:
            return Draft(forced, DraftSource.STRUCTURE)
        looked_up = self._looked_up(output_token_ids, limits.num_looked_up_tokens)
        return Draft(looked_up, DraftSource.PROMPT) if looked_up else None

    def _forced(self, most: int) -> tuple[int, ...]:
        if self._structure is None or most <= 0:
            return ()
        return self._structure.forced_tokens()[:most]

    def _from_corpus(self, output_token_ids: Sequence[int], limits: DraftLimits) -> tuple[int, ...]:
        most = limits.num_corpus_tokens
        if self._corpus is None or most <= 0:
            return ()
        drafts = self._corpus.propose(output_token_ids, most, limits.corpus_probability)
        return self._allowed(drafts)

    def _looked_up(self, output_token_ids: Sequence[int], most: int) -> tuple[int, ...]:
        if self._lookup is None or most <= 0:
            return ()
        return self._allowed(self._lookup.propose(output_token_ids, most))

    def _allowed(self, drafts: tuple[int, ...]) -> tuple[int, ...]:
        """Return the drafts before the first that the structure does not allow."""
        if self._structure is None or not drafts:
            return drafts
        return drafts[: self._structure.num_allowed(drafts)]
