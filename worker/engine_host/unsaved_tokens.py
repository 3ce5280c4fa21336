"""Counts the tokens that the engine has computed and the worker has not saved yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .messages import Finished, NewOutput


class UnsavedTokens:
    """Knows whether the engine may compute another step.

    If the worker is killed, tokens that it has not saved are computed again. So the engine waits
    when any request has as many of them as a limit; in the normal case the worker saves in time.
    """

    def __init__(self, limit: int) -> None:
        """Set the limit: unsaved tokens of one request at which the engine waits."""
        self._limit = limit
        self._num_unsaved: dict[str, int] = {}
        #: Each report that is not saved: its number, its requests, and their tokens.
        self._reports: deque[tuple[int, list[tuple[str, int]]]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether a request has reached the limit."""
        return max(self._num_unsaved.values(), default=0) >= self._limit

    def add(self, number: int, outputs: Sequence[NewOutput], finished: Sequence[Finished]) -> None:
        """Count the tokens of a report. A finished request computes no more, and leaves the count.

        Args:
            number: of the report; each is greater than the one before.
            outputs: new tokens in the report.
            finished: requests that ended with it.
        """
        sizes = [(request_id, len(token_ids)) for request_id, token_ids, _, _ in outputs]
        if sizes:
            self._reports.append((number, sizes))
        for request_id, size in sizes:
            self._num_unsaved[request_id] = self._num_unsaved.get(request_id, 0) + size
        for each in finished:
            self.forget(each.request_id)

    def note_saved(self, number: int) -> None:
        """Note that the tokens of all reports up to a number are saved."""
        while self._reports and self._reports[0][0] <= number:
            for request_id, size in self._reports.popleft()[1]:
                if request_id in self._num_unsaved:
                    self._num_unsaved[request_id] -= size

    def forget(self, request_id: str) -> None:
        """Leave a request out, because it ends: nobody will save its tokens."""
        self._num_unsaved.pop(request_id, None)
