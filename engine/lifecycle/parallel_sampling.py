"""Parallel sampling: the `n` samples of one prompt, reported as one request."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from batchmill.engine.request.outputs import RequestOutput, ResumedTokens

from .output_tracker import OutputTracker


class SampleGroup:
    """The samples of one request; each has its own tokens, seed and finish reason.

    The first sample is computed at once. The others are held until it has its first token: by then
    the prompt's blocks are in the prefix cache, so they are shared instead of computed `n` times.
    """

    def __init__(self, request_id: str, trackers: Sequence[OutputTracker]) -> None:
        """Make a group of prepared requests."""
        self.request_id = request_id
        self.trackers = tuple(trackers)
        self._held = list(trackers[1:])
        # A sample that its resumed tokens finished counts as finished once that is reported.
        self._latest = [replace(tracker.peek_output(), finish_reason=None) for tracker in trackers]

    def set_latest(self, tracker: OutputTracker, output: RequestOutput) -> None:
        """Store a sample's latest output."""
        self._latest[self.trackers.index(tracker)] = output

    def take_unheld(self) -> list[OutputTracker]:
        """Return the samples that need not be held any longer, each once."""
        first = self._latest[0]
        if not self._held or not (first.token_ids or first.finished):
            return []
        unheld, self._held = self._held, []
        return unheld

    def take_output(self) -> RequestOutput:
        """Return one output for all samples."""
        output = RequestOutput.of_samples(tuple(self._latest))
        # The first sample's new tokens are reported once, even if the next output is another's.
        self._latest[0] = self.trackers[0].peek_output()
        return output


def sample_id(request_id: str, index: int) -> str:
    """Return the engine's internal id of one sample; the first has the request's id."""
    return request_id if index == 0 else f"{request_id}\0{index}"


def sample_seed(seed: int, index: int) -> int:
    """Return the seed of one sample: the first has the request's, the others a hash of it.

    Returns:
        A 64-bit signed integer.
    """
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}\0{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def resumed_samples(token_ids: Sequence[int], n: int) -> ResumedTokens:
    """Return the resumed tokens of each of `n` samples, from those of the first.

    Only the first sample's tokens are checkpointed; the others are generated again.
    """
    return [token_ids, *[()] * (n - 1)] if n > 1 else token_ids
