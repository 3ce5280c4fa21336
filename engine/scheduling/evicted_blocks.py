"""What the block pool asks of a place that keeps the blocks it gives up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class EvictedBlocks(Protocol):
    """Keeps evicted blocks by their hash, and brings them back into other blocks.

    A call only plans copies. They are done, in the order stores before restores, before the next
    step is computed.
    """

    def keep(self, block_hash: bytes, block_id: int) -> None:
        """Copy a block that is evicted and will be overwritten, if that is worth while."""

    def find(self, block_hashes: Iterable[bytes]) -> Sequence[bytes]:
        """Return the leading hashes that are kept, if restoring them beats computing them."""

    def hold(self, block_hashes: Iterable[bytes]) -> None:
        """Keep these, which `find` returned, until they are restored."""

    def restore(self, block_hashes: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """Copy what is kept under these hashes into these blocks."""

    def forget(self, block_hash: bytes) -> None:
        """Keep this content no longer: it is not to be used again."""

    def forget_all(self) -> None:
        """Keep nothing any longer."""
