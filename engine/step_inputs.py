"""The tensors of one step, and the only place where lists of tokens and blocks become tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .schedule import ScheduledBatch


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's flattened batch: requests lie one after another along `num_tokens`.

    Attributes:
        input_ids: [num_tokens] int64.
        positions: [num_tokens] int64, index of each token in its own sequence.
        slot_mapping: [num_tokens] int64; slot = block_id * block_size + offset.
        block_tables: [num_seqs, max_blocks] int32, unused entries 0.
        cu_seqlens_q: [num_seqs + 1] int32, where each request's tokens start, then num_tokens.
        seq_lens: [num_seqs] int32, tokens in the cache after this step's write.
        sample_rows: [num_samples] int64, ascending rows of [num_tokens] whose logits are wanted:
            those that sample, and those that score known tokens.
        max_query_len: Most tokens that one request computes in this step.
        max_seq_len: Largest of `seq_lens`.
    """

    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    sample_rows: Tensor
    max_query_len: int
    max_seq_len: int


def build_step_inputs(
    batch: ScheduledBatch, block_size: int, device: torch.device | str
) -> StepInputs:
    """Lay a scheduled batch out as tensors.

    Args:
        batch: What the scheduler chose; every request's block table must already reach its last
            token of this step.
        block_size: Tokens a block holds.
        device: Where the model runs.

    Raises:
        ValueError: nothing is scheduled, or a block table is too short for its sequence.
    """
    scheduled = batch.scheduled
    if not scheduled:
        raise ValueError("the batch schedules no request: do not run a step for it")
    starts = np.array([item.num_computed_tokens for item in scheduled], dtype=np.int64)
    counts = np.array([item.num_new_tokens for item in scheduled], dtype=np.int64)
    seq_lens = starts + counts
    cu_seqlens_q = np.zeros(len(scheduled) + 1, dtype=np.int64)
    np.cumsum(counts, out=cu_seqlens_q[1:])
    rows = np.repeat(np.arange(len(scheduled)), counts)
    positions = np.arange(cu_seqlens_q[-1]) + (starts - cu_seqlens_q[:-1])[rows]
    block_tables = _block_tables(batch, seq_lens, block_size)
    slots = block_tables[rows, positions // block_size] * block_size + positions % block_size

    def on_device(array: np.ndarray, dtype: type[np.signedinteger]) -> Tensor:
        return torch.from_numpy(array.astype(dtype, copy=False)).to(device)

    return StepInputs(
        input_ids=on_device(_input_ids(batch, int(cu_seqlens_q[-1])), np.int64),
        positions=on_device(positions, np.int64),
        slot_mapping=on_device(slots, np.int64),
        block_tables=on_device(block_tables, np.int32),
        cu_seqlens_q=on_device(cu_seqlens_q, np.int32),
        seq_lens=on_device(seq_lens, np.int32),
        sample_rows=on_device(_wanted_rows(batch, cu_seqlens_q), np.int64),
        max_query_len=int(counts.max()),
        max_seq_len=int(seq_lens.max()),
    )


def _wanted_rows(batch: ScheduledBatch, cu_seqlens_q: np.ndarray) -> np.ndarray:
    """Ascending rows of [num_tokens] whose logits are wanted."""
    samples = np.array([item.samples for item in batch.scheduled], dtype=np.bool_)
    last_rows: np.ndarray = (cu_seqlens_q[1:] - 1)[samples]
    # The logits at one token score the token after it.
    scoring = [
        int(start) + position - 1 - item.num_computed_tokens
        for start, item in zip(cu_seqlens_q, batch.scheduled, strict=False)
        for position in item.scored
    ]
    return np.sort(np.concatenate([last_rows, scoring])) if scoring else last_rows


def _input_ids(batch: ScheduledBatch, num_tokens: int) -> np.ndarray:
    """The token ids of this step, [num_tokens] int64."""
    slices = (
        item.request.token_ids_slice(
            item.num_computed_tokens, item.num_computed_tokens + item.num_new_tokens
        )
        for item in batch.scheduled
    )
    return np.fromiter(chain.from_iterable(slices), dtype=np.int64, count=num_tokens)


def _block_tables(batch: ScheduledBatch, seq_lens: np.ndarray, block_size: int) -> np.ndarray:
    """Block ids, [num_seqs, max_blocks] int64, 0 past each sequence's last block."""
    num_blocks = -(-seq_lens // block_size)
    tables = np.zeros((len(seq_lens), int(num_blocks.max())), dtype=np.int64)
    for row, (item, needed) in enumerate(zip(batch.scheduled, num_blocks.tolist(), strict=True)):
        block_ids = item.request.block_ids
        if len(block_ids) < needed:
            raise ValueError(
                f"request {item.request.request_id} needs {needed} blocks for "
                f"{int(seq_lens[row])} tokens, its block table has {len(block_ids)}"
            )
        tables[row, :needed] = block_ids[:needed]
    return tables
