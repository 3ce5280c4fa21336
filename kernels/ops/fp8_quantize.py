"""Rows of numbers in eight bits, each with a scale of its own.

    quantize_fp8(x)[row] = round(x[row] / scale[row]),    scale[row] = max |x[row]| / 448

448 is the largest number that float8_e4m3fn holds. A row's numbers and scale depend on that row
alone, whatever batch it is in.

Source: FP8 Formats for Deep Learning, Micikevicius et al. 2022, sections 3 and 4.
"""

from __future__ import annotations

from torch import Tensor

from batchmill.kernels.reference.fp8_rows import Fp8Rows, quantize_fp8_reference

from .dispatch import Backend, lazy_triton, select_backend


def quantize_fp8(x: Tensor, *, backend: Backend = "auto") -> Fp8Rows:
    """Quantize each row by its largest magnitude, ties to even.

    Args:
        x: [num_rows, size], contiguous in the last dimension.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        The rows; one of zeros has the scale 0; one that is not finite has the scale NaN and zeros
        for numbers, so that whatever it is multiplied by becomes NaN, and no other row notices.

    Raises:
        ValueError: x is no matrix.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be [num_rows, size], got {list(x.shape)}")
    return select_backend("quantize_fp8", _BACKENDS, backend, x.device)(x)


_BACKENDS = {
    "reference": quantize_fp8_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.fp8_quantize", "quantize_fp8_triton", like=quantize_fp8_reference
    ),
}
