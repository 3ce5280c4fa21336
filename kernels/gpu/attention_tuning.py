"""Tile sizes of the attention kernels, shipped as a table: nothing is tuned while serving.

Registers and shared memory of the compiled kernels decide each row (tests/bench/kernel_table.py
prints them):

- Tiles of fewer than 64 rows cannot use the warp-group matrix instruction of sm_90 and later, so
  prefill packs 128 rows; 128 x 64 takes 8 warps, because with 4 the accumulator spills.
- Decode has at most one group of rows and is bound by cache reads. It needs many bytes in flight:
  few registers, two or three buffers, several programs per multiprocessor.
- float32 tiles are half as large; larger ones outgrow registers and shared memory.
- On sm_90 ptxas makes prefill's matrix instructions wait for each other if a tile of 16-bit keys
  spans several blocks and has three buffers. A tile then lies in one block, or has two buffers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Largest shared memory of one program, KiB; generations not listed have 99.
_SHARED_KIB = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227}
_SMALL_SHARED_KIB = 99


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """Tiles and programs of decode attention."""

    #: Cached tokens per step of the inner loop; a power of two of at least 16.
    tile_tokens: int
    num_warps: int
    num_stages: int
    #: Programs per multiprocessor. They share all tiles of the batch evenly, so all of them must be
    #: resident at once.
    programs_per_sm: int


@dataclass(frozen=True, slots=True)
class PrefillTuning:
    """Tiles of prefill attention."""

    #: Rows (query heads of one KV head x queries) per program; a power of two.
    tile_rows: int
    #: Cached tokens per step of the inner loop; a power of two of at least 16.
    tile_tokens: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class AttentionTuning:
    """Tiles of the kernels for one kind of model on one kind of GPU."""

    decode: DecodeTuning
    prefill: PrefillTuning
    #: Of the prefill kernel that divides keys.
    split_prefill: PrefillTuning


def shared_memory_kib(arch: int) -> int:
    """Return the largest shared memory of a program on capability `arch` (90 is 9.0), in KiB."""
    return _SHARED_KIB.get(arch, _SMALL_SHARED_KIB)


def attention_tuning(
    arch: int, head_dim: int, kv_bytes: int, *, block_size: int, group: int = 1
) -> AttentionTuning:
    """Return the tiles for a model on a GPU.

    Args:
        arch: Compute capability, 90 for 9.0.
        head_dim: Size of one head.
        kv_bytes: Bytes of one cached number: 1 (float8), 2 or 4.
        block_size: Tokens per block of the cache.
        group: Query heads per KV head; only the number of decode's programs depends on it.

    Raises:
        ValueError: heads have more than 256 dimensions, for which no tile fits.
    """
    if head_dim > 256:
        raise ValueError(
            f"head_dim is {head_dim}, the triton attention kernels take at most 256: "
            "use backend='reference'"
        )
    prefill = _prefill_tuning(arch, head_dim, kv_bytes, block_size)
    split_prefill = prefill
    if arch >= 100 and head_dim > 128:  # wider tiles keep 168 bytes in memory beside the loop
        split_prefill = replace(prefill, tile_tokens=min(prefill.tile_tokens, 32))
    decode = _decode_tuning(arch, head_dim, kv_bytes, block_size, group)
    return AttentionTuning(decode, prefill, split_prefill)


def _decode_tuning(
    arch: int, head_dim: int, kv_bytes: int, block_size: int, group: int
) -> DecodeTuning:
    wide = head_dim > 128
    tokens = 32 if wide else 64
    if kv_bytes == 4:
        if wide:
            return DecodeTuning(16, num_warps=8, num_stages=2, programs_per_sm=1)
        return DecodeTuning(32, num_warps=4, num_stages=2, programs_per_sm=2)
    if _has_small_memory(arch):
        return DecodeTuning(tokens // 2, num_warps=4, num_stages=3, programs_per_sm=2)
    # 72 KiB and 160 registers per thread: three programs fit on sm_90, two in the memory of sm_80.
    # Heads of 256 dimensions take 190 registers, and so do eight-bit tiles in one block; groups of
    # more than 16 heads take a larger query.
    is_crowded = wide or group > 16 or (kv_bytes == 1 and block_size % tokens == 0)
    resident = 3 if arch >= 90 and not is_crowded else 2
    return DecodeTuning(tokens, num_warps=4, num_stages=3, programs_per_sm=resident)


def _prefill_tuning(arch: int, head_dim: int, kv_bytes: int, block_size: int) -> PrefillTuning:
    wide = head_dim > 128
    if kv_bytes == 4:  # three TF32 products per step: taller tiles spill hundreds of bytes
        if wide:
            return PrefillTuning(16, 16, num_warps=8, num_stages=2)
        return PrefillTuning(32, 32, num_warps=4, num_stages=2)
    if wide:
        # Eight-bit tiles of 64 tokens spill 32 bytes when they are widened.
        tokens = 32 if _has_small_memory(arch) or kv_bytes == 1 else 64
        if arch // 10 == 9 and kv_bytes == 2:
            tokens = next(each for each in (64, 32, 16, 1) if block_size % each == 0)
        return PrefillTuning(64, max(tokens, 16), num_warps=8, num_stages=2)
    if arch < 90 or _has_small_memory(arch):  # 64 tokens spill up to 80 bytes without wgmma
        return PrefillTuning(128, 32, num_warps=8, num_stages=3)
    if arch // 10 == 9 and kv_bytes == 2 and block_size % 64:
        if block_size % 32 == 0:
            return PrefillTuning(128, 32, num_warps=8, num_stages=3)
        return PrefillTuning(128, 64, num_warps=8, num_stages=2)
    return PrefillTuning(128, 64, num_warps=8, num_stages=3)


def _has_small_memory(arch: int) -> bool:
    return shared_memory_kib(arch) < 128
