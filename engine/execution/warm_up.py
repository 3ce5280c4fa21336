"""Have the kernels of a GPU compiled and loaded before the first request comes."""

from __future__ import annotations

import logging
import time

import torch

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.model import Model
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.ops.sample import sample

_log = logging.getLogger(__name__)


def warm_up_kernels(model: Model, kv_cache: KVCache) -> None:
    """Compute a prompt of two tokens beside one that decodes, and draw from both.

    Triton compiles a kernel when it is first launched, and takes seconds for the large ones; what
    it made is on disk for the next process, which only loads it. Which kernel it is depends on the
    model, the cache and the device, not on how many requests or tokens a step has: so this one
    launches all that a step can. No key or value is written.

    Args:
        model: Weights in place.
        kv_cache: The cache that it will serve with; block 0 is read.
    """
    started_at_s = time.perf_counter()
    device = model.device

    def whole(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    inputs = StepInputs(
        input_ids=whole(0, 0, 0),
        positions=whole(0, 1, 0),
        slot_mapping=whole(-1, -1, -1),
        block_tables=torch.zeros(2, 1, dtype=torch.int32, device=device),
        cu_seqlens_q=whole(0, 2, 3).to(torch.int32),
        seq_lens=whole(2, 1).to(torch.int32),
        sample_rows=whole(1, 2),
        max_query_len=2,
        max_seq_len=2,
    )
    logits = torch.empty(2, model.config.vocab_size, dtype=torch.float32, device=device)
    ones = torch.ones(2, dtype=torch.float32, device=device)
    with torch.inference_mode():
        model.forward(inputs, kv_cache, logits)
        sample(logits, ones, whole(1, 1), ones, whole(0, 0), whole(0, 0))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    _log.info("kernels: compiled and loaded in %.1f s", time.perf_counter() - started_at_s)
