"""Batches of sequences in a paged cache, and their attention in C++ and by the reference."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from batchmill.kernels.cpu.bindings import paged_attention_cpp
from batchmill.kernels.ops.paged_attention import paged_attention


class AttentionBatch:
    """Sequences in shuffled blocks of a cache whose unwritten slots are NaN."""

    def __init__(
        self,
        lengths: list[tuple[int, int]],
        heads: tuple[int, int, int],
        dtype: torch.dtype,
        *,
        block_size: int = 16,
        seed: int = 1,
    ) -> None:
        """Fill a cache.

        Args:
            lengths: Per sequence its number of queries, and of keys, the queries' included.
            heads: Query heads, key heads, and dimensions per head.
            dtype: Dtype of queries and caches.
            block_size: Keys per block.
            seed: Seed of all numbers and of the blocks' order.
        """
        num_heads, num_kv_heads, head_dim = heads
        counts = [-(-num_keys // block_size) for _, num_keys in lengths]
        generator = torch.Generator().manual_seed(seed)
        order = (torch.randperm(sum(counts), generator=generator) + 1).tolist()
        shape = (sum(counts) + 2, block_size, num_kv_heads, head_dim)
        self.k_cache = torch.full(shape, torch.nan, dtype=dtype)
        self.v_cache = torch.full(shape, torch.nan, dtype=dtype)
        # Entries past a sequence's last block are invalid and must not be read.
        self.block_tables = torch.full((len(lengths), max(counts) + 3), -9, dtype=torch.int32)
        for row, (_, num_keys) in enumerate(lengths):
            for block in range(counts[row]):
                self.block_tables[row, block] = number = order.pop()
                used = min(block_size, num_keys - block * block_size)
                for cache in (self.k_cache, self.v_cache):
                    values = torch.randn(used, num_kv_heads, head_dim, generator=generator)
                    cache[number, :used] = values.to(dtype)
        queries = [num_queries for num_queries, _ in lengths]
        starts = torch.tensor([0, *queries]).cumsum(0)
        self.cu_seqlens_q = starts.to(torch.int32)
        self.seq_lens = torch.tensor([num_keys for _, num_keys in lengths], dtype=torch.int32)
        rows = torch.randn(sum(queries), num_heads + 2, head_dim, generator=generator)
        self.q = rows.to(dtype)[:, :num_heads]  # rows lie apart, as in a fused projection
        self.scale = head_dim**-0.5

    def share(self, row: int, other: int, num_blocks: int) -> None:
        """Make a sequence begin with another's first blocks."""
        self.block_tables[row, :num_blocks] = self.block_tables[other, :num_blocks]

    def attend(
        self,
        library: ctypes.CDLL | None,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Compute attention by the C++ backend of a library, or of the best one."""
        return paged_attention_cpp(
            self.q,
            self.k_cache,
            self.v_cache,
            self.block_tables,
            self.cu_seqlens_q,
            self.seq_lens,
            self.scale,
            window=window,
            sinks=sinks,
            library=library,
        )

    def reference(self, window: int | None = None, sinks: Tensor | None = None) -> Tensor:
        """Compute attention by the reference, in float32."""
        return paged_attention(
            self.q.float(),
            self.k_cache.float().nan_to_num(),
            self.v_cache.float().nan_to_num(),
            self.block_tables.clamp_min(0),
            self.cu_seqlens_q,
            self.seq_lens,
            self.scale,
            window=window,
            sinks=sinks,
            backend="reference",
        )
