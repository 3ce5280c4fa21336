"""Which evicted blocks host memory has, and the copies that are planned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .copy_rule import CopyRule


@dataclass(slots=True)
class OffloadCounts:
    """Blocks between device and host since the engine was made, and in host memory now."""

    #: Blocks that fit into host memory.
    num_host_blocks: int
    #: Blocks in host memory now.
    num_held: int = 0
    #: Blocks copied to the host.
    num_stored: int = 0
    #: Blocks copied back.
    num_restored: int = 0
    #: Blocks that host memory had to give up.
    num_evicted: int = 0
    #: Evicted blocks that were not copied, because computing them again is faster.
    num_not_stored: int = 0
    #: Bytes of one block, on each rank.
    block_bytes: int = 0


class PlannedCopies(NamedTuple):
    """Copies to be done before the next step: all stores, and then all restores."""

    #: Block id on the device, and slot on the host.
    stores: Sequence[tuple[int, int]]
    restores: Sequence[tuple[int, int]]


class HostIndex:
    """Owns the slots of host memory; implements `EvictedBlocks`.

    A content that is restored stays in its slot, so that its next eviction needs no copy. If all
    slots are taken, the least recently used content is given up.

    Stores are done before restores. So a slot from which a restore is planned (its content is
    *held*) is not given to another content, and a block that is restored twice has the last one.
    """

    def __init__(self, num_slots: int, rule: CopyRule, *, block_bytes: int = 0) -> None:
        self.counts = OffloadCounts(num_slots, block_bytes=block_bytes)
        self._rule = rule
        # Oldest first.
        self._slot_by_hash: OrderedDict[bytes, int] = OrderedDict()
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._held: set[bytes] = set()
        self._store_by_slot: dict[int, int] = {}
        self._restore_by_block: dict[int, int] = {}
        # Forgotten, but a restore from them is planned.
        self._free_later: list[int] = []

    def keep(self, block_hash: bytes, block_id: int) -> None:
        """See `EvictedBlocks`."""
        if block_hash in self._slot_by_hash:
            self._slot_by_hash.move_to_end(block_hash)
            return
        slot = self._take_slot() if self._rule.pays_to_store() else None
        if slot is None:
            self.counts.num_not_stored += 1
            return
        self._slot_by_hash[block_hash] = slot
        self._store_by_slot[slot] = block_id
        self.counts.num_held = len(self._slot_by_hash)

    def find(self, block_hashes: Iterable[bytes]) -> Sequence[bytes]:
        """See `EvictedBlocks`."""
        found = []
        for block_hash in block_hashes:
            if block_hash not in self._slot_by_hash:
                break
            found.append(block_hash)
        return found if found and self._rule.pays_to_restore(len(found)) else []

    def hold(self, block_hashes: Iterable[bytes]) -> None:
        """See `EvictedBlocks`."""
        self._held.update(block_hashes)

    def restore(self, block_hashes: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """See `EvictedBlocks`."""
        for block_hash, block_id in zip(block_hashes, block_ids, strict=True):
            self._restore_by_block[block_id] = self._slot_by_hash[block_hash]
        # The end of a sequence is given up before its beginning, which more requests can share.
        for block_hash in reversed(block_hashes):
            self._slot_by_hash.move_to_end(block_hash)

    def forget(self, block_hash: bytes) -> None:
        """See `EvictedBlocks`."""
        slot = self._slot_by_hash.pop(block_hash, None)
        if slot is None:
            return
        self.counts.num_held = len(self._slot_by_hash)
        if slot in self._restore_by_block.values():
            self._free_later.append(slot)
        else:
            self._store_by_slot.pop(slot, None)
            self._free_slots.append(slot)

    def forget_all(self) -> None:
        """See `EvictedBlocks`."""
        for block_hash in list(self._slot_by_hash):
            self.forget(block_hash)

    @property
    def planned(self) -> PlannedCopies:
        """The copies to be done before the next step."""
        stores = [(block_id, slot) for slot, block_id in self._store_by_slot.items()]
        return PlannedCopies(stores, list(self._restore_by_block.items()))

    def note_stored(self) -> None:
        """Count the planned stores as done: their blocks may be overwritten from now on."""
        self.counts.num_stored += len(self._store_by_slot)
        self._store_by_slot.clear()

    def note_copied(self) -> None:
        """Count the planned copies as done."""
        self.note_stored()
        self.counts.num_restored += len(self._restore_by_block)
        self._restore_by_block.clear()
        self._held.clear()
        self._free_slots += self._free_later
        self._free_later.clear()

    def check_invariants(self) -> None:
        """Assert that no slot is lost or has two contents. For tests.

        Raises:
            AssertionError: the invariant does not hold.
        """
        everywhere = [*self._free_slots, *self._free_later, *self._slot_by_hash.values()]
        assert sorted(everywhere) == list(range(self.counts.num_host_blocks)), "a slot is lost"

    def _take_slot(self) -> int | None:
        """Return a slot for a new content; None if restores are planned from all of them."""
        if self._free_slots:
            return self._free_slots.pop()
        oldest = next((each for each in self._slot_by_hash if each not in self._held), None)
        if oldest is None:
            return None
        self.counts.num_evicted += 1
        return self._slot_by_hash.pop(oldest)
