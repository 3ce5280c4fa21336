"""The index of host memory: what it keeps, what it drops, and which copies it plans."""

from __future__ import annotations

from batchmill.engine.offload.copy_rule import CopyRule
from batchmill.engine.offload.host_index import HostIndex
from batchmill.engine.scheduling.block_pool import BlockPool

A, B, C, D = (letter.encode() * 16 for letter in "abcd")


def index(num_slots: int, *, fast_model: bool = False) -> HostIndex:
    rule = CopyRule(block_bytes=1000, block_size=16, bytes_per_s=1e6)
    if fast_model:
        rule.note_step(16, 1e-9)
    return HostIndex(num_slots, rule)


def test_an_evicted_block_is_stored_once_and_restored_from_its_slot() -> None:
    host = index(2)
    host.keep(A, 5)
    ((block_id, slot),) = host.planned.stores
    host.note_copied()
    host.keep(A, 7)  # it was restored, and is evicted again

    assert block_id == 5
    assert not host.planned.stores
    host.restore([A], [9])
    assert host.planned.restores == [(9, slot)]
    host.note_copied()
    assert host.planned == ([], [])
    assert (host.counts.num_stored, host.counts.num_restored) == (1, 1)


def test_only_leading_hashes_are_found() -> None:
    host = index(4)
    for number, each in enumerate((A, C)):
        host.keep(each, number)
    assert host.find([A, B, C]) == [A]
    assert host.find([B, A]) == []


def test_the_least_recently_used_content_is_given_up_and_its_planned_copy_with_it() -> None:
    host = index(2)
    host.keep(A, 0)
    host.keep(B, 1)
    host.keep(A, 0)
    host.keep(C, 2)
    assert host.find([A])
    assert host.find([C])
    assert not host.find([B])
    assert sorted(block_id for block_id, _ in host.planned.stores) == [0, 2]
    assert (host.counts.num_evicted, host.counts.num_held) == (1, 2)
    host.check_invariants()


def test_the_end_of_a_restored_sequence_is_given_up_before_its_beginning() -> None:
    host = index(2)
    host.keep(B, 1)
    host.keep(A, 0)
    host.restore([A, B], [4, 5])
    host.note_copied()
    host.keep(C, 2)
    assert host.find([A, B]) == [A]


def test_slots_with_planned_restores_are_not_given_away() -> None:
    host = index(2)
    host.keep(A, 0)
    host.keep(B, 1)
    host.note_copied()
    host.hold([A, B])
    host.keep(C, 2)
    host.restore([A, B], [3, 4])
    assert not host.find([C])
    assert host.counts.num_not_stored == 1
    host.note_copied()
    host.keep(D, 5)
    assert host.find([D])


def test_a_forgotten_content_is_not_found_but_its_planned_restore_is_done() -> None:
    host = index(1)
    host.keep(A, 0)
    host.note_copied()
    host.restore([A], [3])
    host.forget(A)
    host.keep(B, 5)  # it must not take the slot before the restore
    assert (host.planned.stores, host.planned.restores) == ([], [(3, 0)])
    host.check_invariants()
    host.note_copied()
    assert host.counts.num_held == 0
    host.keep(B, 5)
    assert host.planned.stores == [(5, 0)]


def test_nothing_is_stored_or_restored_where_computing_is_faster() -> None:
    host = index(4)
    host.keep(A, 0)
    host._rule.note_step(16, 1e-9)
    assert not host.find([A])
    fast = index(4, fast_model=True)
    fast.keep(A, 0)
    assert fast.counts.num_not_stored == 1
    assert not fast.planned.stores


def test_a_pool_evicts_to_the_host_and_brings_back_into_other_blocks() -> None:
    host = index(4)
    pool = BlockPool(2, 16, evicted_blocks=host)
    first = pool.allocate(2)
    for block_id, each in zip(first, (A, B), strict=True):
        pool.cache(block_id, each)
    pool.free(first)

    second = pool.allocate(2)
    pool.free(second)
    assert pool.find_cached([A, B]) == []
    found = pool.find_evicted([A, B])
    restored = pool.restore(found)

    assert found == [A, B]
    assert pool.find_cached([A, B]) == restored
    assert [block_id for block_id, _ in host.planned.restores] == restored
    pool.check_invariants()


def test_contents_that_leave_the_cache_for_good_leave_the_host_too() -> None:
    host = index(4)
    pool = BlockPool(3, 16, evicted_blocks=host)
    block_ids = pool.allocate(3)
    for block_id, each in zip(block_ids, (A, B, C), strict=True):
        pool.cache(block_id, each)
    pool.free(block_ids)
    pool.free(pool.allocate(3))
    host.note_copied()
    restored = pool.restore([A, B])
    host.note_copied()

    pool.evict(restored[:1])
    assert not host.find([A])
    assert host.find([B])
    pool.evict_all()
    assert host.counts.num_held == 0
