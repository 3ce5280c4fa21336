"""Models that transformers computes: which ones are refused, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.llama.modeling_llama import LlamaModel

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.loading.loading import LoadedModel, load_model

from ...support.tiny_models import NATIVE, OTHERS, SIZES, VOCAB_SIZE, random_model, save_tokenizer

LLAMA_LIKE = {**SIZES, "pad_token_id": 2}
GPT_LIKE = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BERT_LIKE = {**GPT_LIKE, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
MLA = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Gemma2Config": ({**LLAMA_LIKE, "head_dim": 16}, r"capped \(softcap 50"),
    "Llama4TextConfig": (
        {**LLAMA_LIKE, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 64},
        "neither causal nor a sliding window",
    ),
    "DeepseekV3Config": (
        {**LLAMA_LIKE, **MLA, "num_key_value_heads": 6, "num_experts_per_tok": 2},
        "heads of 16, 16 and 8",
    ),
    "MambaConfig": (
        {"vocab_size": VOCAB_SIZE, "hidden_size": 48, "num_hidden_layers": 2},
        "does not accept position_ids",
    ),
    "JambaConfig": ({**LLAMA_LIKE, "num_experts": 2, "use_mamba_kernels": False}, "0 of its 3"),
    "BloomConfig": (
        {"vocab_size": VOCAB_SIZE, "hidden_size": 48, "n_layer": 2, "n_head": 6},
        "does not use transformers' attention interface",
    ),
    "BertConfig": ({**BERT_LIKE, "intermediate_size": 96}, "attention is bidirectional"),
    "T5Config": ({"vocab_size": VOCAB_SIZE, "d_model": 48, "num_layers": 1}, "encoder-decoder"),
}


def load(folder: Path, **settings: Any) -> LoadedModel:
    return load_model(str(folder), **{"dtype": "float32", "device": "cpu", **settings})


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_our_attention_cannot_serve_is_refused_by_name(
    name: str, tmp_path: Path
) -> None:
    values, reason = REFUSED[name]
    config = getattr(transformers, name)(**values)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    auto.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    architecture = name.removesuffix("Config").removesuffix("Text")
    with pytest.raises(UnsupportedModelError, match=rf"{architecture}\w+ cannot .*{reason}"):
        load(tmp_path)


def test_a_model_that_counts_positions_by_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    forward = LlamaModel.forward

    def counting(self: LlamaModel, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", counting)
    with pytest.raises(UnsupportedModelError, match="get other logits than alone"):
        load(tmp_path, model_impl="transformers")


def test_a_family_that_is_not_native_is_refused_if_native_is_required(tmp_path: Path) -> None:
    random_model(OTHERS["GPT-2"], tmp_path)
    with pytest.raises(
        UnsupportedModelError, match="GPT2LMHeadModel, but the native decoder computes only"
    ):
        load(tmp_path, model_impl="native")


def test_transformers_computes_a_feature_that_is_not_native_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random_model(OTHERS["Llama, GELU activation"], tmp_path)
    with caplog.at_level("INFO", logger="batchmill.engine"):
        load(tmp_path)
    assert "native decoder: this LlamaForCausalLM: its hidden_act is 'gelu'" in caplog.text
    assert "LlamaForCausalLM, computed by transformers" in caplog.text
    with pytest.raises(UnsupportedModelError, match="hidden_act is 'gelu'"):
        load(tmp_path, model_impl="native")


def test_missing_weights_are_named_and_not_initialised(tmp_path: Path) -> None:
    random_model(OTHERS["Arcee"], tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"lacks 1 weights of a ArceeForCausalLM.*{name}"):
        load(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    hf_model = random_model(OTHERS["Arcee"], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(hf_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="take a revision of the model with safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(dtype: str, tmp_path: Path) -> None:
    random_model(OTHERS["Arcee"], tmp_path)
    loaded = load(tmp_path, dtype=dtype)
    assert loaded.model.dtype == getattr(torch, dtype)


def test_two_models_in_one_process_do_not_mix(tmp_path: Path) -> None:
    shapes = {}
    for name in ("GPT-2", "Arcee"):
        folder = tmp_path / name
        random_model(OTHERS[name], folder)
        shapes[name] = load(folder).config
    assert (shapes["GPT-2"].num_kv_heads, shapes["Arcee"].num_kv_heads) == (6, 2)
