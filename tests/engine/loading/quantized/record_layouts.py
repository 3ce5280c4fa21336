"""Record weights that other packages have quantized, with their own dense weights.

`python -m tests.engine.loading.quantized.record_layouts awq|bitsandbytes|gptq` writes
`recorded/<name>.safetensors` beside this file. The packages are too large, or too old for today's
transformers, to be installed for every test run; recorded with bitsandbytes 0.50.2, AutoAWQ 0.2.9
and GPTQModel 7.7.0. Of the last two only what is named below is run, from an unpacked source
distribution on PYTHONPATH.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import math
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

RECORDED = Path(__file__).parent / "recorded"
#: Of a key or value projection of `oracle.LLAMA`.
NUM_OUTPUTS, NUM_INPUTS = 32, 64
PLACES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "kv"]
DENSE = "dense."
#: Zero points as version 1 of GPTQ's layout stores them.
VERSION_1 = "v1."
#: Of AWQ and GPTQ.
GROUP_SIZE = 16
#: Of GPTQ, by place.
BITS = (4, 3, 8, 2)
Tensors = dict[str, Tensor]


def random_linear() -> nn.Linear:
    linear = nn.Linear(NUM_INPUTS, NUM_OUTPUTS, bias=False)
    linear.weight.data.normal_(0, 0.2)
    return linear


def bitsandbytes() -> Tensors:
    """Record nf4, nf4 with nested scales, fp4 with nested scales, and 8-bit integers."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    tensors: Tensors = {}
    kinds = (("nf4", False), ("nf4", True), ("fp4", True))
    for place, (kind, is_nested) in zip(PLACES, kinds, strict=False):
        weight = random_linear().weight.data
        packed, state = functional.quantize_4bit(
            weight, blocksize=64, compress_statistics=is_nested, quant_type=kind
        )
        tensors[f"{place}.weight"] = packed
        for name, value in state.as_dict(packed=True).items():
            tensors[f"{place}.weight.{name}"] = value
        tensors[f"{DENSE}{place}"] = functional.dequantize_4bit(packed, state)
    place = PLACES[-1]
    integers, scales, _ = functional.int8_vectorwise_quant(random_linear().weight.data.half())
    tensors[f"{place}.weight"], tensors[f"{place}.SCB"] = integers, scales
    tensors[f"{place}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    tensors[f"{DENSE}{place}"] = functional.int8_vectorwise_dequant(integers, scales)
    return tensors


def _package(name: str) -> None:
    """Let modules of a package be imported without running the package's own `__init__`."""
    package = types.ModuleType(name)
    folder = name.replace(".", "/")
    package.__path__ = [str(Path(each) / folder) for each in sys.path if each]
    sys.modules[name] = package


def awq() -> Tensors:
    """Record groups of 16, by `WQLinear_GEMM` and `dequantize_gemm`."""
    for name in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
        _package(name)
    gemm: Any = importlib.import_module("awq.modules.linear.gemm")
    packing: Any = importlib.import_module("awq.utils.packing_utils")
    tensors: Tensors = {}
    for place in PLACES:
        linear = random_linear()
        scales, zeros = _asymmetric(linear.weight.data, bits=4)
        module = gemm.WQLinear_GEMM.from_linear(
            linear, 4, GROUP_SIZE, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
        )
        parts = {"qweight": module.qweight, "qzeros": module.qzeros, "scales": module.scales}
        tensors |= {f"{place}.{name}": value for name, value in parts.items()}
        dense = packing.dequantize_gemm(
            module.qweight, module.qzeros, module.scales.float(), 4, GROUP_SIZE
        )
        tensors[f"{DENSE}{place}"] = dense.T.contiguous()
    return tensors


def _asymmetric(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scales and zero points of groups, [outputs, groups] each."""
    grouped = weight.view(NUM_OUTPUTS, -1, GROUP_SIZE)
    largest = (1 << bits) - 1
    scales = ((grouped.amax(2) - grouped.amin(2)) / largest).half().float()
    return scales, (-grouped.amin(2) / scales).round().clamp(0, largest)


def _gptq_class() -> Any:
    """Return a class with the methods of GPTQModel that pack and unpack; the whole needs a GPU."""
    names = {"_torch_right_shift", "_torch_left_shift", "_init_wf_unsqueeze_buffers"}
    names |= {"dequantize_weight", "_dequantize_from_codes", "pack_original"}
    file = "gptqmodel/nn_modules/qlinear/__init__.py"
    path = next(each for each in (Path(part) / file for part in sys.path) if each.is_file())
    functions: list[ast.stmt] = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    namespace: dict[str, Any] = {"t": torch, "nn": nn, "np": numpy, "math": math, **vars(typing)}
    namespace |= {"transformers": transformers, "_ConvNd": nn.modules.conv._ConvNd}
    threads = types.SimpleNamespace(threadpool_limits=lambda count: contextlib.nullcontext())
    namespace["THREADPOOLCTL"] = threads
    exec(compile(ast.Module(functions, []), file, "exec"), namespace)
    namespace["_wf_device"] = lambda self: "cpu"
    return type("Packed", (nn.Module,), {name: namespace[name] for name in names | {"_wf_device"}})


def gptq() -> Tensors:
    """Record several widths with `desc_act`, by `pack_original` and `dequantize_weight`."""
    packed_class = _gptq_class()
    tensors: Tensors = {}
    for place, bits in zip(PLACES, BITS, strict=True):
        linear = random_linear()
        scales, zeros = _asymmetric(linear.weight.data, bits)
        index = torch.randperm(NUM_INPUTS).argsort() // GROUP_SIZE
        dense = None
        for offset in (1, 0):
            module = packed_class()
            values: dict[str, Any] = {
                "bits": bits,
                "maxq": (1 << bits) - 1,
                "pack_factor": 32 // bits,
            }
            values |= {"planar": False, "pack_dtype_bits": 32, "dequant_dtype": torch.int16}
            values |= {"pack_np_math_dtype": numpy.uint32, "pack_np_dtype": numpy.int32}
            values |= {"pack_dtype": torch.int32, "in_features": NUM_INPUTS, "bias": None}
            vars(module).update(values, enable_wf_unsqueeze=True)
            stored_zeros = (zeros - offset) % (1 << bits)
            module.pack_original(linear, scales, stored_zeros, index.int())
            name = f"{VERSION_1 if offset else ''}{place}.qzeros"
            tensors[name] = module.qzeros
            # Integers are computed with zero points as they are.
            dense = module
        assert dense is not None
        parts = {"qweight": dense.qweight, "scales": dense.scales, "g_idx": dense.g_idx}
        tensors |= {f"{place}.{name}": value for name, value in parts.items()}
        dense.scales = dense.scales.float()
        tensors[f"{DENSE}{place}"] = dense.dequantize_weight().T.contiguous()
    return tensors


if __name__ == "__main__":
    torch.manual_seed(7)
    record: dict[str, Callable[[], Tensors]] = {
        "awq": awq,
        "bitsandbytes": bitsandbytes,
        "gptq": gptq,
    }
    RECORDED.mkdir(exist_ok=True)
    for wanted in sys.argv[1:]:
        save_file(record[wanted](), RECORDED / f"{wanted}.safetensors")
