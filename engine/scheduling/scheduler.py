"""Which requests are computed in the next step, and how many tokens of each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from batchmill.engine.errors import ConfigError, RequestError
from batchmill.engine.request.request import Request, RequestStatus

from .batch_builder import BatchBuilder
from .batch_limits import BatchLimits
from .block_pool import BlockPool
from .prefix_cache import PrefixCache
from .running_requests import RunningRequests
from .scheduled_batch import CheckedDrafts, ScheduledBatch
from .speculation import Speculation
from .waiting_queue import WaitingQueue, rank_of


class Scheduler:
    """Owns the waiting and the running requests, and gives blocks and tokens to them.

    There are no prefill and decode phases: each request has `num_computed_tokens`, and every step
    lets them catch up with their known tokens under one token budget, decodes first.

    Order: by rank, which is the time of arrival plus `ageing_s` for each step of priority. So a
    request goes before those of a higher number that came up to `ageing_s` earlier, and none
    waits for ever behind later ones. None overtakes another, but for a bounded number of times
    where it begins like the one admitted before it (`WaitingQueue`). A request is admitted only
    when there are blocks for all its known tokens, so a prompt is never stuck half-way; for room,
    it preempts running ones that both rank after it and are of a lower priority.

    Where a running request needs a block and none is free, the last in rank is preempted: its
    blocks are freed, it waits again at its place, and later computes its prompt and output anew. So
    the first running request always advances, and as each request fits into the pool alone (`add`
    sees to that), every request finishes.

    Sharing (`PrefixCache`): a request may be admitted on blocks that the same step is to compute.
    It is taken back by the next `schedule` if the step was not launched, and by `update` if any
    token of the step failed.

    A step is scheduled, launched (`begin`) and collected (`update`). The next one may be scheduled
    between the two: a request then goes on from a token that is drawn and not known yet. What ends
    meanwhile keeps its blocks until the last step with it is collected, and its tokens of these
    steps are void. Nobody is preempted while steps are in flight: `schedule` is empty then, and so
    it is while a step with draft tokens is: which of them count decides what comes next.

    Invariant: `running` and `waiting` are each in order of rank; a block's reference count is the
    number of block tables it is in (`check`).

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
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {max_num_batched_tokens}, fewer than max_num_seqs "
                f"{max_num_seqs}: prompts could wait for decodes for ever"
            )
        self.block_pool = block_pool
        self.limits = BatchLimits(max_num_seqs, max_num_batched_tokens)
        self.waiting = WaitingQueue()
        self._sharing = PrefixCache(block_pool)
        self._running = RunningRequests(block_pool, self._sharing)
        self._ageing_s = ageing_s
        self._speculation = speculation
        self._num_added = 0
        self._last_admitted: Request | None = None
        # What the last `schedule` admitted on blocks of its own step, until that is launched.
        self._unconfirmed: list[Request] = []

    @property
    def running(self) -> list[Request]:
        """The requests that hold blocks and go on, in order of rank."""
        return self._running.requests

    @property
    def has_requests(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.running or self.waiting)

    def check_fits(self, request: Request) -> None:
        """Refuse a request that the pool could not hold even alone.

        Raises:
            RequestError: `context_length_exceeded`.
        """
        # The last token ends the request, so its KV is never computed.
        needed = self.block_pool.blocks_for(request.max_num_tokens - 1)
        if needed > self.block_pool.num_blocks:
            raise RequestError(
                "context_length_exceeded",
                f"prompt and max_tokens together are {request.max_num_tokens} tokens, the KV cache "
                f"holds {self.block_pool.num_blocks * self.block_pool.block_size}: shorten the "
                "prompt, lower max_tokens or raise kv_cache_bytes",
            )

    def add(self, request: Request) -> None:
        """Let a request wait for its turn.

        Raises:
            RequestError: see `check_fits`.
        """
        self.check_fits(request)
        self._num_added += 1
        arrived_at_s = request.metrics.arrived_at_s
        request.rank = (arrived_at_s + request.priority * self._ageing_s, self._num_added)
        self.waiting.add(request)

    def schedule(self) -> ScheduledBatch:
        """Choose the next step's work.

        Nothing is lost when the step is not launched: requests count as computed from `begin` on,
        so the next call chooses the same tokens again.

        Returns:
            Empty only where there is no request, or where steps in flight have to be collected
            first: all tokens that could be computed are theirs, or blocks have run out.
        """
        self._take_back_unconfirmed()
        self._sharing.begin_step()
        is_in_flight = bool(self._running.in_flight)
        if is_in_flight and self._running.in_flight[-1].has_drafts:
            return ScheduledBatch()
        ready = self._running.ready
        needy = [each for each in ready if each.num_computed_tokens >= each.num_slots]
        if is_in_flight and len(needy) > self.block_pool.num_free_blocks:
            return ScheduledBatch()
        preempted = self._reserve_blocks(needy)
        victims = self._victims_for_room()
        if is_in_flight and victims:
            return ScheduledBatch()
        preempted += self._make_room(victims)
        if preempted:
            ready = self._running.ready
        decodes, prefills = self._by_phase(ready)
        plan = BatchBuilder(self.limits.max_num_batched_tokens - len(decodes))
        self._fill(plan, prefills, preempted)
        if self._speculation is not None:
            decodes = self._speculation.place(decodes, plan, self._running)
        assert decodes or plan.chunks or is_in_flight or not self.has_requests, (
            "requests wait, and none can be computed"
        )
        return ScheduledBatch(
            decodes=tuple(decodes),
            decode_starts=[each.num_computed_tokens for each in decodes],
            chunks=tuple(plan.chunks),
            preempted=tuple(preempted),
            unconfirmed=tuple(self._unconfirmed),
        )

    def begin(self, batch: ScheduledBatch) -> None:
        """Note that a step is launched: its tokens count as computed, those it draws as pending."""
        self._unconfirmed = []
        self._running.begin(batch)

    def update(
        self,
        batch: ScheduledBatch,
        token_ids: Sequence[int | None],
        drafts: Sequence[CheckedDrafts] = (),
    ) -> set[Request]:
        """Collect the oldest step in flight: append the tokens that it drew.

        Args:
            batch: The oldest that `begin` was called with.
            token_ids: One for each of `batch.sampling_requests`; None where sampling failed: the
                caller has to finish that request.
            drafts: What became of the batch's draft tokens, see `check_drafts`.

        Returns:
            Requests whose tokens of this step are void, None included: they ended or lost their
            blocks, they were admitted on blocks of a step in which a token failed, or they failed
            with draft tokens and are computed anew.
        """
        self.limits.note_success()
        for request in self._running.collect(batch, token_ids, drafts):
            self.waiting.add(request)
        return batch.void

    @property
    def untrusted_blocks(self) -> Sequence[int]:
        """Blocks given back that may hold NaN: clear them before the next step is computed."""
        return self._running.untrusted_blocks

    def trust_blocks(self) -> None:
        """All `untrusted_blocks` are cleared."""
        self._running.trust_blocks()

    def distrust(self, batch: ScheduledBatch) -> None:
        """A step failed while it was being launched: what it wrote may be anything."""
        for request in batch.requests:
            request.is_trusted = False

    def shrink(self, batch: ScheduledBatch) -> tuple[list[Request], Request | None]:
        """After a step that ran out of memory: smaller steps, and the later half waits again.

        Args:
            batch: What `schedule` returned, not launched.

        Returns:
            The requests that were preempted, and the one that ran out of memory alone once too
            often: the caller has to finish it.
        """
        self._take_back_unconfirmed()
        if self.limits.note_out_of_memory(batch):
            return [], batch.requests[0]
        in_batch = sorted(batch.requests, key=rank_of)
        kept = set(in_batch[: self.limits.max_num_seqs])
        victims = [request for request in reversed(self.running) if request not in kept]
        for request in victims:
            self._preempt(request)
        return victims, None

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its blocks once no step writes to them."""
        if request.status is RequestStatus.RUNNING:
            self._running.finish(request)
        else:
            self.waiting.remove(request)
            request.status = RequestStatus.FINISHED

    def discard(self, request: Request) -> None:
        """Take out a running request whose KV cannot be trusted, and let nobody share it.

        Its blocks are among `untrusted_blocks` as soon as nobody holds them.
        """
        self.block_pool.forget(request.block_ids)
        request.num_registered_blocks = 0
        request.is_trusted = False
        self.finish(request)

    def check(self) -> None:
        """Prove that every block's reference count is the number of block tables it is in.

        Raises:
            AssertionError: it is not, or the pool's own invariant is broken.
        """
        self.block_pool.check()
        waiting = list(self.waiting)
        assert waiting == sorted(waiting, key=rank_of), "requests are not in order of rank"
        for request in waiting:
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            assert not request.block_ids, f"{request.request_id} waits and holds blocks"
            assert not request.num_pending_tokens, f"{request.request_id} waits and has a token due"
        actual = [self.block_pool.ref_count(each) for each in range(self.block_pool.num_blocks)]
        counts = self._running.count_holders()
        assert actual == counts, "a reference count is not the number of its block tables"

    def _by_phase(self, ready: list[Request]) -> tuple[list[Request], list[Request]]:
        """Requests that compute their last token only, and the others."""
        catching_up = self._running.catching_up
        if not catching_up:
            return ready, []
        decodes = [request for request in ready if request not in catching_up]
        return decodes, [request for request in ready if request in catching_up]

    def _reserve_blocks(self, needy: Iterable[Request]) -> list[Request]:
        """Give a block to each request that has none for its next token, first rank first.

        Returns:
            The requests that were preempted for it, the last in rank first.
        """
        preempted: list[Request] = []
        for request in needy:
            while request.block_ids and self.block_pool.num_free_blocks == 0:
                # The victim may be this request itself: then it was the last.
                preempted.append(self.running[-1])
                self._preempt(self.running[-1])
            if request.block_ids:
                self._running.grow(request)
        return preempted

    def _victims_for_room(self) -> list[Request]:
        """Running requests of lower priorities in whose place the first that waits would fit.

        Returns:
            All of them, the last in rank first; none where they are not needed, or not enough.
        """
        urgent = self.waiting.first()
        if urgent is None:
            return []
        victims = [
            request
            for request in reversed(self.running)
            if request.priority > urgent.priority and request.rank > urgent.rank
        ]
        if not victims or self._fits(urgent):
            return []
        # A block that two victims share is not counted, so this may say no a step too early.
        gained = frozenset(
            block_id
            for victim in victims
            for block_id in victim.block_ids
            if self.block_pool.ref_count(block_id) == 1
        )
        return victims if self._fits(urgent, num_victims=len(victims), gained=gained) else []

    def _make_room(self, victims: Iterable[Request]) -> list[Request]:
        """Preempt as many of `_victims_for_room` as the first that waits needs."""
        urgent = self.waiting.first()
        preempted: list[Request] = []
        for victim in victims:
            if urgent is None or self._fits(urgent):
                break
            self._preempt(victim)
            preempted.append(victim)
        return preempted

    def _fits(
        self, request: Request, *, num_victims: int = 0, gained: frozenset[int] = frozenset()
    ) -> bool:
        """Whether a waiting request could be admitted, once some victims' blocks are gained."""
        num_running = len(self.running) - num_victims
        if num_running >= self.limits.max_num_seqs:
            return False
        pool = self.block_pool
        cached = self._sharing.find(request)
        needed = pool.blocks_for(request.num_tokens) - len(cached)
        num_kept = pool.num_free_among(cached) + len(gained.intersection(cached))
        return needed + num_running <= pool.num_free_blocks + len(gained) - num_kept

    def _preempt(self, request: Request) -> None:
        self._running.release(request, RequestStatus.PREEMPTED)
        request.metrics.num_preemptions += 1
        self.waiting.add(request)

    def _take_back_unconfirmed(self) -> None:
        """Let requests wait again whose first blocks were to be computed in a step that was not."""
        for request in self._unconfirmed:
            if request.status is RequestStatus.RUNNING:
                self._running.release(request, RequestStatus.WAITING)
                self.waiting.add(request)
        self._unconfirmed = []

    def _fill(
        self, plan: BatchBuilder, prefills: Sequence[Request], preempted: Sequence[Request]
    ) -> None:
        """Give the rest of the budget to prompts by rank: those that run, and admitted ones."""
        unfinished = deque(prefills)
        candidate = self._next_candidate()
        while plan.num_free_tokens and (candidate is not None or unfinished):
            if candidate is None or (unfinished and unfinished[0].rank < candidate.rank):
                request = unfinished.popleft()
            # What was preempted for others does not come back in the same step.
            elif candidate not in preempted and self._admit(candidate):
                request, candidate = candidate, self._next_candidate()
            else:
                first = self.waiting.first()
                candidate = None if candidate is first else first
                continue
            item = plan.place(request, request.num_uncomputed_tokens)
            if item is not None:
                self._sharing.announce(item)

    def _next_candidate(self) -> Request | None:
        """The waiting request to admit next; None where no more may run."""
        if len(self.running) >= self.limits.max_num_seqs:
            return None
        if self._last_admitted is None or not self.block_pool.enable_prefix_caching:
            return self.waiting.first()
        return self.waiting.next_after(self._last_admitted, self._sharing.hashes)

    def _admit(self, request: Request) -> bool:
        """Let a waiting request run, if there is room for it."""
        pool = self.block_pool
        shared = self._sharing.find(request)
        needed = pool.blocks_for(request.num_tokens) - len(shared)
        # A block for each running request to grow into: admitting a request only to preempt it
        # a few steps later would compute its prompt twice.
        spare = len(self.running)
        if needed + spare > pool.num_free_blocks - pool.num_free_among(shared):
            return False
        self.waiting.admit(request)
        if self._sharing.is_coming(request, len(shared)):
            self._unconfirmed.append(request)
        self._running.admit(request, shared, needed)
        self._note_admission(request)
        self._last_admitted = request
        return True

    def _note_admission(self, request: Request) -> None:
        metrics = request.metrics
        if metrics.queued_s is None:
            metrics.queued_s = time.monotonic() - metrics.arrived_at_s
            metrics.num_cached_tokens = min(
                request.num_computed_tokens, len(request.prompt_token_ids)
            )
