"""Warm-up: compiles and loads the kernels of a GPU before the first request."""

from __future__ import annotations

import logging
import time

import torch

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.model import Model
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.every_size import launching_every_size
from batchmill.kernels.ops.sample import sample

_log = logging.getLogger(__name__)


def warm_up_kernels(model: Model, kv_cache: KVCache) -> None:
    """Compute a prompt of two tokens and a decode in one step, and sample from both.

    Triton compiles a kernel at its first launch, which takes seconds for the large ones; the next
    process loads the compiled kernel from disk. The choice of kernels depends on the model, the
    cache and the device. Where it also depends on the number of requests or tokens in a step, an op
    launches all of them here. So this step launches every kernel that a step can launch. No key or
    value is written.

    Args:
        model: Has its weights loaded.
        kv_cache: The cache that it will serve with; block 0 is read.
    """
    started_at_s = time.perf_counter()
    device = model.device

    def int64(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    inputs = StepInputs(
        input_ids=int64(0, 0, 0),
        positions=int64(0, 1, 0),
        slot_mapping=int64(-1, -1, -1),
        block_tables=torch.zeros(2, 1, dtype=torch.int32, device=device),
        cu_seqlens_q=int64(0, 2, 3).to(torch.int32),
        seq_lens=int64(2, 1).to(torch.int32),
        sample_rows=int64(1, 2),
        max_query_len=2,
        max_seq_len=2,
    )
    logits = torch.empty(2, model.config.vocab_size, dtype=torch.float32, device=device)
    ones = torch.ones(2, dtype=torch.float32, device=device)
    with torch.inference_mode(), launching_every_size():
        model.forward(inputs, kv_cache, logits)
        sample(logits, ones, int64(1, 1), ones, -ones, int64(0, 0), int64(0, 0))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    _log.info("kernels: compiled and loaded in %.1f s", time.perf_counter() - started_at_s)
