"""The activation of gpt-oss: a gate that is clamped and sharpened, and a factor that is never 0.

    out = min(gate, limit) * sigmoid(alpha * min(gate, limit)) * (clamp(up, -limit, limit) + 1)

Source: OpenAI's gpt-oss, `swiglu`, as in transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clamped_swiglu(gate_up: Tensor, *, alpha: float, limit: float) -> Tensor:
    """Compute [num_tokens, size] from gate and up, [num_tokens, 2 * size], in float32.

    Plain torch on every device: no backend has a kernel of its own.

    Args:
        gate_up: The gate's columns, then the others'.
        alpha: Factor on the gate within the sigmoid.
        limit: Largest gate, and largest magnitude of the others.

    Returns:
        The result, in the dtype of `gate_up`.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (gate * torch.sigmoid(alpha * gate) * (up + 1)).to(gate_up.dtype)
