"""The block pool: conservation, sharing and the order of eviction."""

from __future__ import annotations

import random

import pytest

from batchmill.engine.errors import OutOfBlocksError
from batchmill.engine.scheduling.block_pool import BlockPool, extend_block_hashes


def hashes(token_ids: list[int], block_size: int = 2) -> list[bytes]:
    chain: list[bytes] = []
    extend_block_hashes(chain, token_ids, block_size)
    return chain


def cache_sequence(pool: BlockPool, token_ids: list[int]) -> list[int]:
    """Allocate and cache a sequence's blocks, as a request that computed it would."""
    chain = hashes(token_ids, pool.block_size)
    block_ids = pool.allocate(len(chain))
    for block_id, block_hash in zip(block_ids, chain, strict=True):
        pool.cache(block_id, block_hash)
    return block_ids


def test_hash_covers_everything_before_the_block() -> None:
    assert hashes([1, 2, 3, 4])[1] != hashes([9, 9, 3, 4])[1]
    assert hashes([1, 2, 3, 4])[1] == hashes([1, 2, 3, 4, 5])[1]
    assert len(hashes([1, 2, 3])) == 1, "a partial block has no hash"


def test_hashes_extend_to_the_same_chain_piece_by_piece() -> None:
    chain = hashes([1, 2])
    extend_block_hashes(chain, [3, 4, 5, 6], 2)
    assert chain == hashes([1, 2, 3, 4, 5, 6])


def test_more_blocks_than_are_free_are_refused_whole() -> None:
    pool = BlockPool(3, 2)
    pool.allocate(2)
    with pytest.raises(OutOfBlocksError, match="2 blocks are needed, 1 of 3 are free"):
        pool.allocate(2)
    assert pool.num_free_blocks == 1


def test_content_survives_its_request_until_the_block_is_needed() -> None:
    pool = BlockPool(4, 2)
    block_ids = cache_sequence(pool, [1, 2, 3, 4])
    pool.free(block_ids)
    assert pool.num_free_blocks == 4
    assert pool.find_cached(hashes([1, 2, 3, 4, 5, 6])) == block_ids
    pool.allocate(4)
    assert pool.find_cached(hashes([1, 2])) == []
    pool.check_invariants()


def test_uncached_blocks_are_allocated_before_cached_ones() -> None:
    pool = BlockPool(4, 2)
    cached = cache_sequence(pool, [1, 2])
    pool.free(cached)
    assert cached[0] not in pool.allocate(3)
    assert pool.allocate(1) == cached


def test_least_recently_used_content_is_evicted_first() -> None:
    pool = BlockPool(2, 2)
    old, new = cache_sequence(pool, [1, 2]), cache_sequence(pool, [3, 4])
    pool.free(old)
    pool.free(new)
    pool.share(old)
    pool.free(old)
    assert pool.allocate(1) == new
    assert pool.find_cached(hashes([1, 2])) == old


def test_end_of_a_sequence_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(2, 2)
    block_ids = cache_sequence(pool, [1, 2, 3, 4])
    pool.free(block_ids)
    assert pool.allocate(1) == block_ids[1:]
    assert pool.find_cached(hashes([1, 2, 3, 4])) == block_ids[:1]


def test_shared_block_is_free_only_after_its_last_holder() -> None:
    pool = BlockPool(1, 2)
    block_ids = cache_sequence(pool, [1, 2])
    pool.share(block_ids)
    pool.free(block_ids)
    assert pool.num_free_blocks == 0
    pool.free(block_ids)
    assert pool.num_free_blocks == 1


def test_second_block_of_the_same_content_is_not_cached() -> None:
    pool = BlockPool(2, 2)
    first, second = cache_sequence(pool, [1, 2]), cache_sequence(pool, [1, 2])
    assert pool.num_cached_blocks == 1
    pool.free(second)
    assert pool.find_cached(hashes([1, 2])) == first
    assert pool.allocate(1) == second
    pool.check_invariants()


def test_freeing_twice_is_caught() -> None:
    pool = BlockPool(2, 2)
    block_ids = pool.allocate(1)
    pool.free(block_ids)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(block_ids)


def test_evicted_content_is_not_found_and_its_holders_keep_it() -> None:
    pool = BlockPool(4, 2)
    held, free = cache_sequence(pool, [1, 2]), cache_sequence(pool, [3, 4])
    pool.free(free)
    assert pool.evict_all() == 2
    assert pool.find_cached(hashes([1, 2])) == pool.find_cached(hashes([3, 4])) == []
    assert pool.ref_count(held[0]) == 1
    assert pool.num_free_blocks == 3
    pool.check_invariants()


def test_check_notices_a_lost_block() -> None:
    pool = BlockPool(3, 2)
    pool._free_uncached.pop()
    with pytest.raises(AssertionError, match="lost"):
        pool.check_invariants()


@pytest.mark.parametrize("seed", range(20))
def test_no_block_is_lost_in_random_use(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(12, 2)
    tables: list[list[int]] = []
    for _ in range(300):
        action = rng.random()
        token_ids = [rng.randrange(2) for _ in range(2 * rng.randint(1, 4))]
        chain = hashes(token_ids)
        if action < 0.5:
            cached = pool.find_cached(chain)
            needed = len(chain) - len(cached)
            if needed <= pool.num_free_blocks - pool.num_free_among(cached):
                pool.share(cached)
                table = cached + pool.allocate(needed)
                for block_id, block_hash in zip(table, chain, strict=True):
                    if block_id not in cached:
                        pool.cache(block_id, block_hash)
                tables.append(table)
        elif action < 0.95 and tables:
            pool.free(tables.pop(rng.randrange(len(tables))))
        else:
            pool.evict(rng.sample(range(12), 3))
        pool.check_invariants()
        counts = [sum(block_id in table for table in tables) for block_id in range(12)]
        assert [pool.ref_count(block_id) for block_id in range(12)] == counts
