"""Libraries of this CPU and tolerances, for the tests of C++ backends."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import Isa, supported_isas
from batchmill.kernels.cpu.library import load_library

#: Results are rounded once, to 2^-9 or 2^-12 of values up to 4; bf16 also rounds the weights.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}

#: The instruction sets named for VNNI differ from the next one in int8 products only.
ISAS_OF_FLOATS = [isa for isa in supported_isas() if not isa.name.endswith("_vnni")]
isas = pytest.mark.parametrize("isa", ISAS_OF_FLOATS, ids=lambda isa: isa.name)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@lru_cache
def library(isa: Isa) -> ctypes.CDLL:
    return load_library(build_library(isa))


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(
        got.float(), want.float(), atol=TOLERANCES[got.dtype], rtol=TOLERANCES[got.dtype] / 4
    )
