"""Which KV blocks are free, who holds the others, and which contents can be shared."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from batchmill.engine.errors import OutOfBlocksError

#: Parent of a sequence's first block.
ROOT_HASH = b""


def salted_root(cache_salt: str | None) -> bytes:
    """Parent of the first block of requests with a salt: blocks of two salts never meet.

    Source: the prefix cache's salt of vLLM, which keeps one user from learning by the time that
    an answer takes what another one had asked.
    """
    if cache_salt is None:
        return ROOT_HASH
    # As long as the hash of a block, and never that of one: `person` keeps the two apart.
    salt = cache_salt.encode(errors="surrogatepass")
    return hashlib.blake2b(salt, digest_size=16, person=b"cache salt").digest()


class BlockPool:
    """Owns the numbers of all KV blocks.

    A block is held by one or more requests, or free. A full, computed block can be *cached*: it is
    then found by the hash of all tokens from the start of its sequence. A free block that is cached
    keeps its content until it is needed for something else, the least recently used one first.

    Invariant (`check`): every block is either held (reference count above 0), free and cached, or
    free and not cached; each cached block is found under exactly its own hash.

    Source: PagedAttention, Kwon et al. 2023, section 4.3; hash-chained blocks with a free list in
    order of last use, as in vLLM's automatic prefix caching.
    """

    def __init__(
        self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        # Popped from the end, so that block 0 goes out first.
        self._free_uncached = list(range(num_blocks - 1, -1, -1))
        # Oldest first; used as an ordered set.
        self._free_cached: OrderedDict[int, None] = OrderedDict()
        self._block_by_hash: dict[bytes, int] = {}
        self._hash_by_block: dict[int, bytes] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that `allocate` can hand out, cached ones included."""
        return len(self._free_uncached) + len(self._free_cached)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be found by their content, held or free."""
        return len(self._block_by_hash)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def ref_count(self, block_id: int) -> int:
        """How many requests hold a block."""
        return self._ref_counts[block_id]

    def allocate(self, num_blocks: int) -> list[int]:
        """Hand out free blocks, each with one holder; cached content is given up last.

        Raises:
            OutOfBlocksError: fewer are free; nothing is handed out.
        """
        if num_blocks > self.num_free_blocks:
            raise OutOfBlocksError(
                f"{num_blocks} blocks asked for, {self.num_free_blocks} of {self.num_blocks} are "
                "free: preempt or finish a request first"
            )
        block_ids = []
        for _ in range(num_blocks):
            if self._free_uncached:
                block_id = self._free_uncached.pop()
            else:
                block_id, _ = self._free_cached.popitem(last=False)
                del self._block_by_hash[self._hash_by_block.pop(block_id)]
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def find_cached(
        self, block_hashes: Iterable[bytes], coming: Mapping[bytes, int] | None = None
    ) -> list[int]:
        """The blocks that hold the longest cached prefix. They are not taken: see `share`.

        Args:
            block_hashes: Of the prefix, block after block.
            coming: Held blocks that the step being put together fills, by the hash they will have.
        """
        found = []
        for block_hash in block_hashes:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None and coming is not None:
                block_id = coming.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        """How many of the blocks nobody holds."""
        return sum(self._ref_counts[block_id] == 0 for block_id in block_ids)

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a holder to each of some blocks that are cached, or held."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._free_cached[block_id]
            self._ref_counts[block_id] += 1

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Let a full, computed block be found by its content.

        Where another block already holds the same content, that one stays the one to be found.
        """
        if block_hash in self._block_by_hash:
            return
        assert self._ref_counts[block_id] > 0, "only a held block has known content"
        assert block_id not in self._hash_by_block, "a held block's content never changes"
        self._block_by_hash[block_hash] = block_id
        self._hash_by_block[block_id] = block_hash

    def free(self, block_ids: Sequence[int]) -> None:
        """Take one holder off each block of a block table.

        The table's end is given up before its beginning, which more requests can share.
        """
        for block_id in reversed(block_ids):
            assert self._ref_counts[block_id] > 0, f"block {block_id} is freed twice"
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id]:
                continue
            if block_id in self._hash_by_block:
                self._free_cached[block_id] = None
            else:
                self._free_uncached.append(block_id)

    def forget(self, block_ids: Iterable[int]) -> None:
        """Let nobody find these blocks by their content any more; holders keep them."""
        for block_id in block_ids:
            block_hash = self._hash_by_block.pop(block_id, None)
            if block_hash is None:
                continue
            del self._block_by_hash[block_hash]
            if self._ref_counts[block_id] == 0:
                del self._free_cached[block_id]
                self._free_uncached.append(block_id)

    def forget_all(self) -> int:
        """Empty the prefix cache; returns how many blocks were in it."""
        num_cached = self.num_cached_blocks
        self.forget(list(self._hash_by_block))
        return num_cached

    def check(self) -> None:
        """Prove the invariant: no block is lost, held and free at once, or found wrongly.

        Raises:
            AssertionError: it does not hold; the message says where.
        """
        held = [block_id for block_id, count in enumerate(self._ref_counts) if count]
        everywhere = sorted([*held, *self._free_uncached, *self._free_cached])
        assert everywhere == list(range(self.num_blocks)), "a block is lost or in two places"
        assert all(count >= 0 for count in self._ref_counts), "a reference count is negative"
        assert len(self._block_by_hash) == len(self._hash_by_block), "two blocks share a hash"
        for block_id, block_hash in self._hash_by_block.items():
            assert self._block_by_hash[block_hash] == block_id, f"block {block_id} is not found"
        for block_id in self._free_cached:
            assert block_id in self._hash_by_block, f"block {block_id} has no content to keep"
        for block_id in self._free_uncached:
            assert block_id not in self._hash_by_block, f"block {block_id} has content to keep"


def extend_block_hashes(
    block_hashes: list[bytes],
    token_ids: Sequence[int],
    block_size: int,
    root_hash: bytes = ROOT_HASH,
) -> None:
    """Append the hashes of the full blocks in `token_ids`, which follow those already hashed.

    Each hash covers its block's tokens and the hash before it, so it stands for all tokens from the
    start of the sequence, and for `root_hash` (`salted_root`). 128 bits: two different prefixes
    never meet by accident.
    """
    parent = block_hashes[-1] if block_hashes else root_hash
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        block = array("q", token_ids[start : start + block_size]).tobytes()
        parent = hashlib.blake2b(parent + block, digest_size=16).digest()
        block_hashes.append(parent)
