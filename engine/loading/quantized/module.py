"""The stored tensors of one quantized weight, with checks that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from batchmill.engine.errors import ModelLoadError
from batchmill.kernels.ops.fp8_weight import Fp8Weight
from batchmill.kernels.ops.grouped_weight import GroupedWeight

REMEDY: Final = "download the model again, or use its weights in bfloat16, float16 or float32"


@dataclass(frozen=True, slots=True)
class StoredModule:
    """The tensors that one weight is stored as."""

    #: For messages, for example "GPTQ".
    scheme: str
    #: Name of the weight without its ending, for example `model.layers.0.mlp.down_proj`.
    name: str
    #: By the ending of their names, for example `.qweight`.
    tensors: Mapping[str, Tensor]
    paths: Mapping[str, Path]

    def has(self, part: str) -> bool:
        """Return whether a tensor is stored."""
        return part in self.tensors

    def take(self, part: str, dtypes: Collection[torch.dtype], *shape: int | None) -> Tensor:
        """Return a stored tensor.

        Args:
            part: The ending of its name.
            dtypes: What it may be; empty allows every floating-point type.
            shape: Its sizes; None allows any.

        Raises:
            ModelLoadError: it is missing, or has another type or shape.
        """
        if part not in self.tensors:
            path = next(iter(self.paths.values()))
            raise ModelLoadError(
                f"{path} holds a part of {self.name}, but {self.name}{part} is not stored, without "
                f"which a weight in {self.scheme} cannot be read: {REMEDY}"
            )
        value = self.tensors[part]
        if not (value.dtype in dtypes if dtypes else value.is_floating_point()):
            names = " or ".join(map(str, dtypes)) or "floating-point numbers"
            raise self.error(part, f"is {value.dtype}, but {self.scheme} has {names} there")
        is_shaped = len(shape) == value.dim() and all(
            want is None or want == size for want, size in zip(shape, value.shape, strict=True)
        )
        if not is_shaped:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.error(
                part,
                f"has shape {list(value.shape)}, but {self.scheme} needs [{wanted}] beside the "
                "other tensors of this weight and the quantization settings of the model",
            )
        return value

    def number(self, part: str, dtypes: Collection[torch.dtype] = ()) -> Tensor:
        """Return a stored tensor of one number above 0, without dimensions; see `take`."""
        shape = self.tensors[part].shape if part in self.tensors else ()
        value = self.take(part, dtypes, *shape)
        if value.numel() != 1:
            raise self.error(part, f"has shape {list(shape)}, but must be one number")
        if not float(value) > 0:
            raise self.error(part, f"is {float(value)}, but must be a number above 0")
        return value.reshape(())

    def error(self, part: str, problem: str, remedy: str = REMEDY) -> ModelLoadError:
        """Return an error about one of the tensors."""
        return ModelLoadError(f"{self.name}{part} in {self.paths[part]} {problem}: {remedy}")


#: Computes the dense weight of a module in a dtype.
Unpack = Callable[[StoredModule, torch.dtype], Tensor]
#: Returns a weight's integers for activations in a dtype; None if they cannot be kept.
Keep = Callable[[StoredModule, torch.dtype], GroupedWeight | None]
#: Returns a weight in fp8 for products in a dtype; None if its scales are not of rows.
KeepFp8 = Callable[[StoredModule, torch.dtype], Fp8Weight | None]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one weight is stored: as which tensors, and how these become a dense one."""

    unpack: Unpack
    #: Endings of the tensors that must be stored.
    needed: tuple[str, ...]
    #: What follows the module's name in the name of the dense weight.
    result: str = ".weight"
    #: Returns its integers instead; None if it has none of 4 bits.
    keep: Keep | None = None
    #: Returns its eight-bit floats instead; None if it has none.
    keep_fp8: KeepFp8 | None = None
