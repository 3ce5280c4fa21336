"""The requests that hold blocks, and the steps that write to them."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence

from batchmill.engine.request.request import Request, RequestStatus

from .block_pool import BlockPool
from .prefix_cache import PrefixCache
from .scheduled_batch import CheckedDrafts, ScheduledBatch
from .waiting_queue import rank_of


class RunningRequests:
    """Owns the requests that run, the steps in flight with them, and who ended in one of these.

    A step is in flight from `begin`, when it is launched, until `collect`, when its tokens are
    known on the host. In between a request goes on from a token that is drawn and not known yet.
    One that ends meanwhile keeps its blocks until the last step with it is collected, because that
    step writes to them. Tokens of steps that a request left are void.

    Invariant: `requests` is in order of rank; each of them, and each that is leaving, holds the
    blocks of its table.
    """

    def __init__(self, block_pool: BlockPool, sharing: PrefixCache) -> None:
        self.requests: list[Request] = []
        #: Running requests with more than their last token to compute, or known tokens to score.
        self.catching_up: set[Request] = set()
        #: Launched and not collected, oldest first.
        self.in_flight: deque[ScheduledBatch] = deque()
        self._pool = block_pool
        self._sharing = sharing
        # Finished, and still in a step in flight.
        self._leaving: set[Request] = set()
        self._untrusted_blocks: list[int] = []

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def ready(self) -> list[Request]:
        """Those with a token to compute: not those whose last one is being drawn."""
        if not self.in_flight:
            return list(self.requests)
        return [
            each for each in self.requests if each.num_computed_tokens + 1 < each.max_num_tokens
        ]

    def admit(self, request: Request, shared: list[int], num_new_blocks: int) -> None:
        """Let a request run on some blocks that are computed, and some new ones."""
        pool = self._pool
        pool.share(shared)
        request.block_ids = shared + pool.allocate(num_new_blocks)
        request.num_slots = len(request.block_ids) * pool.block_size
        request.num_registered_blocks = len(shared)
        request.num_computed_tokens = len(shared) * pool.block_size
        request.status = RequestStatus.RUNNING
        self.catching_up.add(request)
        insort(self.requests, request, key=rank_of)

    def grow(self, request: Request) -> None:
        """Give a request one more block."""
        request.block_ids += self._pool.allocate(1)
        request.num_slots += self._pool.block_size

    def grow_for_drafts(self, request: Request, num_drafts: int) -> int:
        """Give a request blocks for tokens that may turn out wrong, where nobody needs them.

        Args:
            request: It has a slot for its last token.
            num_drafts: Tokens to compute after that one.

        Returns:
            For how many of them there are slots.
        """
        num_needed = request.num_tokens + num_drafts
        # As for an admission: each running request keeps a block to grow into.
        while request.num_slots < num_needed and self._pool.num_free_blocks > len(self.requests):
            self.grow(request)
        return min(num_drafts, request.num_slots - request.num_tokens)

    def release(self, request: Request, status: RequestStatus) -> None:
        """Take a request out at once; later steps may use its blocks, but none in flight does."""
        self.requests.remove(request)
        self._release_blocks(request, status)

    def finish(self, request: Request) -> None:
        """Take a request out, and free its blocks once no step in flight writes to them."""
        self.requests.remove(request)
        self.catching_up.discard(request)
        if request.num_steps_in_flight == 0:
            self._release_blocks(request, RequestStatus.FINISHED)
            return
        request.status = RequestStatus.FINISHED
        self._leaving.add(request)
        self._void_in_flight(request)

    @property
    def untrusted_blocks(self) -> Sequence[int]:
        """Blocks given back that may hold NaN: clear them before the next step is computed."""
        return self._untrusted_blocks

    def trust_blocks(self) -> None:
        """All `untrusted_blocks` are cleared."""
        self._untrusted_blocks = []

    def begin(self, batch: ScheduledBatch) -> None:
        """A step is launched: its tokens count as computed, and those it draws as pending."""
        self.in_flight.append(batch)
        for request in batch.decodes:
            request.num_computed_tokens += 1
            request.num_pending_tokens += 1
            request.num_steps_in_flight += 1
        for item in batch.chunks:
            request = item.request
            request.num_computed_tokens = item.num_computed_tokens + item.num_new_tokens
            request.num_pending_tokens += item.num_drawn_tokens
            request.num_steps_in_flight += 1
            request.is_trusted = False
            if item.samples:
                self.catching_up.discard(request)

    def collect(
        self,
        batch: ScheduledBatch,
        token_ids: Sequence[int | None],
        drafts: Sequence[CheckedDrafts] = (),
    ) -> list[Request]:
        """The oldest step in flight is done: append its tokens, but for those that are void.

        Args:
            batch: That step.
            token_ids: One for each of `batch.sampling_requests`; None where sampling failed.
            drafts: What became of the step's draft tokens.

        Returns:
            Requests that were taken out because a token failed, and have to wait again: those
            admitted on blocks of the step, and those that failed with draft tokens.
        """
        oldest = self.in_flight.popleft()
        assert oldest is batch, "steps are collected in the order in which they were launched"
        taken_out = self._take_out_doubtful(batch, drafts) if None in token_ids else []
        void = batch.void
        for request, token_id in zip(batch.sampling_requests, token_ids, strict=True):
            if void and request in void:
                self._note_void(request, is_finite=token_id is not None)
                continue
            request.num_steps_in_flight -= 1
            request.num_pending_tokens -= 1
            if token_id is not None:
                request.output_token_ids.append(token_id)
                request.is_trusted = True
        for item in batch.chunks:
            if not item.samples and item.request in void:
                self._note_void(item.request, is_finite=False)
            elif not item.samples:
                item.request.num_steps_in_flight -= 1
        for each in drafts:
            if each.item.request not in void:
                self._settle(each)
        self._register_blocks(batch, token_ids, drafts)
        return taken_out

    def count_holders(self) -> list[int]:
        """For each block of the pool, in how many block tables it is."""
        counts = [0] * self._pool.num_blocks
        assert self.requests == sorted(self.requests, key=rank_of), "requests are not in rank order"
        for request in (*self.requests, *self._leaving):
            assert (request.status is RequestStatus.FINISHED) == (request in self._leaving)
            assert request.num_slots == len(request.block_ids) * self._pool.block_size
            for block_id in request.block_ids:
                counts[block_id] += 1
        return counts

    def _settle(self, drafts: CheckedDrafts) -> None:
        """Append the tokens after the first; what was wrong was never computed.

        Its slots are written again before they are read: no later token comes in front of them.
        """
        request = drafts.item.request
        request.output_token_ids += drafts.token_ids[1:]
        request.num_pending_tokens -= len(drafts.item.draft_token_ids)
        request.num_computed_tokens -= drafts.num_rejected

    def _take_out_doubtful(
        self, batch: ScheduledBatch, drafts: Sequence[CheckedDrafts]
    ) -> list[Request]:
        """After a token failed: take out whose KV is in doubt.

        That is who failed with draft tokens, for a wrong one may be to blame: they are computed
        anew, and without. And who was admitted on blocks that are not confirmed, not only on those
        of the failed request: what its KV reached through others is not followed, for this is rare,
        and computing them again is always right.
        """
        taken_out: list[Request] = []
        for checked in drafts:
            request = checked.item.request
            if not checked.token_ids and request not in batch.void:
                request.lookup = None
                batch.void.add(request)
                self.release(request, RequestStatus.WAITING)
                taken_out.append(request)
        for each in (batch, *self.in_flight):
            for request in each.unconfirmed:
                if request not in each.void:
                    each.void.add(request)
                    self.release(request, RequestStatus.WAITING)
                    taken_out.append(request)
        return taken_out

    def _note_void(self, request: Request, *, is_finite: bool) -> None:
        """Count a step that a request had left; after the last one its blocks are free."""
        if request not in self._leaving:
            return
        request.num_steps_in_flight -= 1
        request.is_trusted = request.is_trusted and is_finite
        if request.num_steps_in_flight == 0:
            self._leaving.remove(request)
            self._release_blocks(request, RequestStatus.FINISHED)

    def _register_blocks(
        self,
        batch: ScheduledBatch,
        token_ids: Sequence[int | None],
        drafts: Sequence[CheckedDrafts],
    ) -> None:
        """Offer the blocks that a step filled for sharing, where its token shows them good."""
        block_size = self._pool.block_size
        filled = [
            (row, batch.decodes[row], start + 1)
            for row, start in enumerate(batch.decode_starts)
            if (start + 1) % block_size == 0
        ]
        sampling = [item for item in batch.chunks if item.samples]
        num_rejected = {each.item.request: each.num_rejected for each in drafts}
        filled += [
            (
                row,
                item.request,
                item.num_computed_tokens + item.num_new_tokens - num_rejected.get(item.request, 0),
            )
            for row, item in enumerate(sampling, start=len(batch.decodes))
        ]
        for row, request, num_tokens in filled:
            if token_ids[row] is not None and request not in batch.void:
                self._sharing.register(request, num_tokens)

    def _release_blocks(self, request: Request, status: RequestStatus) -> None:
        self._pool.free(request.block_ids)
        if not request.is_trusted or request.num_steps_in_flight:
            # Slots that a later holder does not write are masked, and yet multiplied.
            self._untrusted_blocks += [
                block_id
                for block_id in request.block_ids[request.num_registered_blocks :]
                if self._pool.ref_count(block_id) == 0
            ]
        if request.num_steps_in_flight:
            self._void_in_flight(request)
        self.catching_up.discard(request)
        request.block_ids = []
        request.num_slots = 0
        request.num_releases += 1
        request.num_computed_tokens = 0
        request.num_pending_tokens = 0
        request.num_steps_in_flight = 0
        request.status = status

    def _void_in_flight(self, request: Request) -> None:
        """What steps in flight draw for a request counts for nothing."""
        for batch in self.in_flight:
            batch.void.add(request)
