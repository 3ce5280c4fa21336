"""Quantize rows to eight-bit floats, each with its own scale.

    quantize_fp8(x)[row] = round(x[row] / scale[row]),    scale[row] = max |x[row]| / 448

448 is the largest number of float8_e4m3fn. A row's numbers and scale depend on that row alone, in
any batch.

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
        The rows. A row of zeros has the scale 0. A row that is not finite has the scale NaN and
        zeros as numbers: its products become NaN and other rows are not affected.

    Raises:
        ValueError: x is not a matrix.
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
