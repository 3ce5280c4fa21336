"""Which blocks a request can share: by its salt and its tokens, block after block."""

from __future__ import annotations

from collections.abc import Sequence

from batchmill.engine.request.request import Request

from .block_pool import BlockPool, extend_block_hashes, salted_root
from .scheduled_batch import ScheduledRequest


class PrefixCache:
    """Finds, offers and announces the blocks of requests by their content.

    Blocks are *cached* once they are computed. Blocks that the step being put together fills are
    *coming*: a request admitted in the same step may already share them, because each layer writes
    the keys and values of the whole step before it attends.

    Only what led to a finite token is cached. Attention multiplies masked values by zero, so a NaN
    reaches the positions before it in the same step: blocks in front of a poisoned token are no
    better than the token itself.
    """

    def __init__(self, block_pool: BlockPool) -> None:
        self._pool = block_pool
        self._coming: dict[bytes, int] = {}

    def begin_step(self) -> None:
        """Nothing is coming yet."""
        self._coming = {}

    def find(self, request: Request) -> list[int]:
        """Cached or coming blocks that start like the request, but for its last token.

        The last token is computed even where its KV is cached: its logits are needed.
        """
        if not self._pool.enable_prefix_caching:
            return []
        num_tokens, scores = request.num_tokens, request.scores
        if scores is not None and scores.is_pending:
            # What is scored has to be computed, from the token before it on.
            num_tokens = scores.next_position
        num_blocks = (num_tokens - 1) // self._pool.block_size
        self._extend_hashes(request, num_blocks)
        # Scores are noted with the token; on coming blocks a token may still turn out to be void.
        coming = self._coming if scores is None else None
        return self._pool.find_cached(request.block_hashes[:num_blocks], coming)

    def is_coming(self, request: Request, num_blocks: int) -> bool:
        """Whether any of the request's first blocks is still to be computed in this step."""
        if request.scores is not None:
            return False
        return not self._coming.keys().isdisjoint(request.block_hashes[:num_blocks])

    def announce(self, item: ScheduledRequest) -> None:
        """Let requests admitted in the same step find the blocks that this one fills in it."""
        if not item.samples or not self._pool.enable_prefix_caching:
            return
        request = item.request
        num_full = (item.num_computed_tokens + item.num_new_tokens) // self._pool.block_size
        self._extend_hashes(request, num_full)
        for index in range(request.num_registered_blocks, num_full):
            self._coming.setdefault(request.block_hashes[index], request.block_ids[index])

    def register(self, request: Request, num_computed_tokens: int) -> None:
        """Offer the full blocks of a request's first computed tokens to the prefix cache."""
        num_full = num_computed_tokens // self._pool.block_size
        if num_full <= request.num_registered_blocks or not self._pool.enable_prefix_caching:
            return
        self._extend_hashes(request, num_full)
        for index in range(request.num_registered_blocks, num_full):
            self._pool.register(request.block_ids[index], request.block_hashes[index])
        request.num_registered_blocks = num_full

    def hashes(self, request: Request) -> Sequence[bytes]:
        """Hashes of the full blocks of the request's known tokens."""
        self._extend_hashes(request, request.num_tokens // self._pool.block_size)
        return request.block_hashes

    def _extend_hashes(self, request: Request, num_blocks: int) -> None:
        block_size = self._pool.block_size
        start = len(request.block_hashes)
        if start < num_blocks:
            token_ids = request.token_ids_slice(start * block_size, num_blocks * block_size)
            extend_block_hashes(
                request.block_hashes, token_ids, block_size, salted_root(request.cache_salt)
            )
