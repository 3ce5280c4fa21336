"""The scheduler: which requests the next step computes, and how many tokens of each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from batchmill.engine.errors import ConfigError, RequestError
from batchmill.engine.request.request import Request, RequestStatus

from .adapter_gate import AdapterGate, AdapterResidence
from .batch_builder import BatchBuilder
from .batch_limits import BatchLimits
from .block_pool import BlockPool
from .guided_pairs import add_guided_chunks, guided_of, without_partner
from .media_budget import MediaBudget
from .preemption import Preemption
from .prefix_cache import PrefixCache
from .running_requests import RunningRequests
from .scheduled_batch import ScheduledBatch, ScheduledRequest, VerifiedDrafts
from .speculation import Speculation
from .waiting_queue import WaitingQueue, rank_of


class Scheduler:
    """Owns the waiting and the running requests, and gives them blocks and tokens.

    There are no prefill and decode phases: each request has `num_computed_tokens`, and every step
    lets it catch up with its known tokens under one token budget, decodes first.

    `schedule` works in five phases:

    1. Allocate a block to each decode whose blocks are full. If none is free, preempt.
    2. Preempt requests of lower priority if the first waiting request then fits.
    3. Put the decodes into the batch, one token each.
    4. Fill the rest of the token budget with prompt chunks: running requests and new admissions,
       by rank.
    5. Spend what is still left on draft tokens.

    Order: by rank, which is the arrival time plus `ageing_s` per step of priority. A request goes
    before those of a higher priority number that arrived up to `ageing_s` earlier, so none waits
    for ever. Later requests overtake an earlier one only if they share a prefix with the request
    admitted last, and only a bounded number of times (`WaitingQueue`). A request is admitted only
    if there are blocks for all its known tokens, so a prompt never gets stuck half-way.

    Preemption takes the running request that is last in rank. Its blocks are freed, it waits again
    at its place, and later recomputes what neither the prefix cache nor host memory has kept. So
    the first running request always advances, and since each request fits into the pool alone
    (`add` checks that), every request finishes.

    In-batch sharing: a request may be admitted on blocks that the same step computes
    (`PrefixCache`). If that step is not launched, the next `schedule` takes the request back; if
    any token of the step failed, `update` does.

    Overlap: a step is scheduled, launched (`mark_launched`) and collected (`update`). The next one
    may be scheduled in between: a request then continues from a token that is sampled but not known
    on the host. If it ends meanwhile, it keeps its blocks until the last step with it is collected,
    and its tokens of those steps are discarded. Nothing is preempted while a step is in flight:
    `schedule` returns an empty batch instead. It does the same while a step with draft tokens is in
    flight, because the accepted drafts decide what comes next.

    Guidance: a guided request and its guide are two requests. They are preempted and finished
    together, and sample in the same steps (`guided_pairs.py`).

    Invariant (`check_invariants`): `running` and `waiting` are each in order of rank, and a block's
    reference count is the number of block tables that contain it.

    Source: iteration-level scheduling, Yu et al. 2022 (Orca), section 4.1; chunked prefill beside
    decodes, Agrawal et al. 2024 (Sarathi-Serve), section 4; preemption by recompute, Kwon et al.
    2023 (PagedAttention), section 4.5; one counter in place of phases, as in vLLM V1.
    """

    def __init__(
        self,
        block_pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        ageing_s: float = 30.0,
        speculation: Speculation | None = None,
        adapters: AdapterResidence | None = None,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {max_num_batched_tokens}, less than max_num_seqs "
                f"({max_num_seqs}), so decodes could block prompts for ever: raise it"
            )
        self.block_pool = block_pool
        self.limits = BatchLimits(max_num_seqs, max_num_batched_tokens)
        self.waiting = WaitingQueue()
        self._prefix_cache = PrefixCache(block_pool)
        self._running = RunningRequests(block_pool, self._prefix_cache)
        self._preemption = Preemption(
            block_pool, self.limits, self._running, self.waiting, self._prefix_cache
        )
        self._ageing_s = ageing_s
        self._speculation = speculation
        self._adapters = AdapterGate(adapters)
        self._num_added = 0
        self._num_guides = 0
        self._num_steered = 0
        self._last_admitted: Request | None = None
        # Admitted by the last `schedule` on blocks of its own step, until that step is launched.
        self._in_batch_sharers: list[Request] = []

    @property
    def running(self) -> list[Request]:
        """The unfinished requests that hold blocks, in order of rank."""
        return self._running.requests

    @property
    def has_requests(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.running or self.waiting)

    @property
    def num_running(self) -> int:
        """Running requests without guides, which belong to another one."""
        return len(self.running) - self._num_guides_among(self.running)

    @property
    def num_waiting(self) -> int:
        """Waiting requests without guides."""
        return len(self.waiting) - self._num_guides_among(self.waiting)

    def check_fits(self, request: Request) -> None:
        """Refuse a request that does not fit into an empty pool.

        Raises:
            RequestError: `context_length_exceeded`.
        """
        # The last token ends the request, so its KV is never computed.
        num_tokens, needed = request.max_num_tokens, 0
        if request.guidance is not None:
            num_guide_tokens = request.guidance.partner.max_num_tokens
            num_tokens += num_guide_tokens
            # And one to grow into, as each admission leaves for the running ones.
            needed = self.block_pool.blocks_for(num_guide_tokens - 1) + 1
        needed += self.block_pool.blocks_for(request.max_num_tokens - 1)
        if needed > self.block_pool.num_blocks:
            raise RequestError(
                "context_length_exceeded",
                f"prompt and max_tokens together are {num_tokens} tokens, the KV cache "
                f"holds {self.block_pool.num_blocks * self.block_pool.block_size}: shorten the "
                "prompt, lower max_tokens or raise kv_cache_bytes",
            )

    def add(self, request: Request) -> None:
        """Put a new request, and its guide, into the waiting queue.

        Raises:
            RequestError: as `check_fits`.
        """
        self.check_fits(request)
        guides = [] if request.guidance is None else [request.guidance.partner]
        if guides:
            self._num_guides += 1
            self.limits.make_room_for_pair()
        arrived_at_s = request.metrics.arrived_at_s
        for each in (request, *guides):
            self._num_added += 1
            each.rank = (arrived_at_s + request.priority * self._ageing_s, self._num_added)
            self._adapters.add(each)
            self._num_steered += each.steering is not None
            self.waiting.add(each)

    def schedule(self) -> ScheduledBatch:
        """Choose the work of the next step.

        Tokens count as computed only from `mark_launched` on: if the step is not launched, the next
        call chooses the same tokens again.

        Returns:
            The batch. It is empty only if there is no request, if all requests wait for their
            adapters, or if a step in flight has to be collected first: it computes all tokens that
            are left, or there are no free blocks.
        """
        self._take_back_in_batch_sharers()
        self._prefix_cache.reset_in_batch_blocks()
        is_in_flight = bool(self._running.in_flight)
        if is_in_flight and self._running.in_flight[-1].has_drafts:
            return ScheduledBatch()
        schedulable = self._running.schedulable
        need_block = [each for each in schedulable if each.num_computed_tokens >= each.num_slots]
        if is_in_flight and len(need_block) > self.block_pool.num_free_blocks:
            return ScheduledBatch()
        preempted = self._preemption.allocate_blocks(need_block)
        preemptible = self._preemption.preemptible_by_priority()
        if is_in_flight and preemptible:
            return ScheduledBatch()
        preempted += self._preemption.preempt_by_priority(preemptible)
        if preempted:
            schedulable = self._running.schedulable
        decodes, prefills = self._split_decodes(schedulable)
        self._adapters.prepare(self.running, self.waiting)
        most = self.limits.max_num_batched_tokens
        builder = BatchBuilder(most - len(decodes), MediaBudget(most))
        self._add_prompt_chunks(builder, prefills, preempted)
        if self._speculation is not None:
            decodes = self._speculation.add_drafts(decodes, builder, self._running)
        chunks = (*builder.chunks, *builder.pooled_chunks)
        is_stuck = not (decodes or chunks or is_in_flight) and self.has_requests
        if is_stuck and self._can_make_room_for_partner():
            preempted += self._preemption.preempt(self.running[-1])
            batch = self.schedule()
            return replace(batch, preempted=(*preempted, *batch.preempted))
        is_held_back = is_stuck and self._adapters.holds_back(self.waiting)
        assert not is_stuck or is_held_back, "requests wait, and none can be computed"
        return self._batch(decodes, chunks, preempted)

    def mark_launched(self, batch: ScheduledBatch) -> None:
        """Count the tokens of a launched step as computed, and those it samples as pending."""
        self._in_batch_sharers = []
        self._running.mark_launched(batch)

    def take_back(self, batch: ScheduledBatch) -> None:
        """Undo `mark_launched` of the last step, whose tokens could not be sampled."""
        self._running.take_back(batch)
        self._in_batch_sharers = [
            each for each in batch.in_batch_sharers if each not in batch.discarded
        ]

    @property
    def waits_for_drafts(self) -> bool:
        """Whether draft tokens gain more than to schedule the next step during this one."""
        return self._speculation is not None and self._speculation.pays_for(self.running)

    def update(
        self,
        batch: ScheduledBatch,
        token_ids: Sequence[int | None],
        drafts: Sequence[VerifiedDrafts] = (),
    ) -> set[Request]:
        """Collect the oldest step in flight: append the tokens that it sampled.

        Args:
            batch: The oldest batch that was marked as launched.
            token_ids: One per request in `batch.sampled_requests`. None if sampling failed: the
                caller has to finish that request.
            drafts: The outcome of the batch's draft tokens, see `verify_drafts`.

        Returns:
            Requests whose tokens of this step are discarded, None included: they ended or lost
            their blocks, they were admitted on blocks of a step in which a token failed, or they
            failed with draft tokens and are recomputed.
        """
        self.limits.note_success()
        for request in self._running.collect(batch, token_ids, drafts):
            self.waiting.add(request)
        return batch.discarded

    @property
    def blocks_to_zero(self) -> Sequence[int]:
        """Freed blocks that may hold NaN: zero them before the next step is computed."""
        return self._running.blocks_to_zero

    def note_blocks_zeroed(self) -> None:
        """Empty `blocks_to_zero`, because the caller has zeroed them all."""
        self._running.note_blocks_zeroed()

    def note_failed_launch(self, batch: ScheduledBatch) -> None:
        """Mark the KV of a step that failed during its launch: it may hold anything."""
        for request in batch.requests:
            request.is_kv_finite = False

    def shrink(self, batch: ScheduledBatch) -> tuple[list[Request], Request | None]:
        """Make the next steps smaller after one ran out of memory; preempt its later half.

        Args:
            batch: The batch that `schedule` returned and that was not launched.

        Returns:
            The preempted requests, and the one that ran out of memory alone too often, if any: the
            caller has to finish it.
        """
        self._take_back_in_batch_sharers()
        least_num_seqs = 2 if self._num_guides else 1
        if self.limits.note_out_of_memory(batch, least_num_seqs=least_num_seqs):
            return [], guided_of(batch.requests[0])
        in_batch = sorted(batch.requests, key=rank_of)
        kept = set(in_batch[: self.limits.max_num_seqs])
        outside = [request for request in reversed(self.running) if request not in kept]
        preempted = [each for request in outside for each in self._preemption.preempt(request)]
        return preempted, None

    def finish(self, request: Request, *, is_kv_finite: bool = True) -> None:
        """Take out a waiting or running request, and its guide.

        Their blocks are freed once no step writes to them.

        Args:
            request: The request.
            is_kv_finite: False if the logits of a running request were not finite. Its blocks then
                leave the prefix cache, and become `blocks_to_zero` once they are free.
        """
        self._finish(request, is_kv_finite=is_kv_finite)
        if request.guidance is not None:
            self._num_guides -= 1
            self._finish(request.guidance.partner, is_kv_finite=is_kv_finite)

    def _finish(self, request: Request, *, is_kv_finite: bool) -> None:
        self._adapters.remove(request)
        request.media = None  # its row keeps it in memory until another request takes the row
        self._num_steered -= request.steering is not None
        if request.status is not RequestStatus.RUNNING:
            self.waiting.remove(request)
            request.status = RequestStatus.FINISHED
            return
        if not is_kv_finite:
            self.block_pool.evict(request.block_ids)
            request.num_cached_blocks = 0
            request.is_kv_finite = False
        self._running.finish(request)

    def without_adapter(self) -> list[Request]:
        """Return waiting requests whose adapter could not be loaded: the caller has to end them."""
        failed = self._adapters.failed(self.waiting)
        return list(dict.fromkeys(map(guided_of, failed)))

    def check_invariants(self) -> None:
        """Assert the invariants of the scheduler and its block pool. For tests.

        Raises:
            AssertionError: an invariant does not hold.
        """
        self.block_pool.check_invariants()
        waiting = list(self.waiting)
        assert waiting == sorted(waiting, key=rank_of), "requests are not in order of rank"
        for request in waiting:
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            assert not request.block_ids, f"{request.request_id} waits and holds blocks"
            assert not request.num_pending_tokens, f"{request.request_id} waits for a token"
        actual = [self.block_pool.ref_count(each) for each in range(self.block_pool.num_blocks)]
        counts = self._running.count_holders()
        assert actual == counts, "a reference count is not the number of block tables"

    def _split_decodes(self, schedulable: list[Request]) -> tuple[list[Request], list[Request]]:
        """Separate the requests that compute only their last token from the others."""
        prefilling = self._running.prefilling
        if self._num_guides:
            decodes = [request for request in schedulable if request not in prefilling]
            prefilling.update(without_partner(decodes))
        if not prefilling:
            return schedulable, []
        decodes = [request for request in schedulable if request not in prefilling]
        return decodes, [request for request in schedulable if request in prefilling]

    def _can_make_room_for_partner(self) -> bool:
        """Return whether a stuck scheduler gets on by preempting its last running request.

        All running requests wait for partners that do not fit, and that of the first needs room. It
        may wait itself, behind a request whose adapter has no room beside its own.
        """
        num_kept = 0 if self._adapters.is_used else 1
        return self._num_guides > 0 and len(self.running) > num_kept

    def _batch(
        self,
        decodes: Sequence[Request],
        chunks: tuple[ScheduledRequest, ...],
        preempted: Sequence[Request],
    ) -> ScheduledBatch:
        def has_any(needs: Callable[[Request], bool]) -> bool:
            return any(map(needs, decodes)) or any(needs(item.request) for item in chunks)

        return ScheduledBatch(
            decodes=tuple(decodes),
            decode_starts=[each.num_computed_tokens for each in decodes],
            chunks=chunks,
            preempted=tuple(preempted),
            in_batch_sharers=tuple(self._in_batch_sharers),
            has_adapters=self._adapters.is_used and has_any(lambda it: it.adapter is not None),
            is_steered=self._num_steered > 0 and has_any(lambda it: it.steering is not None),
        )

    def _num_guides_among(self, requests: Iterable[Request]) -> int:
        return sum(each.is_guide for each in requests) if self._num_guides else 0

    def _take_back_in_batch_sharers(self) -> None:
        """Return requests to the queue whose first blocks an unlaunched step was to compute."""
        for request in self._in_batch_sharers:
            if request.status is RequestStatus.RUNNING:
                self._running.release(request, RequestStatus.WAITING)
                self.waiting.add(request)
        self._in_batch_sharers = []

    def _add_prompt_chunks(
        self, builder: BatchBuilder, prefills: Sequence[Request], preempted: Sequence[Request]
    ) -> None:
        """Give the rest of the budget to prompts by rank, running and newly admitted ones."""
        unfinished = deque(prefills)
        candidate = self._next_candidate()
        while builder.num_free_tokens and (candidate is not None or unfinished):
            if candidate is None or (unfinished and unfinished[0].rank < candidate.rank):
                request = unfinished.popleft()
            # A request preempted in this step is not admitted in it.
            elif candidate not in preempted and self._admit(candidate):
                request, candidate = candidate, self._next_candidate()
            else:
                first = self.waiting.first()
                candidate = None if candidate is first else first
                continue
            if request.guidance is not None:
                added = list(add_guided_chunks(builder, request, self._running.prefilling))
            else:
                item = builder.add_chunk(request, request.num_uncomputed_tokens)
                added = [] if item is None else [item]
            for each in added:
                self._prefix_cache.add_in_batch_blocks(each)

    def _next_candidate(self) -> Request | None:
        """Return the waiting request to admit next, or None if no more may run."""
        if len(self.running) >= self.limits.max_num_seqs:
            return None
        last = self._last_admitted if self.block_pool.enable_prefix_caching else None
        is_ready = self._adapters.is_ready if self._adapters.is_used else None
        if last is None and is_ready is None:
            return self.waiting.first()
        return self.waiting.next_after(last, self._prefix_cache.block_hashes, is_ready)

    def _admit(self, request: Request) -> bool:
        """Let a waiting request run if there is room for it; return whether there is."""
        pool = self.block_pool
        shared = self._prefix_cache.find(request)
        needed = pool.blocks_for(request.num_tokens) - len(shared)
        # Reserve one block for each running request to grow into. Otherwise the new request could
        # be preempted a few steps later, and its prompt computed twice.
        num_reserved = len(self.running)
        if needed + num_reserved > pool.num_free_blocks - pool.num_free_among(shared):
            return False
        if request.adapter is not None and not self._adapters.admit(request):
            return False
        self.waiting.admit(request)
        if self._prefix_cache.shares_in_batch_blocks(request, len(shared)):
            self._in_batch_sharers.append(request)
        evicted = self._prefix_cache.find_evicted(request, len(shared))
        self._running.admit(request, shared, evicted, needed - len(evicted))
        self._last_admitted = request
        metrics = request.metrics
        if metrics.queued_s is None:
            metrics.queued_s = time.monotonic() - metrics.arrived_at_s
            num_prompt_tokens = len(request.prompt_token_ids)
            metrics.num_cached_tokens = min(request.num_computed_tokens, num_prompt_tokens)
        return True
