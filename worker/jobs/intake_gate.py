"""The intake gate: decides when the worker asks its queues for another job."""

from __future__ import annotations

from collections.abc import Callable

from batchmill.worker.engine_host.engine_link import EngineLink

from .active_jobs import ActiveJobs
from .job_claimer import JobClaimer

#: Jobs that may wait in the engine even if it starts fewer per step, so that each step finds one.
_MIN_WAITING = 2
#: Steps whose prompts may be on their way: the next one, and the one after it.
_STEPS_AHEAD = 2
#: Weight of the newest prompt in the running mean of prompt lengths.
_MEAN_WEIGHT = 0.05
_FIRST_MEAN_TOKENS = 64.0


class IntakeGate:
    """Open while the engine can start another job soon, so no worker hoards jobs.

    The gate lets a job in if there is a slot for it, if the likely blocks of its prompt are free
    beyond those for the jobs already on their way, and if no more are on their way than two steps
    can start: with the jobs of one step only, every other step of a filling engine was half empty.
    A job that the engine's last report does not count yet is on its way.
    """

    def __init__(
        self,
        link: EngineLink,
        jobs: ActiveJobs,
        claimer: JobClaimer,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        has_share: Callable[[int], bool] = lambda num_jobs: False,
    ) -> None:
        """Bind to the parts around it.

        Args:
            link: to the engine.
            jobs: the active jobs.
            claimer: claims them.
            max_num_seqs: places of the engine.
            max_num_batched_tokens: tokens that one step computes at most.
            has_share: whether so many jobs are all that this worker should hold.
        """
        self._has_share = has_share
        self._link = link
        self._jobs = jobs
        self._claimer = claimer
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._mean_prompt_tokens = _FIRST_MEAN_TOKENS
        self._closed = False
        # Whether the event loop may have found the gate closed and gone to sleep.
        self._is_awaited = True

    def close(self) -> None:
        """Close for good: the worker is shutting down."""
        self._closed = True

    def observe_prompt(self, num_prompt_tokens: int) -> None:
        """Update the estimate of the next prompt's length with a prompt's length."""
        self._mean_prompt_tokens += _MEAN_WEIGHT * (num_prompt_tokens - self._mean_prompt_tokens)

    def may_ask(self) -> bool:
        """Return whether to ask for another job; if not, `has_opened` is True when it is time.

        Called in the event loop only.
        """
        # Set the flag before checking: if the gate opens in between, one of the two sides sees it.
        self._is_awaited = True
        is_open = self.is_open()
        self._is_awaited = not is_open
        return is_open

    def has_opened(self) -> bool:
        """Return whether the event loop found the gate closed and must be woken. From any thread.

        A loop that has asked needs no waking: the queue's reply wakes it, and then it checks again.
        """
        return self._is_awaited and self.is_open()

    def is_open(self) -> bool:
        """Return whether there is room for another job."""
        ready = self._link.ready
        if ready is None or not self._can_take_jobs():
            return False
        num_jobs = len(self._jobs)
        if num_jobs == 0:
            return True
        if num_jobs >= self._max_num_seqs or self._has_share(num_jobs):
            return False
        num_coming = self._num_coming()
        startable = int(self._max_num_batched_tokens / max(1.0, self._mean_prompt_tokens))
        if num_coming >= max(_MIN_WAITING, _STEPS_AHEAD * startable):
            return False
        return self._are_blocks_free(num_coming, ready.block_size)

    def is_full(self) -> bool:
        """Return whether another job could start only in the place of one that is here."""
        ready = self._link.ready
        if ready is None or not self._can_take_jobs() or not len(self._jobs):
            return False
        if len(self._jobs) >= self._max_num_seqs:
            return True
        return not self._are_blocks_free(self._num_coming(), ready.block_size)

    def has_extra_place(self, num_places: int) -> bool:
        """Return whether the engine would take a job that it is to run before others.

        Args:
            num_places: jobs that may be in the engine beyond its places.
        """
        if not self._can_take_jobs() or self._num_coming() >= _MIN_WAITING + num_places:
            return False
        return len(self._jobs) < self._max_num_seqs + num_places

    def _can_take_jobs(self) -> bool:
        """Return whether the worker takes jobs at all, however full it is."""
        if self._closed or self._link.ready is None or not self._link.is_moving:
            return False
        is_held_up = self._claimer.is_held_up or self._jobs.num_pending
        return not is_held_up and not self._jobs.needs_isolation

    def _are_blocks_free(self, num_coming: int, block_size: int) -> bool:
        """Return whether the likely blocks of one more prompt than are on their way are free."""
        blocks_each = -(-(int(self._mean_prompt_tokens) + 1) // block_size)
        return self._link.load.num_free_blocks >= blocks_each * (num_coming + 1)

    def _num_coming(self) -> int:
        """Return the number of jobs that the engine has not started yet."""
        link = self._link
        return link.load.num_waiting + link.num_adds_sent - link.num_adds_seen
