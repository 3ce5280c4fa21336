"""The prefix cache: which blocks a request can share, by its salt and its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from batchmill.engine.request.request import Request

from .block_pool import BlockPool, extend_block_hashes, salted_root
from .scheduled_batch import ScheduledRequest


class PrefixCache:
    """Finds the blocks that a request can share, and offers those that it has filled.

    A block is *cached* once it is computed. A block that the current step fills is an *in-batch
    block*: a request admitted in the same step may already share it, because each layer writes the
    keys and values of the whole step before it attends.

    Only blocks that led to a finite token are cached. Attention multiplies masked values by zero,
    so a NaN reaches earlier positions of the same step: the blocks before a poisoned token are no
    better than the token itself.
    """

    def __init__(self, block_pool: BlockPool) -> None:
        self._pool = block_pool
        self._in_batch_blocks: dict[bytes, int] = {}

    def reset_in_batch_blocks(self) -> None:
        """Forget the in-batch blocks of the step before."""
        self._in_batch_blocks = {}

    def find(self, request: Request) -> list[int]:
        """Find the cached or in-batch blocks of the request's longest prefix.

        The last token is always computed, even if its KV is cached: its logits are needed.
        """
        block_hashes = self._usable_hashes(request)
        # Scores are recorded with their token, but a token on in-batch blocks may be discarded.
        in_batch_blocks = self._in_batch_blocks if request.scores is None else None
        return self._pool.find_cached(block_hashes, in_batch_blocks)

    def find_evicted(self, request: Request, num_found: int) -> Sequence[bytes]:
        """Find evicted blocks to bring back, after the `num_found` blocks that `find` returned."""
        return self._pool.find_evicted(self._usable_hashes(request)[num_found:])

    def shares_in_batch_blocks(self, request: Request, num_blocks: int) -> bool:
        """Return whether any of the request's first blocks is computed only in this step."""
        if request.scores is not None:
            return False
        return not self._in_batch_blocks.keys().isdisjoint(request.block_hashes[:num_blocks])

    def add_in_batch_blocks(self, item: ScheduledRequest) -> None:
        """Let requests admitted in the same step find the blocks that this one fills in it."""
        if not item.needs_sample or not self._pool.enable_prefix_caching:
            return
        request = item.request
        num_full = (item.num_computed_tokens + item.num_new_tokens) // self._pool.block_size
        self._extend_hashes(request, num_full)
        for index in range(request.num_cached_blocks, num_full):
            self._in_batch_blocks.setdefault(request.block_hashes[index], request.block_ids[index])

    def cache_full_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Cache the full blocks of a request's first computed tokens."""
        num_full = num_computed_tokens // self._pool.block_size
        if num_full <= request.num_cached_blocks or not self._pool.enable_prefix_caching:
            return
        self._extend_hashes(request, num_full)
        for index in range(request.num_cached_blocks, num_full):
            self._pool.cache(request.block_ids[index], request.block_hashes[index])
        request.num_cached_blocks = num_full

    def block_hashes(self, request: Request) -> Sequence[bytes]:
        """Return the hashes of the full blocks of the request's known tokens."""
        self._extend_hashes(request, request.num_tokens // self._pool.block_size)
        return request.block_hashes

    def _usable_hashes(self, request: Request) -> Sequence[bytes]:
        """Return the hashes of the blocks that the request need not compute itself."""
        if not self._pool.enable_prefix_caching:
            return ()
        if request.pooling is not None and not request.pooling.reads_cache:
            return ()
        num_tokens, scores = request.num_tokens, request.scores
        if scores is not None and scores.is_pending:
            # Scored tokens have to be computed, from the token before the first one on.
            num_tokens = scores.next_position
        num_blocks = (num_tokens - 1) // self._pool.block_size
        self._extend_hashes(request, num_blocks)
        return request.block_hashes[:num_blocks]

    def _extend_hashes(self, request: Request, num_blocks: int) -> None:
        block_size = self._pool.block_size
        start = len(request.block_hashes)
        if start < num_blocks:
            first, last = start * block_size, num_blocks * block_size
            token_ids = request.token_ids_slice(first, last)
            marks = {} if request.media is None else request.media.marks_in(first, last)
            digest = None if request.adapter is None else request.adapter.digest
            steering_key = None if request.steering is None else request.steering.key
            root = salted_root(request.cache_salt, digest, steering_key)
            extend_block_hashes(request.block_hashes, token_ids, block_size, root, marks)
