"""Where the tokens of a scheduled batch lie in the tensors of a step, and which rows are needed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch


@dataclass(frozen=True)
class BatchLayout:
    """Positions and lengths of a batch's tokens; all int64."""

    starts: NDArray[np.int64]  # [num_seqs]: position of each request's first token of the step
    seq_lens: NDArray[np.int64]  # [num_seqs]
    cu_seqlens_q: NDArray[np.int64]  # [num_seqs + 1]
    seqs: NDArray[np.int64]  # [num_tokens]: index of the request of each token
    positions: NDArray[np.int64]  # [num_tokens]


class Sequences(NamedTuple):
    """The sequences of a batch as attention sees them."""

    cu_seqlens_q: NDArray[np.int64]  # [num_seqs + 1]
    seq_lens: NDArray[np.int64]  # [num_seqs]
    block_tables: NDArray[np.int32]  # [num_seqs, max_blocks]


def split_drafts(batch: ScheduledBatch, seqs: Sequences) -> Sequences:
    """Make a sequence of one token of each draft token, and of the token before it."""
    counts = np.diff(seqs.cu_seqlens_q)
    num_decodes = len(batch.decodes)
    has_drafts = np.array([bool(item.draft_token_ids) for item in batch.chunks], dtype=np.bool_)
    parts = np.ones_like(counts)
    parts[num_decodes:][has_drafts] = counts[num_decodes:][has_drafts]
    of_part = np.repeat(np.arange(len(counts)), parts)
    # Of a request's parts the first is as much shorter as there are others, and the last is whole.
    num_after = np.cumsum(parts)[of_part] - 1 - np.arange(len(of_part))
    lengths = np.where(parts[of_part] > 1, 1, counts[of_part])
    return Sequences(
        np.concatenate([[0], np.cumsum(lengths)]),
        seqs.seq_lens[of_part] - num_after,
        seqs.block_tables[of_part],
    )


def rows_with_logits(batch: ScheduledBatch, layout: BatchLayout) -> NDArray[np.int64]:
    """Return the ascending rows of [num_tokens] whose logits are needed."""
    last_rows: NDArray[np.int64] = layout.cu_seqlens_q[1:] - 1
    num_decodes = len(batch.decodes)
    if not batch.chunks:
        return last_rows
    wanted = [
        row
        for last, item in zip(last_rows[num_decodes:].tolist(), batch.chunks, strict=True)
        for row in range(last + 1 - item.num_sampled_tokens, last + 1)
    ]
    # The logits of one token score the token after it.
    wanted += [
        start + position - 1 - item.num_computed_tokens
        for start, item in zip(
            layout.cu_seqlens_q[num_decodes:-1].tolist(), batch.chunks, strict=True
        )
        for position in item.scored
    ]
    return np.concatenate([last_rows[:num_decodes], np.sort(np.array(wanted, dtype=np.int64))])


def rows_with_states(batch: ScheduledBatch, layout: BatchLayout) -> NDArray[np.int64]:
    """Return the ascending rows of [num_tokens] whose final states pooled requests need."""
    if not batch.chunks or batch.chunks[-1].request.pooling is None:
        return np.empty(0, dtype=np.int64)
    starts = layout.cu_seqlens_q[len(batch.decodes) : -1].tolist()
    rows = [
        np.arange(positions.start, positions.stop, dtype=np.int64) - item.num_computed_tokens + at
        for at, item in zip(starts, batch.chunks, strict=True)
        if (positions := item.pooled_positions)
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])


def chunk_input_ids(batch: ScheduledBatch) -> NDArray[np.int64]:
    """Return the chunks' token ids, after a placeholder for the last token of each decode."""
    placeholders = np.zeros(len(batch.decodes), dtype=np.int64)
    if not batch.chunks:
        return placeholders
    slices = (
        chain(
            item.request.token_ids_slice(
                item.num_computed_tokens, item.num_computed_tokens + item.num_new_tokens
            ),
            item.draft_token_ids,
        )
        for item in batch.chunks
    )
    token_ids = np.fromiter(chain.from_iterable(slices), dtype=np.int64)
    return np.concatenate([placeholders, token_ids])
