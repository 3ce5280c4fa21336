"""Checkpoints that the package compressed-tensors writes give the logits of its own dense model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle.forward import dequantize
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3MoeConfig

from batchmill.engine.errors import ModelLoadError

from ...model_steps import full_logits, largest_error, make_requests, make_runner
from .oracle import (
    LLAMA,
    SMALL,
    change_config,
    change_settings,
    change_tensors,
    load,
    logits_error,
    make_model,
    projection,
    save,
)

INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel"}
FP8: dict[str, Any] = {"num_bits": 8, "type": "float", "strategy": "tensor"}
FP4: dict[str, Any] = {"num_bits": 4, "type": "float"}
TOKENS: dict[str, Any] = {"strategy": "token", "dynamic": True}
MX: dict[str, Any] = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
PROJECTION = "model.layers.0.self_attn.q_proj"


def group(weights: dict[str, Any], *targets: str, **more: object) -> dict[str, Any]:
    return {"targets": list(targets or ["Linear"]), "weights": weights, **more}


#: By name: the groups of settings, and the format in which the package stores the first.
SCHEMES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "int4 in groups": ("pack-quantized", [group(INT4)]),
    "int4 in groups, asymmetric": ("pack-quantized", [group({**INT4, "symmetric": False})]),
    "int3 in groups": ("pack-quantized", [group({**INT4, "num_bits": 3})]),
    "int8 in rows, packed": ("pack-quantized", [group(INT8)]),
    "int8 weights and activations": (
        "int-quantized",
        [group(INT8, input_activations={"num_bits": 8, **TOKENS})],
    ),
    "int8, asymmetric": (
        "int-quantized",
        [group({**INT8, "symmetric": False}, input_activations={"num_bits": 8, **TOKENS})],
    ),
    "fp8 with one scale": (
        "float-quantized",
        [group(FP8, input_activations={"num_bits": 8, "type": "float"})],
    ),
    "fp8 in rows": (
        "float-quantized",
        [group({**FP8, "strategy": "channel"}, input_activations={**FP8, **TOKENS})],
    ),
    "fp8 in blocks": (
        "float-quantized",
        [
            group(
                {**FP8, "strategy": "block", "block_structure": [48, 32]},
                input_activations={**FP8, "strategy": "group", "group_size": 32, "dynamic": True},
            )
        ],
    ),
    "fp8 weights alone": ("naive-quantized", [group(FP8)]),
    "mxfp4": ("mxfp4-pack-quantized", [group({**FP4, **MX})]),
    "mxfp8": ("mxfp8-quantized", [group({**FP8, **MX})]),
    "nvfp4": (
        "nvfp4-pack-quantized",
        [group({**FP4, "strategy": "tensor_group", "group_size": 16})],
    ),
    "several formats": (
        "mixed-precision",
        [
            group(INT4, "re:.*mlp.*proj", format="pack-quantized"),
            group({**FP8, "strategy": "channel"}, "re:.*attn.*", format="float-quantized"),
            group(INT8, "lm_head", format="int-quantized"),
        ],
    ),
}


def write(
    folder: Path,
    stored_as: str,
    groups: list[dict[str, Any]],
    config: PreTrainedConfig = LLAMA,
    ignore: tuple[str, ...] = ("lm_head", "model.layers.1.mlp.down_proj", "re:.*mlp.gate$"),
) -> PreTrainedModel:
    """Save a model in compressed-tensors; return the package's dense model."""
    model = make_model(config)
    named = {f"group_{index}": each for index, each in enumerate(groups)}
    settings = QuantizationConfig(
        config_groups=named, ignore=[] if stored_as == "mixed-precision" else list(ignore)
    )
    apply_quantization_config(model, settings)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _set_scales(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    save(folder, config, model.state_dict(), None)
    compressor.update_config(str(folder))
    assert compressor.quantization_config is not None
    assert compressor.quantization_config.format == stored_as, compressor.quantization_config.format
    dense = {
        name: _nvfp4_weight(module)
        for name, module in model.named_modules()
        if hasattr(module, "weight_global_scale")
    }
    compressor.decompress_model(model)
    model.float()  # the scales of MX formats make it bfloat16
    for name, weight in dense.items():
        projection(model, name).weight.data = weight
    modules: list[Any] = list(model.modules())
    for module in modules:
        module.quantization_enabled = False  # of activations
    return model


def _nvfp4_weight(module: Any) -> Tensor:
    """Return the dense weight by the package's functions; its compressor rounds to bfloat16."""
    num_rows, num_bytes = module.weight_packed.shape
    weight: Tensor = dequantize(
        unpack_fp4_from_uint8(module.weight_packed, num_rows, 2 * num_bytes, torch.float32),
        module.weight_scale.float(),
        args=module.quantization_scheme.weights,
        global_scale=module.weight_global_scale,
        dtype=torch.float32,
    )
    return weight


def _set_scales(module: Any) -> None:
    """Give a module random scales and zero points, from which the package quantizes."""
    args = module.quantization_scheme.weights
    scale = module.weight_scale
    is_power = args.scale_dtype == torch.uint8
    values = torch.empty(scale.shape).uniform_(0.01, 0.05)
    if getattr(module, "weight_global_scale", None) is not None:
        module.weight_global_scale.data.fill_(37.5)
        values = (values * 37.5).to(torch.float8_e4m3fn).float()
    module.weight_scale = torch.nn.Parameter(
        2.0 ** values.log2().floor() if is_power else values, requires_grad=False
    )
    if not args.symmetric:
        half = 1 << (args.num_bits - 1)
        zeros = torch.randint(-half, half, scale.shape, dtype=torch.int8)
        module.weight_zero_point = torch.nn.Parameter(zeros, requires_grad=False)
    module.quantization_status = QuantizationStatus.FROZEN


@pytest.mark.parametrize("name", SCHEMES)
def test_logits_equal_those_of_the_package(name: str, tmp_path: Path) -> None:
    dense = write(tmp_path, *SCHEMES[name])
    assert logits_error(tmp_path, dense) <= 1e-4


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    """The package's compressor stores each expert, as checkpoints have them."""
    config = Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    model = make_model(config)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**INT4))
    tensors = dict(model.state_dict())
    for name in [name for name in tensors if ".mlp.experts." in name]:
        fused = tensors.pop(name)
        dense = fused.clone()
        for index, matrices in enumerate(fused):
            parts = ["gate_proj", "up_proj"] if "gate_up" in name else ["down_proj"]
            for part, weight, place in zip(
                parts, matrices.chunk(len(parts)), dense[index].chunk(len(parts)), strict=True
            ):
                scale = torch.empty(len(weight), weight.shape[1] // 32).uniform_(0.01, 0.05)
                stored = PackedQuantizationCompressor.compress(
                    {"weight": weight, "weight_scale": scale}, scheme
                )
                place.copy_(PackedQuantizationCompressor.decompress(stored, scheme)["weight"])
                prefix = f"{name.rpartition('.')[0]}.{index}.{part}"
                tensors |= {f"{prefix}.{key}": value for key, value in stored.items()}
        model.get_parameter(name).data = dense
    groups = {"group_0": group(INT4, format="pack-quantized")}
    settings = {"quant_method": "compressed-tensors", "config_groups": groups}
    save(tmp_path, config, tensors, settings)
    assert logits_error(tmp_path, model) <= 1e-4


def test_a_tied_head_is_the_embedding_and_a_stored_one_is_used(tmp_path: Path) -> None:
    tied = LlamaConfig(**SMALL, tie_word_embeddings=True)
    dense = write(tmp_path, *SCHEMES["int4 in groups"], config=tied)
    change_tensors(tmp_path, {"lm_head.weight": None})
    assert logits_error(tmp_path, dense) <= 1e-4
    own_head = tmp_path / "own head"
    own_head.mkdir()
    dense = write(own_head, *SCHEMES["several formats"])  # its head is quantized
    change_config(own_head, tie_word_embeddings=True)
    assert logits_error(own_head, dense) <= 1e-4


def test_unpacked_weights_are_quantized_again_when_that_is_asked_for(tmp_path: Path) -> None:
    dense = write(tmp_path, *SCHEMES["int4 in groups"])
    requests = make_requests([7], LLAMA.vocab_size)
    want = full_logits(dense, requests)
    int8 = load(tmp_path, quantization="int8")
    error = largest_error(make_runner(int8.model), requests, want, [40])
    assert 1e-4 < error < 0.3 * want[0].abs().max().item()
    assert int8.identity != load(tmp_path).identity


def test_settings_are_part_of_the_identity(tmp_path: Path) -> None:
    write(tmp_path, *SCHEMES["int4 in groups"])
    first = load(tmp_path).identity
    change_settings(tmp_path, version="0.0.1")
    assert load(tmp_path).identity != first


DAMAGED: dict[str, tuple[str, str, Tensor | None, str]] = {
    "no scale": ("int4 in groups", ".weight_scale", None, r"\.weight_scale is not stored"),
    "no integers": ("int4 in groups", ".weight_packed", None, r"\.weight_packed is not stored"),
    "no shape": ("int4 in groups", ".weight_shape", None, r"\.weight_shape is not stored"),
    "another shape": (
        *("int4 in groups", ".weight_shape", torch.tensor([64, 32])),
        r"\.weight_packed in .* has shape \[64, 8\], but compressed-tensors needs \[64, 4\]",
    ),
    "a negative shape": (
        *("int4 in groups", ".weight_shape", torch.tensor([64, -1])),
        r"says that the weight has shape \[64, -1\]",
    ),
    "fewer scales": (
        *("int4 in groups", ".weight_scale", torch.ones(64, 1)),
        r"\.weight_scale in .* has shape \[64, 1\], but compressed-tensors needs \[64, 2\]",
    ),
    "scales of another type": (
        *("int4 in groups", ".weight_scale", torch.ones(64, 2, dtype=torch.int32)),
        r"\.weight_scale in .* is torch\.int32, but .* floating-point numbers there",
    ),
    "no zero points": (
        *("int4 in groups, asymmetric", ".weight_zero_point", None),
        r"\.weight_zero_point is not stored",
    ),
    "a scale of 0": (
        *("fp8 with one scale", ".weight_scale", torch.zeros(1)),
        r"\.weight_scale in .* is 0\.0, but must be a number above 0",
    ),
    "no divisor": ("nvfp4", ".weight_global_scale", None, r"weight_global_scale is not stored"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_weight_is_named_with_file_and_remedy(what: str, tmp_path: Path) -> None:
    name, part, value, message = DAMAGED[what]
    write(tmp_path, *SCHEMES[name])
    change_tensors(tmp_path, {f"{PROJECTION}{part}": value})
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert "download the model again" in str(caught.value)


def settings_of(**changed: object) -> dict[str, Any]:
    """Return `config_groups` with changed settings of weights."""
    return {"config_groups": {"group_0": group({**INT4, **changed})}}


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown bits": (settings_of(num_bits=16), "with num_bits 16; only 1 or 2"),
    "another type": (settings_of(type="float"), 'with type "float"; only "int" is read'),
    "a group size that does not divide": (
        settings_of(group_size=24),
        r"\.weight_packed in .* has rows of \d+ numbers, but the group_size .* is 24",
    ),
    "no group size": (settings_of(group_size=None), "group_size null; groups need a size"),
    "an unknown strategy": (settings_of(strategy="spiral"), 'strategy "spiral"; only "tensor"'),
    "another format": (
        {"config_groups": {"group_0": group(INT4, format="marlin-24")}},
        'format "marlin-24"; only "pack-quantized"',
    ),
    "sparse weights": (
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        'sparsity_config.format "sparse-24-bitmask"; only "dense"',
    ),
    "transforms": ({"transform_config": {"config_groups": {"u": {}}}}, "transforms are not"),
    "no group for a weight": (
        {"config_groups": {"group_0": group(INT4, "re:.*mlp.*")}},
        r"layers\.0\.self_attn\.\w+ is stored in compressed-tensors, but no target",
    ),
    "a broken pattern": (
        {"config_groups": {"group_0": group(INT4, "re:(")}},
        r"'\(' .*not a regular expression",
    ),
}


@pytest.mark.parametrize("what", WRONG_SETTINGS)
def test_settings_that_cannot_be_read_are_named(what: str, tmp_path: Path) -> None:
    changed, message = WRONG_SETTINGS[what]
    write(tmp_path, *SCHEMES["int4 in groups"])
    change_settings(tmp_path, **changed)
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path)
