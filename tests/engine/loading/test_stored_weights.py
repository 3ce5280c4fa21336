"""Checkpoints with other names, or with tensors that the model does not need."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.errors import ModelLoadError

from ...support.byte_tokenizer import save_byte_tokenizer
from ...support.transformers_greedy import transformers_greedy

PROMPT = list(range(40, 60))
LAYER = "model.layers.0."
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with random weights."""
    folder = tmp_path_factory.mktemp("original")
    save_byte_tokenizer(folder, [])
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        eos_token_id=256,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def save(folder: Path, weights: Weights, name: str = "model.safetensors") -> None:
    contiguous = {key: value.clone().contiguous() for key, value in weights.items()}
    save_file(contiguous, folder / name, metadata={"format": "pt"})


def change(folder: Path, changed: Callable[[Weights], Weights], **config: object) -> None:
    """Change a model's stored weights and its config.json."""
    save(folder, changed(load_file(folder / "model.safetensors")))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def ours(folder: Path, model_impl: str = "auto") -> list[int]:
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        device="cpu",
        max_model_len=64,
        kv_cache_bytes=1 << 20,
        model_impl=model_impl,
    )
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    return Engine(config).generate([PROMPT], params)[0].token_ids


def theirs(folder: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return transformers_greedy(model, PROMPT, max_new_tokens=10)


def with_(**tensors: Tensor) -> Callable[[Weights], Weights]:
    """Return a change that adds tensors; `__` stands for a dot."""
    added = {name.replace("__", "."): value for name, value in tensors.items()}
    return lambda weights: weights | added


def renamed(rename: Callable[[str], str]) -> Callable[[Weights], Weights]:
    """Return a change of names."""
    return lambda weights: {rename(name): value for name, value in weights.items()}


def without_embedding(weights: Weights) -> Weights:
    del weights["model.embed_tokens.weight"]
    return weights


ONES = torch.ones(4)
LOADED: dict[str, tuple[Callable[[Weights], Weights], dict[str, object]]] = {
    "buffers": (
        with_(
            model__layers__0__self_attn__rotary_emb__inv_freq=ONES,
            model__layers__0__self_attn__masked_bias=ONES,
            model__layers__0__self_attn__bias=ONES.bool(),
            model__embed_tokens__position_ids=ONES.long(),
            model__layers__0__self_attn__k_proj__k_scale=ONES,
        ),
        {},
    ),
    "heads of training, a vision tower, further prediction": (
        with_(
            score__weight=ONES,
            v_head__summary__weight=ONES,
            vision_tower__x__weight=ONES,
            mtp__fc__weight=ONES,
            model__mtp__0__weight=ONES,
        ),
        {},
    ),
    "a layer of another kind": (
        with_(
            model__layers__2__eh_proj__weight=ONES, model__layers__2__input_layernorm__weight=ONES
        ),
        {},
    ),
    "a bias of zeros": (with_(model__layers__0__self_attn__q_proj__bias=torch.zeros(32)), {}),
    "a base model": (renamed(lambda name: name.removeprefix("model.")), {}),
    "the prefix twice": (renamed(lambda name: name.replace("model.", "model.model.")), {}),
    "tied, and only the output layer": (without_embedding, {"tie_word_embeddings": True}),
    "float64": (lambda weights: {name: value.double() for name, value in weights.items()}, {}),
}


@pytest.mark.parametrize("what", LOADED)
def test_what_transformers_loads_generates_the_same_tokens(folder: Path, what: str) -> None:
    changed, config = LOADED[what]
    change(folder, changed, **config)
    assert ours(folder) == theirs(folder)


REFUSED: dict[str, tuple[str, Callable[[Weights], Weights]]] = {
    f"{LAYER}self_attn.q_proj.bias": (
        f"{LAYER}self_attn.q_proj has no such weight",
        with_(model__layers__0__self_attn__q_proj__bias=torch.ones(32)),
    ),
    f"{LAYER}self_attn.q_norm.weight": (
        "model.layers.0 has no such weight",
        with_(model__layers__0__self_attn__q_norm__weight=torch.ones(8)),
    ),
    f"{LAYER}mlp.up_proj.lora_A.weight": (
        "merge adapters",
        with_(model__layers__0__mlp__up_proj__lora_A__weight=torch.ones(4, 32)),
    ),
    "lm_head.bias": ("lm_head has no such weight", with_(lm_head__bias=torch.ones(264))),
    "model.layers.2.input_layernorm.weight": (
        "fewer layers",
        lambda weights: (
            weights
            | {
                name.replace("layers.1.", "layers.2."): value
                for name, value in weights.items()
                if "layers.1." in name
            }
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_weight_that_would_change_the_output_is_refused_by_name(folder: Path, name: str) -> None:
    reason, changed = REFUSED[name]
    change(folder, changed)
    with pytest.raises(ModelLoadError, match=f"holds {name}, but by config.json .*{reason}"):
        ours(folder)


def test_a_bias_of_an_output_layer_that_is_the_embedding_is_refused(folder: Path) -> None:
    def tied(weights: Weights) -> Weights:
        kept = {name: value for name, value in weights.items() if name != "lm_head.weight"}
        return kept | {"lm_head.bias": torch.ones(264)}

    change(folder, tied, tie_word_embeddings=True)
    with pytest.raises(ModelLoadError, match=r"holds lm_head\.bias, but by config\.json lm_head"):
        ours(folder)


def test_a_model_that_transformers_computes_is_checked_as_well(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder, with_(model__mtp__0__weight=ONES))
    with caplog.at_level(logging.WARNING):
        assert ours(folder, "transformers") == theirs(folder)
    assert "among them model.mtp.0.weight" in caplog.text
    change(folder, with_(model__layers__0__self_attn__q_proj__bias=torch.ones(32)))
    with pytest.raises(ModelLoadError, match=r"holds model\.layers\.0\.self_attn\.q_proj\.bias"):
        ours(folder, "transformers")


def test_one_file_comes_before_an_index_that_was_left_there(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    expected = ours(folder)
    save(folder, {name: value * 2 for name, value in weights.items()}, "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert ours(folder) == expected == theirs(folder)


def test_the_index_says_which_of_two_tensors_of_one_name_counts(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    expected = ours(folder)
    (folder / "model.safetensors").unlink()
    name = "lm_head.weight"
    save(folder, {key: value for key, value in weights.items() if key != name}, "a.safetensors")
    save(folder, {name: weights[name]}, "b.safetensors")
    save(folder, {**weights, name: weights[name] * 2}, "a.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "a.safetensors") | {name: "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert ours(folder) == expected
