"""GGUF files: converted once, also by racing processes, to a model with the same weights."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.errors import ConfigError, ModelLoadError
from batchmill.engine.loading.gguf_conversion import converted_folder
from batchmill.engine.loading.loading import load_model
from batchmill.engine.loading.model_source import model_folder
from batchmill.engine.models.decoder import DecoderModel

from ...support.tiny_gguf import SHAPES, write_gguf

CONVERT = """
import sys
from pathlib import Path
from batchmill.engine.loading.gguf_conversion import converted_folder
print(converted_folder(Path(sys.argv[1])))
"""


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
    assert loaded.model._head is not None
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
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    folders = {stdout.strip() for stdout, _ in results}
    assert folders == {str(folder) for folder in (cache / "models").iterdir()}
    assert len(folders) == 1
    assert load_model(folders.pop(), dtype="float32", device="cpu").config.num_layers == 1


def test_a_file_that_lacks_a_weight_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, without="blk.0.ffn_up.weight")
    with pytest.raises(ModelLoadError, match=r"lacks 1 weights .* model\.layers\.0\.mlp\.up_proj"):
        converted_folder(path)
    assert list((cache / "models").iterdir()) == []


def test_a_file_with_a_weight_that_the_model_lacks_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, more={"blk.0.attn_q.bias": np.ones(32, dtype=np.float32)})
    with pytest.raises(ModelLoadError, match="a variant that cannot be converted"):
        converted_folder(path)


def split(folder: Path, name: str = "tiny") -> list[Path]:
    """Write the model in two parts; each tensor is in one of them."""
    paths = [folder / f"{name}-0000{number}-of-00002.gguf" for number in (1, 2)]
    weights = sorted(SHAPES)
    halves = (weights[::2], weights[1::2])
    for number, (path, left_out) in enumerate(zip(paths, halves, strict=True)):
        metadata = {"split.no": number, "split.count": 2, "split.tensors.count": len(weights)}
        write_gguf(path, without=left_out, metadata=metadata)
    return paths


def test_all_parts_of_a_split_file_are_loaded(tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "whole.gguf")
    whole = converted_folder(tmp_path / "whole.gguf")
    first, second = split(tmp_path)
    folder = converted_folder(second)  # whichever part is named
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert converted_folder(first) == folder
    assert {path.name for path in (cache / "models").iterdir()} == {whole.name, folder.name}


def test_parts_that_are_missing_or_were_renamed_are_refused(tmp_path: Path, cache: Path) -> None:
    first, second = split(tmp_path)
    second.rename(tmp_path / "other.gguf")
    with pytest.raises(ModelLoadError, match=r"2 parts .* 1 are missing, .*tiny-00002-of-00002"):
        converted_folder(first)
    with pytest.raises(ModelLoadError, match=r"one of 2 parts .* its name does not say"):
        converted_folder(tmp_path / "other.gguf")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelLoadError, match=r"says that it is part 0 \(from 0\) of 2"):
        converted_folder(first)
    assert list((cache / "models").iterdir()) == []


def test_parts_of_two_models_are_refused(tmp_path: Path, cache: Path) -> None:
    first, _ = split(tmp_path)
    write_gguf(
        tmp_path / "tiny-00002-of-00002.gguf",
        metadata={"split.no": 1, "split.count": 2, "split.tensors.count": len(SHAPES)},
    )
    with pytest.raises(ModelLoadError, match="tensors together, and its metadata says"):
        converted_folder(first)


def test_a_full_disk_while_parts_are_joined_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = split(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", Mock(side_effect=full))
    with pytest.raises(ModelLoadError, match=r"No space left .* set BATCHMILL_CACHE_DIR"):
        converted_folder(first)
    assert list((cache / "models").iterdir()) == []


def test_the_ending_may_be_in_capitals(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "TINY.GGUF"
    write_gguf(path)
    assert (model_folder(str(path)) / "model.safetensors").is_file()


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
