"""The requests that wait, and which of them is admitted next."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

from batchmill.engine.request.request import Request

#: So many waiting requests are looked at for one that begins like the request admitted last.
WINDOW = 16
#: So often may a request be overtaken by later ones for that reason.
MAX_OVERTAKEN = 16


class WaitingQueue:
    """Waiting requests in order of rank.

    Requests that begin with the same blocks are admitted next to each other, so that these blocks
    are computed once and held once. A request is overtaken for this by requests of its own priority
    only, `MAX_OVERTAKEN` times at most.

    Source: shared prefixes scheduled together, Zheng et al. 2024 (SGLang), section 3; here bounded.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def add(self, request: Request) -> None:
        """Let a request wait at the place that its rank gives it."""
        insort(self._requests, request, key=rank_of)

    def remove(self, request: Request) -> None:
        """Take a request out."""
        index = bisect_left(self._requests, request.rank, key=rank_of)
        assert self._requests[index] is request, f"{request.request_id} does not wait"
        del self._requests[index]

    def first(self) -> Request | None:
        """The request whose turn it is."""
        return self._requests[0] if self._requests else None

    def admit(self, request: Request) -> None:
        """Take a request out to run, and note whom it overtook."""
        for other in self._requests:
            if other is request:
                break
            other.num_overtaken += 1
        self.remove(request)

    def next_after(
        self, admitted: Request, hash_blocks: Callable[[Request], Sequence[bytes]]
    ) -> Request | None:
        """The request that begins most like the one admitted last; else the first.

        Args:
            admitted: The one admitted last.
            hash_blocks: Chained hashes of a request's full blocks.
        """
        best, best_length = self.first(), -1
        for request in self._window():
            length = _num_common(hash_blocks(request), admitted.block_hashes)
            if length > best_length:
                best, best_length = request, length
            if request.num_overtaken >= MAX_OVERTAKEN:
                break
        return best

    def _window(self) -> Iterator[Request]:
        for request in self._requests[:WINDOW]:
            if request.priority != self._requests[0].priority:
                return
            yield request


def rank_of(request: Request) -> tuple[float, int]:
    """What requests are ordered by."""
    return request.rank


def _num_common(some: Sequence[bytes], others: Sequence[bytes]) -> int:
    """How many leading blocks two requests share."""
    num_common = 0
    for one, other in zip(some, others, strict=False):
        if one != other:
            break
        num_common += 1
    return num_common
