"""Weights that bitsandbytes, AutoAWQ and GPTQModel have stored give the logits of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from batchmill.engine.errors import ModelLoadError

from .oracle import (
    LLAMA,
    change_settings,
    change_tensors,
    load,
    logits_error,
    make_model,
    move_settings,
    projection,
    save,
)
from .record_layouts import BITS, DENSE, GROUP_SIZE, PLACES, RECORDED, VERSION_1

GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": BITS[0],
    "group_size": GROUP_SIZE,
    "desc_act": True,
    "checkpoint_format": "gptq_v2",
    "sym": False,
    "dynamic": {
        rf"+:model\.layers\.{place.split('.')[2]}\.self_attn\.{place.split('.')[-1]}$": {
            "bits": bits
        }
        for place, bits in zip(PLACES[1:], BITS[1:], strict=True)
    }
    | {r"-:.*mlp": {}},
}
AWQ: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": GROUP_SIZE,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": ["mlp"],
}
NF4: dict[str, Any] = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
#: For docs/models.md: names in config.json, the package whose weights are recorded, and what they
#: are.
METHODS = {
    "gptq": "gptq`, `auto-round`, `intel/auto-round",
    "awq": "awq`, `auto-round",
    "bitsandbytes": "bitsandbytes",
}
PACKAGES = {"gptq": "GPTQModel", "awq": "AutoAWQ", "bitsandbytes": "bitsandbytes"}
WHAT = {
    "gptq": "GPTQ in 2, 3, 4 and 8 bits, with `desc_act` and `dynamic`",
    "awq": "AWQ in 4 bits",
    "bitsandbytes": "nf4, nested nf4, nested fp4 and LLM.int8() in one model",
}
SETTINGS = {"gptq": GPTQ, "awq": AWQ, "bitsandbytes": NF4}


def write(folder: Path, name: str, settings: dict[str, Any] | None = None) -> PreTrainedModel:
    """Save a model with recorded key and value projections; return it with the dense ones."""
    model = make_model()
    recorded = load_file(RECORDED / f"{name}.safetensors")
    tensors = dict(model.state_dict())
    for place in PLACES:
        projection(model, place).weight.data = recorded.pop(DENSE + place).float()
        del tensors[f"{place}.weight"]
    tensors |= {key: value for key, value in recorded.items() if not key.startswith(VERSION_1)}
    save(folder, LLAMA, tensors, settings or SETTINGS[name])
    return model


def first_version(folder: Path) -> None:
    """Store zero points as version 1 of GPTQ's layout has them."""
    recorded = load_file(RECORDED / "gptq.safetensors")
    change_tensors(
        folder, {f"{place}.qzeros": recorded[f"{VERSION_1}{place}.qzeros"] for place in PLACES}
    )


@pytest.mark.parametrize("name", ["awq", "bitsandbytes"])
def test_logits_equal_those_of_the_dense_weights(name: str, tmp_path: Path) -> None:
    dense = write(tmp_path, name)
    assert logits_error(tmp_path, dense) <= 1e-4


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_both_versions_of_gptq_with_inputs_in_another_order(version: str, tmp_path: Path) -> None:
    dense = write(tmp_path, "gptq", GPTQ | {"checkpoint_format": version})
    if version == "gptq":
        first_version(tmp_path)
    assert logits_error(tmp_path, dense) <= 1e-4


def test_the_version_of_gptq_is_part_of_the_identity(tmp_path: Path) -> None:
    write(tmp_path, "gptq")
    first = load(tmp_path).identity
    assert load(tmp_path).identity == first
    change_settings(tmp_path, checkpoint_format="gptq")
    assert load(tmp_path).identity != first


def test_gptq_without_an_index_has_groups_of_neighbours(tmp_path: Path) -> None:
    dense = write(tmp_path, "gptq")
    index = torch.arange(64, dtype=torch.int32) // GROUP_SIZE
    change_tensors(tmp_path, {f"{place}.g_idx": index.clone() for place in PLACES})
    with_index = logits_error(tmp_path, dense)
    change_tensors(tmp_path, {f"{place}.g_idx": None for place in PLACES})
    assert logits_error(tmp_path, dense) == with_index


@pytest.mark.parametrize("stored_as", ["auto_round:auto_gptq", "auto_round", "auto_round:auto_awq"])
def test_the_layouts_of_auto_round(stored_as: str, tmp_path: Path) -> None:
    name = "awq" if stored_as.endswith("awq") else "gptq"
    settings: dict[str, Any] = {"quant_method": "auto-round", "packing_format": stored_as}
    settings |= {"bits": 4, "group_size": GROUP_SIZE, "sym": False, "data_type": "int"}
    settings["extra_config"] = {
        place: {"bits": bits} for place, bits in zip(PLACES, BITS, strict=True)
    } | {"lm_head": {"bits": 16}}
    dense = write(tmp_path, name, settings)
    if stored_as == "auto_round:auto_gptq":
        first_version(tmp_path)
    assert logits_error(tmp_path, dense) <= 1e-4


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_settings_in_a_file_of_their_own(file: str, tmp_path: Path) -> None:
    """AutoGPTQ and AutoAWQ wrote them there before config.json had a place for them."""
    name = "gptq" if file == "quantize_config.json" else "awq"
    own = {
        "gptq": {key: GPTQ[key] for key in ("bits", "group_size", "desc_act", "dynamic")},
        "awq": {"w_bit": 4, "q_group_size": GROUP_SIZE, "zero_point": True, "version": "GEMM"},
    }
    dense = write(tmp_path, name)
    if name == "gptq":
        first_version(tmp_path)
    move_settings(tmp_path, file, own[name])
    assert logits_error(tmp_path, dense) <= 1e-4


DAMAGED: dict[str, tuple[str, str, Tensor | None, str]] = {
    "GPTQ without scales": ("gptq", ".scales", None, r"\.scales is not stored"),
    "GPTQ with fewer zero points": (
        *("gptq", ".qzeros", torch.zeros(3, 4, dtype=torch.int32)),
        r"\.qzeros in .*model\.safetensors has shape \[3, 4\], but GPTQ needs \[4, 4\]",
    ),
    "GPTQ with a group that does not exist": (
        *("gptq", ".g_idx", torch.full((64,), 4, dtype=torch.int32)),
        r"\.g_idx in .* names a group that is not one of 4",
    ),
    "GPTQ with floats": (
        *("gptq", ".qweight", torch.zeros(8, 32)),
        r"\.qweight in .* is torch\.float32, but GPTQ has torch\.int32 there",
    ),
    "AWQ without zero points": ("awq", ".qzeros", None, r"\.qzeros is not stored"),
    "AWQ with other scales": (
        *("awq", ".scales", torch.ones(4, 31).half()),
        r"\.scales in .* has shape \[4, 31\], but AWQ needs \[4, 32\]",
    ),
    "bitsandbytes without a table": ("bitsandbytes", ".weight.quant_map", None, "is not stored"),
    "bitsandbytes without its state": (
        *("bitsandbytes", ".weight.quant_state.bitsandbytes__nf4", None),
        r"quant_state\.bitsandbytes__nf4 is not stored",
    ),
    "bitsandbytes with a broken state": (
        "bitsandbytes",
        ".weight.quant_state.bitsandbytes__nf4",
        torch.tensor(list(b'{"shape": [1]}'), dtype=torch.uint8),
        "cannot be read as the state of a weight",
    ),
    "bitsandbytes cut off": (
        *("bitsandbytes", ".weight", torch.zeros(9, 1, dtype=torch.uint8)),
        r"has 9 bytes, but a weight of \[32, 64\] in 4 bits has 1024",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_weight_is_named_with_file_and_remedy(what: str, tmp_path: Path) -> None:
    name, part, value, message = DAMAGED[what]
    write(tmp_path, name)
    change_tensors(tmp_path, {f"{PLACES[0]}{part}": value})
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert "download" in str(caught.value)


WRONG_SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown bits": ("gptq", {"bits": 9}, "GPTQ with bits 9; only 2 or 3"),
    "another width": ("gptq", {"bits": 8}, "has 8 rows, but 64 inputs of 8 bits.* are 16"),
    "a group size of 0": ("gptq", {"group_size": 0}, "group_size 0, but it must be -1 or"),
    "Marlin's layout": (
        *("gptq", {"checkpoint_format": "marlin"}),
        'checkpoint_format "marlin"; only "gptq" or "gptq_v2" is read',
    ),
    "a broken pattern": ("gptq", {"dynamic": {"+:(": {}}}, r"'\(' .*not a regular expression"),
    "AutoRound's fake weights": (
        *("gptq", {"quant_method": "auto-round", "packing_format": "auto_round:fake"}),
        'AutoRound with packing_format "auto_round:fake"; only',
    ),
    "a group size that does not divide": (
        *("awq", {"group_size": 24}),
        "has 64 inputs, but the group_size in config.json is 24",
    ),
    "another version": ("awq", {"version": "gemv"}, 'AWQ with version "gemv"; only "gemm"'),
    "another type": (
        *("bitsandbytes", {"bnb_4bit_quant_type": "int4"}),
        'bnb_4bit_quant_type "int4"; only "nf4" or "fp4"',
    ),
}


@pytest.mark.parametrize("what", WRONG_SETTINGS)
def test_settings_that_cannot_be_read_are_named(what: str, tmp_path: Path) -> None:
    name, changed, message = WRONG_SETTINGS[what]
    write(tmp_path, name, SETTINGS[name] | changed)
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path)
