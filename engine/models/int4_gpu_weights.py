"""Checks whether a model and a dtype support 4-bit weights on a GPU, and counts their bytes."""

from __future__ import annotations

import torch

from batchmill.engine.errors import ConfigError, UnsupportedModelError

from .model_config import ModelConfig
from .weights import weights_bytes

#: Of a weight in groups of 32 with zero points; larger groups take less.
_BITS = 5
#: Of a weight before its layer is packed: a byte, and a share of a scale and of a zero point.
_HOST_BITS = 10


def check_int4_gpu_dtype(dtype: str) -> None:
    """Refuse activations that the kernels do not multiply.

    Args:
        dtype: Name of their number format.

    Raises:
        ConfigError: it has 32 bits.
    """
    if dtype == "float32":
        raise ConfigError(
            "quantization is 'int4', whose activations on a GPU are bfloat16 or float16, but dtype "
            "is 'float32': set dtype to 'bfloat16' or 'float16', or leave quantization out"
        )


def check_int4_gpu_model(config: ModelConfig, *, is_stored: bool) -> None:
    """Refuse a model whose 4-bit weights a GPU does not multiply.

    Args:
        config: Sizes and features.
        is_stored: The checkpoint is quantized.

    Raises:
        UnsupportedModelError: it is a mixture of experts, or its weights are dense.
    """
    if config.experts is not None:
        raise UnsupportedModelError(
            f"this {config.architecture} is a mixture of experts, which int4 on a GPU does not "
            "support: leave quantization out, and the weights are unpacked"
        )
    if not is_stored:
        raise UnsupportedModelError(
            "quantization is 'int4', which on a GPU keeps the integers of a checkpoint of 4 bits, "
            "but this model's weights are dense: name a checkpoint in compressed-tensors, GPTQ, "
            "AWQ or AutoRound, set quantization to 'fp8', or leave it out"
        )


def int4_gpu_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of a model's weights on the GPU, if its layers' matrices are all packed."""
    return weights_bytes(config, dtype, matrix_bits=_BITS)


def int4_host_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes that the host needs while a checkpoint is read."""
    return weights_bytes(config, dtype, matrix_bits=_HOST_BITS)
