"""The KV cache's share of a device's memory, and the message if a model does not fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from batchmill.engine import Engine
from batchmill.engine.config import EngineConfig
from batchmill.engine.errors import ConfigError
from batchmill.engine.execution import kv_cache_sizing
from batchmill.engine.execution.kv_cache_sizing import (
    allocate_kv_cache,
    kv_cache_torch_dtype,
    run_largest_step,
)
from batchmill.engine.execution.memory_plan import graph_reserve_bytes
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.memory.device_memory import check_weights_fit, free_memory_bytes
from batchmill.engine.memory.kv_cache import kv_block_bytes
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.fp8_weights import fp8_weights_bytes
from batchmill.engine.models.weights import weights_bytes
from batchmill.engine.offload.host_blocks import STAGING_BLOCKS
from batchmill.engine.scheduling.batch_builder import MAX_SCORED_TOKENS

from ...support.tiny_models import NATIVE, random_model

GIB = 1024**3
MIB = 1024**2
GRAPH_BYTES = graph_reserve_bytes(4, 211)


@dataclass
class TightDevice:
    """A `MemoryProbe` of a device on which every step takes the same memory."""

    total: int
    held: int
    step: int
    weights: int = 0
    num_peaks: int = 0
    #: What the largest step loads and leaves loaded: kernels and libraries.
    loads: int = 0

    def total_bytes(self) -> int:
        return self.total

    def free_bytes(self) -> int:
        return self.total - self.held - self.loads * self.num_peaks

    def process_bytes(self) -> int:
        return self.weights

    def reset_peak(self) -> None:
        self.num_peaks += 1

    def peak_growth_bytes(self) -> int:
        return self.step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecoderModel:
    folder = tmp_path_factory.mktemp("model")
    config = read_model_config(random_model(NATIVE["Qwen3"], folder).config.to_dict())
    return DecoderModel(config, load_weights(folder, config, torch.float32, "cpu"))


def configure(**changes: Any) -> EngineConfig:
    values: dict[str, Any] = {
        "model": "tiny",
        "max_model_len": 128,
        "max_num_seqs": 4,
        "decode_graphs": True,
    }
    return EngineConfig(**{**values, "max_num_batched_tokens": 64, **changes})


def test_cache_gets_the_share_minus_weights_a_step_and_graphs(
    model: DecoderModel,
) -> None:
    device = TightDevice(total=2 * GIB, held=600 * MIB, step=200 * MIB)
    config = configure(gpu_memory_utilization=0.7)
    cache = allocate_kv_cache(config, model, device)
    left = int(2 * GIB * 0.7) - 800 * MIB - GRAPH_BYTES
    assert device.num_peaks == 1
    assert cache.num_blocks == left // kv_block_bytes(model.config, torch.float32, 16)
    assert cache.num_bytes <= left


def test_what_the_largest_step_loads_is_not_given_to_the_cache(model: DecoderModel) -> None:
    caches = [
        allocate_kv_cache(configure(), model, TightDevice(2 * GIB, GIB, step=0, loads=each))
        for each in (0, 300 * MIB)
    ]
    lost = caches[0].num_bytes - caches[1].num_bytes
    assert abs(lost - 300 * MIB) < kv_block_bytes(model.config, torch.float32, 16)


def test_features_of_media_have_their_own_memory(model: DecoderModel) -> None:
    device = TightDevice(total=2 * GIB, held=GIB, step=0)
    without, reserved = (
        allocate_kv_cache(configure(), model, device, feature_bytes=each) for each in (0, 64 * MIB)
    )
    lost = without.num_bytes - reserved.num_bytes
    assert abs(lost - 64 * MIB) < kv_block_bytes(model.config, torch.float32, 16)


def test_copies_to_host_memory_have_their_staging_buffer(model: DecoderModel) -> None:
    device = TightDevice(total=2 * GIB, held=GIB, step=0)
    without, staged = (
        allocate_kv_cache(configure(kv_host_bytes=each), model, device) for each in (0, MIB)
    )
    lost = without.num_blocks - staged.num_blocks
    assert STAGING_BLOCKS <= lost <= STAGING_BLOCKS + 1


def test_graphs_that_are_not_recorded_leave_their_memory_to_the_cache(model: DecoderModel) -> None:
    device = TightDevice(total=2 * GIB, held=GIB, step=0)
    recorded, not_recorded = (
        allocate_kv_cache(configure(decode_graphs=each), model, device) for each in (True, False)
    )
    gained = not_recorded.num_bytes - recorded.num_bytes
    block_bytes = kv_block_bytes(model.config, torch.float32, 16)
    assert abs(gained - GRAPH_BYTES) < block_bytes


def test_no_memory_is_reserved_for_graphs_that_the_device_does_not_record(
    model: DecoderModel,
) -> None:
    device = TightDevice(total=2 * GIB, held=GIB, step=0)
    by_default, none = (
        allocate_kv_cache(configure(decode_graphs=each), model, device) for each in ("auto", False)
    )
    assert by_default.num_blocks == none.num_blocks


def test_configured_size_is_taken_without_measuring(model: DecoderModel) -> None:
    device = TightDevice(total=2 * MIB, held=MIB, step=0)
    cache = allocate_kv_cache(configure(kv_cache_bytes=MIB), model, device)
    assert device.num_peaks == 0
    assert cache.num_bytes <= MIB


def test_configured_size_above_the_free_memory_is_refused(model: DecoderModel) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_bytes is 2097152 .* has 0\.00 GiB free"):
        allocate_kv_cache(configure(kv_cache_bytes=2 * MIB), model, TightDevice(2 * MIB, MIB, 0))
    # On this host too, where memory would run out only once the cache fills.
    with pytest.raises(ConfigError, match=r"and cpu has .* lower it, or leave it out"):
        allocate_kv_cache(configure(kv_cache_bytes=2**50), model)


def test_step_that_runs_out_of_memory_is_a_refusal(model: DecoderModel) -> None:
    class Exhausted:
        config, dtype, device = model.config, model.dtype, model.device

        def forward(self, inputs, kv_cache, logits):  # type: ignore[no-untyped-def]
            raise MemoryError

    with pytest.raises(ConfigError, match="max_num_batched_tokens 64 tokens, before there is a KV"):
        allocate_kv_cache(configure(), Exhausted(), TightDevice(GIB, 0, 0))


def refusal(model: DecoderModel, device: TightDevice, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        allocate_kv_cache(configure(**changes), model, device)
    return str(caught.value)


def test_model_that_does_not_fit_is_refused_with_the_numbers_and_a_smaller_length(
    model: DecoderModel,
) -> None:
    block = kv_block_bytes(model.config, torch.float32, 16)
    held = int(2 * GIB * 0.9) - GRAPH_BYTES - 100 * MIB - 3 * block
    device = TightDevice(total=2 * GIB, held=held, step=100 * MIB, weights=GIB)
    message = refusal(model, device)
    assert "of 2.00 GiB, gpu_memory_utilization 0.9 leaves 1.80 to use" in message
    assert "weights 1.00" in message
    assert "a step of 64 tokens takes 0.10" in message
    fitting = int(re.search(r"max_model_len (\d+) or less", message)[1])  # type: ignore[index]
    assert fitting == 48
    assert allocate_kv_cache(configure(max_model_len=fitting), model, device).num_blocks == 3


def test_every_remedy_named_is_enough_alone(model: DecoderModel) -> None:
    held = int(2 * GIB * 0.9) - GRAPH_BYTES - 50 * MIB
    device = TightDevice(total=2 * GIB, held=held, step=100 * MIB, weights=GIB)
    message = refusal(model, device, dtype="float32")
    # Nothing is left for the cache, so no length would fit.
    assert "max_model_len" not in message.split("Each is enough alone: ")[1]
    share = float(re.search(r"gpu_memory_utilization (0\.\d+), if", message)[1])  # type: ignore[index]
    tokens = int(re.search(r"max_num_batched_tokens (\d+) or", message)[1])  # type: ignore[index]
    size = float(re.search(r"a GPU of ([\d.]+) GiB", message)[1])  # type: ignore[index]
    assert "dtype 'bfloat16', with half the weights" in message
    for device, changes in (
        (TightDevice(2 * GIB, held, 100 * MIB), {"gpu_memory_utilization": share}),
        (TightDevice(2 * GIB, held, 100 * MIB * tokens // 64), {}),
        (TightDevice(2 * GIB, held - GIB // 2, 100 * MIB), {}),
        (TightDevice(int((size + 0.005) * GIB), held, 100 * MIB), {}),
    ):
        assert allocate_kv_cache(configure(**changes), model, device).num_blocks >= 8


def test_fp8_weights_are_a_remedy_if_they_save_enough(tmp_path: Path) -> None:
    random_model(NATIVE["Qwen3"], tmp_path)
    config = read_model_config(NATIVE["Qwen3"].to_dict() | {"architectures": ["Qwen3ForCausalLM"]})
    weights = load_weights(tmp_path, config, torch.bfloat16, "cpu")
    model = DecoderModel(config, weights)
    saved = weights_bytes(config, torch.bfloat16) - fp8_weights_bytes(config, torch.bfloat16)
    needed = 8 * kv_block_bytes(config, torch.bfloat16, 16)
    limit = int(2 * GIB * 0.9) - GRAPH_BYTES
    for lacking, is_enough in ((saved, True), (saved + 1, False)):
        device = TightDevice(total=2 * GIB, held=limit - needed + lacking, step=0, weights=GIB)
        assert ("quantization 'fp8'" in refusal(model, device)) == is_enough
    # A quantized model gets no advice to quantize.
    device = TightDevice(total=2 * GIB, held=limit - needed + 1, step=0, weights=GIB)
    assert "quantization" not in refusal(model, device, quantization="fp8")


@pytest.mark.parametrize(("share", "is_available"), [(0.5, True), (2.0, False)])
def test_refusal_of_a_host_share_that_is_too_small_names_what_fits(
    model: DecoderModel, share: float, is_available: bool
) -> None:
    block = kv_block_bytes(model.config, torch.float32, 16)
    length = int(free_memory_bytes(torch.device("cpu")) * share) // block * 16
    with pytest.raises(ConfigError, match=r"set max_model_len to \d+ or less") as caught:
        allocate_kv_cache(configure(max_model_len=length), model)
    assert ("set kv_cache_bytes to" in str(caught.value)) == is_available


@pytest.mark.parametrize(("share", "is_remedy"), [(0.6, True), (0.4, False)])
def test_refusal_of_a_float32_cache_names_bfloat16_if_that_fits(
    model: DecoderModel, share: float, is_remedy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 4 * kv_block_bytes(model.config, torch.float32, 16)
    monkeypatch.setattr(
        kv_cache_sizing, "default_cpu_kv_cache_bytes", lambda other_bytes: int(needed * share)
    )
    with pytest.raises(ConfigError, match=r"GiB in float32: ") as caught:
        allocate_kv_cache(configure(max_model_len=64), model)
    assert ("set dtype to 'bfloat16'" in str(caught.value)) == is_remedy


@pytest.mark.parametrize(("num_speculative_tokens", "num_drafts"), [(0, 0), (9, 27), (200, 256)])
def test_largest_step_has_the_most_tokens_and_rows_possible(
    model: DecoderModel, num_speculative_tokens: int, num_drafts: int
) -> None:
    seen = []

    class Watched:
        config, dtype, device = model.config, model.dtype, model.device

        def forward(self, inputs, kv_cache, logits):  # type: ignore[no-untyped-def]
            seen.append((inputs, tuple(logits.shape), kv_cache.num_blocks))
            model.forward(inputs, kv_cache, logits)

    config = configure(
        max_num_batched_tokens=600,
        num_speculative_tokens=num_speculative_tokens,
        speculative_max_num_seqs=3,
        num_forced_tokens=0,
        num_corpus_tokens=0,
    )
    run_largest_step(config, Watched(), torch.float32)
    ((inputs, logits_shape, num_blocks),) = seen
    assert len(inputs.input_ids) == 600
    assert inputs.seq_lens.tolist() == [150] * 4  # no more sequences than max_num_seqs
    assert logits_shape == (4 + MAX_SCORED_TOKENS + num_drafts, model.config.vocab_size)
    assert num_blocks == 1


def test_eight_bit_cache_is_refused_if_the_device_cannot_read_it() -> None:
    cpu = torch.device("cpu")
    assert kv_cache_torch_dtype("auto", torch.bfloat16, cpu) == torch.bfloat16
    with pytest.raises(ConfigError, match="only GPUs read an eight-bit cache; use 'auto'"):
        kv_cache_torch_dtype("fp8", torch.bfloat16, cpu)
    # The engine refuses before it reads the model, which does not exist here.
    with pytest.raises(ConfigError, match="only GPUs read an eight-bit cache; use 'auto'"):
        Engine(EngineConfig(model="/nowhere", device="cpu", kv_cache_dtype="fp8"))


def test_weights_that_do_not_fit_are_refused_before_they_are_read(model: DecoderModel) -> None:
    num_bytes = weights_bytes(model.config, torch.float32)
    cpu = torch.device("cpu")
    check_weights_fit(num_bytes, torch.float32, cpu, num_bytes)
    with pytest.raises(
        ConfigError, match=r"need 8\.00 GiB in bfloat16, but this host.* has only 3\.00 GiB free"
    ):
        check_weights_fit(8 * GIB, torch.bfloat16, cpu, 3 * GIB)
    with pytest.raises(ConfigError, match=r"in float32, .* use dtype 'bfloat16' \(4\.00 GiB"):
        check_weights_fit(8 * GIB, torch.float32, cpu, 5 * GIB)
    with pytest.raises(ConfigError, match="or use a smaller model"):  # bfloat16 does not fit
        check_weights_fit(8 * GIB, torch.float32, cpu, 3 * GIB)
    assert free_memory_bytes(cpu) > 0
    gpu = torch.device("cuda", 0)
    for fp8_gib, is_named in ((2, True), (4, False)):
        with pytest.raises(ConfigError, match=r"cuda:0 has only 3\.00 GiB free") as caught:
            check_weights_fit(8 * GIB, torch.bfloat16, gpu, 3 * GIB, fp8_gib * GIB)
        assert ("use quantization 'fp8' (2.00 GiB" in str(caught.value)) == is_named


def test_size_of_weights_is_that_of_the_files(tmp_path: Path) -> None:
    for name in ("Qwen3", "Mixtral", "Qwen2, tied", "Gemma 3 text"):
        hf_model = random_model(NATIVE[name], tmp_path / name)
        config = read_model_config(hf_model.config.to_dict())
        number = sum(weight.numel() for weight in hf_model.parameters())
        assert weights_bytes(config, torch.float32) == 4 * number
