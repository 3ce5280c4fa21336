"""The input tensors of one step, and the builder that lays a scheduled batch out as them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .adapter_rows import AdapterRows, group_adapter_rows
from .adapter_tiles import RecordedAdapters
from .batch_layout import (
    BatchLayout,
    Sequences,
    chunk_input_ids,
    rows_with_logits,
    rows_with_states,
    split_drafts,
)
from .feature_rows import FeatureRows, FeatureSource, gather_features
from .request_rows import RequestRows
from .rope_positions import fill_rope_positions
from .row_groups import RowGroup, group_rows
from .upload import Uploader

if TYPE_CHECKING:
    from batchmill.engine.request.request import Request
    from batchmill.engine.request.steering import Steering
    from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's flattened batch: requests lie one after another along `num_tokens`.

    Attributes:
        input_ids: [num_tokens] int64.
        positions: [num_tokens] int64, index of each token in its own sequence.
        slot_mapping: [num_tokens] int64; slot = block_id * block_size + offset. A token with slot
            -1 is not written.
        block_tables: [num_seqs, max_blocks] int32, unused entries 0.
        cu_seqlens_q: [num_seqs + 1] int32, start of each request's tokens, then num_tokens.
        seq_lens: [num_seqs] int32, tokens in the cache after this step's write.
        sample_rows: [num_samples] int64, ascending rows of [num_tokens] whose logits are needed:
            those that sample, and those that score known tokens; last come `num_states` rows of
            pooled requests, whose final states are needed instead.
        max_query_len: Most tokens that one request computes in this step.
        max_seq_len: Largest of `seq_lens`, or more.
        token_types: [num_tokens] int64, which text of a pair each token belongs to; None if no
            request of the step is a pair.
        num_states: Rows at the end of `sample_rows` whose final states are needed, not logits.
        adapters: The rows of each LoRA adapter; empty if no request of the step has one.
        features: Rows that take features of media in place of embeddings; None if there are none.
        rope_positions: [num_tokens] or [3, num_tokens] int64, the positions by which tokens are
            rotated, or their times, rows and columns; None if these are `positions`.
        steered: The rows of each steering; empty if no request of the step is steered.
        recorded_adapters: Tables in place of `adapters`, in a step that is recorded; else None.
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
    num_states: int = 0
    token_types: Tensor | None = None
    adapters: tuple[AdapterRows, ...] = ()
    features: FeatureRows | None = None
    rope_positions: Tensor | None = None
    steered: tuple[RowGroup[Steering], ...] = ()
    recorded_adapters: RecordedAdapters | None = None

    @property
    def num_logits(self) -> int:
        """Rows of logits that are needed."""
        return len(self.sample_rows) - self.num_states

    @property
    def samples_every_row(self) -> bool:
        """Whether `sample_rows` are all rows in order; in a padded step, as many may be others."""
        return self.max_query_len == 1 and len(self.sample_rows) == len(self.input_ids)


def build_step_inputs(
    batch: ScheduledBatch, block_size: int, device: torch.device | str
) -> StepInputs:
    """Build the inputs of one batch of chunks, for a model that runs without an engine.

    Raises:
        ValueError: as `StepInputBuilder.build`.
    """
    builder = StepInputBuilder(
        RequestRows(max(batch.num_seqs, 1), device),
        block_size=block_size,
        max_num_blocks=max((len(each.block_ids) for each in batch.requests), default=0),
        device=device,
    )
    return builder.build(batch)


class StepInputBuilder:
    """Lays batches out as tensors; keeps every request's block table from step to step.

    The work per step grows with its prompt tokens. A decode costs one number, and one block table
    entry when it begins a new block.
    """

    def __init__(
        self,
        rows: RequestRows,
        *,
        block_size: int,
        max_num_blocks: int,
        device: torch.device | str,
        feature_source: FeatureSource | None = None,
        uses_grids: bool = False,
        splits_drafts: bool = False,
    ) -> None:
        """Allocate the block tables of all rows.

        Args:
            rows: Maps requests to rows.
            block_size: Tokens per block.
            max_num_blocks: Most blocks of one request.
            device: Where the model runs.
            feature_source: Has the features of media; None if the model takes none.
            uses_grids: Whether the model rotates the tokens of a picture by time, row and column.
            splits_drafts: Whether each draft token becomes a sequence of its own, with one token
                and its request's blocks. A GPU then attends to them with its decode kernel, which
                divides long contexts among its multiprocessors; keys are written before they are
                read, so each token sees the drafts before it.
        """
        self._splits_drafts = splits_drafts
        self._feature_source = feature_source
        self._uses_grids = uses_grids
        self._rows = rows
        self._block_size = block_size
        self._tables = np.zeros((rows.num_rows, max_num_blocks), dtype=np.int32)
        self._num_copied = np.zeros(rows.num_rows, dtype=np.int64)
        self._one_each = np.arange(rows.num_rows + 1, dtype=np.int64)
        self._uploader = Uploader(device)

    def build(self, batch: ScheduledBatch) -> StepInputs:
        """Lay a scheduled batch out as tensors.

        Args:
            batch: The scheduler's choice; every request's block table must already reach its last
                token of this step.

        Raises:
            ValueError: nothing is scheduled, or a block table is too short for its sequence.
        """
        if not batch.num_seqs:
            raise ValueError("the batch is empty: do not run a step for it")
        rows = self._rows.rows_of(batch)
        layout = self._lay_out(batch)
        block_tables = self._block_tables(batch, rows, layout)
        blocks = block_tables[layout.seqs, layout.positions // self._block_size]
        slots = blocks * np.int64(self._block_size) + layout.positions % self._block_size
        num_decodes = len(batch.decodes)
        state_rows = rows_with_states(batch, layout)
        wanted_rows = np.concatenate([rows_with_logits(batch, layout), state_rows])
        seqs = Sequences(layout.cu_seqlens_q, layout.seq_lens, block_tables)
        if self._splits_drafts and batch.has_drafts:
            seqs = split_drafts(batch, seqs)
        ids, positions, slot_mapping, sample_rows, decode_rows, tables, starts, lengths = (
            self._uploader.upload(
                chunk_input_ids(batch),
                layout.positions,
                slots,
                wanted_rows,
                rows[:num_decodes],
                seqs.block_tables,
                seqs.cu_seqlens_q.astype(np.int32),
                seqs.seq_lens.astype(np.int32),
            )
        )
        if num_decodes:
            torch.index_select(self._rows.last_tokens, 0, decode_rows, out=ids[:num_decodes])
        return StepInputs(
            input_ids=ids,
            positions=positions,
            slot_mapping=slot_mapping,
            block_tables=tables,
            cu_seqlens_q=starts,
            seq_lens=lengths,
            sample_rows=sample_rows,
            max_query_len=int(np.diff(seqs.cu_seqlens_q).max()),
            max_seq_len=int(layout.seq_lens.max()),
            num_states=len(state_rows),
            token_types=self._token_types(batch),
            adapters=self._adapter_rows(batch, layout, wanted_rows) if batch.has_adapters else (),
            features=self._features(batch, layout),
            rope_positions=self._rope_positions(batch, layout) if self._uses_grids else None,
            steered=self._steered_rows(batch, layout, wanted_rows) if batch.is_steered else (),
        )

    def _features(self, batch: ScheduledBatch, layout: BatchLayout) -> FeatureRows | None:
        if self._feature_source is None or not batch.chunks:
            return None
        chunk_starts = layout.cu_seqlens_q[len(batch.decodes) : -1]
        return gather_features(batch, chunk_starts, self._feature_source, self._uploader)

    def _rope_positions(self, batch: ScheduledBatch, layout: BatchLayout) -> Tensor:
        """Return [num_tokens] for a step that only decodes, else [3, num_tokens]."""
        num_decodes = len(batch.decodes)
        offsets = self._rows.position_offset[self._rows.rows_of(batch)[:num_decodes]]
        positions = layout.positions[:num_decodes] + offsets
        if batch.chunks:
            grids = np.empty((3, len(layout.positions)), dtype=np.int64)
            grids[:, :num_decodes] = positions
            starts = layout.cu_seqlens_q[num_decodes:].tolist()
            for start, stop, item in zip(starts, starts[1:], batch.chunks, strict=False):
                target = grids[:, start:stop]
                fill_rope_positions(target, item.request, layout.positions[start:stop])
            positions = grids
        (uploaded,) = self._uploader.upload(positions)
        return uploaded

    def _adapter_rows(
        self, batch: ScheduledBatch, layout: BatchLayout, wanted_rows: NDArray[np.int64]
    ) -> tuple[AdapterRows, ...]:
        adapters = [request.adapter for request in batch.requests]
        return group_adapter_rows(adapters, layout.seqs, wanted_rows, self._uploader)

    def _steered_rows(
        self, batch: ScheduledBatch, layout: BatchLayout, wanted_rows: NDArray[np.int64]
    ) -> tuple[RowGroup[Steering], ...]:
        steerings = [request.steering for request in batch.requests]
        return group_rows(steerings, layout.seqs, wanted_rows, self._uploader)

    def _token_types(self, batch: ScheduledBatch) -> Tensor | None:
        """Return the types of all tokens; only requests that are computed whole have any."""
        poolings = [item.request.pooling for item in batch.chunks]
        if not any(each is not None and each.type_ids is not None for each in poolings):
            return None
        types = [np.zeros(len(batch.decodes), dtype=np.int64)]
        for item, pooling in zip(batch.chunks, poolings, strict=True):
            ids = None if pooling is None else pooling.type_ids
            types.append(np.array(ids or [0] * item.num_new_tokens, dtype=np.int64))
        (uploaded,) = self._uploader.upload(np.concatenate(types))
        return uploaded

    def keep_up(self, batch: ScheduledBatch) -> NDArray[np.int64]:
        """Copy the new block table entries of the decodes; few have one in any step.

        Returns:
            Indices of the `batch.decodes` that began a block, [num_begun] int64.
        """
        rows = self._rows.rows_of(batch)[: len(batch.decodes)]
        starts = self._rows.decode_starts(batch)
        is_begun = starts >= self._num_copied[rows] * self._block_size
        begun: NDArray[np.int64] = np.flatnonzero(is_begun)
        for index in begun.tolist():
            self._copy(int(rows[index]), batch.decodes[index], batch.decode_starts[index] + 1)
        return begun

    def tables_of(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the copied block tables, [len(rows), longest] int32, padded with 0."""
        num_blocks = int(self._num_copied[rows].max())
        tables: NDArray[np.int32] = self._tables[rows, :num_blocks]
        return tables

    def block_ids_at(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """Return one block id per row, [len(rows)] int32; it must have been copied."""
        block_ids: NDArray[np.int32] = self._tables[rows, columns]
        return block_ids

    def _lay_out(self, batch: ScheduledBatch) -> BatchLayout:
        decode_starts = self._rows.decode_starts(batch)
        if not batch.chunks:
            starts, one_each = decode_starts, self._one_each[: len(batch.decodes) + 1]
            return BatchLayout(starts, starts + 1, one_each, one_each[:-1], starts)
        chunk_starts = np.array([item.num_computed_tokens for item in batch.chunks], dtype=np.int64)
        chunk_counts = np.array([item.num_new_tokens for item in batch.chunks], dtype=np.int64)
        starts = np.concatenate([decode_starts, chunk_starts])
        counts = np.concatenate([np.ones_like(decode_starts), chunk_counts])
        cu_seqlens_q = np.zeros(len(starts) + 1, dtype=np.int64)
        np.cumsum(counts, out=cu_seqlens_q[1:])
        seqs = np.repeat(np.arange(len(starts)), counts)
        positions = np.arange(cu_seqlens_q[-1]) + (starts - cu_seqlens_q[:-1])[seqs]
        return BatchLayout(starts, starts + counts, cu_seqlens_q, seqs, positions)

    def _block_tables(
        self, batch: ScheduledBatch, rows: NDArray[np.int64], layout: BatchLayout
    ) -> NDArray[np.int32]:
        """Return block ids, [num_seqs, max_blocks] int32, 0 past each sequence's last block."""
        self.keep_up(batch)
        for row, item in zip(rows[len(batch.decodes) :].tolist(), batch.chunks, strict=True):
            request = item.request
            if self._rows.num_releases[row] != request.num_releases:
                self._rows.num_releases[row] = request.num_releases
                self._tables[row] = 0
                self._num_copied[row] = 0
            self._copy(row, request, item.num_computed_tokens + item.num_new_tokens)
        num_blocks = -(-int(layout.seq_lens.max()) // self._block_size)
        tables: NDArray[np.int32] = self._tables[rows, :num_blocks]
        return tables

    def _copy(self, row: int, request: Request, num_tokens: int) -> None:
        """Extend a row's table until it covers `num_tokens` tokens."""
        start, stop = int(self._num_copied[row]), -(-num_tokens // self._block_size)
        if len(request.block_ids) < stop:
            raise ValueError(
                f"request {request.request_id} needs {stop} blocks for {num_tokens} tokens, its "
                f"block table has {len(request.block_ids)}"
            )
        if stop > start:
            self._tables[row, start:stop] = request.block_ids[start:stop]
            self._num_copied[row] = stop
