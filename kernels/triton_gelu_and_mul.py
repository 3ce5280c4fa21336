"""Triton face of `gelu_and_mul`."""

# Kernels are traced by Triton, not typed Python: no annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import check_device

#: Outputs a program computes: 8 a thread at 4 warps, one 16-byte access each for gate and up.
BLOCK = 1024


@triton.jit
def gelu_and_mul_kernel(
    out,  # [num_tokens, size]
    gate_up,  # [num_tokens, 2 * size], contiguous
    size,
    BLOCK: tl.constexpr,
):
    """Program (t, b): BLOCK outputs of token t, in float32, rounded once."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    gate_row = gate_up + token * (2 * size)
    gate = tl.load(gate_row + columns, mask, 0.0).to(tl.float32)
    up = tl.load(gate_row + size + columns, mask, 0.0).to(tl.float32)
    # (1 + tanh(u)) / 2 = sigmoid(2u), with 2 sqrt(2 / pi) as the factor.
    twice = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    # exp of the smaller sign only: a large gate would make it infinite.
    decay = tl.exp(-tl.abs(twice))
    product = gate * tl.where(twice < 0, decay, 1.0) / (1.0 + decay) * up
    tl.store(out + token * size + columns, product.to(out.dtype.element_ty), mask)


def gelu_and_mul_triton(gate_up: Tensor) -> Tensor:
    """Same arguments and result as `batchmill.kernels.gelu_and_mul.gelu_and_mul`."""
    check_device("gelu_and_mul", gelu_and_mul_kernel, gate_up)
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        gelu_and_mul_kernel[(num_tokens, triton.cdiv(size, BLOCK))](
            out, gate_up.contiguous(), size, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=True
        )
    return out
