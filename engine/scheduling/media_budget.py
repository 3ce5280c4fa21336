"""Limits how much of pictures and sounds one step turns into features."""

from __future__ import annotations

from batchmill.engine.request.request import Request


class MediaBudget:
    """What is left of a step's budget of feature rows.

    A step that reaches a placeholder of an item computes all features of the item, however few of
    its tokens belong to the step. So chunks end before an item that exceeds the budget; the first
    item of a step always fits. Items whose features a request holds from the step before cost
    nothing. The budget does not know which others are in memory: it counts them all, but each only
    once. A prefix that was found in the cache may end inside an item, which counts as well.

    Source: the encoder budget of vLLM's scheduler.
    """

    __slots__ = ("_counted", "_num_free_rows")

    def __init__(self, num_rows: int) -> None:
        self._num_free_rows = num_rows
        self._counted: set[bytes] = set()

    def limit(self, request: Request, num_new_tokens: int) -> int:
        """Return how many of a request's next tokens the step may compute; count their items."""
        start = request.num_computed_tokens
        if request.media is None:
            return num_new_tokens
        for each in request.media.slices_in(start, start + num_new_tokens):
            digest, num_rows = each.item.digest, each.item.num_features
            held = request.media.held
            is_held = each.start > 0 and held is not None and held[0] is each.item
            if is_held or digest in self._counted:
                continue
            if num_rows > self._num_free_rows and self._counted:
                return int(each.positions[0]) - start
            self._counted.add(digest)
            self._num_free_rows -= num_rows
        return num_new_tokens
