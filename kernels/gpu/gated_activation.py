"""Triton backends of `silu_and_mul` and `gelu_and_mul`."""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import CachedLaunch, check_device

#: Outputs per program: 8 per thread at 4 warps, one 16-byte access each for gate and up.
BLOCK = 1024


@triton.jit
def activate_and_multiply(gate, up, IS_GELU: tl.constexpr):
    """Activate float32 gates and multiply by `up`."""
    # Both are gate * sigmoid(x). silu: x = gate.
    x = gate
    if IS_GELU:
        # (1 + tanh(u)) / 2 = sigmoid(2u), with 2 sqrt(2 / pi) as the factor.
        x = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    # exp of a negative number only: of a large positive one it would be infinite.
    decay = tl.exp(-tl.abs(x))
    return gate * tl.where(x < 0, decay, 1.0) / (1.0 + decay) * up


@triton.jit
def gated_activation_kernel(
    out,  # [num_tokens, size]
    gate_up,  # [num_tokens, 2 * size], contiguous
    size,
    IS_GELU: tl.constexpr,  # else silu
    BLOCK: tl.constexpr,
):
    """Program (t, b): BLOCK outputs of token t, in float32, rounded once."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < size
    gate_row = gate_up + token * (2 * size)
    gate = tl.load(gate_row + columns, mask, 0.0).to(tl.float32)
    up = tl.load(gate_row + size + columns, mask, 0.0).to(tl.float32)
    product = activate_and_multiply(gate, up, IS_GELU)
    tl.store(out + token * size + columns, product.to(out.dtype.element_ty), mask)


def silu_and_mul_triton(gate_up: Tensor) -> Tensor:
    """Compute `silu_and_mul`."""
    return _gated_activation("silu_and_mul", gate_up, is_gelu=False)


def gelu_and_mul_triton(gate_up: Tensor) -> Tensor:
    """Compute `gelu_and_mul`."""
    return _gated_activation("gelu_and_mul", gate_up, is_gelu=True)


def _gated_activation(op: str, gate_up: Tensor, *, is_gelu: bool) -> Tensor:
    check_device(op, gated_activation_kernel, gate_up)
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        _launch_gated_activation(
            (num_tokens, -(-size // BLOCK)), (out, gate_up.contiguous()), (size,),
            IS_GELU=is_gelu, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out


_launch_gated_activation = CachedLaunch(gated_activation_kernel)
