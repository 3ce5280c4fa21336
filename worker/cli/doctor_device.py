"""The checks of `batchmill doctor` for the device that a worker would compute on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from batchmill.producer.install_hint import install_command

from .doctor_findings import Finding, Level

#: First compute capability with bfloat16, which the Triton kernels are tuned for.
_CAPABILITY = (8, 0)


def check_device() -> Iterable[Finding]:
    """Report the device, whether it computes, and the number format of a worker on it."""
    try:
        import torch
    except (ImportError, OSError) as error:
        detail = f"torch cannot be imported: {error}"
        yield Finding("device", Level.PROBLEM, detail, install_command("worker"))
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        yield _find_gpu()
        yield find_gpu_kernel("cuda")
    else:
        yield _find_cpu()
    yield _find_dtype(has_gpu=has_gpu)
    if (found := find_ranks()) is not None:
        yield found


def find_ranks() -> Finding | None:
    """Report whether there are devices for all ranks; None if there is only one rank."""
    given = os.environ.get("BATCHMILL_TENSOR_PARALLEL_SIZE") or "1"
    if given == "1":
        return None
    from batchmill.engine.errors import ConfigError
    from batchmill.engine.parallel.start import rank_devices

    name, remedy = "ranks", "set BATCHMILL_TENSOR_PARALLEL_SIZE to a number of GPUs"
    try:
        devices = rank_devices(os.environ.get("BATCHMILL_DEVICE") or "auto", int(given))
    except ValueError:
        return Finding(name, Level.PROBLEM, f"BATCHMILL_TENSOR_PARALLEL_SIZE is {given!r}", remedy)
    except ConfigError as error:
        return Finding(name, Level.PROBLEM, str(error), remedy)
    if devices[0].type == "cpu":
        detail = f"{len(devices)} processes on the CPU, which are slower than one"
        return Finding(name, Level.WARNING, detail, "leave BATCHMILL_TENSOR_PARALLEL_SIZE out")
    return Finding(name, Level.OK, f"{len(devices)} GPUs, from {devices[0]} on")


def _find_gpu() -> Finding:
    import torch

    major, minor = torch.cuda.get_device_capability()
    found = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
    if (major, minor) < _CAPABILITY:
        remedy = "8.0 and later have bfloat16: set BATCHMILL_DTYPE=float16 on this one"
        return Finding("device", Level.WARNING, found, remedy)
    return Finding("device", Level.OK, found)


def _find_cpu() -> Finding:
    """Report that a worker would compute on the CPU, or that a GPU cannot be used."""
    import torch

    from batchmill.engine.gpus import find_unusable_gpu

    gpu = find_unusable_gpu()
    if gpu is None or (os.environ.get("BATCHMILL_DEVICE") or "auto") == "cpu":
        return Finding("device", Level.OK, f"CPU, {torch.get_num_threads()} threads; no GPU")
    level = Level.WARNING if gpu.is_cpu_build else Level.PROBLEM
    remedy = (
        "install a driver and a CUDA build of torch that fit each other, or set "
        "BATCHMILL_DEVICE=cpu"
    )
    return Finding("device", level, f"torch cannot use {gpu.path}: {gpu.reason}", remedy)


def find_gpu_kernel(device: str) -> Finding:
    """Compile one Triton kernel, run it, and compare what it computes with plain torch.

    Args:
        device: `cuda`; `cpu` runs it in Triton's interpreter, if that is on.
    """
    from batchmill.engine.gpus import gpu_kernel_error

    try:
        error = gpu_kernel_error(device)
    except Exception as problem:  # a compiler, a driver and Triton each have their own
        text = " ".join(str(problem).split())[:300]
        detail = f"a Triton kernel does not run: {type(problem).__name__}: {text}"
        return Finding("GPU kernels", Level.PROBLEM, detail, _kernel_remedy())
    if not error < 1e-4:
        detail = f"a Triton kernel computes wrong numbers (off by {error:g})"
        remedy = "update the driver; if that does not help, use another GPU"
        return Finding("GPU kernels", Level.PROBLEM, detail, remedy)
    return Finding("GPU kernels", Level.OK, "one was compiled and computes right")


def _kernel_remedy() -> str:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "install a C compiler (Debian: apt install gcc): Triton builds its launchers with it"
    return "Triton needs the driver's libcuda.so.1 (TRITON_LIBCUDA_PATH) and a writable home folder"


def _find_dtype(*, has_gpu: bool) -> Finding:
    """Report the number format that a worker on this machine computes in."""
    from batchmill.engine.cpu_kernels import auto_dtype

    given = os.environ.get("BATCHMILL_DTYPE") or "auto"
    if given != "auto":
        return Finding("dtype", Level.OK, f"{given}, from BATCHMILL_DTYPE")
    device = os.environ.get("BATCHMILL_DEVICE") or "auto"
    uses_gpu = device.startswith("cuda") or (device == "auto" and has_gpu)
    dtype = auto_dtype(on_cpu=not uses_gpu)
    if uses_gpu:
        return Finding("dtype", Level.OK, f"auto: {dtype}")
    why = "has instructions for" if dtype == "bfloat16" else "computes it faster than"
    return Finding("dtype", Level.OK, f"auto: {dtype}, because this CPU {why} bfloat16")
