"""Broken values in a model's files: one clear error that names them, whatever they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, LlamaConfig, MixtralConfig

from batchmill.engine.errors import EngineError, ModelLoadError
from batchmill.engine.loading.loading import load_model

from ...support.byte_tokenizer import save_byte_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "eos_token_id": 256,
    "bos_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
#: Values of every type, none of which is right everywhere.
VALUES: tuple[Any, ...] = (None, "x", -1, 0, 0.5, True, [], [1], {"a": 1}, 2**70, float("inf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, whose files the tests break and restore."""
    folder = tmp_path_factory.mktemp("broken")
    save_byte_tokenizer(folder, [])
    torch.manual_seed(1)
    config = LlamaConfig(**SIZES, rope_parameters={**YARN, "rope_theta": 10000.0})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def load(folder: Path) -> None:
    load_model(str(folder), dtype="float32", device="cpu")


def with_value(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return values with another one under a name, which has a dot if it is nested."""
    outer, _, inner = name.partition(".")
    return {**values, outer: {**values[outer], inner: value} if inner else value}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("vocab_size", "many", '"many"'),
        ("hidden_size", 0, "0"),
        ("num_hidden_layers", 1.5, "1.5"),
        ("num_attention_heads", -2, "-2"),
        ("num_key_value_heads", 3, "3"),
        ("max_position_embeddings", 2**70, str(2**70)),
        ("rms_norm_eps", "small", "small"),
        ("sliding_window", -1, "-1"),
        ("architectures", "Llama", "Llama"),
        ("layer_types", 5, "5"),
        ("quantization_config", "gptq", "gptq"),
        ("rope_parameters", [1], "1"),
        ("rope_parameters.rope_theta", -1, "-1"),
        ("rope_parameters.factor", "two", "two"),
        ("rope_parameters.rope_type", ["yarn"], "yarn"),
        ("rope_parameters.rope_type", "spiral", "spiral"),
        ("tie_word_embeddings", "no", "no"),
    ],
)
def test_a_broken_value_of_config_json_is_named(
    folder: Path, name: str, value: Any, shown: str
) -> None:
    path = folder / "config.json"
    text = path.read_text()
    path.write_text(json.dumps(with_value(json.loads(text), name, value)))
    try:
        with pytest.raises(ModelLoadError) as caught:
            load(folder)
    finally:
        path.write_text(text)
    message = str(caught.value)
    assert name.rpartition(".")[2] in message
    assert shown in message
    assert "config.json" in message


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_no_value_of_any_field_is_a_traceback(folder: Path, file: str) -> None:
    path = folder / file
    text = path.read_text()
    values = json.loads(text)
    names = [*values, "rope_scaling", "sliding_window", "layer_types", "eos_token_id"]
    names += [f"rope_parameters.{name}" for name in values.get("rope_parameters", ())]
    try:
        for name in names:
            for value in VALUES:
                path.write_text(json.dumps(with_value(values, name, value)))
                try:
                    load(folder)
                except EngineError:
                    pass
                except Exception as error:
                    pytest.fail(f"{name} = {value!r}: {type(error).__name__}: {error}")
        for whole in ("", "{", "[]", "null", "\xff", "[" * 100_000):
            path.write_bytes(whole.encode("latin1"))
            with pytest.raises(ModelLoadError, match="json"):
                load(folder)
    finally:
        path.write_text(text)


def test_more_experts_for_a_token_than_there_are_are_named(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path, [])
    config = MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=3)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="num_experts_per_tok is 3, but must not exceed"):
        load(tmp_path)


def test_groups_of_experts_that_are_not_equal_are_named(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path, [])
    config = Glm4MoeConfig(**SIZES, n_routed_experts=8, n_group=3)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="n_group is 3, but must divide n_routed_experts"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path, [])
    config = LlamaConfig(**SIZES)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors does not exist"):
        load(tmp_path)
    (tmp_path / name).write_bytes(b"pickled")
    with pytest.raises(ModelLoadError, match=f"only as pickles \\({name}\\).*save_pretrained"):
        load(tmp_path)
