"""A step being put together under its token budget."""

from __future__ import annotations

from .request import Request
from .schedule import ScheduledRequest


class StepPlan:
    """A step being put together: what is scheduled, and what is left of the token budget."""

    __slots__ = ("num_free_tokens", "scheduled")

    def __init__(self, max_num_batched_tokens: int) -> None:
        self.num_free_tokens = max_num_batched_tokens
        self.scheduled: list[ScheduledRequest] = []

    def place(self, request: Request, num_uncomputed_tokens: int) -> ScheduledRequest | None:
        """Schedule as many of the request's uncomputed tokens as the budget has left, if any."""
        num_new_tokens = min(num_uncomputed_tokens, self.num_free_tokens)
        if num_new_tokens == 0:
            return None
        self.num_free_tokens -= num_new_tokens
        request.is_trusted = False
        item = ScheduledRequest(
            request,
            request.num_computed_tokens,
            num_new_tokens,
            num_new_tokens == num_uncomputed_tokens,
        )
        self.scheduled.append(item)
        return item
