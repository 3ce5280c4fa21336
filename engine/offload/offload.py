"""KV in host memory: the index of blocks, the rule when to copy, and the memory behind them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from batchmill.engine.memory.device_memory import gib
from batchmill.engine.memory.kv_cache import KVCache

from .copy_rule import CopyRule
from .host_blocks import HostBlocks
from .host_index import HostIndex, OffloadCounts

_log = logging.getLogger(__name__)


class KVOffload:
    """Keeps evicted KV blocks in host memory, and brings them back instead of computing them.

    A block is stored when the block pool evicts it, and not before: a preempted request's blocks
    stay in the prefix cache until another request needs their memory. The index plans copies while
    a step is scheduled; `move_blocks` does them before that step is launched.

    Attributes:
        index: What the block pool talks to.
        rule: Decides where copying beats computing.
    """

    def __init__(
        self, kv_cache: KVCache, host_blocks: HostBlocks, *, bytes_per_s: float | None = None
    ) -> None:
        """Take the memory, and measure the speed of copies if none is given.

        Args:
            kv_cache: The device's blocks, unused so far.
            host_blocks: The host's.
            bytes_per_s: Speed of copies in one direction; None measures it.
        """
        self._kv_cache = kv_cache
        self._host_blocks = host_blocks
        if bytes_per_s is None:
            bytes_per_s = host_blocks.measured_bytes_per_s()
        block_bytes = host_blocks.block_bytes
        self.rule = CopyRule(
            block_bytes=block_bytes, block_size=kv_cache.block_size, bytes_per_s=bytes_per_s
        )
        self.index = HostIndex(host_blocks.num_slots, self.rule, block_bytes=block_bytes)
        _log.info(
            "KV in host memory: %d blocks of %d tokens in %s GiB, copied at %.1f GB/s",
            host_blocks.num_slots,
            kv_cache.block_size,
            gib(host_blocks.num_bytes),
            bytes_per_s / 1e9,
        )

    @property
    def counts(self) -> OffloadCounts:
        """Blocks copied since the engine was made."""
        return self.index.counts

    def move_blocks(self, blocks_to_zero: Sequence[int]) -> None:
        """Do the planned copies, and zero blocks in between: a stored block may be zeroed next.

        If it raises, the copies that are not done are still planned. A block that is stored is not
        stored again, because its content may be gone by then.
        """
        stores, restores = self.index.planned
        if stores:
            self._host_blocks.store(*zip(*stores, strict=True))
            self.index.note_stored()
        if blocks_to_zero:
            self._kv_cache.zero_blocks(blocks_to_zero)
            self._host_blocks.wait_for_zeros()
        if restores:
            self._host_blocks.restore(*zip(*restores, strict=True))
        if stores or restores:
            self.index.note_copied()

    def note_prompt_step(self, num_tokens: int, time_s: float) -> None:
        """Learn from a step with prompts how long computing takes."""
        self.rule.note_step(num_tokens, time_s)

    def prefault(self, timeout_s: float) -> bool:
        """Use spare time to pre-fault host memory; return whether nothing is left to do."""
        return self._host_blocks.prefault(timeout_s)
