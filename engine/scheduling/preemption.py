"""Preemption: which running requests give up their blocks, to decodes or to higher priorities."""

from __future__ import annotations

from collections.abc import Iterable

from batchmill.engine.request.request import Request, RequestStatus

from .batch_limits import BatchLimits
from .block_pool import BlockPool
from .guided_pairs import running_partner
from .prefix_cache import PrefixCache
from .running_requests import RunningRequests
from .waiting_queue import WaitingQueue


class Preemption:
    """Takes blocks from running requests; they wait again, and are recomputed later.

    The scheduler preempts nothing while a step is in flight.
    """

    def __init__(
        self,
        block_pool: BlockPool,
        limits: BatchLimits,
        running: RunningRequests,
        waiting: WaitingQueue,
        prefix_cache: PrefixCache,
    ) -> None:
        self._pool = block_pool
        self._limits = limits
        self._running = running
        self._waiting = waiting
        self._prefix_cache = prefix_cache

    def preempt(self, request: Request) -> list[Request]:
        """Preempt a request that may run, and the other of a pair; return those that ran."""
        if request.status is not RequestStatus.RUNNING:
            return []
        partner = running_partner(request)
        preempted = [request] if partner is None else [request, partner]
        for each in preempted:
            self._running.release(each, RequestStatus.PREEMPTED)
            each.metrics.num_preemptions += 1
            self._waiting.add(each)
        return preempted

    def allocate_blocks(self, need_block: Iterable[Request]) -> list[Request]:
        """Allocate a block to each request, first rank first; return the preempted requests."""
        preempted: list[Request] = []
        for request in need_block:
            while request.block_ids and self._pool.num_free_blocks == 0:
                # The last one may be this request itself.
                preempted += self.preempt(self._running.requests[-1])
            if request.block_ids:
                self._running.allocate_block(request)
        return preempted

    def preemptible_by_priority(self) -> list[Request]:
        """List the running requests whose preemption makes room for the first waiting request.

        Returns:
            All running requests of lower priority and later rank, the last first. Empty if the
            waiting request fits without preemption, or not even with it.
        """
        urgent = self._waiting.first()
        if urgent is None:
            return []
        preemptible = [
            request
            for request in reversed(self._running.requests)
            if request.priority > urgent.priority and request.rank > urgent.rank
        ]
        if not preemptible or self._fits(urgent):
            return []
        # A block that two of them share is not counted, so this may refuse one step too early.
        gained = frozenset(
            block_id
            for request in preemptible
            for block_id in request.block_ids
            if self._pool.ref_count(block_id) == 1
        )
        would_fit = self._fits(urgent, num_preempted=len(preemptible), gained=gained)
        return preemptible if would_fit else []

    def preempt_by_priority(self, preemptible: Iterable[Request]) -> list[Request]:
        """Preempt requests one by one until the first waiting request fits."""
        urgent = self._waiting.first()
        preempted: list[Request] = []
        for request in preemptible:
            if urgent is None or self._fits(urgent):
                break
            preempted += self.preempt(request)
        return preempted

    def _fits(
        self, request: Request, *, num_preempted: int = 0, gained: frozenset[int] = frozenset()
    ) -> bool:
        """Return whether a waiting request could be admitted once others are preempted."""
        num_running = len(self._running.requests) - num_preempted
        if num_running >= self._limits.max_num_seqs:
            return False
        pool = self._pool
        cached = self._prefix_cache.find(request)
        needed = pool.blocks_for(request.num_tokens) - len(cached)
        num_kept = pool.num_free_among(cached) + len(gained.intersection(cached))
        return needed + num_running <= pool.num_free_blocks + len(gained) - num_kept
