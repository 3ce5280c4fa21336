"""Padded graphs: steps with parts of prompts or draft tokens, recorded for a few sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.model import Model
from batchmill.engine.step.adapter_tiles import AdapterShape, AdapterTables
from batchmill.engine.step.step_inputs import StepInputs

from .graph_recorder import Recorder, reserved_gib

#: Tokens of a step with a graph; a step is padded to the next. Below some 250 tokens a GPU reads
#: the weights for longer than it multiplies, so padding costs little. Above 512 it computes for
#: longer than the host needs to launch the kernels one by one.
TOKEN_SIZES = (32, 64, 128, 192, 256, 384, 512)
#: Requests of a step with a graph, and rows of logits.
SEQ_SIZES = (16, 64, 256)

_log = logging.getLogger(__name__)


class PaddedGraphs:
    """Owns the inputs of a step at fixed addresses, and a recorded forward pass for each size.

    A step is one sequence of tokens; which of them belong to which request, and how long each
    request is, are numbers on the device that the kernels read. So a graph for some numbers of
    tokens and of requests computes every step that has no more of either. Padding tokens belong to
    no request, and write to no slot; padding requests have no tokens; padding rows of logits are
    those of the last token, so that all rows are in ascending order. If requests may have LoRA
    adapters, steps with any have graphs of their own.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        logits: Tensor,
        *,
        max_model_len: int,
        recorder: Recorder,
        adapter_shape: AdapterShape | None = None,
    ) -> None:
        """Allocate the inputs; call `record_all` next.

        Args:
            model: Computes the steps.
            kv_cache: Read and written by the steps.
            logits: [most rows, vocab_size] float32; the steps write it, and its rows limit them.
            max_model_len: Most tokens of one request.
            recorder: Records the steps.
            adapter_shape: Of LoRA adapters; None if no request has one.
        """
        self._model, self._kv_cache, self._logits = model, kv_cache, logits
        self._max_model_len = max_model_len
        self._recorder = recorder
        most_tokens, most_seqs = TOKEN_SIZES[-1], len(logits)
        seq_sizes = sorted({min(size, most_seqs) for size in SEQ_SIZES})
        self._sizes = [(n, seqs) for n in TOKEN_SIZES for seqs in seq_sizes if seqs <= n]
        max_num_blocks = -(-max_model_len // kv_cache.block_size)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=model.device)

        self._input_ids, self._positions = zeros(most_tokens), zeros(most_tokens)
        self._slot_mapping = torch.full_like(self._input_ids, -1)
        self._block_tables = zeros(most_seqs, max_num_blocks, dtype=torch.int32)
        self._cu_seqlens_q = zeros(most_seqs + 1, dtype=torch.int32)
        self._seq_lens = zeros(most_seqs, dtype=torch.int32)
        self._sample_rows = zeros(most_seqs)
        self._adapters: AdapterTables | None = None
        if adapter_shape is not None:
            self._adapters = AdapterTables(adapter_shape, most_tokens, most_seqs, model.device)
        self._replays: dict[tuple[int, int], Callable[[], None]] = {}
        self._adapted_replays: dict[tuple[int, int], Callable[[], None]] = {}

    def record_all(self) -> None:
        """Record a forward pass for each size, the largest first.

        Raises:
            EngineError: the steps of this model cannot be recorded on this device.
        """
        before = reserved_gib(self._model.device)
        for size in reversed(self._sizes):
            self._replays[size] = self._recorder.record(partial(self._forward, *size))
            if self._adapters is not None:
                adapted = partial(self._forward, *size, self._adapters)
                self._adapted_replays[size] = self._recorder.record(adapted)
        _log.info(
            "padded graphs: %d sizes up to %d tokens and %d requests, %.2f GiB",
            len(self._sizes),
            *self._sizes[-1],
            reserved_gib(self._model.device) - before,
        )

    def can_replay(self, inputs: StepInputs) -> bool:
        """Return whether a step fits, and needs no more than tokens, positions, blocks, adapters.

        Pooled requests, pairs of texts, steering and features of media are computed kernel by
        kernel.
        """
        if inputs.adapters and self._adapters is None:
            return False
        is_plain = not (inputs.num_states or inputs.steered)
        has_media = inputs.features is not None or inputs.rope_positions is not None
        is_plain = is_plain and not has_media and inputs.token_types is None
        return is_plain and self._size_of(inputs) is not None

    def compute(self, inputs: StepInputs) -> Tensor:
        """Replay a step for which `can_replay` holds.

        Returns:
            Its logits, [num_logits, vocab_size] float32: the caller may change them, and the next
            step overwrites them.
        """
        size = self._size_of(inputs)
        assert size is not None, "can_replay has checked the size"
        num_tokens, num_seqs = len(inputs.input_ids), len(inputs.seq_lens)
        self._input_ids[:num_tokens].copy_(inputs.input_ids)
        self._positions[:num_tokens].copy_(inputs.positions)
        self._slot_mapping[:num_tokens].copy_(inputs.slot_mapping)
        self._slot_mapping[num_tokens:].fill_(-1)
        width = inputs.block_tables.shape[1]
        self._block_tables[:num_seqs, :width].copy_(inputs.block_tables)
        self._cu_seqlens_q[: num_seqs + 1].copy_(inputs.cu_seqlens_q)
        self._cu_seqlens_q[num_seqs + 1 :].fill_(num_tokens)
        self._seq_lens[:num_seqs].copy_(inputs.seq_lens)
        self._seq_lens[num_seqs:].fill_(0)
        self._sample_rows[: inputs.num_logits].copy_(inputs.sample_rows)
        self._sample_rows[inputs.num_logits :].fill_(size[0] - 1)
        if inputs.adapters and self._adapters is not None:
            self._adapters.fill(inputs.adapters)
        (self._adapted_replays if inputs.adapters else self._replays)[size]()
        return self._logits[: inputs.num_logits]

    def _size_of(self, inputs: StepInputs) -> tuple[int, int] | None:
        """Return the smallest size that holds a step, or None."""
        num_rows = max(len(inputs.seq_lens), inputs.num_logits)
        num_tokens = len(inputs.input_ids)
        fitting = (each for each in self._sizes if each[0] >= num_tokens and each[1] >= num_rows)
        return next(fitting, None)

    @torch.inference_mode()
    def _forward(
        self, num_tokens: int, num_seqs: int, adapters: AdapterTables | None = None
    ) -> None:
        """Compute the logits of a step of some size, at fixed addresses."""
        inputs = StepInputs(
            input_ids=self._input_ids[:num_tokens],
            positions=self._positions[:num_tokens],
            slot_mapping=self._slot_mapping[:num_tokens],
            block_tables=self._block_tables[:num_seqs],
            cu_seqlens_q=self._cu_seqlens_q[: num_seqs + 1],
            seq_lens=self._seq_lens[:num_seqs],
            sample_rows=self._sample_rows[:num_seqs],
            max_query_len=num_tokens,
            max_seq_len=self._max_model_len,
            recorded_adapters=None if adapters is None else adapters.sized(num_tokens, num_seqs),
        )
        self._model.forward(inputs, self._kv_cache, self._logits[:num_seqs])
