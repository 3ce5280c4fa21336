"""Floating-point numbers of 4 bits, and scales that are powers of two.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 (E2M1) and 5.4.1 (E8M0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bits import unpack_nibbles

_HALF: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = torch.tensor([*_HALF, *(-value for value in _HALF)])
_E8M0_BIAS = 127


def unpack_fp4(stored: Tensor) -> Tensor:
    """Return numbers that are stored in pairs, the lower half of a byte first.

    Args:
        stored: [..., n] uint8.

    Returns:
        [..., 2 * n] float32.
    """
    return _E2M1[unpack_nibbles(stored).long()]


def power_of_two(exponents: Tensor) -> Tensor:
    """Return the scales, float32, of stored exponents, uint8; 255 stands for a NaN."""
    scales = torch.exp2(exponents.float() - _E8M0_BIAS)
    return scales.masked_fill(exponents == 2 * _E8M0_BIAS + 1, torch.nan)
