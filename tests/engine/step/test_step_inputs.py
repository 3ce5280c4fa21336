"""A scheduled batch laid out as tensors."""

from __future__ import annotations

import pytest
import torch

from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledRequest
from batchmill.engine.step.step_inputs import build_step_inputs


def make_request(prompt: list[int], output: list[int], block_ids: list[int]) -> Request:
    request = Request(
        "r1",
        prompt,
        SamplingParams(),
        seed=0,
        max_num_tokens=100,
        resumed_token_ids=output,
    )
    request.block_ids = block_ids
    return request


def test_mixed_batch_is_laid_out_token_by_token() -> None:
    decoding = make_request([10, 11, 12], [13, 14], [7, 3])  # 4 tokens cached, the fifth is new
    chunk = make_request([20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [], [1, 9, 4])
    resumed = make_request([30, 31], [32], [5])
    batch = ScheduledBatch(
        chunks=(
            ScheduledRequest(decoding, 4, 1, True),
            ScheduledRequest(chunk, 3, 3, False),
            ScheduledRequest(resumed, 0, 3, True),
        ),
    )
    inputs = build_step_inputs(batch, block_size=4, device="cpu")
    assert inputs.input_ids.tolist() == [14, 23, 24, 25, 30, 31, 32]
    assert inputs.positions.tolist() == [4, 3, 4, 5, 0, 1, 2]
    assert inputs.slot_mapping.tolist() == [12, 7, 36, 37, 20, 21, 22]
    # Block 4 is allocated, but not needed yet.
    assert inputs.block_tables.tolist() == [[7, 3], [1, 9], [5, 0]]
    assert inputs.cu_seqlens_q.tolist() == [0, 1, 4, 7]
    assert inputs.seq_lens.tolist() == [5, 6, 3]
    assert inputs.sample_rows.tolist() == [0, 6]
    assert (inputs.max_query_len, inputs.max_seq_len) == (3, 6)
    for name in ("input_ids", "positions", "slot_mapping", "sample_rows"):
        assert getattr(inputs, name).dtype == torch.int64
    for name in ("block_tables", "cu_seqlens_q", "seq_lens"):
        assert getattr(inputs, name).dtype == torch.int32


def test_block_table_that_is_too_short_is_an_error() -> None:
    request = make_request([1, 2, 3, 4, 5], [], [8])
    batch = ScheduledBatch(chunks=(ScheduledRequest(request, 0, 5, True),))
    with pytest.raises(ValueError, match="r1 needs 2 blocks for 5 tokens, its block table has 1"):
        build_step_inputs(batch, block_size=4, device="cpu")


def test_empty_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="the batch is empty"):
        build_step_inputs(ScheduledBatch(), 4, "cpu")
