"""Matrix products of a mixture of experts: each row by the weight of its expert.

    out[r] = x[rows[r]] W[e]^T + b[e],    e = the expert of row r

Rows are ordered by expert, as `route_experts` orders them, and a gated activation of gate and up
may follow at once. Nothing is read on the host, so a CUDA graph can contain it.

Source: MegaBlocks, Gale et al. 2022, section 4; grouped products of the kind that CUTLASS has.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from batchmill.kernels.reference.expert_linear import Fp8Experts, multiply_experts_reference
from batchmill.kernels.reference.fp8_rows import Fp8Rows, quantize_fp8_reference

from .dispatch import Backend, lazy_triton, select_backend

#: Activations of gate and up that a product may include.
FoldedActivation = Literal["silu", "gelu_tanh"]


def multiply_experts(
    x: Tensor | Fp8Rows,
    weight: Tensor | Fp8Experts,
    ends: Tensor,
    *,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    activation: FoldedActivation | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: Backend = "auto",
) -> Tensor:
    """Multiply each row by its expert's weight.

    Args:
        x: [num_tokens, in] in the weight's dtype, rows at any distance; quantized if the weight is.
        weight: [num_experts, out, in], contiguous.
        ends: [num_experts] int32: the end of each expert's rows.
        rows: [num_rows] int64: the row of `x` of each row of the result; None if they are the same.
        bias: [num_experts, out] in `out`'s dtype, or None.
        activation: Activate the first half of each row of the product, rounded to its dtype, and
            multiply by the second; None returns the product.
        out_dtype: Dtype of the result if the weight is quantized; otherwise it is the weight's.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        [num_rows, out], or half as many columns with an activation.

    Raises:
        ValueError: shapes do not match, or the GPU's compute capability is below 8.9 and the weight
            quantized.
    """
    values = weight.values if isinstance(weight, Fp8Experts) else weight
    inputs = x.values if isinstance(x, Fp8Rows) else x
    if values.dim() != 3 or inputs.shape[1:] != values.shape[2:] or len(ends) != len(values):
        raise ValueError(
            "x must be [num_rows, in], weight [num_experts, out, in] and ends [num_experts], got "
            f"{list(inputs.shape)}, {list(values.shape)} and {list(ends.shape)}"
        )
    if isinstance(x, Fp8Rows) != isinstance(weight, Fp8Experts) or inputs.dtype != values.dtype:
        raise ValueError(
            f"x is {inputs.dtype} and weight {values.dtype}: quantize both, or neither"
        )
    dtype = out_dtype if isinstance(weight, Fp8Experts) else values.dtype
    compute = select_backend("multiply_experts", _BACKENDS, backend, values.device)
    return compute(x, weight, ends, dtype, rows, bias, activation)


def quantize_experts(weight: Tensor) -> Fp8Experts:
    """Quantize weights [num_experts, out, in], expert by expert, by their columns of output."""
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(weight.shape[:2], dtype=torch.float32, device=weight.device)
    for expert, each in enumerate(weight):
        quantized = quantize_fp8_reference(each)
        # As bytes: not every operation knows eight-bit floats.
        values[expert].view(torch.uint8).copy_(quantized.values.view(torch.uint8))
        scales[expert] = quantized.scales[:, 0]
    return Fp8Experts(values, scales)


_BACKENDS = {
    "reference": multiply_experts_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.expert_linear",
        "multiply_experts_triton",
        like=multiply_experts_reference,
    ),
}
