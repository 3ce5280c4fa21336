"""Print, as JSON, the kernels of 4-bit products that warming up does not launch.

It runs in a separate process, because Triton must not interpret its kernels here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[3]))

from batchmill.kernels.gpu import int4_linear
from batchmill.kernels.reference.int4_rows import PackedInt4
from tests.kernels.gpu.launches import record_launches

KERNELS = (int4_linear.int4_linear_kernel, int4_linear.add_int4_parts_kernel)
#: Columns and inputs of weights.
SIZES = ((64, 256), (1024, 4096), (28672, 4096))
ROWS = (*range(1, 140), 512, 8192)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def kinds(call: Callable[[], object]) -> set[str]:
    """Return the kinds of kernels that a call launches."""
    return {
        repr((each.name, each.signature, each.constants, sorted(each.aligned), each.options))
        for each in record_launches(KERNELS, call)
    }


def main() -> None:
    """Compare what rows launch with what warming up launches."""
    missing: list[str] = []
    num_kinds = 0
    for num_columns, num_inputs in SIZES:
        weight = PackedInt4(
            packed=meta(num_inputs // 64, num_columns, 8, dtype=torch.int32),
            scales=meta(num_inputs // 32, num_columns),
            zeros=None,
            group_size=32,
            num_inputs=num_inputs,
        )
        warm = kinds(partial(int4_linear.warm_up_int4_triton, meta(1, num_inputs), weight, None))
        used: set[str] = set()
        for num_rows in ROWS:
            x = meta(num_rows, num_inputs)
            used |= kinds(partial(int4_linear.multiply_int4_triton, x, weight, None))
        missing += sorted(used - warm)
        num_kinds = max(num_kinds, len(used))
    print(json.dumps({"missing": missing, "num_kinds": num_kinds}))


if __name__ == "__main__":
    with patch.object(int4_linear, "num_multiprocessors", return_value=132):
        main()
