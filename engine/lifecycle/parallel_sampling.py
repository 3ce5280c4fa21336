"""Several samples of one prompt, reported as one request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from batchmill.engine.request.outputs import RequestOutput

from .output_tracker import OutputTracker


class SampleGroup:
    """The samples of one request: each has tokens, a seed and an end of its own.

    The first one is computed at once. The others are held until it has its first token: then the
    prompt's blocks are in the prefix cache, and are shared instead of computed `n` times.
    """

    def __init__(self, request_id: str, trackers: Sequence[OutputTracker]) -> None:
        """Make a group of prepared requests."""
        self.request_id = request_id
        self.trackers = tuple(trackers)
        self._held = list(trackers[1:])
        # One that its resumed tokens ended has ended for the group when it has been reported.
        self._latest = [replace(tracker.peek_output(), finish_reason=None) for tracker in trackers]

    def note(self, tracker: OutputTracker, output: RequestOutput) -> None:
        """Remember a sample's latest output."""
        self._latest[self.trackers.index(tracker)] = output

    def take_ready(self) -> list[OutputTracker]:
        """The samples that need not be held any longer; each is given once."""
        first = self._latest[0]
        if not self._held or not (first.token_ids or first.finished):
            return []
        ready, self._held = self._held, []
        return ready

    def output(self) -> RequestOutput:
        """What the request has to report, of all its samples."""
        output = RequestOutput.of_samples(tuple(self._latest))
        # What was new of the first sample is told once, also where the next news is another's.
        self._latest[0] = self.trackers[0].peek_output()
        return output


def sample_id(request_id: str, index: int) -> str:
    """The engine's own name of one sample; the first one has the request's."""
    return request_id if index == 0 else f"{request_id}\0{index}"


def sample_seed(seed: int, index: int) -> int:
    """The seed of one sample: the first one has the request's, the others a hash of it.

    Returns:
        A 64-bit signed integer.
    """
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}\0{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
