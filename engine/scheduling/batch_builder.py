"""A step's chunks, being put together under the token budget."""

from __future__ import annotations

from batchmill.engine.request.request import Request
from batchmill.engine.request.scores import TokenScores

from .scheduled_batch import ScheduledRequest

#: Most known tokens scored in one step, to bound the logits: 256 rows of 128,000 are 131 MB.
MAX_SCORED_TOKENS = 256


class BatchBuilder:
    """The chunks of a step, and what is left of the token budget."""

    __slots__ = ("_num_free_scores", "chunks", "num_free_tokens")

    def __init__(self, num_free_tokens: int) -> None:
        self.num_free_tokens = num_free_tokens
        self._num_free_scores = MAX_SCORED_TOKENS
        self.chunks: list[ScheduledRequest] = []

    def place(self, request: Request, num_uncomputed_tokens: int) -> ScheduledRequest | None:
        """Schedule as many of the request's uncomputed tokens as the budget has left, if any."""
        num_new_tokens = min(num_uncomputed_tokens, self.num_free_tokens)
        scored = range(0)
        if request.scores is not None and request.scores.is_pending:
            num_new_tokens, scored = self._limit_scores(request, request.scores, num_new_tokens)
        if num_new_tokens == 0:
            return None
        self.num_free_tokens -= num_new_tokens
        item = ScheduledRequest(
            request,
            request.num_computed_tokens,
            num_new_tokens,
            num_new_tokens == num_uncomputed_tokens,
            scored,
        )
        self.chunks.append(item)
        return item

    def place_drafts(self, request: Request, draft_token_ids: tuple[int, ...]) -> None:
        """Schedule a request's last token, which is in the budget already, and drafts after it."""
        num_drafts = len(draft_token_ids)
        self.num_free_tokens -= num_drafts
        self.chunks.append(
            ScheduledRequest(
                request,
                request.num_computed_tokens,
                1 + num_drafts,
                samples=True,
                draft_token_ids=draft_token_ids,
            )
        )

    def _limit_scores(
        self, request: Request, scores: TokenScores, num_new_tokens: int
    ) -> tuple[int, range]:
        """How many tokens may be computed, and which positions they score.

        A position is scored by the logits of the token before it.
        """
        start, first = request.num_computed_tokens, scores.next_position
        if first + self._num_free_scores < scores.end_position:
            num_new_tokens = min(num_new_tokens, first - 1 - start + self._num_free_scores)
        scored = range(first, max(first, min(start + num_new_tokens + 1, scores.end_position)))
        self._num_free_scores -= len(scored)
        return num_new_tokens, scored
