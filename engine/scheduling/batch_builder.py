"""The chunks of the next step, added one by one under the token budget."""

from __future__ import annotations

from batchmill.engine.drafts.drafter import Draft
from batchmill.engine.request.request import Request
from batchmill.engine.request.scores import TokenScores

from .media_budget import MediaBudget
from .scheduled_batch import ScheduledRequest

#: Most known tokens scored in one step, to bound the logits: 256 rows of 128,000 are 131 MB.
MAX_SCORED_TOKENS = 256
#: Most draft tokens computed in one step, for the same reason.
MAX_DRAFT_TOKENS = 256


class BatchBuilder:
    """Collects the chunks of a step and counts what is left of the token budget."""

    __slots__ = (
        "_media_budget",
        "_num_free_drafts",
        "_num_free_scores",
        "chunks",
        "num_free_tokens",
        "pooled_chunks",
    )

    def __init__(self, num_free_tokens: int, media_budget: MediaBudget) -> None:
        self._media_budget = media_budget
        self.num_free_tokens = num_free_tokens
        self._num_free_scores = MAX_SCORED_TOKENS
        self._num_free_drafts = MAX_DRAFT_TOKENS
        self.chunks: list[ScheduledRequest] = []
        self.pooled_chunks: list[ScheduledRequest] = []

    def add_chunk(
        self, request: Request, num_uncomputed_tokens: int, *, num_held: int = 0
    ) -> ScheduledRequest | None:
        """Add as many of the request's uncomputed tokens as the budget allows.

        Args:
            request: The request.
            num_uncomputed_tokens: Its uncomputed tokens.
            num_held: The last of them, which a later step computes.

        Returns:
            The chunk, or None if the budget allows no token.
        """
        num_new_tokens = min(num_uncomputed_tokens - num_held, self.num_free_tokens)
        if request.pooling is not None and request.pooling.is_whole:
            # One that exceeds the whole budget has a step of its own.
            is_alone = not self.chunks and not self.pooled_chunks
            if num_new_tokens < num_uncomputed_tokens and not is_alone:
                return None
            num_new_tokens = num_uncomputed_tokens
        # Before the scores are counted: they end with the chunk.
        num_new_tokens = self._media_budget.limit(request, num_new_tokens)
        scored = range(0)
        if request.scores is not None and request.scores.is_pending:
            num_new_tokens, scored = self._limit_scores(request, request.scores, num_new_tokens)
        if num_new_tokens == 0:
            return None
        self.num_free_tokens = max(0, self.num_free_tokens - num_new_tokens)
        item = ScheduledRequest(
            request,
            request.num_computed_tokens,
            num_new_tokens,
            num_new_tokens == num_uncomputed_tokens,
            scored,
        )
        (self.chunks if request.pooling is None else self.pooled_chunks).append(item)
        return item

    @property
    def num_free_drafts(self) -> int:
        """Draft tokens that may still be added."""
        return min(self.num_free_tokens, self._num_free_drafts)

    def add_drafts(self, request: Request, draft: Draft) -> None:
        """Add a decode with draft tokens; its last token is already counted in the budget."""
        num_drafts = len(draft.token_ids)
        self.num_free_tokens -= num_drafts
        self._num_free_drafts -= num_drafts
        self.chunks.append(
            ScheduledRequest(
                request,
                request.num_computed_tokens,
                1 + num_drafts,
                needs_sample=True,
                draft_token_ids=draft.token_ids,
                draft_source=draft.source,
            )
        )

    def _limit_scores(
        self, request: Request, scores: TokenScores, num_new_tokens: int
    ) -> tuple[int, range]:
        """Return how many tokens may be computed, and which positions they score.

        The logits of one token score the token after it.
        """
        start = request.num_computed_tokens
        # Steps in flight score the positions up to `start`.
        first = max(scores.next_position, start + 1)
        if first + self._num_free_scores < scores.end_position:
            num_new_tokens = min(num_new_tokens, first - 1 - start + self._num_free_scores)
        scored = range(first, max(first, min(start + num_new_tokens + 1, scores.end_position)))
        self._num_free_scores -= len(scored)
        return num_new_tokens, scored
