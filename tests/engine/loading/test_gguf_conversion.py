"""GGUF files: converted once, also by racing processes, to a model with the same weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.errors import ConfigError, ModelLoadError
from batchmill.engine.loading.gguf_conversion import cache_folder, converted_folder
from batchmill.engine.loading.loading import load_model
from batchmill.engine.models.decoder import DecoderModel

SHAPES = {
    "token_embd.weight": (300, 32),
    "output_norm.weight": (32,),
    "output.weight": (300, 32),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (48, 32),
    "blk.0.ffn_up.weight": (48, 32),
    "blk.0.ffn_down.weight": (32, 48),
}
CONVERT = """
import sys
from pathlib import Path
from batchmill.engine.loading.gguf_conversion import converted_folder
print(converted_folder(Path(sys.argv[1])))
"""


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama with random weights and a byte-level vocabulary."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(300)
    letters = [chr(256 + index) for index in range(297)]
    tokens = ["<s>", "</s>", *letters, letters[0] + letters[1]]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 298)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("BATCHMILL_CACHE_DIR", str(path))
    return path


def test_a_gguf_file_becomes_a_model_with_its_weights(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    weights = write_gguf(path)
    loaded = load_model(str(path), dtype="bfloat16", device="cpu")
    assert loaded.config.num_layers == 1
    assert loaded.eos_token_ids == {1}
    assert isinstance(loaded.model, DecoderModel)
    head = loaded.model._head(torch.eye(32, dtype=torch.bfloat16)).T
    assert torch.equal(head, torch.from_numpy(weights["output.weight"]).bfloat16())
    [folder] = (cache / "models").iterdir()
    stamp = (folder / "model.safetensors").stat()
    assert stamp.st_mode & 0o777 == 0o644
    again = load_model(str(path), dtype="bfloat16", device="cpu")
    assert again.identity == loaded.identity
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp.st_mtime_ns


def test_a_max_model_len_above_the_models_limit_is_refused_before_the_conversion(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)

    def read_weights(*args: object, **kwargs: object) -> None:
        raise OSError("weights are read")

    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", read_weights)
        with pytest.raises(ConfigError, match=r"max_model_len is 65, .* set max_model_len to 64"):
            Engine(EngineConfig(model=str(path), device="cpu", max_model_len=65))
        with pytest.raises(ModelLoadError, match="weights are read"):
            Engine(EngineConfig(model=str(path), device="cpu", max_model_len=64))
    assert load_model(str(path), device="cpu", max_model_len=64).config.num_layers == 1
    [folder] = (cache / "models").iterdir()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="max_model_len is 65"):  # from the converted folder
        Engine(EngineConfig(model=str(path), device="cpu", max_model_len=65))


def test_racing_processes_leave_one_complete_folder(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERT, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    folders = {stdout.strip() for stdout, _ in results}
    assert folders == {str(folder) for folder in (cache / "models").iterdir()}
    assert len(folders) == 1
    assert load_model(folders.pop(), dtype="float32", device="cpu").config.num_layers == 1


def test_a_file_in_another_format_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"something else")
    with pytest.raises(ModelLoadError, match=r"broken\.gguf cannot be read as GGUF"):
        converted_folder(path)
    assert list((cache / "models").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    monkeypatch.setenv("BATCHMILL_CACHE_DIR", str(path))
    with pytest.raises(ModelLoadError, match="set BATCHMILL_CACHE_DIR to a writable folder"):
        converted_folder(path)


def test_the_environment_decides_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_CACHE_DIR", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_folder() == Path("/one")
    monkeypatch.delenv("BATCHMILL_CACHE_DIR")
    assert cache_folder() == Path("/two/batchmill")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_folder() == Path("/home/user/.cache/batchmill")
