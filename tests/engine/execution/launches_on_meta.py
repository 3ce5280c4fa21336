"""Launch many different steps on tensors without data; print kernels that no warm-up compiled.

Triton compiles a kernel again if types, constants, alignment or options differ. A launch that
differs from every launch of the warm-up in one of these would be compiled while requests wait.
Reading a tensor on the host raises here, so this also proves that a step with prompts never waits.
This runs in a separate process, because Triton must not interpret its kernels here.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from batchmill.engine.execution import decode_graphs, warm_up
from batchmill.engine.execution.step_pipeline import StepPipeline
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.weights import allocate_weights
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.sampling import sampled_tokens, sampler
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledRequest
from batchmill.engine.step import upload
from batchmill.kernels.ops.sample import sample, sample_and_check

sys.path.append(str(Path(__file__).resolve().parents[3]))

from tests.kernels.gpu.launches import Launch, record_launches
from tests.kernels.gpu.shipped_launches import KERNELS

MAX_MODEL_LEN = 640
MAX_NUM_SEQS = 40
BLOCK_SIZE = 16
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "head_dim": 64,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
#: The prompt length of each request; includes 1 and multiples of 16.
PROMPT_LENGTHS = (1, 2, 16, 17, 31, 32, 64, 257, 512, *range(3, 34))


def kind(launch: Launch) -> object:
    """Return everything that decides whether Triton compiles again."""
    return (
        launch.name,
        tuple(launch.signature.items()),
        tuple(launch.constants.items()),
        launch.aligned,
        tuple(launch.options.items()),
    )


def requests() -> list[Request]:
    made = []
    for index, length in enumerate(PROMPT_LENGTHS):
        params = SamplingParams(temperature=index % 2, top_k=index % 3, top_p=1 - index % 4 / 8)
        request = Request(str(index), [0] * length, params, seed=index, max_num_tokens=length + 99)
        request.output_token_ids.append(0)
        request.block_ids = list(range(MAX_MODEL_LEN // BLOCK_SIZE))
        made.append(request)
    return made


def batches() -> list[ScheduledBatch]:
    """Build steps of prompts and decodes, alone and together, in chunks and with drafts."""
    whole = [ScheduledRequest(each, 0, len(each.prompt_token_ids), True) for each in requests()]
    steps = [ScheduledBatch(chunks=(each,)) for each in whole[:9]]
    parts = [whole[7]._replace(num_new_tokens=count, needs_sample=False) for count in (1, 16, 100)]
    steps += [ScheduledBatch(chunks=(each,)) for each in parts]
    steps.append(ScheduledBatch(chunks=tuple(whole)))
    for count in (1, 2, 15, 16, 17, 32, 33, 40):
        decoding = [each.request for each in whole[:count]]
        starts = [len(each.prompt_token_ids) for each in decoding]
        decodes = ScheduledBatch(decodes=tuple(decoding), decode_starts=starts)
        steps.append(decodes)
        if count < len(whole):
            chunks = (whole[count], parts[0])[: 40 - count]
            steps.append(dataclasses.replace(decodes, chunks=chunks, discarded=set()))
        drafted = [
            ScheduledRequest(each, start, 4, True, draft_token_ids=(1, 2, 3))
            for each, start in zip(decoding, starts, strict=True)
        ]
        steps.append(ScheduledBatch(chunks=tuple(drafted)))
    return steps


def uncompiled(
    config: PreTrainedConfig, kv_dtype: torch.dtype, quantization: str | None = None
) -> list[str]:
    native = read_model_config({**config.to_dict(), "architectures": config.architectures})
    weights = allocate_weights(native, torch.bfloat16, "meta")
    model = DecoderModel(native, weights, backend="triton", quantization=quantization)
    kv_cache = KVCache(
        num_layers=native.num_layers,
        num_blocks=64,
        block_size=BLOCK_SIZE,
        num_kv_heads=native.num_kv_heads,
        head_dim=native.head_dim,
        dtype=kv_dtype,
        device="meta",
    )
    pipelines: list[StepPipeline] = []

    def start() -> None:
        pipeline = StepPipeline(
            model, kv_cache, max_num_seqs=MAX_NUM_SEQS, max_model_len=MAX_MODEL_LEN
        )
        pipelines.append(pipeline)

    def serve() -> None:
        for batch in batches():
            pipelines[0].launch(batch)

    compiled = {kind(each) for each in record_launches(KERNELS, start)}
    served = record_launches(KERNELS, serve)
    num_kernels = 13 if native.experts is None else 16
    if quantization is not None:
        num_kernels += 2  # one quantizes, and one activates and quantizes
    assert len({each.name for each in served}) == num_kernels
    return sorted({each.name for each in served if kind(each) not in compiled})


def main() -> None:
    """Print the uncompiled kernels of dense and sparse models, with both kinds of cache."""
    for module in (sampler, warm_up):
        module.sample = partial(sample, backend="triton")  # type: ignore[attr-defined]
    for module in (decode_graphs, sampler):
        checked = partial(sample_and_check, backend="triton")
        module.sample_and_check = checked  # type: ignore[attr-defined]
    upload.pinned = lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8)
    sampled_tokens.HostBuffers.begin_copy = lambda *tensors: None  # type: ignore[method-assign]
    dense = Qwen3Config(**SIZES, **HEADS, architectures=["Qwen3ForCausalLM"])
    sparse = Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, architectures=["Qwen3MoeForCausalLM"])
    print(
        json.dumps(
            {
                "dense": uncompiled(dense, torch.bfloat16),
                "dense, fp8 cache": uncompiled(dense, torch.float8_e4m3fn),
                "sparse": uncompiled(sparse, torch.bfloat16),
                "sparse, fp8 weights": uncompiled(sparse, torch.bfloat16, "fp8"),
            }
        )
    )


if __name__ == "__main__":
    main()
