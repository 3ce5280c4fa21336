"""When copying a block beats computing it, by bytes, tokens and measured steps."""

from __future__ import annotations

from batchmill.engine.offload.copy_rule import COPY_OVERHEAD_S, CopyRule


def rule(bytes_per_s: float = 1e6) -> CopyRule:
    """Blocks of 16 tokens and 1,000 bytes: a copy takes a millisecond."""
    return CopyRule(block_bytes=1000, block_size=16, bytes_per_s=bytes_per_s)


def test_copying_is_taken_to_be_faster_until_a_prompt_was_computed() -> None:
    assert rule(bytes_per_s=1).pays_to_restore(1)
    assert rule(bytes_per_s=1).pays_to_store()


def test_blocks_are_restored_if_their_bytes_take_less_time_than_their_tokens() -> None:
    slow, fast = rule(), rule()
    slow.note_step(16, 0.0012)  # 16 tokens take 1.2 ms, a block 1 ms and the overhead
    fast.note_step(16, 0.0009)
    assert slow.pays_to_restore(1)
    assert slow.pays_to_restore(100)
    assert not fast.pays_to_restore(1)
    assert not fast.pays_to_restore(100)


def test_the_overhead_of_copies_counts_once() -> None:
    each = rule()
    each.note_step(16, 0.001 + COPY_OVERHEAD_S / 2)
    assert not each.pays_to_restore(1)
    assert each.pays_to_restore(4)


def test_a_block_is_stored_if_both_ways_take_less_time_than_its_tokens() -> None:
    slow, fast = rule(), rule()
    slow.note_step(16, 0.0021)
    fast.note_step(16, 0.0019)
    assert slow.pays_to_store()
    assert not fast.pays_to_store()


def test_the_fastest_of_the_last_steps_decides() -> None:
    each = rule()
    each.note_step(1600, 0.05)
    for _ in range(63):
        each.note_step(1, 0.05)
    assert not each.pays_to_restore(1)
    each.note_step(1, 0.05)
    assert each.seconds_per_token == 0.05
    assert each.pays_to_restore(1)
