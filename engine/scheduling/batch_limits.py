"""The size limits of a step, which shrink for a while after a step ran out of memory."""

from __future__ import annotations

from .scheduled_batch import ScheduledBatch

#: Steps that have to succeed before the limits are doubled again.
STEPS_TO_GROW = 32
#: After this many failures in a row alone in a batch, a request ends with an error.
MAX_FAILURES_ALONE = 3


class BatchLimits:
    """Owns the two budgets of a step; halves them when memory runs out and lets them grow back.

    Invariant: 1 <= `max_num_seqs` <= `max_num_batched_tokens`, and neither exceeds its configured
    value. So every running request gets its token in every step.
    """

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._configured = (max_num_seqs, max_num_batched_tokens)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self._num_good_steps = 0
        self._num_failures_alone = 0

    def note_success(self) -> None:
        """Count a computed step; after `STEPS_TO_GROW` of them, double the limits."""
        self._num_failures_alone = 0
        if (self.max_num_seqs, self.max_num_batched_tokens) == self._configured:
            return
        self._num_good_steps += 1
        if self._num_good_steps >= STEPS_TO_GROW:
            self._num_good_steps = 0
            most_seqs, most_tokens = self._configured
            self.max_num_seqs = min(2 * self.max_num_seqs, most_seqs)
            self.max_num_batched_tokens = min(2 * self.max_num_batched_tokens, most_tokens)

    def make_room_for_pair(self) -> None:
        """Raise the limits so far that a guided request and its guide fit into a step."""
        self.max_num_seqs = max(2, self.max_num_seqs)
        self.max_num_batched_tokens = max(2, self.max_num_batched_tokens)

    def note_out_of_memory(self, batch: ScheduledBatch, *, least_num_seqs: int = 1) -> bool:
        """Halve the limits, relative to a step that ran out of memory.

        Args:
            batch: The step.
            least_num_seqs: Requests that a step must have room for.

        Returns:
            True if the step held a single request that has now failed too often.
        """
        self._num_good_steps = 0
        num_seqs = batch.num_seqs - batch.num_guides
        self.max_num_seqs = max(least_num_seqs, batch.num_seqs // 2)
        self.max_num_batched_tokens = max(self.max_num_seqs, batch.num_tokens // 2)
        if num_seqs > 1 or batch.has_drafts:
            # A single request may still fit without drafts: half the budget leaves no room for any.
            self._num_failures_alone = 0
            return False
        self._num_failures_alone += 1
        if self._num_failures_alone < MAX_FAILURES_ALONE:
            return False
        self._num_failures_alone = 0
        return True
