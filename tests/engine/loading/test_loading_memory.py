"""A sharded model is read in constant extra memory, and reading reports its progress."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.weight_files import LoadProgress

from ...support.tiny_models import NATIVE, SIZES, random_model, save_tokenizer

MIB = 1024**2
MEASURE = Path(__file__).parent / "measure_loading.py"
#: Memory beyond the model: one layer that is being repacked (20 MiB here, and briefly half of it
#: again), and the mapped part of a file with one tensor.
MARGIN_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def sharded_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 200 MiB in five files."""
    folder = tmp_path_factory.mktemp("sharded")
    sizes = {"vocab_size": 8000, "hidden_size": 640, "intermediate_size": 1792}
    heads = {"num_hidden_layers": 8, "num_attention_heads": 10, "num_key_value_heads": 10}
    config = LlamaConfig(**{**SIZES, **sizes, **heads})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="50MB")
    save_tokenizer(folder)
    assert len(list(folder.glob("*.safetensors"))) >= 4
    return folder


def measure(folder: Path, tiny: Path, dtype: str, model_impl: str = "native") -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, str(MEASURE), str(tiny), str(folder), dtype, model_impl],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux' memory accounting"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_peaks_slightly_above_the_model(
    dtype: str, sharded_model: Path, tmp_path: Path
) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    stored_bytes = sum(path.stat().st_size for path in sharded_model.glob("*.safetensors"))
    assert stored_bytes > 190 * MIB
    model_bytes = stored_bytes // {"float32": 1, "bfloat16": 2}[dtype]
    measured = measure(sharded_model, tmp_path, dtype)
    assert measured["peak_growth"] <= model_bytes + MARGIN_BYTES
    assert measured["growth"] <= model_bytes * 1.1  # nothing of the original layout is left


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux' memory accounting"
)
def test_memory_peaks_slightly_above_the_unpacked_model(
    sharded_model: Path, tmp_path: Path
) -> None:
    tiny, folder = tmp_path / "tiny", tmp_path / "fp8"
    random_model(NATIVE["Llama"], tiny)
    model_bytes = store_in_fp8(sharded_model, folder)
    measured = measure(folder, tiny, "bfloat16")
    assert measured["peak_growth"] <= model_bytes + MARGIN_BYTES
    assert measured["growth"] <= model_bytes * 1.1


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux' memory accounting"
)
@pytest.mark.parametrize("is_stored_in_fp8", [False, True])
def test_reading_for_a_gpu_in_fp8_takes_no_memory_of_the_host_for_the_layers(
    sharded_model: Path, tmp_path: Path, is_stored_in_fp8: bool
) -> None:
    tiny, folder = tmp_path / "tiny", sharded_model
    random_model(NATIVE["Llama"], tiny)
    if is_stored_in_fp8:
        folder = tmp_path / "fp8"
        store_in_fp8(sharded_model, folder)
    measured = measure(folder, tiny, "bfloat16", "fp8")
    assert measured["peak_growth"] <= MARGIN_BYTES  # the layers are 80 MiB in bfloat16
    assert measured["growth"] <= MARGIN_BYTES / 4


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux' memory accounting"
)
@pytest.mark.parametrize("is_stored_in_fp8", [False, True])
def test_reading_a_mixture_for_a_gpu_in_fp8_takes_no_memory_of_the_host_for_the_experts(
    tmp_path: Path, is_stored_in_fp8: bool
) -> None:
    tiny, folder = tmp_path / "tiny", tmp_path / "sharded"
    random_model(NATIVE["Qwen3-MoE"], tiny)
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 1024}
    sizes = {**SIZES, "hidden_size": 640, "num_hidden_layers": 4, "head_dim": 64}
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**{**sizes, **experts}))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="50MB")
    save_tokenizer(folder)
    assert len(list(folder.glob("*.safetensors"))) >= 3
    if is_stored_in_fp8:
        store_in_fp8(folder, tmp_path / "fp8")
        folder = tmp_path / "fp8"
    measured = measure(folder, tiny, "bfloat16", "fp8")
    assert measured["peak_growth"] <= MARGIN_BYTES  # the experts are 120 MiB in bfloat16
    assert measured["growth"] <= MARGIN_BYTES / 4


def store_in_fp8(sharded_model: Path, folder: Path) -> int:
    """Copy a model with its matrices in fp8; return its bytes in bfloat16."""
    shutil.copytree(sharded_model, folder)
    model_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".weight_scale")] = torch.tensor(1.0)
        save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    return model_bytes


def test_progress_is_reported_after_every_tensor(sharded_model: Path) -> None:
    values = json.loads((sharded_model / "config.json").read_text())
    reports: list[LoadProgress] = []
    load_weights(sharded_model, read_model_config(values), torch.float32, "cpu", reports.append)
    index = json.loads((sharded_model / "model.safetensors.index.json").read_text())
    assert len(reports) == len(index["weight_map"]) + 1
    assert [each.num_bytes for each in reports] == sorted(each.num_bytes for each in reports)
    assert reports[-1].num_bytes == reports[-1].total_bytes > 190 * MIB
