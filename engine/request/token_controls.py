"""Controls of one request that depend on its tokens: penalties, biases, forbidden tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from batchmill.engine.contract.structure_check import TOO_COMPLEX
from batchmill.engine.text.structure import Structure

from .outputs import RequestFailure
from .sampling_params import SamplingParams
from .thinking_budget import ThinkingBudget

_FIRST_CAPACITY = 64


class RequestControls:
    """One request's controls that need more than one number per row. Imports no torch.

    Its state is a function of the prompt and the output tokens: `catch_up` reads the tokens that it
    has not seen, so a resumed or preempted request, and a step that is computed again, find the
    same state.

    Attributes:
        params: The request's sampling parameters.
        structure: Structure of the output; None if any text will do.
        thinking: Budget of its thoughts; None if they have none.
        counts: Tokens seen; None if no penalty needs them.
        biases: Token ids and the biases of their logits; None if there are none.
        allowed: The only token ids that may be generated, [num_allowed] int64; None allows all.
        is_exhausted: Whether a step found every token forbidden.
    """

    __slots__ = (
        "_bad_words",
        "_ending_token_ids",
        "_history",
        "_ngrams",
        "_num_seen",
        "allowed",
        "biases",
        "counts",
        "is_exhausted",
        "params",
        "structure",
        "thinking",
    )

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        *,
        ending_token_ids: frozenset[int] = frozenset(),
        bad_word_token_ids: Sequence[Sequence[int]] = (),
        structure: Structure | None = None,
        thinking: ThinkingBudget | None = None,
    ) -> None:
        """Begin at the start of the output.

        Args:
            params: The request's sampling parameters.
            prompt_token_ids: Its prompt.
            ending_token_ids: Tokens that end it; forbidden while it is under `min_tokens`.
            bad_word_token_ids: Runs of tokens that must not occur in prompt and output.
            structure: Structure of its output.
            thinking: Budget of its thoughts; whoever reads the text tells it of each token.
        """
        self.params = params
        self.thinking = thinking
        self.structure = structure
        self.is_exhausted = False
        self._num_seen = 0
        self._ending_token_ids = list(ending_token_ids) if params.min_tokens else []
        self.counts = _counts(params, prompt_token_ids)
        self.biases = _biases(params)
        allowed = params.allowed_token_ids
        self.allowed = None if allowed is None else np.unique(np.array(allowed, dtype=np.int64))
        self._bad_words = _BadWords(bad_word_token_ids) if bad_word_token_ids else None
        size = params.no_repeat_ngram_size
        self._ngrams = _Ngrams(size, prompt_token_ids) if size else None
        # Only bad words need the tokens themselves.
        self._history = list(prompt_token_ids) if self._bad_words is not None else []

    @property
    def can_forbid(self) -> bool:
        """Whether it can ever forbid single tokens; see `forbidden`."""
        return bool(self._ending_token_ids or self._bad_words or self._ngrams)

    @property
    def forbids_by_history(self) -> bool:
        """Whether the tokens before decide which tokens it forbids."""
        return bool(self._bad_words or self._ngrams)

    @property
    def ending_token_ids(self) -> list[int]:
        """Tokens that are forbidden while the request is under `min_tokens`."""
        return self._ending_token_ids

    @property
    def is_restrictive(self) -> bool:
        """Whether it can ever forbid every token."""
        return self.can_forbid or self.allowed is not None or self.structure is not None

    @property
    def follows_tokens(self) -> bool:
        """Whether any of its controls depends on the output tokens."""
        is_counted = self.counts is not None or self.can_forbid
        return is_counted or self.structure is not None or self.thinking is not None

    @property
    def is_structure_alone(self) -> bool:
        """Whether of its controls only the structure depends on the output tokens."""
        is_counted = self.counts is not None or self.allowed is not None or self.can_forbid
        return self.structure is not None and self.thinking is None and not is_counted

    @property
    def is_needed(self) -> bool:
        """Whether it has any effect; a request without one keeps no controls."""
        is_weighted = self.counts is not None or self.biases is not None
        return self.is_restrictive or is_weighted or self.thinking is not None

    @property
    def failure(self) -> RequestFailure:
        """Why no token is left, once it is exhausted."""
        limit_error = None if self.structure is None else self.structure.limit_error
        if limit_error is not None:
            return RequestFailure(TOO_COMPLEX, limit_error)
        names = self._names_of_restrictions()
        these = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} together"
        forbid = "forbids" if len(names) == 1 else "forbid"
        return RequestFailure(
            "no_token_left",
            f"{these} {forbid} every next token: loosen {'it' if len(names) == 1 else 'one'}",
        )

    def _names_of_restrictions(self) -> list[str]:
        """Return the fields of the request that can forbid tokens."""
        fields = {
            self._name_of_structure(): self.structure,
            "allowed_token_ids": self.allowed is not None,
            "bad_words": self._bad_words,
            "no_repeat_ngram_size": self._ngrams,
            "min_tokens": self._ending_token_ids,
        }
        return [name for name, given in fields.items() if given]

    def _name_of_structure(self) -> str:
        if self.params.grammar is None:
            return "tool_choice"
        return "response_format" if self.params.structured_outputs is None else "structured_outputs"

    def catch_up(self, output_token_ids: Sequence[int]) -> None:
        """Read the output tokens that were not seen yet."""
        for index in range(self._num_seen, len(output_token_ids)):
            token_id = output_token_ids[index]
            if self.counts is not None:
                self.counts.add_output(token_id)
            if self._ngrams is not None:
                self._ngrams.append(token_id)
            if self._bad_words is not None:
                self._history.append(token_id)
        self._num_seen = max(self._num_seen, len(output_token_ids))

    def forbidden(self) -> list[int]:
        """Return token ids that must not come next; an id may occur twice."""
        found: list[int] = []
        if self._num_seen < self.params.min_tokens:
            found += self._ending_token_ids
        if self._bad_words is not None:
            found += self._bad_words.completed_by_next(self._history)
        if self._ngrams is not None:
            found += self._ngrams.repeated_by_next()
        return found


class TokenCounts:
    """The distinct tokens of a request, and how often each occurs in its output.

    Arrays grow by doubling, so that a step takes views of them instead of building new ones.
    """

    __slots__ = ("_counts", "_slots", "_token_ids")

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._token_ids = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self._counts = np.zeros(_FIRST_CAPACITY, dtype=np.float32)

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """Distinct token ids, [num_distinct] int64, in order of appearance."""
        return self._token_ids[: len(self._slots)]

    @property
    def output_counts(self) -> NDArray[np.float32]:
        """How often each of `token_ids` occurs in the output, [num_distinct] float32."""
        return self._counts[: len(self._slots)]

    def add_prompt(self, token_ids: Sequence[int]) -> None:
        """Add the prompt's tokens, without counting them."""
        for token_id in token_ids:
            self._slot(token_id)

    def add_output(self, token_id: int) -> None:
        """Count one output token."""
        slot = self._slot(token_id)  # may replace the arrays by larger ones
        self._counts[slot] += 1

    def _slot(self, token_id: int) -> int:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._token_ids[slot] = token_id
        return slot


class _BadWords:
    """Finds the tokens that would complete a forbidden run.

    Runs are looked up by their last but one token, so that a thousand words cost a step hardly more
    than one word.
    """

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._single_token_ids = [word[0] for word in words if len(word) == 1]
        self._longer: dict[int, list[tuple[list[int], int]]] = {}
        for word in words:
            if len(word) > 1:
                self._longer.setdefault(word[-2], []).append((list(word[:-1]), word[-1]))

    def completed_by_next(self, history: Sequence[int]) -> list[int]:
        return self._single_token_ids + [
            last
            for head, last in self._longer.get(history[-1], ())
            if history[-len(head) :] == head
        ]


class _Ngrams:
    """Remembers the tokens that followed each run of `size - 1` tokens."""

    def __init__(self, size: int, token_ids: Sequence[int]) -> None:
        self._size = size
        self._followers: dict[tuple[int, ...], list[int]] = {}
        self._tail: tuple[int, ...] = ()
        for token_id in token_ids:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        if len(self._tail) == self._size - 1:
            self._followers.setdefault(self._tail, []).append(token_id)
        self._tail = (*self._tail, token_id)[1 - self._size :] if self._size > 1 else ()

    def repeated_by_next(self) -> list[int]:
        return self._followers.get(self._tail, [])


def _counts(params: SamplingParams, prompt_token_ids: Sequence[int]) -> TokenCounts | None:
    if (
        params.repetition_penalty == 1
        and params.presence_penalty == 0
        and params.frequency_penalty == 0
    ):
        return None
    counts = TokenCounts()
    if params.repetition_penalty != 1:
        counts.add_prompt(prompt_token_ids)
    return counts


def _biases(params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    pairs = params.bias_by_token_id
    if not pairs:
        return None
    return (
        np.array(list(pairs), dtype=np.int64),
        np.array(list(pairs.values()), dtype=np.float32),
    )
