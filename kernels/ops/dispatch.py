"""Which face of an op runs: the torch reference, numpy, the Triton kernel or the C++ kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import torch

from batchmill.kernels.cpu.library import cpp_is_usable
from batchmill.kernels.gpu.bindings import triton_is_usable

Face = TypeVar("Face", bound=Callable[..., object])
Backend = Literal["auto", "reference", "numpy", "triton", "cpp"]

#: What `auto` takes on a device: the first of these that the op has.
_PREFERENCE = {"cuda": ("triton", "reference"), "cpu": ("cpp", "numpy", "reference")}
#: Faces that need something which may be missing; each says so in the log.
_USABLE: dict[str, Callable[[], bool]] = {"cpp": cpp_is_usable, "triton": triton_is_usable}


def select_face(op: str, faces: Mapping[str, Face], backend: Backend, device: torch.device) -> Face:
    """Pick the function that computes an op.

    Args:
        op: Name of the op, for the error message.
        faces: The faces that exist, by backend name; `reference` is always among them.
        backend: A face by name, or `auto` for the fastest one on `device`.
        device: Where the op's tensors lie.

    Raises:
        ValueError: the named face does not exist for this op.
    """
    if backend == "auto":
        for name in _PREFERENCE.get(device.type, ()):
            if name in faces and (name not in _USABLE or _USABLE[name]()):
                return faces[name]
        return faces["reference"]
    if backend not in faces:
        raise ValueError(
            f"{op} has no {backend!r} backend; it has {', '.join(map(repr, sorted(faces)))}: "
            "name one of these, or 'auto'"
        )
    return faces[backend]
