"""The table of backends in docs/architecture.md is that of the ops."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from batchmill.kernels.ops.expert_linear import multiply_experts
from batchmill.kernels.ops.experts import combine_experts, route_experts
from batchmill.kernels.ops.gated_activation import gelu_and_mul, silu_and_mul
from batchmill.kernels.ops.int4_linear import make_int4_linear
from batchmill.kernels.ops.int8_linear import make_int8_linear
from batchmill.kernels.ops.linear import make_linear
from batchmill.kernels.ops.lora import add_lora, add_lora_tiles
from batchmill.kernels.ops.paged_attention import paged_attention
from batchmill.kernels.ops.rms_norm import add_rms_norm, rms_norm
from batchmill.kernels.ops.rope import apply_rope
from batchmill.kernels.ops.rope_and_cache import rope_and_cache
from batchmill.kernels.ops.sample import sample
from batchmill.kernels.ops.write_kv import write_kv
from batchmill.kernels.reference.lora import LoraTiles

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"
BACKENDS = ("reference", "numpy", "cpp", "triton")
ROWS, CACHE, ANGLES = torch.ones(1, 8), torch.ones(1, 1, 1, 8), torch.ones(1, 4)
HEADS, SLOT, ONE = ROWS.view(1, 1, 8), torch.tensor([0]), torch.tensor([1], dtype=torch.int32)
NOWHERE: Any = "nowhere"
#: Every op, asked for a backend that no op has.
CALLS: dict[str, Callable[[], object]] = {
    "paged_attention": lambda: paged_attention(
        HEADS, CACHE, CACHE, ONE.view(1, 1), torch.tensor([0, 1]).int(), ONE, 1.0, backend=NOWHERE
    ),
    "write_kv": lambda: write_kv(HEADS, HEADS, CACHE, CACHE, SLOT, backend=NOWHERE),
    "apply_rope": lambda: apply_rope(HEADS, ANGLES, ANGLES, backend=NOWHERE),
    "rope_and_cache": lambda: rope_and_cache(
        torch.ones(1, 24), CACHE, CACHE, SLOT, ANGLES, ANGLES, backend=NOWHERE
    ),
    "rms_norm": lambda: rms_norm(ROWS, ROWS[0], 0.0, backend=NOWHERE),
    "add_rms_norm": lambda: add_rms_norm(ROWS, ROWS, ROWS[0], 0.0, backend=NOWHERE),
    "silu_and_mul": lambda: silu_and_mul(ROWS, backend=NOWHERE),
    "gelu_and_mul": lambda: gelu_and_mul(ROWS, backend=NOWHERE),
    "route_experts": lambda: route_experts(ROWS, 2, normalise=True, backend=NOWHERE),
    "combine_experts": lambda: combine_experts(
        ROWS, route_experts(ROWS, 1, normalise=True), backend=NOWHERE
    ),
    "multiply_experts": lambda: multiply_experts(ROWS, torch.ones(1, 8, 8), ONE, backend=NOWHERE),
    "linear": lambda: make_linear(ROWS, backend=NOWHERE),
    "int8_linear": lambda: make_int8_linear(ROWS, backend=NOWHERE),
    "int4_linear": lambda: make_int4_linear(ROWS, backend=NOWHERE),
    "add_lora": lambda: add_lora(ROWS, ROWS, (), (8,), backend=NOWHERE),
    "add_lora_tiles": lambda: add_lora_tiles(
        ROWS, ROWS, LoraTiles(SLOT, ONE, ONE.new_empty(0, 3), 8), (8,), backend=NOWHERE
    ),
    "sample": lambda: sample(
        ROWS, torch.ones(1), SLOT, torch.ones(1), torch.ones(1), SLOT, SLOT, backend=NOWHERE
    ),
}


def named_backends() -> dict[str, set[str]]:
    """Return the backends of each op, as the page lists them."""
    section = PAGE.read_text().split("| op | reference |", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| `(\w+)`[^|]*\|(.*)\|$", section, re.MULTILINE)
    found = {}
    for op, cells in rows:
        pairs = zip(BACKENDS, cells.split("|"), strict=True)
        found[op] = {backend for backend, cell in pairs if cell.strip() != "-"}
    return found


@pytest.mark.parametrize("op", CALLS)
def test_an_op_names_its_backends_if_another_is_asked_for(op: str) -> None:
    with pytest.raises(ValueError, match=rf"{op} has no 'nowhere' backend; it has ") as raised:
        CALLS[op]()
    found = set(re.findall(r"'(\w+)'", str(raised.value).split("it has ")[1])) - {"auto"}
    assert found == named_backends()[op]


def test_the_table_has_every_op() -> None:
    assert named_backends().keys() == CALLS.keys()
