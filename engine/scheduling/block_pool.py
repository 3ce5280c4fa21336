"""The KV block pool: free blocks, reference counts, and the hashes of cached blocks."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from batchmill.engine.errors import OutOfBlocksError

from .evicted_blocks import EvictedBlocks

#: Parent of a sequence's first block.
ROOT_HASH = b""


def salted_root(
    cache_salt: str | None, adapter_digest: str | None = None, steering_key: str | None = None
) -> bytes:
    """Return the parent hash of first blocks: two salts, adapters or steerings share no block.

    Args:
        cache_salt: The request's salt.
        adapter_digest: Of the weights that compute its KV besides the model's own.
        steering_key: Of what is added to its hidden states.

    Source: vLLM's `cache_salt`, which keeps one user from learning another user's prompts from
    response times.
    """
    root = ROOT_HASH
    # As long as a block's hash but never equal to one: `person` separates them.
    if cache_salt is not None:
        salt = cache_salt.encode(errors="surrogatepass")
        root = hashlib.blake2b(salt, digest_size=16, person=b"cache salt").digest()
    if adapter_digest is not None:
        named = root + adapter_digest.encode()
        root = hashlib.blake2b(named, digest_size=16, person=b"adapter").digest()
    if steering_key is not None:
        named = root + steering_key.encode()
        root = hashlib.blake2b(named, digest_size=16, person=b"steering").digest()
    return root


class BlockPool:
    """Owns the ids of all KV blocks.

    A block is held by one or more requests, or free. A full, computed block can be *cached*: it can
    then be found by the hash of all tokens from the start of its sequence. A free cached block
    keeps its content until it is evicted for another use, the least recently used one first. An
    evicted content may be kept elsewhere, and be brought back into another block (`restore`).

    Invariant (`check_invariants`): every block is either held (reference count above 0), free and
    cached, or free and not cached; each cached block is found under exactly its own hash.

    Source: PagedAttention, Kwon et al. 2023, section 4.3; hash-chained blocks with a free list in
    order of last use, as in vLLM's automatic prefix caching.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool = True,
        evicted_blocks: EvictedBlocks | None = None,
    ) -> None:
        """Take the blocks 0 to `num_blocks - 1`, all free.

        Args:
            num_blocks: Blocks of the cache.
            block_size: Tokens per block.
            enable_prefix_caching: Whether full blocks may be cached.
            evicted_blocks: Keeps blocks that are evicted; None if their content is lost.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._evicted = evicted_blocks
        self._ref_counts = [0] * num_blocks
        # Popped from the end, so that block 0 is allocated first.
        self._free_uncached = list(range(num_blocks - 1, -1, -1))
        # Oldest first; used as an ordered set.
        self._free_cached: OrderedDict[int, None] = OrderedDict()
        self._block_by_hash: dict[bytes, int] = {}
        self._hash_by_block: dict[int, bytes] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that `allocate` can return, cached ones included."""
        return len(self._free_uncached) + len(self._free_cached)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be found by their content, held or free."""
        return len(self._block_by_hash)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks `num_tokens` tokens need."""
        return -(-num_tokens // self.block_size)

    def ref_count(self, block_id: int) -> int:
        """Return how many requests hold a block."""
        return self._ref_counts[block_id]

    def allocate(self, num_blocks: int) -> list[int]:
        """Allocate free blocks, each with one holder; evict cached ones last.

        Raises:
            OutOfBlocksError: fewer are free; nothing is allocated.
        """
        if num_blocks > self.num_free_blocks:
            raise OutOfBlocksError(
                f"{num_blocks} blocks are needed, {self.num_free_blocks} of {self.num_blocks} are "
                "free: preempt or finish a request first"
            )
        block_ids = []
        for _ in range(num_blocks):
            if self._free_uncached:
                block_id = self._free_uncached.pop()
            else:
                block_id, _ = self._free_cached.popitem(last=False)
                block_hash = self._hash_by_block.pop(block_id)
                del self._block_by_hash[block_hash]
                if self._evicted is not None:
                    self._evicted.keep(block_hash, block_id)
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def find_cached(
        self, block_hashes: Iterable[bytes], in_batch_blocks: Mapping[bytes, int] | None = None
    ) -> list[int]:
        """Return the blocks that hold the longest cached prefix, without holding them: see `share`.

        Args:
            block_hashes: The chained hashes of the prefix's blocks.
            in_batch_blocks: Held blocks that the current step fills, by the hash they will have.
        """
        found = []
        for block_hash in block_hashes:
            block_id = self._block_by_hash.get(block_hash)
            if block_id is None and in_batch_blocks is not None:
                block_id = in_batch_blocks.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def find_evicted(self, block_hashes: Iterable[bytes]) -> Sequence[bytes]:
        """Return the leading hashes whose evicted content is worth bringing back: see `restore`."""
        return () if self._evicted is None else self._evicted.find(block_hashes)

    def restore(self, block_hashes: Sequence[bytes]) -> list[int]:
        """Allocate cached blocks, each with one holder, for contents that `find_evicted` returned.

        Raises:
            OutOfBlocksError: fewer are free; nothing is allocated.
        """
        if self._evicted is None or not block_hashes:
            return []
        self._evicted.hold(block_hashes)  # allocating may evict other blocks
        block_ids = self.allocate(len(block_hashes))
        self._evicted.restore(block_hashes, block_ids)
        for block_id, block_hash in zip(block_ids, block_hashes, strict=True):
            self.cache(block_id, block_hash)
        return block_ids

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        """Count the blocks that no request holds."""
        return sum(self._ref_counts[block_id] == 0 for block_id in block_ids)

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a holder to each of some cached or held blocks."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._free_cached[block_id]
            self._ref_counts[block_id] += 1

    def cache(self, block_id: int, block_hash: bytes) -> None:
        """Let a full, computed block be found by its content.

        If another block with the same content is already cached, nothing changes.
        """
        if block_hash in self._block_by_hash:
            return
        assert self._ref_counts[block_id] > 0, "only a held block has known content"
        assert block_id not in self._hash_by_block, "a held block's content never changes"
        self._block_by_hash[block_hash] = block_id
        self._hash_by_block[block_id] = block_hash

    def free(self, block_ids: Sequence[int]) -> None:
        """Remove one holder from each block of a block table.

        The table's end will be evicted before its beginning, which more requests can share.
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

    def evict(self, block_ids: Iterable[int]) -> None:
        """Remove these blocks from the cache, and their content from where evicted ones are kept.

        Their holders keep them.
        """
        for block_id in block_ids:
            block_hash = self._hash_by_block.pop(block_id, None)
            if block_hash is None:
                continue
            del self._block_by_hash[block_hash]
            if self._evicted is not None:
                self._evicted.forget(block_hash)
            if self._ref_counts[block_id] == 0:
                del self._free_cached[block_id]
                self._free_uncached.append(block_id)

    def evict_all(self) -> int:
        """Empty the cache, and forget evicted blocks; return how many blocks were in the cache."""
        num_cached = self.num_cached_blocks
        self.evict(list(self._hash_by_block))
        if self._evicted is not None:
            self._evicted.forget_all()
        return num_cached

    def check_invariants(self) -> None:
        """Assert that no block is lost, held and free at once, or found under a wrong hash.

        Raises:
            AssertionError: the invariant does not hold; the message says where.
        """
        held = [block_id for block_id, count in enumerate(self._ref_counts) if count]
        everywhere = sorted([*held, *self._free_uncached, *self._free_cached])
        assert everywhere == list(range(self.num_blocks)), "a block is lost or in two places"
        assert all(count >= 0 for count in self._ref_counts), "a reference count is negative"
        assert len(self._block_by_hash) == len(self._hash_by_block), "two blocks share a hash"
        for block_id, block_hash in self._hash_by_block.items():
            assert self._block_by_hash[block_hash] == block_id, f"block {block_id} is not found"
        for block_id in self._free_cached:
            assert block_id in self._hash_by_block, f"block {block_id} is not cached"
        for block_id in self._free_uncached:
            assert block_id not in self._hash_by_block, f"block {block_id} is cached"


def extend_block_hashes(
    block_hashes: list[bytes],
    token_ids: Sequence[int],
    block_size: int,
    root_hash: bytes = ROOT_HASH,
    marks: Mapping[int, bytes] = MappingProxyType({}),
) -> None:
    """Append the hashes of the full blocks in `token_ids`, which follow those already hashed.

    Each hash covers its block's tokens and the hash before it, so it identifies all tokens from the
    start of the sequence, and `root_hash` (`salted_root`). With 128 bits, two different prefixes do
    not collide by accident.

    Args:
        block_hashes: Extended.
        token_ids: Tokens after those already hashed.
        block_size: Tokens per block.
        root_hash: Parent of the first block.
        marks: Identities that replace the token ids at some indices of `token_ids`, 16 bytes each:
            all placeholders of pictures have the same token id, and only the pictures tell their
            keys and values apart.

    Source: the identity of an image in the hash of every block that it touches, as in vLLM.
    """
    parent = block_hashes[-1] if block_hashes else root_hash
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        stop = start + block_size
        if marks and not marks.keys().isdisjoint(range(start, stop)):
            parent = _hash_of_marked(parent, token_ids, range(start, stop), marks)
        else:
            block = array("q", token_ids[start:stop]).tobytes()
            parent = hashlib.blake2b(parent + block, digest_size=16).digest()
        block_hashes.append(parent)


def _hash_of_marked(
    parent: bytes, token_ids: Sequence[int], indices: range, marks: Mapping[int, bytes]
) -> bytes:
    """Hash a block in which marks stand for some token ids; `person` keeps it from plain ones."""
    places = (
        marks.get(index) or token_ids[index].to_bytes(16, "little", signed=True)
        for index in indices
    )
    content = parent + b"".join(places)
    return hashlib.blake2b(content, digest_size=16, person=b"media block").digest()
