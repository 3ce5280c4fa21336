"""Properties of the device that the Triton launchers need, and checks of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce
from operator import attrgetter, methodcaller, or_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction

#: Multiprocessors of the interpreter: few and odd, so that tests divide work unevenly.
_INTERPRETED_MULTIPROCESSORS = 3
_POINTER_OF = methodcaller("data_ptr")
_DTYPE_OF = attrgetter("dtype")
#: First compute capability with conversions to and from float8_e4m3fn.
_FP8_CAPABILITY = (8, 9)


def interpreted(kernel: Any) -> bool:
    """Return whether Triton interprets a kernel (`TRITON_INTERPRET=1` when it was imported)."""
    return isinstance(kernel, InterpretedFunction)


def check_device(op: str, kernel: Any, tensor: Tensor) -> None:
    """Refuse tensors that the kernel cannot read, before Triton fails with an obscure message.

    Raises:
        ValueError: the tensor is not on a GPU, and the kernel is not interpreted.
    """
    if tensor.is_cuda:
        return
    # "meta" tensors have no data: tests record launches on them (tests/kernels/gpu/launches.py).
    if tensor.device.type != "meta" and not interpreted(kernel):
        raise ValueError(
            f"the triton backend of {op} needs tensors on a GPU, got {tensor.device}: "
            "use backend='auto' or 'reference' for them"
        )


def check_fp8(cache: Tensor) -> None:
    """Refuse a float8 cache on a GPU that cannot convert it.

    Raises:
        ValueError: the cache is float8_e4m3fn and the GPU's compute capability is below 8.9.
    """
    if cache.dtype != torch.float8_e4m3fn or cache.device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(cache.device)
    if capability < _FP8_CAPABILITY:
        raise ValueError(
            f"a float8_e4m3fn cache needs compute capability {_FP8_CAPABILITY} or later, this GPU "
            f"has {capability}: keep the cache in the model's dtype"
        )


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is not below a positive number.

    Triton's own function takes microseconds on the host.
    """
    return 1 << (number - 1).bit_length()


@lru_cache
def architecture(device: torch.device) -> int:
    """Return a GPU's compute capability as one number (90 is 9.0); 90 for other devices."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@lru_cache
def num_multiprocessors(device: torch.device) -> int:
    """Return a GPU's number of multiprocessors; a small one for the interpreter's CPU tensors."""
    if device.type != "cuda":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def dot_precision(dtype: torch.dtype) -> str:
    """Return the precision of `tl.dot`: float32 takes three TF32 steps, about 2**-21 relative."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


class _Compiled(NamedTuple):
    """A compiled kernel, and the rest of what its launcher takes."""

    run: Callable[..., None]
    function: Any
    metadata: Any
    stream_of: Callable[[int], int]
    constants: tuple[Any, ...]


class CachedLaunch:
    """Launches one kernel, and remembers what Triton compiled for which kind of arguments.

    Triton binds and hashes every argument at every launch: some 15 us of the host's time, in a step
    that launches hundreds of kernels. Here a launch is looked up by what Triton compiles for (types
    of tensors, their alignment, whether a number is 1 or a multiple of 16, constants), and passes
    raw pointers. The first launch of a kind is Triton's own. Hooks of Triton's profiler see only
    that one.

    Source: JITFunction.run of Triton, which decides what the kinds are.
    """

    __slots__ = ("_compiled", "_kernel")

    def __init__(self, kernel: Any) -> None:
        """Begin with an empty cache.

        Args:
            kernel: Takes tensors first, then numbers, then constants.
        """
        self._kernel = kernel
        self._compiled: dict[tuple[Any, ...], _Compiled] = {}

    def __call__(
        self,
        grid: tuple[int] | tuple[int, int],
        tensors: tuple[Tensor, ...],
        numbers: tuple[int | float, ...] = (),
        **settings: Any,
    ) -> None:
        """Launch the kernel on the current stream.

        Args:
            grid: Programs in one or two dimensions.
            tensors: Its first arguments.
            numbers: Those after them.
            settings: Its constants and options, at each call in the same order.
        """
        device = tensors[0].get_device()
        pointers = list(map(_POINTER_OF, tensors))
        unaligned = reduce(or_, pointers) & 15 and tuple(pointer & 15 for pointer in pointers)
        # What Triton's specialisation of a number depends on, or more; floats seldom differ.
        kinds = [
            each if each.__class__ is float
            else (each == 1) + 2 * (each % 16 == 0) + 4 * (each > 0x7FFFFFFF)
            for each in numbers
        ]  # fmt: skip
        key = (device, unaligned, *map(_DTYPE_OF, tensors), *kinds, *settings.values())
        found = self._compiled.get(key)
        if found is None:
            self._launch_first(key, grid, tensors, numbers, settings)
            return
        run, function, metadata, stream_of, constants = found
        width, height = grid if len(grid) == 2 else (grid[0], 1)
        run(
            width, height, 1, stream_of(device), function, metadata, None, None, None,
            *pointers, *numbers, *constants,
        )  # fmt: skip

    def _launch_first(
        self,
        key: tuple[Any, ...],
        grid: tuple[int] | tuple[int, int],
        tensors: tuple[Tensor, ...],
        numbers: tuple[int | float, ...],
        settings: dict[str, Any],
    ) -> None:
        compiled = self._kernel[grid](*tensors, *numbers, **settings)
        if compiled is None:  # interpreted, or recorded by a test
            return
        names = self._kernel.arg_names[len(tensors) + len(numbers) :]
        constants = tuple(settings[name] for name in names)
        self._compiled[key] = _Compiled(
            compiled.run,
            compiled.function,
            compiled.packed_metadata,
            driver.active.get_current_stream,
            constants,
        )
