"""4-bit weights as a GPU reads them, and their products in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Inputs that are packed together: a byte holds input i and input i + CHUNK / 2.
CHUNK = 64
_HALF = CHUNK // 2


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """A weight [out, in] of 4-bit integers: `(q - zeros) * scales`, group by group.

    Attributes:
        packed: [num_chunks, out, 8] int32, the bytes of each chunk of 64 inputs.
        scales: [num_groups, out], a float format that holds them exactly; there are an even number,
            so that groups of 32 fill the last chunk.
        zeros: As `scales`, float16; None if all are 8.
        group_size: Neighbours along the inputs that share a scale.
        num_inputs: Inputs, without those that fill the last chunk.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None
    group_size: int
    num_inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and inputs of the weight."""
        return self.packed.shape[1], self.num_inputs

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, [out, in]."""
        octets = self.packed.view(torch.uint8).transpose(0, 1)
        q = torch.stack([octets & 15, octets >> 4], 2).flatten(1)[:, : self.num_inputs]
        group_of = torch.arange(self.num_inputs, device=q.device) // self.group_size
        zeros = 8 if self.zeros is None else self.zeros.float().index_select(0, group_of).T
        scales = self.scales.float().index_select(0, group_of).T
        return ((q.float() - zeros) * scales).to(dtype)


def pack_int4(q: Tensor) -> Tensor:
    """Pack integers from 0 to 15, [out, in] uint8, into [num_chunks, out, 8] int32."""
    filled = torch.nn.functional.pad(q, (0, -q.shape[1] % CHUNK))
    low, high = filled.view(len(q), -1, 2, _HALF).unbind(2)
    return (low | high << 4).transpose(0, 1).contiguous().view(torch.int32)


def multiply_int4_reference(x: Tensor, weight: PackedInt4, bias: Tensor | None) -> Tensor:
    """Plain-torch reference of `multiply_int4`."""
    return torch.nn.functional.linear(x, weight.dense(x.dtype), bias)
