"""Prompt lookup: draft tokens copied from an earlier place that ends in the same tokens."""

from __future__ import annotations

from collections.abc import Sequence


class PromptLookup:
    """Proposes draft tokens for one request from its own prompt and output.

    It finds the longest n-gram (`min_ngram` to `max_ngram` tokens) that they end with and that
    occurred before, and proposes the tokens after its latest earlier occurrence. It proposes as
    many tokens as match before the two places, so a chance match costs little, and a copy is
    proposed in pieces that double. A proposal that reaches the end of the known tokens continues
    with its own tokens, as a repetition does.

    A proposal depends on the tokens alone: a step that is scheduled again proposes the same.

    Source: prompt lookup decoding, Saxena 2023; proposals that run into themselves as in the
    overlapping copies of Ziv and Lempel 1977.
    """

    __slots__ = ("_max_ngram", "_min_ngram", "_num_indexed", "_num_prompt", "_places", "_token_ids")

    def __init__(self, prompt_token_ids: Sequence[int], *, min_ngram: int, max_ngram: int) -> None:
        """Store the prompt; it is indexed at the first proposal.

        Args:
            prompt_token_ids: The request's prompt.
            min_ngram: Shortest n-gram that must match, at least 1.
            max_ngram: Longest n-gram that is searched for.
        """
        self._token_ids = list(prompt_token_ids)
        self._num_prompt = len(self._token_ids)
        self._min_ngram, self._max_ngram = min_ngram, max_ngram
        # For each length from `min_ngram` on: the end (exclusive) of the latest equal n-gram.
        self._places: list[dict[tuple[int, ...], int]] = [
            {} for _ in range(min_ngram, max_ngram + 1)
        ]
        self._num_indexed = 0

    def propose(self, output_token_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Propose the next tokens.

        Args:
            output_token_ids: All output tokens; those of the last call, and possibly more.
            max_tokens: Most tokens to propose.

        Returns:
            An empty tuple if the last tokens of prompt and output did not occur before.
        """
        known = self._token_ids
        known += output_token_ids[len(known) - self._num_prompt :]
        self._index_all_but_the_end()
        for size in range(self._max_ngram, self._min_ngram - 1, -1):
            place = self._places[size - self._min_ngram].get(tuple(known[-size:]))
            if place is not None:
                num_tokens = self._num_matching(place, size, max_tokens)
                period = len(known) - place
                return tuple(known[place + index % period] for index in range(num_tokens))
        return ()

    def _num_matching(self, place: int, num_known: int, most: int) -> int:
        """Count the equal tokens before a place and before the end, up to `most`."""
        known, count = self._token_ids, num_known
        while count < min(most, place) and known[place - 1 - count] == known[-1 - count]:
            count += 1
        return min(count, most)

    def _index_all_but_the_end(self) -> None:
        """Index the ends of all n-grams that are followed by a token."""
        known = self._token_ids
        for end in range(self._num_indexed + 1, len(known)):
            for size, places in enumerate(self._places, start=self._min_ngram):
                if size <= end:
                    places[tuple(known[end - size : end])] = end
        self._num_indexed = max(self._num_indexed, len(known) - 1)
