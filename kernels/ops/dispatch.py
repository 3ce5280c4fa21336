"""Choose the backend that computes an op: plain torch, numpy, a Triton kernel or a C++ kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Generic, Literal, ParamSpec, TypeVar

import torch

from batchmill.kernels.cpu.library import cpp_is_usable
from batchmill.kernels.errors import TritonMissingError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Implementation = TypeVar("Implementation", bound=Callable[..., object])
Backend = Literal["auto", "reference", "numpy", "triton", "cpp"]

_log = logging.getLogger(__name__)


class LazyTriton(Generic[Parameters, Result]):
    """A Triton implementation that is imported when it is first called; see `lazy_triton`.

    Attributes:
        like: The function whose parameters and result it has.
    """

    def __init__(self, module: str, name: str, like: Callable[Parameters, Result]) -> None:
        """Keep the names of the function and its module."""
        self.like = like
        self._module = module
        self._name = name
        self._function: Callable[Parameters, Result] | None = None

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        """Call the function.

        Raises:
            TritonMissingError: Triton is not installed.
        """
        function = self._function or self.import_function()
        return function(*args, **kwargs)

    def import_function(self) -> Callable[Parameters, Result]:
        """Import the function and return it.

        Raises:
            TritonMissingError: Triton is not installed.
        """
        try:
            module = import_module(self._module)
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise TritonMissingError(
                f"{self._name} needs Triton, which is not installed: install batchmill[gpu], or "
                "use backend='reference'"
            ) from error
        function: Callable[Parameters, Result] = getattr(module, self._name)
        self._function = function
        return function


def lazy_triton(
    module: str, name: str, *, like: Callable[Parameters, Result]
) -> Callable[Parameters, Result]:
    """Return a function that imports a Triton implementation when it is first called.

    The ops list their backends when they are imported, also on machines without Triton or a GPU,
    and importing Triton takes about a second.

    Args:
        module: Full name of its module.
        name: Its name in that module.
        like: The reference: the type checker holds every call to its parameters, and a test
            compares the two.
    """
    return LazyTriton(module, name, like)


@lru_cache
def triton_is_usable() -> bool:
    """Return whether Triton is installed; if not, log once that the GPU kernels are missing."""
    if find_spec("triton") is not None:
        return True
    _log.warning(
        "triton is not installed: the GPU runs the torch reference kernels, several times slower; "
        "install batchmill[gpu]"
    )
    return False


#: Backends of `auto` by device, the fastest first; an op uses the first that it has.
_PREFERENCE = {"cuda": ("triton", "reference"), "cpu": ("cpp", "numpy", "reference")}
#: Backends that need something which may be missing; each check logs the reason.
_USABLE: dict[str, Callable[[], bool]] = {"cpp": cpp_is_usable, "triton": triton_is_usable}


def select_backend(
    op: str, backends: Mapping[str, Implementation], backend: Backend, device: torch.device
) -> Implementation:
    """Return the function that computes an op.

    Args:
        op: Name of the op, for the error message.
        backends: The implementations by the name of their backend; one is `reference`.
        backend: The backend to use, or `auto` for the fastest one on `device`.
        device: Device of the op's tensors.

    Raises:
        ValueError: the op does not have this backend.
    """
    if backend == "auto":
        for name in _PREFERENCE.get(device.type, ()):
            if name in backends and (name not in _USABLE or _USABLE[name]()):
                return backends[name]
        return backends["reference"]
    if backend not in backends:
        raise ValueError(
            f"{op} has no {backend!r} backend; it has {', '.join(map(repr, sorted(backends)))}: "
            "name one of these, or 'auto'"
        )
    return backends[backend]
