"""The waiting requests, and which of them is admitted next."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

from batchmill.engine.request.request import Request

#: Waiting requests searched for a prefix that they share with the request admitted last.
WINDOW = 16
#: Most later requests that may overtake a request because of a shared prefix.
MAX_OVERTAKEN = 16


class WaitingQueue:
    """Waiting requests in order of rank.

    Requests that begin with the same blocks are admitted one after another, so that these blocks
    are computed and held once. For this, requests of the same priority may overtake a request, at
    most `MAX_OVERTAKEN` times; and they may while its LoRA adapter is not in memory.

    Source: shared prefixes scheduled together, Zheng et al. 2024 (SGLang), section 3; here bounded.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def add(self, request: Request) -> None:
        """Insert a request at the place that its rank gives it."""
        insort(self._requests, request, key=rank_of)

    def remove(self, request: Request) -> None:
        """Take a request out."""
        index = bisect_left(self._requests, request.rank, key=rank_of)
        assert self._requests[index] is request, f"{request.request_id} does not wait"
        del self._requests[index]

    def first(self) -> Request | None:
        """Return the request that is first in rank, or None if none waits."""
        return self._requests[0] if self._requests else None

    def admit(self, request: Request) -> None:
        """Take a request out to run, and count it for each request that it overtook."""
        for other in self._requests:
            if other is request:
                break
            other.num_overtaken += 1
        self.remove(request)

    def next_after(
        self,
        admitted: Request | None,
        hash_blocks: Callable[[Request], Sequence[bytes]],
        is_ready: Callable[[Request], bool] | None = None,
    ) -> Request | None:
        """Return the request that shares the longest prefix with `admitted`; else the first.

        Args:
            admitted: The request admitted last; None compares no prefixes.
            hash_blocks: Returns the chained hashes of a request's full blocks.
            is_ready: Returns whether a request may be admitted now; None lets all of them.

        Returns:
            None if none is ready, among those that may be overtaken and the first that may not.
        """
        best, best_length = None, -1
        for request in self.window():
            if is_ready is None or is_ready(request):
                length = 0
                if admitted is not None:
                    length = _num_common(hash_blocks(request), admitted.block_hashes)
                if length > best_length:
                    best, best_length = request, length
            if request.num_overtaken >= MAX_OVERTAKEN:
                break
        return best

    def window(self) -> Iterator[Request]:
        """Yield the next requests of the first one's priority, in order of rank."""
        for request in self._requests[:WINDOW]:
            if request.priority != self._requests[0].priority:
                return
            yield request


def rank_of(request: Request) -> tuple[float, int]:
    """Return the sort key of requests: the lowest goes first."""
    return request.rank


def _num_common(some: Sequence[bytes], others: Sequence[bytes]) -> int:
    """Count the leading blocks that two requests share."""
    num_common = 0
    for one, other in zip(some, others, strict=False):
        if one != other:
            break
        num_common += 1
    return num_common
