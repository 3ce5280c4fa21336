"""The plan of a step's attention, shared by its layers: the calls of the reference.

Decode rows are gathered into padded batches of similar length; prefill chunks run one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Most bytes of keys in a gathered batch. More of them fall out of the CPU's cache before the
#: second pass over them (measured: 1024 keys x 64 rows run 1.5 times as fast in pieces of 8 rows,
#: bf16, and 4 times as fast in fp32).
_MAX_GATHERED_BYTES = 3 * 1024**2
#: A decode batch ends if the next sequence is shorter than this share of its longest one: the
#: padding that remains costs less than the calls of finer batches.
_MIN_LENGTH_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class DecodeBucket:
    """Sequences with one query each, padded to the longest of them.

    Attributes:
        rows: [n] int64, their rows of q.
        block_ids: [n * blocks] int64; padding repeats a sequence's own last block.
        mask: [n, 1, 1, blocks * block_size] in the cache's dtype (float32 if that has eight
            bits), 0 or -inf, added to the scores.
    """

    rows: Tensor
    block_ids: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Several queries of one sequence.

    Attributes:
        start, stop: Their rows of q.
        block_ids: [blocks] int64.
        num_keys: Keys in these blocks, the sequence's last key being the last.
        mask: [stop - start, num_keys] as in `DecodeBucket`, or None if plain causal masking
            suffices.
    """

    start: int
    stop: int
    block_ids: Tensor
    num_keys: int
    mask: Tensor | None


class AttentionPlan:
    """The calls that make up one step's attention; every row of q is in exactly one.

    Making a plan costs nothing: its parts are computed when a backend first reads them. That reads
    the index tensors on the host, which waits for a GPU.
    """

    def __init__(
        self,
        block_tables: Tensor,
        cu_seqlens_q: Tensor,
        seq_lens: Tensor,
        k_cache: Tensor,
        *,
        window: int | None = None,
        only_decodes: bool = False,
    ) -> None:
        """Keep a step's index tensors; see `paged_attention` for the arguments.

        Args:
            block_tables: [num_seqs, max_blocks] int32.
            cu_seqlens_q: [num_seqs + 1] int32.
            seq_lens: [num_seqs] int32.
            k_cache: Any layer's keys; only shape, dtype and device matter.
            window: As in `paged_attention`.
            only_decodes: The caller knows that every sequence has exactly one query, so the Triton
                backend need not launch the prefill kernel.
        """
        self._block_tables = block_tables
        self._cu_seqlens_q = cu_seqlens_q
        self._seq_lens = seq_lens
        self._k_cache = k_cache
        self._window = window
        self.only_decodes = only_decodes
        #: The Triton backend's plan, stored here by the first layer that makes one.
        self.triton: object | None = None
        #: Its plan of prompts, if a layer divides their keys.
        self.triton_prefill: object | None = None

    @cached_property
    def decode(self) -> tuple[DecodeBucket, ...]:
        """Sequences with one query each."""
        seqs = np.flatnonzero(np.diff(self._starts) == 1)
        return _decode_buckets(
            seqs, self._tables, self._starts, self._lengths, self._k_cache, self._window
        )

    @cached_property
    def prefill(self) -> tuple[PrefillChunk, ...]:
        """Sequences with several queries, one entry each."""
        return tuple(
            _prefill_chunk(
                self._tables[seq],
                int(self._starts[seq]),
                int(self._starts[seq + 1]),
                int(self._lengths[seq]),
                self._k_cache,
                self._window,
            )
            for seq in np.flatnonzero(np.diff(self._starts) > 1)
        )

    @cached_property
    def _tables(self) -> NDArray[np.int64]:
        return self._block_tables.cpu().numpy().astype(np.int64)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return self._cu_seqlens_q.cpu().numpy().astype(np.int64)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return self._seq_lens.cpu().numpy().astype(np.int64)


def _decode_buckets(
    seqs: NDArray[np.int64],
    tables: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    k_cache: Tensor,
    window: int | None,
) -> tuple[DecodeBucket, ...]:
    """Divide the sequences with one query into batches of similar length."""
    block_size = k_cache.shape[1]
    block_bytes = k_cache[0].numel() * k_cache.element_size()
    first_key = np.zeros_like(lengths) if window is None else np.maximum(lengths - window, 0)
    first_block = first_key // block_size
    num_blocks = -(-lengths // block_size) - first_block
    seqs = seqs[np.argsort(-num_blocks[seqs], kind="stable")]
    buckets = []
    start = 0
    while start < len(seqs):
        longest = int(num_blocks[seqs[start]])
        max_rows = max(1, _MAX_GATHERED_BYTES // (longest * block_bytes))
        near = num_blocks[seqs[start : start + max_rows]] >= _MIN_LENGTH_SHARE * longest
        members = seqs[start : start + int(near.sum())]
        blocks = first_block[members, None] + np.arange(longest)
        own = np.minimum(blocks, (first_block + num_blocks - 1)[members, None])
        keys = (blocks[:, :, None] * block_size + np.arange(block_size)).reshape(len(members), -1)
        seen = (keys >= first_key[members, None]) & (keys < lengths[members, None])
        buckets.append(
            DecodeBucket(
                rows=torch.from_numpy(starts[members]).to(k_cache.device),
                block_ids=torch.from_numpy(tables[members[:, None], own].reshape(-1)).to(
                    k_cache.device
                ),
                mask=_additive(seen, k_cache)[:, None, None, :],
            )
        )
        start += len(members)
    return tuple(buckets)


def _prefill_chunk(
    table: NDArray[np.int64],
    start: int,
    stop: int,
    seq_len: int,
    k_cache: Tensor,
    window: int | None,
) -> PrefillChunk:
    """Return the call for one sequence's queries, without keys that no query sees."""
    block_size = k_cache.shape[1]
    first_position = seq_len - (stop - start)
    first_key = 0 if window is None else max(0, first_position - window + 1)
    first_block = first_key // block_size
    mask = None
    if first_position > 0 or (window is not None and window < seq_len):
        positions = np.arange(first_position, seq_len)[:, None]
        keys = np.arange(first_block * block_size, seq_len)
        seen = keys <= positions
        if window is not None:
            seen &= keys > positions - window
        mask = _additive(seen, k_cache)
    block_ids = table[first_block : -(-seq_len // block_size)].copy()
    return PrefillChunk(
        start=start,
        stop=stop,
        block_ids=torch.from_numpy(block_ids).to(k_cache.device),
        num_keys=seq_len - first_block * block_size,
        mask=mask,
    )


def _additive(seen: NDArray[np.bool_], like: Tensor) -> Tensor:
    """Return 0 for seen keys and -inf for others, in the dtype and on the device of `like`."""
    # Eight-bit floats have no infinity.
    dtype = torch.float32 if like.dtype.itemsize == 1 else like.dtype
    mask = torch.zeros(seen.shape, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(~seen), float("-inf"))
    return mask.to(like.device)
