"""The arguments of `load_model`, checked before any file is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from batchmill.engine.config import DTYPES, MODEL_IMPLS, QUANTIZATIONS
from batchmill.engine.cpu_kernels import auto_dtype
from batchmill.engine.errors import ConfigError, UnsupportedModelError
from batchmill.engine.gpus import find_unusable_gpu
from batchmill.engine.models.feed_forward import LinearFactory
from batchmill.engine.models.fp8_weights import check_fp8_device
from batchmill.engine.models.int4_gpu_weights import check_int4_gpu_dtype
from batchmill.engine.models.split_layers import Ranks
from batchmill.kernels.cpu.library import default_library
from batchmill.kernels.errors import CppBuildError

_log = logging.getLogger(__name__)

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model; `load_model` describes the fields."""

    dtype: torch.dtype
    device: torch.device
    quantization: str | None
    model_impl: str
    max_model_len: int | None
    linear: LinearFactory | None
    ranks: Ranks | None

    @classmethod
    def checked(
        cls,
        *,
        dtype: str,
        device: str,
        quantization: str | None,
        model_impl: str,
        max_model_len: int | None,
        linear: LinearFactory | None,
        ranks: Ranks | None = None,
    ) -> LoadOptions:
        """Check the arguments of `load_model` and resolve the names of dtype and device.

        Raises:
            ConfigError: a value is unknown, this machine lacks the device, or the values exclude
                each other.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
        if quantization is not None and quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"quantization is {quantization!r}: choose {' or '.join(QUANTIZATIONS)}, or leave "
                "it out"
            )
        if model_impl not in MODEL_IMPLS:
            raise ConfigError(
                f"model_impl is {model_impl!r}: choose one of {', '.join(MODEL_IMPLS)}"
            )
        resolved = resolve_device(device)
        dtype = resolve_dtype(dtype, resolved)
        if linear is not None and quantization is not None:
            raise ConfigError(
                f"linear makes the matrix products and quantization is {quantization!r}: give only "
                "one of them"
            )
        if quantization is not None:
            _check_quantization(quantization, resolved, dtype, model_impl)
        return cls(
            dtype=_DTYPES[dtype],
            device=resolved,
            quantization=quantization,
            model_impl=model_impl,
            max_model_len=max_model_len,
            linear=linear,
            ranks=ranks,
        )

    def refuse_ranks(self, kind: str) -> None:
        """Refuse to divide a model among ranks.

        Args:
            kind: What the model is.

        Raises:
            UnsupportedModelError: it is to be divided.
        """
        if self.ranks is not None:
            raise UnsupportedModelError(
                f"tensor_parallel_size is {self.ranks.num_ranks}, and this model is {kind}: only "
                "decoders of text that are computed natively are divided, so leave "
                "tensor_parallel_size out"
            )


def resolve_device(device: str) -> torch.device:
    """Return the device that a configuration names.

    Raises:
        ConfigError: the name is invalid, or this machine does not have the device.
    """
    if device == "auto":
        return _first_device()
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device is {device!r}: use 'auto', 'cpu', 'cuda' or 'cuda:<index>'"
        ) from error
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device is {device!r}: only CPUs and CUDA GPUs are supported, so use 'auto', 'cpu', "
            "'cuda' or 'cuda:<index>'"
        )
    num_gpus = torch.cuda.device_count() if resolved.type == "cuda" else 0
    if resolved.type == "cuda" and (resolved.index or 0) >= num_gpus:
        raise ConfigError(
            f"device is {device!r}, but torch finds {num_gpus} CUDA GPUs on this machine: use "
            + (f"an index below {num_gpus}, 'cpu' or 'auto'" if num_gpus else "'cpu' or 'auto'")
        )
    return resolved


def _first_device() -> torch.device:
    """Return a GPU if there is one, and the CPU otherwise.

    Raises:
        ConfigError: there is one, and this build of torch should be able to use it, but cannot.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    gpu = find_unusable_gpu()
    if gpu is None:
        return torch.device("cpu")
    if not gpu.is_cpu_build:
        raise ConfigError(
            f"device is 'auto', and this machine has a GPU ({gpu.path}) that torch cannot use: "
            f"{gpu.reason}; install a driver and a torch that fit each other, or set device to "
            "'cpu' (BATCHMILL_DEVICE=cpu) to compute without the GPU"
        )
    _log.warning(
        "this machine has a GPU (%s), but %s: computing on the CPU; install a CUDA build of torch "
        "to use the GPU, or set device to 'cpu' to silence this warning",
        gpu.path,
        gpu.reason,
    )
    return torch.device("cpu")


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """Return the number format that a configuration names; "auto" depends on the device."""
    return auto_dtype(on_cpu=device.type == "cpu") if dtype == "auto" else dtype


def _check_quantization(
    quantization: str, device: torch.device, dtype: str, model_impl: str
) -> None:
    if quantization == "fp8":
        check_fp8_device(device, dtype)
    elif quantization == "int4" and device.type == "cuda":
        check_int4_gpu_dtype(dtype)
    elif device.type != "cpu":
        raise ConfigError(
            f"quantization is {quantization!r}, which only CPUs compute, but the device is "
            f"{device}: set device to 'cpu', set quantization to 'fp8', or leave quantization out"
        )
    if model_impl == "transformers":
        raise ConfigError(
            f"quantization is {quantization!r}, which only the native decoder computes, but "
            "model_impl is 'transformers': set model_impl to 'auto' or 'native', or leave "
            "quantization out"
        )
    if device.type == "cpu":
        _check_cpp_library(quantization)


def _check_cpp_library(quantization: str) -> None:
    try:
        default_library()
    except CppBuildError as error:
        raise ConfigError(
            f"quantization is {quantization!r}, which needs the C++ kernels, but they cannot be "
            f"loaded: {error}; or leave quantization out"
        ) from error
