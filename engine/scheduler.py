"""Which requests are computed in the next step, and how many tokens of each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from .block_pool import BlockPool, extend_block_hashes
from .errors import ConfigError, RequestError
from .request import Request, RequestStatus
from .schedule import ScheduledBatch, ScheduledRequest
from .scores import TokenScores

#: Most known tokens scored in one step, to bound the logits: 256 rows of 128,000 are 131 MB.
MAX_SCORED_TOKENS = 256


class Scheduler:
    """Owns the waiting and the running requests, and gives blocks and tokens to them.

    There are no prefill and decode phases: each request has `num_computed_tokens`, and every step
    lets them catch up with their known tokens under one token budget, decodes first.

    Order: requests are admitted as they arrived, none overtakes. A request is admitted only when
    there are blocks for all its known tokens, so a prompt is never stuck half-way. Where a running
    request needs a block and none is free, the latest arrival is preempted: its blocks are freed,
    it waits again at the front, and later computes its prompt and output anew. So the earliest
    running request always advances, and as each request fits into the pool alone (`add` sees to
    that), every request finishes.

    Invariant: `running` and `waiting`, one after the other, are in order of arrival; a block's
    reference count is the number of block tables it is in (`check`).

    Source: iteration-level scheduling, Yu et al. 2022 (Orca), section 4.1; chunked prefill beside
    decodes, Agrawal et al. 2024 (Sarathi-Serve), section 4; preemption by recompute, Kwon et al.
    2023 (PagedAttention), section 4.5; one counter in place of phases, as in vLLM V1.
    """

    def __init__(
        self, block_pool: BlockPool, *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens is {max_num_batched_tokens}, fewer than max_num_seqs "
                f"{max_num_seqs}: prompts could wait for decodes for ever"
            )
        self.block_pool = block_pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

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
        """Let a request wait behind those that came before.

        Raises:
            RequestError: see `check_fits`.
        """
        self.check_fits(request)
        self.waiting.append(request)

    def schedule(self) -> ScheduledBatch:
        """Choose the next step's work. Empty only where there is no request.

        Nothing is lost when the step is not run or fails: requests count as computed in `update`,
        so the next call chooses the same tokens again.
        """
        preempted = self._reserve_blocks()
        plan = _Plan(self.max_num_batched_tokens)
        prefills = []
        for request in self.running:
            num_uncomputed_tokens = request.num_uncomputed_tokens
            if num_uncomputed_tokens == 1:
                plan.place(request, 1)
            else:
                prefills.append((request, num_uncomputed_tokens))
        for request, num_uncomputed_tokens in prefills:
            plan.place(request, num_uncomputed_tokens)
        # What was just preempted is not admitted here: fewer blocks are free than it gave up.
        self._admit(plan)
        assert plan.scheduled or not self.has_requests, "requests wait, and none can be computed"
        return ScheduledBatch(tuple(plan.scheduled), tuple(preempted))

    def update(self, batch: ScheduledBatch, token_ids: Sequence[int | None]) -> None:
        """Count a step's tokens as computed and append the sampled ones.

        Args:
            batch: What `schedule` returned, computed.
            token_ids: One for each of `batch.sampling_requests`; None where sampling failed: the
                caller has to finish that request.
        """
        sampled = iter(token_ids)
        for request, num_computed_tokens, num_new_tokens, samples, _ in batch.scheduled:
            token_id = next(sampled) if samples else None
            request.num_computed_tokens = num_computed_tokens + num_new_tokens
            if samples and token_id is None:
                continue
            if token_id is not None:
                request.output_token_ids.append(token_id)
            self._register_computed_blocks(request)

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
        """Extend each running request's block table to its last known token, earliest first.

        Returns:
            The requests that were preempted for it, the latest arrival first.
        """
        pool = self.block_pool
        preempted: list[Request] = []
        index = 0
        while index < len(self.running):
            request = self.running[index]
            missing = pool.blocks_for(request.num_tokens) - len(request.block_ids)
            if missing > pool.num_free_blocks:
                # The victim may be this request itself: then it was the latest.
                preempted.append(self._preempt_latest())
                continue
            if missing > 0:
                request.block_ids += pool.allocate(missing)
            index += 1
        return preempted

    def _preempt_latest(self) -> Request:
        request = self.running.pop()
        self._release_blocks(request, RequestStatus.PREEMPTED)
        request.num_computed_tokens = 0
        request.metrics.num_preemptions += 1
        self.waiting.appendleft(request)
        return request

    def _release_blocks(self, request: Request, status: RequestStatus) -> None:
        self.block_pool.free(request.block_ids)
        request.block_ids = []
        request.status = status

    def _admit(self, plan: _Plan) -> None:
        """Admit waiting requests in order, until one does not fit."""
        pool = self.block_pool
        while self.waiting and plan.num_free_tokens and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            cached = self._find_cached_prefix(request)
            needed = pool.blocks_for(request.num_tokens) - len(cached)
            # A block for each running request to grow into: admitting a request only to preempt it
            # a few steps later would compute its prompt twice.
            spare = len(self.running)
            if needed + spare > pool.num_free_blocks - pool.num_free_among(cached):
                return
            self.waiting.popleft()
            pool.share(cached)
            request.block_ids = cached + pool.allocate(needed)
            request.num_registered_blocks = len(cached)
            request.num_computed_tokens = len(cached) * pool.block_size
            self._note_admission(request)
            request.status = RequestStatus.RUNNING
            self.running.append(request)
            plan.place(request, request.num_uncomputed_tokens)

    def _find_cached_prefix(self, request: Request) -> list[int]:
        """Cached blocks that start like the request, but for its last token.

        The last token is computed even where its KV is cached: its logits are needed.
        """
        if not self.block_pool.enable_prefix_caching:
            return []
        num_tokens = request.num_tokens
        if request.scores is not None and request.scores.is_pending:
            # What is scored has to be computed, from the token before it on.
            num_tokens = request.scores.next_position
        num_blocks = (num_tokens - 1) // self.block_pool.block_size
        self._hash_blocks(request, num_blocks)
        return self.block_pool.find_cached(request.block_hashes[:num_blocks])

    def _note_admission(self, request: Request) -> None:
        metrics = request.metrics
        if metrics.queued_s is None:
            metrics.queued_s = time.monotonic() - metrics.arrived_at_s
            metrics.num_cached_tokens = min(
                request.num_computed_tokens, len(request.prompt_token_ids)
            )

    def _register_computed_blocks(self, request: Request) -> None:
        """Offer the request's newly full blocks to the prefix cache."""
        pool = self.block_pool
        num_full = request.num_computed_tokens // pool.block_size
        if num_full <= request.num_registered_blocks or not pool.enable_prefix_caching:
            return
        self._hash_blocks(request, num_full)
        for index in range(request.num_registered_blocks, num_full):
            pool.register(request.block_ids[index], request.block_hashes[index])
        request.num_registered_blocks = num_full

    def _hash_blocks(self, request: Request, num_blocks: int) -> None:
        """Extend the request's block hashes to its first `num_blocks` blocks."""
        block_size = self.block_pool.block_size
        start = len(request.block_hashes)
        if start < num_blocks:
            token_ids = request.token_ids_slice(start * block_size, num_blocks * block_size)
            extend_block_hashes(request.block_hashes, token_ids, block_size)


class _Plan:
    """A step being put together: what is scheduled, and what is left of the token budget."""

    __slots__ = ("_num_free_scores", "num_free_tokens", "scheduled")

    def __init__(self, max_num_batched_tokens: int) -> None:
        self.num_free_tokens = max_num_batched_tokens
        self._num_free_scores = MAX_SCORED_TOKENS
        self.scheduled: list[ScheduledRequest] = []

    def place(self, request: Request, num_uncomputed_tokens: int) -> None:
        """Schedule as many of the request's uncomputed tokens as the budget has left."""
        num_new_tokens = min(num_uncomputed_tokens, self.num_free_tokens)
        scored = range(0)
        if request.scores is not None and request.scores.is_pending:
            num_new_tokens, scored = self._limit_scores(request, request.scores, num_new_tokens)
        if num_new_tokens == 0:
            return
        self.num_free_tokens -= num_new_tokens
        self.scheduled.append(
            ScheduledRequest(
                request,
                request.num_computed_tokens,
                num_new_tokens,
                num_new_tokens == num_uncomputed_tokens,
                scored,
            )
        )

    def _limit_scores(
        self, request: Request, scores: TokenScores, num_new_tokens: int
    ) -> tuple[int, range]:
        """How many tokens may be computed, and which positions they score.

        A position is scored by the logits of the token before it.
        """
        start, first = request.num_computed_tokens, scores.next_position
        if first + self._num_free_scores < scores.end_position:
            num_new_tokens = min(num_new_tokens, first - 1 - start + self._num_free_scores)
        scored = range(first, max(first, min(start + num_new_tokens + 1, scores.end_position)))
        self._num_free_scores -= len(scored)
        return num_new_tokens, scored
