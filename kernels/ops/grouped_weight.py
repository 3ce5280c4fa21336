"""Weights of 4-bit integers with a scale and a zero point per group of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Activations that share a step; a group of weights has a multiple of them.
BLOCK = 32
#: The zero point of a weight without a table of them.
SYMMETRIC_ZERO = 8
#: Largest integer.
_MOST = 15
#: Least scale: a row of zeros has none.
_LEAST_SCALE = 1e-30


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """A weight of 4-bit integers: `scales * (q - zeros)`, group by group.

    Attributes:
        q: [out, in] uint8, 0 to 15.
        scales: [out, num_groups] float32.
        zeros: As `scales`; None if all are 8.
        group_size: Neighbours along the inputs that share a scale: 32, or a multiple of 32 that
            divides the inputs.
        dtype: Number format of the activations that it multiplies.
    """

    q: Tensor
    scales: Tensor
    zeros: Tensor | None
    group_size: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.q.shape

    @property
    def device(self) -> torch.device:
        """Device of the integers."""
        return self.q.device

    def dense(self) -> Tensor:
        """Return the weight, [out, in] float32."""
        group_of = torch.arange(self.shape[1]) // self.group_size
        zeros = SYMMETRIC_ZERO if self.zeros is None else self.zeros.index_select(1, group_of)
        return (self.q.float() - zeros) * self.scales.index_select(1, group_of)

    def chunk(self, count: int) -> tuple[GroupedWeight, ...]:
        """Return parts with the same number of rows, as `Tensor.chunk`."""
        zeros = [None] * count if self.zeros is None else self.zeros.chunk(count)
        parts = zip(self.q.chunk(count), self.scales.chunk(count), zeros, strict=True)
        return tuple(replace(self, q=q, scales=scales, zeros=zero) for q, scales, zero in parts)


def join_rows(parts: Sequence[GroupedWeight]) -> GroupedWeight | None:
    """Return one weight of all rows of several; None if their groups differ in size."""
    first = parts[0]
    if any(part.group_size != first.group_size for part in parts):
        return None
    zeros = None
    if any(part.zeros is not None for part in parts):
        zeros = torch.cat([filled_zeros(part) for part in parts])
    return replace(
        first,
        q=torch.cat([part.q for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=zeros,
    )


def filled_zeros(weight: GroupedWeight) -> Tensor:
    """Return a weight's table of zero points, [out, num_groups] float32."""
    if weight.zeros is not None:
        return weight.zeros
    return torch.full_like(weight.scales, SYMMETRIC_ZERO)


def quantize_groups(weight: Tensor) -> GroupedWeight:
    """Quantize a weight [out, in] in groups of 32, from their least to their largest number.

    Each range includes zero, so that zero points are 0 to 15 and zeros stay zeros. Scales and zero
    points are rounded to halves first, as they are packed; a group whose scale is too small for one
    beside those of its row becomes zeros.
    """
    num_rows, num_columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -num_columns % BLOCK))
    groups = padded.view(num_rows, -1, BLOCK)
    least, most = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    steps = ((most - least) / _MOST).clamp_min(_LEAST_SCALE)
    units = column_units(steps)
    scales = (steps / units).half().float() * units
    divisors = torch.where(scales > 0, scales, torch.inf)
    zeros = (-least / divisors).half().float()
    q = (groups / divisors[..., None] + zeros[..., None]).round().clamp(0, _MOST)
    q = q.to(torch.uint8).view(num_rows, -1)[:, :num_columns].contiguous()
    return GroupedWeight(q, scales, zeros, BLOCK, weight.dtype)


def column_units(scales: Tensor) -> Tensor:
    """Return the power of two by which each row's largest scale is in [1, 2), [out, 1]."""
    _, exponents = torch.frexp(scales.abs().amax(dim=1, keepdim=True))
    return torch.ldexp(torch.ones_like(scales[:, :1]), exponents - 1)
