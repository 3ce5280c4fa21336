"""The state of the GPUs of this machine, for the loader and for tools that check it."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import torch

from batchmill.engine.device_type import visible_gpu
from batchmill.kernels.ops.rms_norm import rms_norm, rms_norm_reference

_LIBCUDA = "libcuda.so"
_LIBCUDA_PATH = "TRITON_LIBCUDA_PATH"


@dataclass(frozen=True, slots=True)
class UnusableGpu:
    """A GPU that this machine has and torch cannot use.

    Attributes:
        path: Its device file.
        reason: Why torch cannot use it, for people.
        is_cpu_build: Whether this torch was built for CPUs only, so that somebody chose the CPU.
    """

    path: str
    reason: str
    is_cpu_build: bool


def find_unusable_gpu(
    environment: Mapping[str, str] = os.environ, folder: Path = Path("/dev")
) -> UnusableGpu | None:
    """Look for an NVIDIA GPU that torch cannot use.

    Args:
        environment: Has CUDA_VISIBLE_DEVICES if GPUs are hidden on purpose.
        folder: Where the driver puts its device files.

    Returns:
        The first one; None if torch can use a GPU, or there is none, or all are hidden.
    """
    path = visible_gpu(environment, folder)
    if path is None or torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return UnusableGpu(path, f"torch {torch.__version__} is built for CPUs only", True)
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    return UnusableGpu(path, f"{built}, and {_driver_error()}", False)


def point_triton_to_libcuda(
    environment: MutableMapping[str, str] = os.environ, maps: Path = Path("/proc/self/maps")
) -> None:
    """Tell Triton in which folder the driver's library is that this process has loaded.

    Triton asks `ldconfig -p` for it, whose cache a container with a read-only root may lack.

    Args:
        environment: TRITON_LIBCUDA_PATH is set here, unless it is set already.
        maps: The files that this process has mapped.
    """
    if environment.get(_LIBCUDA_PATH):
        return
    try:
        mapped = [line.split(maxsplit=5)[5:] for line in maps.read_text().splitlines()]
    except OSError:  # not Linux, or hidden: Triton looks for itself
        return
    for path in (Path(name) for (name,) in filter(None, mapped)):
        is_library = path.name.startswith(f"{_LIBCUDA}.")
        if is_library and (path.parent / f"{_LIBCUDA}.1").exists():
            environment[_LIBCUDA_PATH] = str(path.parent)
            return


def _driver_error() -> str:
    """Return what the driver says when torch uses it for the first time, on one line."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:300]
    return "it finds no device"


def gpu_kernel_error(device: str) -> float:
    """Compile a Triton kernel, run it on a few numbers, and compare it with plain torch.

    Args:
        device: "cuda"; "cpu" runs it in Triton's interpreter, if that is on.

    Returns:
        The largest difference, of numbers up to about 2.5.

    Raises:
        Exception: of a compiler, a driver or Triton: the kernel does not run.
    """
    x = torch.linspace(-3, 3, 8 * 128, device=device).reshape(8, 128)
    if x.is_cuda:
        point_triton_to_libcuda()
    weight = torch.linspace(0.5, 1.5, 128, device=device)
    found = rms_norm(x, weight, 1e-6, backend="triton")
    return float((found - rms_norm_reference(x, weight, 1e-6)).abs().max())
