"""Reference of `multiply_experts`, and the experts' weights in eight bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .fp8_rows import Fp8Rows


class Fp8Experts(NamedTuple):
    """The quantized weights of a mixture.

    Attributes:
        values: [num_experts, out, in] float8_e4m3fn.
        scales: [num_experts, out] float32: the value of one unit of each column of output.
    """

    values: Tensor
    scales: Tensor


def multiply_experts_reference(
    x: Tensor | Fp8Rows,
    weight: Tensor | Fp8Experts,
    ends: Tensor,
    out_dtype: torch.dtype,
    rows: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Compute `multiply_experts` in plain torch, one expert after another; reads on the host."""
    wide = _widened(x)
    if rows is not None:
        wide = wide.index_select(0, rows)
    values, scales = weight if isinstance(weight, Fp8Experts) else (weight, None)
    parts = []
    start = 0
    for expert, end in enumerate(ends.tolist()):
        part = wide[start:end] @ values[expert].to(wide.dtype).T
        if scales is not None:
            part = part * scales[expert]
        parts.append(part if bias is None else part + bias[expert].to(part.dtype))
        start = end
    product = torch.cat(parts).to(out_dtype)
    if activation is None:
        return product
    gate, up = product.to(wide.dtype).chunk(2, dim=-1)
    if activation == "silu":
        return (torch.nn.functional.silu(gate) * up).to(out_dtype)
    return (torch.nn.functional.gelu(gate, approximate="tanh") * up).to(out_dtype)


def _widened(x: Tensor | Fp8Rows) -> Tensor:
    """Return rows in float32, or in float64 if they are."""
    if isinstance(x, Fp8Rows):
        return x.values.float() * x.scales
    return x if x.dtype == torch.float64 else x.float()
