"""8-bit floats in blocks, rows and tensors, and ModelOpt's exports, against plain products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import (
    pack_fp4_to_uint8,
    unpack_fp4_from_uint8,
)
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer
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

BLOCK = (48, 32)
PROJECTION = "model.layers.0.self_attn.q_proj"
Parts = tuple[dict[str, Tensor], Tensor]


def random_fp8(weight: Tensor, *scale_shape: int) -> tuple[Tensor, Tensor]:
    return (weight * 100).to(torch.float8_e4m3fn), torch.empty(scale_shape).uniform_(0.005, 0.02)


def blocks(weight: Tensor) -> Parts:
    """Return blocks as DeepSeek has them; compressed-tensors computes the dense weight."""
    shape = [-(-size // side) for size, side in zip(weight.shape, BLOCK, strict=True)]
    stored, scale = random_fp8(weight, *shape)
    dequantize: Any = FP8BlockDequantizer(weight_block_size=BLOCK, dtype=torch.float32)
    parts = {"weight": stored, "weight_scale_inv": scale}
    return parts, dequantize.process({f"x.{name}": value for name, value in parts.items()})[
        "x.weight"
    ]


def powers_in_blocks(weight: Tensor) -> Parts:
    """Return blocks whose scales are powers of two, as DeepSeek has them since version 3.1."""
    parts, _ = blocks(weight)
    exact = (2.0 ** parts["weight_scale_inv"].log2().floor()).to(torch.float8_e8m0fnu)
    rows = exact.float().repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
    dense = parts["weight"].float() * rows[: weight.shape[0], : weight.shape[1]]
    return parts | {"weight_scale_inv": exact}, dense


def one_scale(weight: Tensor) -> Parts:
    stored, scale = random_fp8(weight)
    parts = {"weight": stored, "weight_scale": scale, "input_scale": torch.ones(())}
    return parts, stored.float() * scale


def rows(weight: Tensor) -> Parts:
    stored, scale = random_fp8(weight, len(weight), 1)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def nvfp4(weight: Tensor) -> Parts:
    """Return ModelOpt's NVFP4; compressed-tensors packs the numbers, and reads them again."""
    values = unpack_fp4_from_uint8(
        torch.randint(0, 256, (len(weight), weight.shape[1] // 2), dtype=torch.uint8),
        *weight.shape,
        torch.float32,
    )
    scale = torch.empty(len(weight), weight.shape[1] // 16).uniform_(1, 8).to(torch.float8_e4m3fn)
    outer = torch.tensor(0.01)
    parts = {
        "weight": pack_fp4_to_uint8(values),
        "weight_scale": scale,
        "weight_scale_2": outer,
        "input_scale": torch.ones(()),
    }
    return parts, values * (scale.float() * outer).repeat_interleave(16, 1)


def mixed(weight: Tensor) -> Parts:
    return nvfp4(weight) if weight.shape[0] == 64 else one_scale(weight)


MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
#: For docs/models.md: whose dense weights compressed-tensors computes.
BY_COMPRESSED_TENSORS = {"e4m3 in blocks, as DeepSeek and Qwen"}
#: By name: the settings, and what makes the parts of a weight.
STORED: dict[str, tuple[dict[str, Any], Any]] = {
    "e4m3 in blocks, as DeepSeek and Qwen": (
        {"quant_method": "fp8", "weight_block_size": list(BLOCK)},
        blocks,
    ),
    "e4m3 in blocks, scales powers of two": (
        {"quant_method": "fp8", "weight_block_size": list(BLOCK), "scale_fmt": "ue8m0"},
        powers_in_blocks,
    ),
    "e4m3 with one scale": ({"quant_method": "fp8", "activation_scheme": "static"}, one_scale),
    "e4m3 in rows, as FBGEMM": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        rows,
    ),
    "ModelOpt, fp8": (MODELOPT | {"quant_algo": "FP8"}, one_scale),
    "ModelOpt, nvfp4": (MODELOPT, nvfp4),
    "ModelOpt, both": (MODELOPT | {"quant_algo": "MIXED_PRECISION"}, mixed),
}


def write(folder: Path, name: str) -> PreTrainedModel:
    """Save a model; return it with the dense weights."""
    settings, make_parts = STORED[name]
    model = make_model()
    tensors = dict(model.state_dict())
    for key in list(tensors):
        if not key.endswith("_proj.weight") or "layers.1.mlp" in key:
            continue
        module = key.removesuffix(".weight")
        parts, dense = make_parts(tensors.pop(key))
        tensors |= {f"{module}.{part}": value for part, value in parts.items()}
        projection(model, module).weight.data = dense
    save(folder, LLAMA, tensors, settings)
    return model


@pytest.mark.parametrize("name", STORED)
def test_logits_equal_those_of_the_dense_weights(name: str, tmp_path: Path) -> None:
    dense = write(tmp_path, name)
    assert logits_error(tmp_path, dense) <= 1e-4


def test_settings_in_a_file_of_modelopt(tmp_path: Path) -> None:
    dense = write(tmp_path, "ModelOpt, nvfp4")
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    move_settings(tmp_path, "hf_quant_config.json", own)
    assert logits_error(tmp_path, dense) <= 1e-4


DAMAGED: dict[str, tuple[str, str, Tensor | None, str]] = {
    "blocks without scales": (
        "e4m3 in blocks, as DeepSeek and Qwen",
        ".weight_scale_inv",
        None,
        "is a part .*|is torch.float8",
    ),
    "fewer blocks": (
        *("e4m3 in blocks, as DeepSeek and Qwen", ".weight_scale_inv", torch.ones(1, 2)),
        r"weight_scale_inv in .* has shape \[1, 2\], but fp8 needs \[2, 2\]",
    ),
    "rows of another number": (
        *("e4m3 in rows, as FBGEMM", ".weight_scale", torch.ones(63, 1)),
        r"weight_scale in .* has shape \[63, 1\], but fp8 needs \[64, 1\]",
    ),
    "integers": (
        *("e4m3 with one scale", ".weight", torch.zeros(64, 64, dtype=torch.int8)),
        r"q_proj\.weight in .* is torch\.int8, but fp8 has torch\.float8_e4m3fn there",
    ),
    "nvfp4 without its outer scale": (
        *("ModelOpt, nvfp4", ".weight_scale_2", None),
        r"weight_scale_2 is not stored",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_weight_is_named_with_file_and_remedy(what: str, tmp_path: Path) -> None:
    name, part, value, message = DAMAGED[what]
    write(tmp_path, name)
    change_tensors(tmp_path, {f"{PROJECTION}{part}": value})
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert "download the model again" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "hqq"}, "quant_method 'hqq'; only auto-round, awq"),
        ({"quant_method": None}, "quant_method None; only auto-round, awq"),
        ({"weight_block_size": [128]}, r"weight_block_size \[128\]; it must be two sizes"),
        ({"fmt": "e5m2"}, 'fp8 with fmt "e5m2"; only "e4m3" is read'),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, 'quant_algo "W4A8_AWQ"; only'),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, "e4m3 in blocks, as DeepSeek and Qwen")
    change_settings(tmp_path, **settings)
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(tmp_path)
    assert "bfloat16" in str(caught.value)


def test_a_model_that_transformers_computes_is_refused_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path, "e4m3 in blocks, as DeepSeek and Qwen")
    with pytest.raises(ModelLoadError, match="weights in fp8 are unpacked only for the native"):
        load(tmp_path, model_impl="transformers")
