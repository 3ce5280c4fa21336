"""Figures of compiled kernels in a file, each under a digest of all that they depend on.

Compiling every kernel for every architecture takes minutes, and the figures change only with the
kernels, their tuning and Triton. A row whose digest is not in the file is compiled again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import triton

from . import launches
from .shipped_launches import Variant

FILE = Path(__file__).with_name("compiled_rows.jsonl")

Row = dict[str, Any]


def digest(variant: Variant, arch: int) -> str:
    """Return the digest of a launch and its name on an architecture.

    It covers the source of the kernel and of all that it calls, as Triton's own cache does, the
    types and constants of the launch, the compiler's version, and the code that reads the figures.
    """
    launch = variant.launch
    parts = (
        variant.label,
        launch.kernel.cache_key,
        sorted(launch.signature.items()),
        sorted(launch.constants.items()),
        sorted(launch.aligned),
        sorted(launch.options.items()),
        arch,
        triton.__version__,
        Path(launches.__file__).read_text(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def read_rows() -> dict[str, Row]:
    """Return the rows of the file by their digest."""
    rows = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    return {row["digest"]: row for row in rows}


def write_rows(rows: Iterable[Row]) -> None:
    """Replace the file by these rows."""
    FILE.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
