"""Which models and GPUs multiply weights in eight-bit floats, and what these take."""

from __future__ import annotations

import torch

from batchmill.engine.errors import ConfigError, UnsupportedModelError
from batchmill.kernels.ops.fp8_linear import FP8_MULTIPLE

from .model_config import ModelConfig
from .weights import allocate_weights, weights_bytes

#: First compute capability whose tensor cores multiply float8_e4m3fn.
_CAPABILITY = (8, 9)


def check_fp8_device(device: torch.device, dtype: str) -> None:
    """Refuse fp8 weights where nothing multiplies them.

    Args:
        device: Where the model would be computed.
        dtype: Number format of its activations, by name.

    Raises:
        ConfigError: with the remedy.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"quantization is 'fp8', which is computed on CUDA GPUs only, and the device is "
            f"{device}: set quantization to 'int8', or leave it out"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        raise ConfigError(
            f"quantization is 'fp8', this GPU has compute capability {capability[0]}."
            f"{capability[1]}, and eight-bit floats begin at 8.9: leave quantization out"
        )
    if dtype != "bfloat16":
        raise ConfigError(
            f"quantization is 'fp8' and dtype is {dtype!r}: its products are in bfloat16, so set "
            "dtype to 'bfloat16', or leave quantization out"
        )


def check_fp8_model(config: ModelConfig) -> None:
    """Refuse a model that cannot have fp8 weights.

    Raises:
        UnsupportedModelError: it is a mixture of experts, or a matrix has a size that torch's fp8
            product does not take.
    """
    if config.experts is not None:
        raise UnsupportedModelError(
            f"this {config.architecture} is a mixture of experts, whose products are not computed "
            "in fp8: leave quantization out"
        )
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_heads * head_dim": config.num_heads * config.head_dim,
        "num_kv_heads * head_dim * 2": config.num_kv_heads * config.head_dim * 2,
    }
    for name, size in sizes.items():
        if size % FP8_MULTIPLE:
            raise UnsupportedModelError(
                f"this {config.architecture} has {name} {size}, and fp8 products want multiples of "
                f"{FP8_MULTIPLE}: leave quantization out"
            )


def fp8_weights_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """What all weights take with the layers' matrices in fp8, and the rest in `dtype`."""
    layers = allocate_weights(config, dtype, "meta").layers
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    # A byte a number, and a float32 scale a column.
    saved = sum(matrix.numel() * (matrix.itemsize - 1) - 4 * len(matrix) for matrix in matrices)
    return weights_bytes(config, dtype) - saved


def layer_bytes(config: ModelConfig, dtype: torch.dtype) -> list[int]:
    """What each layer's matrices take in `dtype`, before they are quantized."""
    layers = allocate_weights(config, dtype, "meta").layers
    return [sum(matrix.nbytes for matrix in layer.matrices) for layer in layers]


def fp8_loading_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """What a GPU needs while fp8 weights are made: all of them, and a layer that is not yet."""
    return fp8_weights_bytes(config, dtype) + max(layer_bytes(config, dtype))


def fp8_remedy_bytes(config: ModelConfig, dtype: torch.dtype) -> int | None:
    """What a model's weights would take in fp8; None where they cannot have it."""
    if dtype != torch.bfloat16:
        return None
    try:
        check_fp8_model(config)
    except UnsupportedModelError:
        return None
    return fp8_weights_bytes(config, dtype)
