"""Checks whether a model and a GPU support fp8 weights, and counts the bytes these need."""

from __future__ import annotations

import torch

from batchmill.engine.errors import ConfigError, UnsupportedModelError
from batchmill.kernels.ops.fp8_linear import FP8_MULTIPLE

from .model_config import ModelConfig
from .weights import allocate_weights, allocated, weights_bytes

#: First compute capability whose tensor cores multiply float8_e4m3fn.
_CAPABILITY = (8, 9)
#: Before this capability torch multiplies rows of fp8 by CUTLASS, which ignored the current stream
#: before the given version (PyTorch issue 177651). Steps are warmed up and recorded on another one.
_HOPPER = (9, 0)
_FIRST_TORCH_BELOW_HOPPER = (2, 12)


def check_fp8_device(device: torch.device, dtype: str) -> None:
    """Refuse fp8 weights on a device that does not multiply them.

    Args:
        device: Device of the model.
        dtype: Name of the number format of its activations.

    Raises:
        ConfigError: the device is not a GPU or too old, or the dtype is not bfloat16.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"quantization is 'fp8', which only CUDA GPUs compute, but the device is {device}: set "
            "quantization to 'int8', or leave it out"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        raise ConfigError(
            f"quantization is 'fp8', which needs compute capability 8.9 or later, but this GPU has "
            f"{capability[0]}.{capability[1]}: leave quantization out"
        )
    if capability < _HOPPER and _torch_version() < _FIRST_TORCH_BELOW_HOPPER:
        raise ConfigError(
            f"quantization is 'fp8', but on a GPU of compute capability {capability[0]}."
            f"{capability[1]} products of torch {torch.__version__} ignore the current stream: "
            "install torch 2.12 or later, or leave quantization out"
        )
    if dtype != "bfloat16":
        raise ConfigError(
            f"quantization is 'fp8', whose activations are bfloat16, but dtype is {dtype!r}: set "
            "dtype to 'bfloat16', or leave quantization out"
        )


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def check_fp8_model(config: ModelConfig) -> None:
    """Refuse a model that cannot have fp8 weights.

    Raises:
        UnsupportedModelError: torch's fp8 product does not support the size of a matrix. The
            experts of a mixture are multiplied by a product of our own, which takes any size.
    """
    sizes = {
        "hidden_size": config.hidden_size,
        "num_heads * head_dim": config.num_heads * config.head_dim,
        "num_kv_heads * head_dim * 2": config.num_kv_heads * config.head_dim * 2,
    }
    if not all(layer.sparse for layer in config.layers):
        sizes["intermediate_size"] = config.intermediate_size
    if config.experts is not None:
        sizes["experts.shared_size"] = config.experts.shared_size
    for name, size in sizes.items():
        if size % FP8_MULTIPLE:
            raise UnsupportedModelError(
                f"this {config.architecture} has {name} {size}, but fp8 products need multiples of "
                f"{FP8_MULTIPLE}: leave quantization out"
            )


def fp8_weights_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of all weights, with the layers' matrices in fp8 and the rest in `dtype`."""
    layers = allocate_weights(config, dtype, "meta").layers
    matrices = [allocated(matrix) for layer in layers for matrix in layer.matrices]
    # One byte per number, and one float32 scale per column.
    saved = sum(matrix.numel() * (matrix.itemsize - 1) - 4 * len(matrix) for matrix in matrices)
    return weights_bytes(config, dtype) - saved


def layer_bytes(config: ModelConfig, dtype: torch.dtype) -> list[int]:
    """Return the bytes of each layer's matrices in `dtype`, before they are quantized."""
    layers = allocate_weights(config, dtype, "meta").layers
    return [sum(allocated(matrix).nbytes for matrix in layer.matrices) for layer in layers]


def fp8_host_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes that the host needs while weights are read: less than one layer."""
    return max(layer_bytes(config, dtype))


def fp8_loading_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes that a GPU needs to quantize: all fp8 weights and one unquantized layer."""
    return fp8_weights_bytes(config, dtype) + max(layer_bytes(config, dtype))


def fp8_remedy_bytes(config: ModelConfig, dtype: torch.dtype) -> int | None:
    """Return the bytes of a model's weights in fp8, or None if it does not support fp8."""
    if dtype != torch.bfloat16:
        return None
    try:
        check_fp8_model(config)
    except UnsupportedModelError:
        return None
    return fp8_weights_bytes(config, dtype)
