"""The requests that hold blocks, and the steps in flight that write to them."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence

from batchmill.engine.request.request import Request, RequestStatus

from .block_pool import BlockPool
from .prefix_cache import PrefixCache
from .scheduled_batch import ScheduledBatch, VerifiedDrafts
from .waiting_queue import rank_of


class RunningRequests:
    """Owns the running requests, the steps in flight, and the requests that finished during one.

    A step is in flight from `mark_launched` until `collect`, when its tokens are known on the host.
    In between a request continues from a token that is sampled but not known yet. A request that
    finishes in between keeps its blocks until the last step with it is collected, because that step
    writes to them. The tokens that such a step samples for it are discarded.

    Invariant: `requests` is in order of rank; each of them, and each that finished in flight, holds
    the blocks of its table.
    """

    def __init__(self, block_pool: BlockPool, prefix_cache: PrefixCache) -> None:
        self.requests: list[Request] = []
        #: Running requests that compute more than their last token (also after preemption), or
        #: score known tokens.
        self.prefilling: set[Request] = set()
        #: Launched and not collected, oldest first.
        self.in_flight: deque[ScheduledBatch] = deque()
        self._pool = block_pool
        self._prefix_cache = prefix_cache
        self._finished_in_flight: set[Request] = set()
        self._blocks_to_zero: list[int] = []

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def schedulable(self) -> list[Request]:
        """Requests with a token to compute. Excludes those whose last token is being sampled."""
        if not self.in_flight:
            return list(self.requests)
        return [
            each for each in self.requests if each.num_computed_tokens + 1 < each.max_num_tokens
        ]

    def admit(
        self, request: Request, shared: list[int], evicted: Sequence[bytes], num_new_blocks: int
    ) -> None:
        """Let a request run on some shared blocks, some that are brought back, and some new ones.

        Args:
            request: It waits.
            shared: Computed blocks of its first tokens.
            evicted: Hashes of the blocks after these whose content is kept elsewhere.
            num_new_blocks: Further blocks.
        """
        pool = self._pool
        pool.share(shared)
        computed = shared + pool.restore(evicted)
        request.block_ids = computed + pool.allocate(num_new_blocks)
        request.num_slots = len(request.block_ids) * pool.block_size
        request.num_cached_blocks = len(computed)
        request.num_computed_tokens = len(computed) * pool.block_size
        request.status = RequestStatus.RUNNING
        self.prefilling.add(request)
        insort(self.requests, request, key=rank_of)

    def allocate_block(self, request: Request) -> None:
        """Give a request one more block."""
        request.block_ids += self._pool.allocate(1)
        request.num_slots += self._pool.block_size

    def allocate_for_drafts(self, request: Request, num_drafts: int) -> int:
        """Give a request blocks for draft tokens, if no other request needs these blocks.

        Args:
            request: It has a slot for its last token.
            num_drafts: Tokens to compute after that one.

        Returns:
            The number of draft tokens that have slots.
        """
        num_needed = request.num_tokens + num_drafts
        # As for an admission: keep one block for each running request to grow into.
        while request.num_slots < num_needed and self._pool.num_free_blocks > len(self.requests):
            self.allocate_block(request)
        return min(num_drafts, request.num_slots - request.num_tokens)

    def release(self, request: Request, status: RequestStatus) -> None:
        """Take a request out and free its blocks at once; no step in flight may use them."""
        self.requests.remove(request)
        self._release_blocks(request, status)

    def finish(self, request: Request) -> None:
        """Take a request out, and free its blocks once no step in flight writes to them."""
        self.requests.remove(request)
        self.prefilling.discard(request)
        if request.num_steps_in_flight == 0:
            self._release_blocks(request, RequestStatus.FINISHED)
            return
        request.status = RequestStatus.FINISHED
        self._finished_in_flight.add(request)
        self._discard_in_flight(request)

    @property
    def blocks_to_zero(self) -> Sequence[int]:
        """Freed blocks that may hold NaN: zero them before the next step is computed."""
        return self._blocks_to_zero

    def note_blocks_zeroed(self) -> None:
        """Empty `blocks_to_zero`, because the caller has zeroed them all."""
        self._blocks_to_zero = []

    def mark_launched(self, batch: ScheduledBatch) -> None:
        """Count the tokens of a launched step as computed, and those it samples as pending."""
        self.in_flight.append(batch)
        for request in batch.decodes:
            request.num_computed_tokens += 1
            request.num_pending_tokens += 1
            request.num_steps_in_flight += 1
        for item in batch.chunks:
            request = item.request
            request.num_computed_tokens = item.num_computed_tokens + item.num_new_tokens
            request.num_pending_tokens += item.num_sampled_tokens
            request.num_steps_in_flight += 1
            request.is_kv_finite = False
            if item.needs_sample:
                self.prefilling.discard(request)

    def take_back(self, batch: ScheduledBatch) -> None:
        """Undo `mark_launched` of the only step in flight, whose tokens could not be sampled."""
        assert list(self.in_flight) == [batch], "only the last step can be taken back"
        self.in_flight.clear()
        decodes = zip(batch.decodes, batch.decode_starts, strict=True)
        shares = [(each, start, 1) for each, start in decodes]
        shares += [(x.request, x.num_computed_tokens, x.num_sampled_tokens) for x in batch.chunks]
        for request, num_computed_tokens, num_sampled in shares:
            if request in batch.discarded:
                self._note_discarded_step(request, is_finite=False)
                continue
            request.num_steps_in_flight -= 1
            request.num_pending_tokens -= num_sampled
            request.num_computed_tokens = num_computed_tokens
        for item in batch.chunks:
            if item.request not in batch.discarded and not item.draft_token_ids:
                self.prefilling.add(item.request)

    def collect(
        self,
        batch: ScheduledBatch,
        token_ids: Sequence[int | None],
        drafts: Sequence[VerifiedDrafts] = (),
    ) -> list[Request]:
        """Take the oldest step out of flight, and append its tokens that are not discarded.

        Args:
            batch: That step.
            token_ids: One per request in `batch.sampled_requests`; None if sampling failed.
            drafts: The outcome of the step's draft tokens.

        Returns:
            Requests taken out because a token failed, which have to wait again: those admitted on
            blocks of the step, and those that failed with draft tokens.
        """
        oldest = self.in_flight.popleft()
        assert oldest is batch, "steps must be collected in the order in which they were launched"
        taken_out = self._take_out_doubtful(batch, drafts) if None in token_ids else []
        discarded = batch.discarded
        for request, token_id in zip(batch.sampled_requests, token_ids, strict=True):
            if discarded and request in discarded:
                self._note_discarded_step(request, is_finite=token_id is not None)
                continue
            request.num_steps_in_flight -= 1
            request.num_pending_tokens -= 1
            if token_id is not None:
                request.output_token_ids.append(token_id)
                request.is_kv_finite = True
        for item in batch.chunks:
            if not item.needs_sample and item.request in discarded:
                self._note_discarded_step(item.request, is_finite=False)
            elif not item.needs_sample:
                item.request.num_steps_in_flight -= 1
        for each in drafts:
            if each.item.request not in discarded:
                self._accept_drafts(each)
        self._cache_full_blocks(batch, token_ids, drafts)
        return taken_out

    def count_holders(self) -> list[int]:
        """Count, for each block of the pool, the block tables that contain it. For tests."""
        counts = [0] * self._pool.num_blocks
        assert self.requests == sorted(self.requests, key=rank_of), "requests are not in rank order"
        finished = self._finished_in_flight
        for request in (*self.requests, *finished):
            assert (request.status is RequestStatus.FINISHED) == (request in finished)
            assert request.num_slots == len(request.block_ids) * self._pool.block_size
            for block_id in request.block_ids:
                counts[block_id] += 1
        return counts

    def _accept_drafts(self, drafts: VerifiedDrafts) -> None:
        """Append the tokens after the first, and take back the rejected drafts.

        Their slots are rewritten before they are read, because every later token comes after them.
        """
        request = drafts.item.request
        request.output_token_ids += drafts.token_ids[1:]
        request.num_pending_tokens -= len(drafts.item.draft_token_ids)
        request.num_computed_tokens -= drafts.num_rejected

    def _take_out_doubtful(
        self, batch: ScheduledBatch, drafts: Sequence[VerifiedDrafts]
    ) -> list[Request]:
        """Take out the requests whose KV is in doubt after a token failed.

        These are the requests that failed with draft tokens, because a rejected draft may be to
        blame: they are recomputed without drafts. And all requests admitted on blocks of a step in
        flight, not only on those of the failed request: how far a bad KV spread is not tracked,
        because this is rare and recomputing is always right.
        """
        taken_out: list[Request] = []
        for verified in drafts:
            request = verified.item.request
            if not verified.token_ids and request not in batch.discarded:
                request.drafter = None
                batch.discarded.add(request)
                self.release(request, RequestStatus.WAITING)
                taken_out.append(request)
        for each in (batch, *self.in_flight):
            for request in each.in_batch_sharers:
                if request not in each.discarded:
                    each.discarded.add(request)
                    self.release(request, RequestStatus.WAITING)
                    taken_out.append(request)
        return taken_out

    def _note_discarded_step(self, request: Request, *, is_finite: bool) -> None:
        """Count a collected step of a finished request; free its blocks after the last one."""
        if request not in self._finished_in_flight:
            return
        request.num_steps_in_flight -= 1
        request.is_kv_finite = request.is_kv_finite and is_finite
        if request.num_steps_in_flight == 0:
            self._finished_in_flight.remove(request)
            self._release_blocks(request, RequestStatus.FINISHED)

    def _cache_full_blocks(
        self,
        batch: ScheduledBatch,
        token_ids: Sequence[int | None],
        drafts: Sequence[VerifiedDrafts],
    ) -> None:
        """Put the blocks that a step filled into the prefix cache, if its token is finite."""
        block_size = self._pool.block_size
        filled = [
            (row, batch.decodes[row], start + 1)
            for row, start in enumerate(batch.decode_starts)
            if (start + 1) % block_size == 0
        ]
        sampled = [item for item in batch.chunks if item.needs_sample]
        num_rejected = {each.item.request: each.num_rejected for each in drafts}
        filled += [
            (
                row,
                item.request,
                item.num_computed_tokens + item.num_new_tokens - num_rejected.get(item.request, 0),
            )
            for row, item in enumerate(sampled, start=len(batch.decodes))
        ]
        for row, request, num_tokens in filled:
            if token_ids[row] is not None and request not in batch.discarded:
                self._prefix_cache.cache_full_blocks(request, num_tokens)

    def _release_blocks(self, request: Request, status: RequestStatus) -> None:
        self._pool.free(request.block_ids)
        if not request.is_kv_finite or request.num_steps_in_flight:
            # Attention masks slots that a later holder has not written, but still multiplies them.
            self._blocks_to_zero += [
                block_id
                for block_id in request.block_ids[request.num_cached_blocks :]
                if self._pool.ref_count(block_id) == 0
            ]
        if request.num_steps_in_flight:
            self._discard_in_flight(request)
        self.prefilling.discard(request)
        if request.media is not None:
            request.media.held = None
        request.block_ids = []
        request.num_slots = 0
        request.num_releases += 1
        request.num_computed_tokens = 0
        request.num_pending_tokens = 0
        request.num_steps_in_flight = 0
        request.status = status

    def _discard_in_flight(self, request: Request) -> None:
        """Discard the tokens that steps in flight sample for a request."""
        for batch in self.in_flight:
            batch.discarded.add(request)
