"""Run decode steps on tensors without data and print, as JSON, the GPU kernels they launch.

Reading such a tensor on the host raises, so a step that completes never waits and can be captured
in a CUDA graph. This runs in a separate process, because Triton must not interpret its kernels
here.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from batchmill.engine.execution import decode_graphs
from batchmill.engine.execution.decode_graphs import GRAPH_SIZES, DecodeGraphs
from batchmill.engine.execution.graph_recorder import PlainRecorder
from batchmill.engine.execution.padded_graphs import PaddedGraphs
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.adapted_layers import lora_sites
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.weights import allocate_weights
from batchmill.engine.step.adapter_tiles import AdapterShape
from batchmill.engine.step.request_rows import RequestRows
from batchmill.engine.step.step_inputs import StepInputBuilder, StepInputs
from batchmill.kernels.every_size import launching_every_size
from batchmill.kernels.gpu import paged_attention
from batchmill.kernels.ops.sample import sample_and_check

sys.path.append(str(Path(__file__).resolve().parents[3]))

from tests.kernels.gpu.launches import Launch, record_launches
from tests.kernels.gpu.shipped_launches import KERNELS

NUM_SEQS = 5
ATEN = torch.ops.aten
READS = (ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal)
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "vocab_size": 512,
    "head_dim": 64,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}


def meta(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def made(
    config: PreTrainedConfig, kv_dtype: torch.dtype, quantization: str | None = None
) -> tuple[DecoderModel, KVCache]:
    native = read_model_config({**config.to_dict(), "architectures": config.architectures})
    weights = allocate_weights(native, torch.bfloat16, "meta")
    model = DecoderModel(native, weights, backend="triton", quantization=quantization)
    assert model.is_capturable
    kv_cache = KVCache(
        num_layers=native.num_layers,
        num_blocks=64,
        block_size=16,
        num_kv_heads=native.num_kv_heads,
        head_dim=native.head_dim,
        dtype=kv_dtype,
        device="meta",
    )
    return model, kv_cache


def decode(
    config: PreTrainedConfig, kv_dtype: torch.dtype, quantization: str | None = None
) -> Counter[str]:
    """Return the Triton kernels of one decode step and its sampling."""
    model, kv_cache = made(config, kv_dtype, quantization)
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
    logits = meta(NUM_SEQS, model.config.vocab_size, dtype=torch.float32)
    one, whole = meta(NUM_SEQS, dtype=torch.float32), meta(NUM_SEQS)

    def step() -> None:
        model.forward(inputs, kv_cache, logits)
        sample_and_check(logits, one, whole, one, one, whole, whole, backend="triton")

    launched = record_launches(KERNELS, step)
    with launching_every_size():
        warm = record_launches(KERNELS, step)
    replayed = record_launches(KERNELS, partial(replay_all, model, kv_cache))
    _check_capturable(launched, warm, replayed)
    return Counter(launch.name for launch in launched)


def replay_all(model: DecoderModel, kv_cache: KVCache) -> None:
    """Replay the step of each graph size, including sampling and the state's update."""
    rows = RequestRows(GRAPH_SIZES[-1], "meta")
    builder = StepInputBuilder(rows, block_size=16, max_num_blocks=9, device="meta")
    graphs = DecodeGraphs(model, kv_cache, rows, builder, max_model_len=144)
    with NoHostTensors():  # type: ignore[no-untyped-call]
        graphs.record_all()
        for size in graphs.sizes:
            graphs._forwards[size]()
            graphs._samplings[size]()


def padded_step(model: DecoderModel, kv_cache: KVCache) -> Counter[str]:
    """Return the kernels of a step with prompts, of each size; they must be the same."""
    logits = meta(GRAPH_SIZES[-1], model.config.vocab_size, dtype=torch.float32)
    graphs = PaddedGraphs(model, kv_cache, logits, max_model_len=144, recorder=PlainRecorder())
    with NoHostTensors():  # type: ignore[no-untyped-call]
        graphs.record_all()
        return kernels_of(graphs._replays.values())


def kernels_of(replays: Iterable[Callable[[], None]]) -> Counter[str]:
    """Return the kernels of each replay; they must be the same."""
    launched = [record_launches(KERNELS, each) for each in replays]
    found = [Counter(each.name for each in launches) for launches in launched]
    assert all(each == found[0] for each in found)
    return found[0]


def adapted_steps(model: DecoderModel, kv_cache: KVCache) -> dict[str, Counter[str]]:
    """Return the kernels of forward passes with and without adapters, of both kinds of graphs."""
    model.enable_adapters()
    sites = lora_sites(model.config)
    shape = AdapterShape(tuple(map(len, sites)), max_rank=64)
    rows = RequestRows(GRAPH_SIZES[-1], "meta")
    builder = StepInputBuilder(rows, block_size=16, max_num_blocks=9, device="meta")
    decodes = DecodeGraphs(model, kv_cache, rows, builder, max_model_len=144, adapter_shape=shape)
    logits = meta(GRAPH_SIZES[-1], model.config.vocab_size, dtype=torch.float32)
    padded = PaddedGraphs(
        *(model, kv_cache, logits),
        max_model_len=144,
        recorder=PlainRecorder(),
        adapter_shape=shape,
    )
    record_launches(KERNELS, decodes.record_all)  # makes what capturing must not make
    with NoHostTensors():  # type: ignore[no-untyped-call]
        decodes.record_all()
        padded.record_all()
        return {
            "decodes": kernels_of(decodes._forwards.values()),
            "adapted decodes": kernels_of(decodes._adapted_forwards.values()),
            "adapted padded": kernels_of(padded._adapted_replays.values()),
        }


class NoHostTensors(TorchDispatchMode):
    """Refuses ops on host tensors: during a capture, no copy can be waited for.

    It also refuses maxima of logits: the sampler finds them in the pass that it makes anyway.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        met = [each for each in tree_leaves((args, kwargs, result)) if torch.is_tensor(each)]
        on_host = [each for each in met if each.device.type == "cpu"]
        if on_host or func.overloadpacket in READS:
            raise AssertionError(f"{func} of {[(each.device, each.shape) for each in met]}")
        if func.overloadpacket is ATEN.amax and args[0].shape[-1] == SIZES["vocab_size"]:
            raise AssertionError("the logits are read once more than the sampler reads them")
        return result


def _check_capturable(eager: list[Launch], warm: list[Launch], replayed: list[Launch]) -> None:
    """Check that each graph launches the kernels of a plain step, compiled by a warm-up."""
    names = Counter(launch.name for launch in eager)
    steps = len(GRAPH_SIZES)
    assert Counter(each.name for each in replayed) == {
        name: count * steps for name, count in names.items()
    }
    for name in names:
        assert len(_kinds(replayed, name)) <= len(_kinds(warm, name)), name


def _kinds(launches: list[Launch], name: str) -> set[object]:
    return {
        (tuple(each.signature.items()), tuple(each.constants.items()), each.aligned)
        for each in launches
        if each.name == name
    }


def main() -> None:
    """Print the kernels of dense and sparse models, both kinds of cache, and fp8 weights."""
    checked = partial(sample_and_check, backend="triton")
    decode_graphs.sample_and_check = checked  # type: ignore[attr-defined]
    vars(paged_attention)["num_multiprocessors"] = lambda device: 132
    dense = Qwen3Config(**SIZES, **HEADS, architectures=["Qwen3ForCausalLM"])
    sparse = Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, architectures=["Qwen3MoeForCausalLM"])
    print(
        json.dumps(
            {
                "dense": decode(dense, torch.bfloat16),
                "dense, fp8 cache": decode(dense, torch.float8_e4m3fn),
                "dense, fp8 weights": decode(dense, torch.float8_e4m3fn, "fp8"),
                "sparse": decode(sparse, torch.bfloat16),
                "sparse, fp8 weights": decode(sparse, torch.bfloat16, "fp8"),
                "padded": padded_step(*made(dense, torch.bfloat16)),
                **adapted_steps(*made(dense, torch.bfloat16)),
            }
        )
    )


if __name__ == "__main__":
    main()
