"""Loading models from folders, shards and names, and the errors if that fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from batchmill.engine import Engine, EngineConfig, cpu_kernels
from batchmill.engine.errors import ConfigError, ModelLoadError, UnsupportedModelError
from batchmill.engine.loading.load_options import resolve_dtype
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.models.decoder import DecoderModel
from batchmill.kernels.cpu.isa import ISAS, Isa

VOCABULARY = ["<s>", "</s>", "<|im_end|>", "<unk>", "a", "b", "c", "d"]


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """A tiny Llama with random weights and an eight-word tokenizer."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    backend = BackendTokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    return tmp_path


def load(path: Path, **changes: Any) -> LoadedModel:
    return load_model(str(path), **({"dtype": "float32", "device": "cpu"} | changes))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def head_weight(loaded: LoadedModel) -> torch.Tensor:
    """Return the head's matrix as the model multiplies by it: its product with the identity."""
    assert isinstance(loaded.model, DecoderModel)
    assert loaded.model._head is not None
    identity = torch.eye(loaded.model.config.hidden_size, dtype=loaded.model.dtype)
    return loaded.model._head(identity).T


def test_shards_hold_the_same_model_as_one_file(model_path: Path) -> None:
    whole = load(model_path)
    weights = load_file(model_path / "model.safetensors")
    names = sorted(weights)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file_name = f"model-{number}.safetensors"
        save_file({name: weights[name] for name in part}, model_path / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    (model_path / "model.safetensors").unlink()
    index = model_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    sharded = load(model_path)
    assert torch.equal(head_weight(sharded), head_weight(whole))
    for damaged, message in (
        ({"weight_map": {"a": "../model-0.safetensors"}}, "only name files in its own folder"),
        ({"weights": {}}, r"cannot be read as an index of weights \(KeyError\)"),
    ):
        index.write_text(json.dumps(damaged))
        with pytest.raises(ModelLoadError, match=message):
            load(model_path)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (model_path / "model-1.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model-1\.safetensors does not exist"):
        load(model_path)


def test_weights_are_stored_in_the_requested_dtype(model_path: Path) -> None:
    loaded = load(model_path, dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    expected = load_file(model_path / "model.safetensors")["lm_head.weight"].bfloat16()
    assert torch.equal(head_weight(loaded), expected)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_dtype_auto_is_what_the_device_computes_faster(
    isa: Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "best_isa", lambda: isa)
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    expected = "bfloat16" if isa.name == "avx512_bf16" else "float32"
    assert resolve_dtype("auto", cpu) == expected
    assert resolve_dtype("auto", gpu) == "bfloat16"
    for dtype in ("bfloat16", "float16", "float32"):
        assert resolve_dtype(dtype, cpu) == resolve_dtype(dtype, gpu) == dtype


def test_an_engine_reports_the_dtype_that_auto_chose(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(
        model=str(model_path), device="cpu", max_model_len=64, kv_cache_bytes=2**20
    )
    assert config.dtype == "auto"
    identities = {}
    for isa in (ISAS[0], ISAS[-1]):
        monkeypatch.setattr(cpu_kernels, "best_isa", lambda isa=isa: isa)
        engine = Engine(config)
        identities[engine.dtype] = engine.identity
    assert identities.keys() == {"bfloat16", "float32"}
    # A job does not go on in another dtype, and does on a machine that was given the same one.
    assert identities["bfloat16"] != identities["float32"]
    assert Engine(replace(config, dtype="bfloat16")).identity == identities["bfloat16"]


@pytest.mark.parametrize("model_impl", ["native", "transformers"])
def test_float32_that_does_not_fit_is_refused_with_the_smaller_dtype(
    model_path: Path, model_impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = sum(each.nbytes for each in load_file(model_path / "model.safetensors").values())
    place = "models_hf.loading" if model_impl == "transformers" else "loading.computation"
    monkeypatch.setattr(
        f"batchmill.engine.{place}.free_memory_bytes", lambda device: num_bytes * 3 // 4
    )
    monkeypatch.setattr(cpu_kernels, "best_isa", lambda: ISAS[-1])
    message = r"GiB in float32.* use dtype 'bfloat16' \(.*; 'auto' is float32 on this CPU"
    with pytest.raises(ConfigError, match=message):
        load(model_path, dtype="auto", model_impl=model_impl)
    if model_impl == "native":  # transformers' model of so few words cannot be checked
        assert load(model_path, dtype="bfloat16").model.dtype == torch.bfloat16


def test_end_tokens_come_from_all_files_that_name_some(model_path: Path) -> None:
    assert load(model_path).eos_token_ids == {1, 2}  # config.json, and the tokenizer's
    edit_json(model_path / "generation_config.json", eos_token_id=[1, 7])
    assert load(model_path).eos_token_ids == {1, 2, 7}


def test_identity_changes_with_anything_that_decides_tokens(model_path: Path) -> None:
    identities = {load(model_path).identity, load(model_path, dtype="bfloat16").identity}
    edit_json(model_path / "config.json", rms_norm_eps=1e-3)
    identities.add(load(model_path).identity)
    tokenizer = model_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"d"', '"e"'))
    identities.add(load(model_path).identity)
    weights = load_file(model_path / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    save_file(weights, model_path / "model.safetensors", metadata={"format": "pt"})
    identities.add(load(model_path).identity)
    assert len(identities) == 5
    assert load(model_path).identity in identities


def test_missing_and_misshapen_weights_are_named(model_path: Path) -> None:
    path = model_path / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(ModelLoadError, match=f"lacks 1 weights.*{name}"):
        load(model_path)
    save_file(weights | {name: torch.zeros(4, 16)}, path)
    with pytest.raises(
        ModelLoadError, match=rf"{name} in .* has shape \[4, 16\].* requires \[8, 16\]"
    ):
        load(model_path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load(model_path)


def test_an_unsupported_architecture_is_refused_before_weights_are_read(model_path: Path) -> None:
    edit_json(model_path / "config.json", architectures=["GPT2LMHeadModel"])
    (model_path / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel cannot .* loads a Llama"):
        load(model_path)


@pytest.mark.parametrize("model_impl", ["native", "transformers"])
def test_a_max_model_len_above_the_models_limit_is_refused_before_weights_are_read(
    model_path: Path, model_impl: str
) -> None:
    config = EngineConfig(
        model=str(model_path), device="cpu", model_impl=model_impl, max_model_len=65
    )
    (model_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ConfigError, match=r"max_model_len is 65, .* set max_model_len to 64"):
        Engine(config)
    with pytest.raises(ModelLoadError, match=r"cannot (be read|load)"):  # by either implementation
        Engine(replace(config, max_model_len=64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"quantization": "fp5"}, "quantization is 'fp5'"),
        ({"model_impl": "magic"}, "model_impl is 'magic'"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"device": "meta"}, "device is 'meta'"),
        ({"device": "cuda:77"}, "device is 'cuda:77'"),
    ],
)
def test_an_invalid_argument_is_named(
    model_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(model_path, **changes)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "/no/such/folder",
            "the folder /no/such/folder does not exist, and the name is not a hub id",
        ),
        ("missing.gguf", r"GGUF file missing\.gguf does not exist"),
        ("not-there/at-all", r"hub model .* cannot be downloaded \(LocalEntryNotFoundError\)"),
    ],
)
def test_a_model_that_cannot_be_found_is_named(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match=message):
        load_model(model, device="cpu")


def test_an_empty_folder_and_a_stray_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json does not exist"):
        load(tmp_path)
    stray = tmp_path / "weights.bin"
    stray.write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"does not end in \.gguf: name the model's folder"):
        load(stray)


@pytest.mark.parametrize("text", ["{broken", "[1]", '{"eos_token_id": "</s>"}'])
def test_a_broken_generation_config_is_a_model_load_error(model_path: Path, text: str) -> None:
    (model_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"generation_config\.json"):
        load(model_path)


@pytest.mark.parametrize("is_copy", [True, False])
def test_a_stored_output_layer_counts_although_config_json_ties_it(
    model_path: Path, is_copy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = model_path / "model.safetensors"
    weights = load_file(path)
    if is_copy:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path, metadata={"format": "pt"})
    edit_json(model_path / "config.json", tie_word_embeddings=True)
    loaded = load(model_path)
    assert torch.equal(head_weight(loaded), weights["lm_head.weight"])
    assert ("another output layer, which is used" in caplog.text) != is_copy
    assert isinstance(loaded.model, DecoderModel)
    assert loaded.model._head is not None
    assert loaded.model.config.tie_word_embeddings == is_copy
