"""Run decode steps on tensors without data and print, as JSON, the GPU kernels they launch.

Reading such a tensor on the host raises, so a step that gets through waits for nothing and can be
captured in a CUDA graph. A process of its own, because Triton must not interpret its kernels here.
"""

from __future__ import annotations

import json
from collections import Counter

import torch
from transformers import PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from batchmill.engine.decoder import DecoderModel
from batchmill.engine.families import read_model_config
from batchmill.engine.kv_cache import KVCache
from batchmill.engine.step_inputs import StepInputs
from batchmill.engine.weights import allocate_weights
from batchmill.kernels.sample import sample
from batchmill.kernels.triton_aot import record_launches
from batchmill.kernels.triton_variants import KERNELS

NUM_SEQS = 5
SIZES = {"hidden_size": 256, "num_hidden_layers": 3, "vocab_size": 512, "head_dim": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}


def meta(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def decode(config: PreTrainedConfig, kv_dtype: torch.dtype) -> Counter[str]:
    """The Triton kernels of one decode step and its sampling."""
    native = read_model_config({**config.to_dict(), "architectures": config.architectures})
    weights = allocate_weights(native, torch.bfloat16, "meta")
    model = DecoderModel(native, weights, backend="triton")
    kv_cache = KVCache(
        num_layers=native.num_layers,
        num_blocks=64,
        block_size=16,
        num_kv_heads=native.num_kv_heads,
        head_dim=native.head_dim,
        dtype=kv_dtype,
        device="meta",
    )
    inputs = StepInputs(
        input_ids=meta(NUM_SEQS),
        positions=meta(NUM_SEQS),
        slot_mapping=meta(NUM_SEQS),
        block_tables=meta(NUM_SEQS, 9, dtype=torch.int32),
        cu_seqlens_q=meta(NUM_SEQS + 1, dtype=torch.int32),
        seq_lens=meta(NUM_SEQS, dtype=torch.int32),
        sample_rows=meta(NUM_SEQS),
        max_query_len=1,
        max_seq_len=130,
    )
    logits = meta(NUM_SEQS, native.vocab_size, dtype=torch.float32)
    one, whole = meta(NUM_SEQS, dtype=torch.float32), meta(NUM_SEQS)

    def step() -> None:
        model.forward(inputs, kv_cache, logits)
        sample(logits, one, whole, one, whole, whole, backend="triton")

    return Counter(launch.name for launch in record_launches(KERNELS, step))


def main() -> None:
    """Dense and sparse, with both kinds of cache."""
    dense = Qwen3Config(**SIZES, **HEADS, architectures=["Qwen3ForCausalLM"])
    sparse = Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, architectures=["Qwen3MoeForCausalLM"])
    print(
        json.dumps(
            {
                "dense": decode(dense, torch.bfloat16),
                "dense, fp8 cache": decode(dense, torch.float8_e4m3fn),
                "sparse": decode(sparse, torch.bfloat16),
            }
        )
    )


if __name__ == "__main__":
    main()
