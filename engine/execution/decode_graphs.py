"""Decode graphs: whole decode steps, recorded once for a few batch sizes and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.model import Model
from batchmill.engine.sampling.sampled_tokens import HostBuffers, SampledTokens
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch
from batchmill.engine.step.adapter_rows import group_adapter_rows
from batchmill.engine.step.adapter_tiles import AdapterShape, AdapterTables
from batchmill.engine.step.request_rows import RequestRows
from batchmill.engine.step.step_inputs import StepInputBuilder, StepInputs
from batchmill.engine.step.upload import Uploader
from batchmill.kernels.ops.sample import have_finite_maximum, sample_and_check

from .decode_state import DecodeState
from .graph_recorder import Recorder, recorder_for, reserved_gib
from .special_rows import SpecialRows, SpecialStep

#: Batch sizes with a graph; others are padded to the next. Finer steps save nothing above 64,
#: because a matrix unit works on 64 rows at once.
GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplayedStep:
    """A replayed step whose tokens may still have to be sampled.

    Attributes:
        logits: [num_rows, vocab_size] float32: the caller may change them; the next step overwrites
            them, and all tensors here.
        is_finite: [num_rows] bool: whether each row's largest logit is a number.
    """

    logits: Tensor
    is_finite: Tensor
    _token_ids: Tensor
    _replay_sampling: Callable[[], None]

    def sample(self) -> Tensor:
        """Sample from the logits, [num_rows] int64; the next step reads the tokens."""
        self._replay_sampling()
        return self._token_ids


class DecodeGraphs:
    """Owns the state of a decoding batch on the device, and two graphs for each batch size.

    The first takes each row's last token, runs the model up to the logits, and advances the
    position. The second samples, and stores each token as the row's last one. In between, the
    controls of some rows may change their logits, by graphs of their own (`SpecialRows`) or by what
    the sampler launches. So while the same requests decode, the host uploads nothing but the blocks
    that some of them begin, and what their controls need.

    If requests may have LoRA adapters, there is a third graph for each size, in place of the first
    one for batches that have any: those without cost nothing more.

    Invariant: between two calls the first rows of the state are those of `_loaded` at
    `_next_starts`, or `_loaded` is None.

    Source: graphs over forward, sampling and state update, as in SGLang's decode graphs and
    Hugging Face's continuous batching; padding rows as in mini-sglang.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        rows: RequestRows,
        builder: StepInputBuilder,
        *,
        max_model_len: int,
        recorder: Recorder | None = None,
        adapter_shape: AdapterShape | None = None,
    ) -> None:
        """Allocate the state; call `record_all` next.

        Args:
            model: Computes the steps.
            kv_cache: Read and written by the steps.
            rows: Has the requests' controls and last tokens.
            builder: Has the requests' block tables.
            max_model_len: Most tokens of one request.
            recorder: Records the steps; None is `recorder_for` the device.
            adapter_shape: Of LoRA adapters; None if no request has one.
        """
        device = model.device
        self._model, self._kv_cache, self._rows, self._builder = model, kv_cache, rows, builder
        self._max_model_len = max_model_len
        self._recorder = recorder or recorder_for(device)
        self._uploader = Uploader(device)
        self.sizes = _sizes_for(rows.num_rows)
        most, max_num_blocks = self.sizes[-1], -(-max_model_len // kv_cache.block_size)
        self._state = DecodeState.allocate(most, max_num_blocks, rows.num_rows, device)
        self._row_indices = torch.arange(most + 1, dtype=torch.int64, device=device)
        self._cu_seqlens_q = self._row_indices.to(torch.int32)
        vocab_size = model.config.vocab_size
        # One more row each, for `SpecialRows`.
        logits = torch.empty(most + 1, vocab_size, dtype=torch.float32, device=device)
        logits[most].zero_()
        self._logits = logits[:most]
        self._token_ids = torch.zeros(most + 1, dtype=torch.int64, device=device)
        # Of the logits that were sampled, which controls may have changed.
        self._is_finite = torch.zeros(most + 1, dtype=torch.bool, device=device)
        self._special = SpecialRows(rows, logits, self._token_ids, self._is_finite)
        self._adapters: AdapterTables | None = None
        if adapter_shape is not None:
            self._adapters = AdapterTables(adapter_shape, most, most, device, only_decodes=True)
        self._forwards: dict[int, Callable[[], None]] = {}
        self._adapted_forwards: dict[int, Callable[[], None]] = {}
        self._samplings: dict[int, Callable[[], None]] = {}
        self._loaded: NDArray[np.int64] | None = None
        self._rows_checked: NDArray[np.int64] | None = None
        self._is_plain = False
        self._compared: ScheduledBatch | None = None
        self._was_next = False
        self._next_starts: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def record_all(self) -> None:
        """Record both graphs for each size, the largest first: the others fit into its memory.

        Raises:
            EngineError: the steps of this model cannot be recorded on this device.
        """
        before = reserved_gib(self._model.device)
        for size in reversed(self.sizes):
            self._forwards[size] = self._recorder.record(partial(self._compute, size))
            self._samplings[size] = self._recorder.record(partial(self._sample, size))
            if self._adapters is not None:
                adapted = partial(self._compute, size, self._adapters)
                self._adapted_forwards[size] = self._recorder.record(adapted)
        self._special.record_all(self._recorder)
        _log.info(
            "decode graphs: %d batch sizes up to %d, %.2f GiB",
            len(self.sizes),
            self.sizes[-1],
            reserved_gib(self._model.device) - before,
        )

    def can_replay(self, batch: ScheduledBatch) -> bool:
        """Return whether a batch only decodes, and fits.

        A step with steering is not replayed: the graphs are recorded without.
        """
        if batch.is_steered or batch.chunks or (batch.has_adapters and self._adapters is None):
            return False
        return 0 < len(batch.decodes) <= self.sizes[-1]

    @property
    def logits(self) -> Tensor:
        """The buffer of the logits, [largest size, vocab_size] float32."""
        return self._logits

    def can_sample(self, batch: ScheduledBatch) -> bool:
        """Return whether the rows of a batch have no controls but numbers."""
        rows = self._rows.rows_of(batch)
        if rows is not self._rows_checked:  # the same requests decode together for many steps
            self._is_plain = bool(self._rows.is_plain[rows].all())
            self._rows_checked = rows
        return self._is_plain

    def special_step(self, batch: ScheduledBatch) -> SpecialStep | None:
        """Return what rows with controls replay, if graphs do all that they need.

        The caller passes it to `launch` next.
        """
        rows, starts = self._rows.rows_of(batch), self._rows.decode_starts(batch)
        return self._special.plan(batch, rows, starts, is_next=self._is_next(batch))

    def unload(self) -> None:
        """Invalidate the state, because the next step runs without it."""
        self._loaded, self._compared = None, None
        self._special.pause()

    def launch(self, batch: ScheduledBatch, special: SpecialStep | None = None) -> SampledTokens:
        """Replay the whole step of a batch for which `can_replay` holds.

        Args:
            batch: `can_sample` holds for it too, if it has no `special`.
            special: `special_step` of this batch.
        """
        num_rows = len(batch.decodes)
        if special is not None:
            try:
                return self._launch_special(batch, special, num_rows)
            except BaseException:
                self._special.forget()  # its tables may have counted tokens of this step
                raise
        # Before the replay, so that if this allocation fails, the state has not advanced.
        host_buffers = HostBuffers(num_rows, self._model.device)
        self._samplings[self._replay_forward(batch)]()
        return SampledTokens(
            self._token_ids[:num_rows], self._is_finite[:num_rows], host_buffers=host_buffers
        )

    def _launch_special(
        self, batch: ScheduledBatch, special: SpecialStep, num_rows: int
    ) -> SampledTokens:
        host_buffers = HostBuffers(num_rows, self._model.device)  # see `launch`
        size = self._replay_forward(batch)
        for replay in special.before:
            replay()
        self._samplings[size]()
        for replay in special.after:
            replay()
        return SampledTokens(
            self._token_ids[:num_rows],
            self._is_finite[:num_rows],
            is_empty=self._special.is_empty[:num_rows] if special.restrictive else None,
            restrictive=special.restrictive,
            scores=self._special.begin_copy(special),
            host_buffers=host_buffers,
        )

    def compute(self, batch: ScheduledBatch) -> ReplayedStep:
        """Replay the step of a batch for which `can_replay` holds, up to its logits.

        They are checked here, by kernels that no graph contains: when they are sampled, controls
        have changed them.
        """
        self._special.pause()
        num_rows, size = len(batch.decodes), self._replay_forward(batch)
        logits = self._logits[:num_rows]
        return ReplayedStep(
            logits=logits,
            is_finite=have_finite_maximum(logits),
            _token_ids=self._token_ids[:num_rows],
            _replay_sampling=self._samplings[size],
        )

    def _replay_forward(self, batch: ScheduledBatch) -> int:
        """Compute a batch's logits, and return the size of the graphs that hold it."""
        rows, num_rows = self._rows.rows_of(batch), len(batch.decodes)
        starts = self._rows.decode_starts(batch)
        size = next(size for size in self.sizes if size >= num_rows)
        is_next = self._is_next(batch)
        self._loaded, self._compared = None, None
        begun = self._builder.keep_up(batch)
        if not is_next:
            self._load(rows, starts, size)
            self._load_adapters(batch)
        elif len(begun):
            self._begin_blocks(rows, starts, begun)
        (self._adapted_forwards if batch.has_adapters else self._forwards)[size]()
        self._loaded, self._next_starts = rows, starts + 1
        return size

    def _is_next(self, batch: ScheduledBatch) -> bool:
        """Return whether the state is that of a batch, which is compared once."""
        if batch is not self._compared:
            is_same = self._rows.rows_of(batch) is self._loaded
            starts = self._rows.decode_starts(batch)
            self._was_next = is_same and np.array_equal(starts, self._next_starts)
            self._compared = batch
        return self._was_next

    @torch.inference_mode()
    def _compute(self, size: int, adapters: AdapterTables | None = None) -> None:
        """Compute the logits of the first `size` rows, at fixed addresses."""
        state, block_size = self._state, self._kv_cache.block_size
        row_ids, positions, is_live = (
            each[:size] for each in (state.row_ids, state.positions, state.is_live)
        )
        columns = positions // block_size
        blocks = state.block_tables[:size].gather(1, columns[:, None])[:, 0].to(torch.int64)
        slots = blocks * block_size + positions % block_size
        logits = self._logits[:size]
        inputs = StepInputs(
            input_ids=self._rows.last_tokens.index_select(0, row_ids),
            positions=positions,
            slot_mapping=torch.where(is_live > 0, slots, -1),
            block_tables=state.block_tables[:size],
            cu_seqlens_q=self._cu_seqlens_q[: size + 1],
            seq_lens=(positions + 1).to(torch.int32),
            sample_rows=self._row_indices[:size],
            max_query_len=1,
            max_seq_len=self._max_model_len,
            rope_positions=self._rope_positions(positions),
            recorded_adapters=None if adapters is None else adapters.sized(size, size),
        )
        self._model.forward(inputs, self._kv_cache, logits)
        positions += is_live

    @torch.inference_mode()
    def _sample(self, size: int) -> None:
        """Sample from the logits of the first `size` rows, at fixed addresses."""
        state = self._state
        token_ids, is_finite = sample_and_check(
            self._logits[:size],
            state.temperature[:size],
            state.top_k[:size],
            state.top_p[:size],
            state.min_p_gaps[:size],
            state.seeds[:size],
            state.positions[:size] - state.num_prompt_tokens[:size],
        )
        self._token_ids[:size].copy_(token_ids)
        self._is_finite[:size].copy_(is_finite)
        self._rows.last_tokens.index_copy_(0, state.row_ids[:size], token_ids)

    def _rope_positions(self, positions: Tensor) -> Tensor | None:
        if not self._model.config.uses_grids:
            return None
        return positions + self._state.position_offsets[: len(positions)]

    def _load(self, rows: NDArray[np.int64], starts: NDArray[np.int64], size: int) -> None:
        """Upload a batch's rows into the state, with padding after them."""
        table, num_rows = self._rows, len(rows)

        def padded(values: NDArray[np.generic], filler: float) -> NDArray[np.generic]:
            pads = np.full((size - num_rows, *values.shape[1:]), filler, dtype=values.dtype)
            return np.concatenate([values, pads])

        state = self._state
        # Only their used part: whole tables of a long `max_model_len` are megabytes, uploaded
        # whenever a request arrives or finishes. The rest is not read.
        tables = self._builder.tables_of(rows)
        pairs = (
            (state.row_ids, padded(rows, table.num_rows)),
            (state.positions, padded(starts, 0)),
            (state.position_offsets, padded(table.position_offset[rows], 0)),
            (state.num_prompt_tokens, padded(table.num_prompt_tokens[rows], 0)),
            (state.is_live, padded(np.ones_like(rows), 0)),
            (state.top_k, padded(table.top_k[rows], 0)),
            (state.seeds, padded(table.seeds[rows], 0)),
            (state.temperature, padded(table.temperature[rows], 0)),
            (state.top_p, padded(table.top_p[rows], 1)),
            (state.min_p_gaps, padded(table.min_p_gaps[rows], -np.inf)),
            (state.block_tables[:, : tables.shape[1]], padded(tables, 0)),
        )
        uploaded = self._uploader.upload(*[values for _, values in pairs])
        for (target, _), values in zip(pairs, uploaded, strict=True):
            target[:size].copy_(values)

    def _load_adapters(self, batch: ScheduledBatch) -> None:
        """Upload which rows have which adapters: they change with the requests only."""
        if self._adapters is not None and batch.has_adapters:
            rows = np.arange(len(batch.decodes))
            owners = [each.adapter for each in batch.decodes]
            self._adapters.fill(group_adapter_rows(owners, rows, rows, self._uploader))

    def _begin_blocks(
        self, rows: NDArray[np.int64], starts: NDArray[np.int64], begun: NDArray[np.int64]
    ) -> None:
        """Upload the block ids that some requests begin with this step."""
        columns = starts[begun] // self._kv_cache.block_size
        block_ids = self._builder.block_ids_at(rows[begun], columns)
        at_rows, at_columns, values = self._uploader.upload(begun, columns, block_ids)
        self._state.block_tables.index_put_((at_rows, at_columns), values)


def _sizes_for(max_num_seqs: int) -> tuple[int, ...]:
    """Return the sizes up to the first that holds the largest batch."""
    needed = [size for size in GRAPH_SIZES if size < max_num_seqs]
    return tuple(GRAPH_SIZES[: len(needed) + 1])
