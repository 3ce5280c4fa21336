"""Which requests are computed in the next step, and how many tokens of each."""

from __future__ import annotations

import time
from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence

from .batch_limits import BatchLimits
from .block_pool import BlockPool
from .errors import ConfigError, RequestError
from .prefix_sharing import PrefixSharing
from .request import Request, RequestStatus
from .schedule import ScheduledBatch
from .step_plan import StepPlan
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

    Sharing (`PrefixSharing`): a request may be admitted on blocks that the same step is to compute.
    It is taken back by the next `schedule` if there was no `update` in between.

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
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {max_num_batched_tokens}, fewer than max_num_seqs "
                f"{max_num_seqs}: prompts could wait for decodes for ever"
            )
        self.block_pool = block_pool
        self.limits = BatchLimits(max_num_seqs, max_num_batched_tokens)
        self.waiting = WaitingQueue()
        self.running: list[Request] = []
        self._sharing = PrefixSharing(block_pool)
        self._ageing_s = ageing_s
        self._num_added = 0
        self._last_admitted: Request | None = None
        # Admitted in the last step on blocks that the same step was to compute.
        self._unconfirmed: list[Request] = []
        self._untrusted_blocks: list[int] = []

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
        """Choose the next step's work. Empty only where there is no request.

        Nothing is lost when the step is not run or fails: requests count as computed in `update`,
        so the next call chooses the same tokens again.
        """
        self._take_back_unconfirmed()
        self._sharing.begin_step()
        preempted = self._reserve_blocks()
        preempted += self._make_room()
        plan = StepPlan(self.limits.max_num_batched_tokens)
        prefills = []
        for request in self.running:
            if request.num_uncomputed_tokens == 1:
                plan.place(request, 1)
            else:
                prefills.append(request)
        self._fill(plan, prefills, preempted)
        assert plan.scheduled or not self.has_requests, "requests wait, and none can be computed"
        return ScheduledBatch(tuple(plan.scheduled), tuple(preempted))

    def update(self, batch: ScheduledBatch, token_ids: Sequence[int | None]) -> list[Request]:
        """Count a step's tokens as computed and append the sampled ones.

        Args:
            batch: What `schedule` returned, computed.
            token_ids: One for each of `batch.sampling_requests`; None where sampling failed: the
                caller has to finish that request.

        Returns:
            Requests that were computed on blocks of a request whose sampling failed. They wait
            again, and their tokens of this step are void, None included.
        """
        self.limits.note_success()
        tokens = dict(zip(batch.sampling_requests, token_ids, strict=True))
        void = self._find_void(batch, tokens)
        for request, num_computed_tokens, num_new_tokens, samples, _ in batch.scheduled:
            if request in void:
                continue
            request.num_computed_tokens = num_computed_tokens + num_new_tokens
            token_id = tokens[request] if samples else None
            if token_id is not None:
                request.output_token_ids.append(token_id)
                request.is_trusted = True
                self._sharing.register(request)
        self._unconfirmed = void
        self._take_back_unconfirmed()
        return void

    def _find_void(
        self, batch: ScheduledBatch, tokens: Mapping[Request, int | None]
    ) -> list[Request]:
        """The requests admitted in this step on blocks that the step computed wrongly."""
        if not self._unconfirmed or None not in tokens.values():
            return []
        void: list[Request] = []
        tainted: set[int] = set()
        for item in batch.scheduled:  # who fills a block comes before those that share it
            request = item.request
            if request in self._unconfirmed and not tainted.isdisjoint(request.block_ids):
                void.append(request)
                tainted.update(request.block_ids)
            elif item.samples and tokens[request] is None:
                tainted.update(request.block_ids)
        return void

    def take_untrusted_blocks(self) -> list[int]:
        """Blocks given back that may hold NaN: clear them before the next step is computed."""
        block_ids, self._untrusted_blocks = self._untrusted_blocks, []
        return block_ids

    def shrink(self, batch: ScheduledBatch) -> tuple[list[Request], Request | None]:
        """After a step that ran out of memory: smaller steps, and the later half waits again.

        Args:
            batch: What `schedule` returned, not computed.

        Returns:
            The requests that were preempted, and the one that ran out of memory alone once too
            often: the caller has to finish it.
        """
        self._take_back_unconfirmed()
        if self.limits.note_out_of_memory(batch):
            return [], batch.scheduled[0].request
        in_batch = sorted((item.request for item in batch.scheduled), key=rank_of)
        kept = set(in_batch[: self.limits.max_num_seqs])
        victims = [request for request in reversed(self.running) if request not in kept]
        for request in victims:
            self._preempt(request)
        return victims, None

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its blocks."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._release_blocks(request, RequestStatus.FINISHED)

    def discard(self, request: Request) -> list[int]:
        """Take out a running request whose KV cannot be trusted, and let nobody share it.

        Returns:
            Its blocks that nobody else holds, free now: clear them before they are used again.
        """
        block_ids = request.block_ids
        self.block_pool.forget(block_ids)
        self.finish(request)
        return [block_id for block_id in block_ids if self.block_pool.ref_count(block_id) == 0]

    def check(self) -> None:
        """Prove that every block's reference count is the number of block tables it is in.

        Raises:
            AssertionError: it is not, or the pool's own invariant is broken.
        """
        self.block_pool.check()
        for requests in (self.running, list(self.waiting)):
            assert requests == sorted(requests, key=rank_of), "requests are not in order of rank"
        counts = [0] * self.block_pool.num_blocks
        for request in self.running:
            assert request.status is RequestStatus.RUNNING
            for block_id in request.block_ids:
                counts[block_id] += 1
        for request in self.waiting:
            assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
            assert not request.block_ids, f"{request.request_id} waits and holds blocks"
        actual = [self.block_pool.ref_count(block_id) for block_id in range(len(counts))]
        assert actual == counts, "a reference count is not the number of its block tables"

    def _reserve_blocks(self) -> list[Request]:
        """Extend each running request's block table to its last known token, first rank first.

        Returns:
            The requests that were preempted for it, the last in rank first.
        """
        pool = self.block_pool
        preempted: list[Request] = []
        index = 0
        while index < len(self.running):
            request = self.running[index]
            missing = pool.blocks_for(request.num_tokens) - len(request.block_ids)
            if missing > pool.num_free_blocks:
                # The victim may be this request itself: then it was the last.
                preempted.append(self.running[-1])
                self._preempt(self.running[-1])
                continue
            if missing > 0:
                request.block_ids += pool.allocate(missing)
            index += 1
        return preempted

    def _make_room(self) -> list[Request]:
        """Preempt requests of lower priorities where the first that waits needs their place.

        Returns:
            The preempted ones, the last in rank first; none where all of them were not enough.
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
        if not self._fits(urgent, num_victims=len(victims), gained=gained):
            return []
        preempted: list[Request] = []
        for victim in victims:
            if self._fits(urgent):
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
        self.running.remove(request)
        self._release_blocks(request, RequestStatus.PREEMPTED)
        request.num_computed_tokens = 0
        request.metrics.num_preemptions += 1
        self.waiting.add(request)

    def _take_back_unconfirmed(self) -> None:
        """Let requests wait again whose first blocks were to be computed in a step that was not."""
        for request in self._unconfirmed:
            if request.status is RequestStatus.RUNNING:
                self.running.remove(request)
                self._release_blocks(request, RequestStatus.WAITING)
                request.num_computed_tokens = 0
                self.waiting.add(request)
        self._unconfirmed = []

    def _release_blocks(self, request: Request, status: RequestStatus) -> None:
        self.block_pool.free(request.block_ids)
        if not request.is_trusted:
            # Slots that a later holder does not write are masked, and yet multiplied.
            self._untrusted_blocks += [
                block_id
                for block_id in request.block_ids[request.num_registered_blocks :]
                if self.block_pool.ref_count(block_id) == 0
            ]
        request.block_ids = []
        request.status = status

    def _fill(
        self, plan: StepPlan, prefills: Sequence[Request], preempted: Sequence[Request]
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
        pool.share(shared)
        if self._sharing.is_coming(request, len(shared)):
            self._unconfirmed.append(request)
        request.block_ids = shared + pool.allocate(needed)
        request.num_registered_blocks = len(shared)
        request.num_computed_tokens = len(shared) * pool.block_size
        self._note_admission(request)
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=rank_of)
        self._last_admitted = request
        return True

    def _note_admission(self, request: Request) -> None:
        metrics = request.metrics
        if metrics.queued_s is None:
            metrics.queued_s = time.monotonic() - metrics.arrived_at_s
            metrics.num_cached_tokens = min(
                request.num_computed_tokens, len(request.prompt_token_ids)
            )
