"""Load a model and print, as JSON, the memory that loading took.

Arguments: the folder of a tiny model, the folder of the model, the dtype, and `model_impl`.

It runs in its own process, because earlier work would raise the peak.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from batchmill.engine.loading.loading import load_model


def memory_bytes(field: str) -> int:
    """Return a figure of this process, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


def main() -> None:
    """Load twice: first a tiny model, so that libraries and kernels are in memory already."""
    tiny, folder, dtype, model_impl = sys.argv[1:]
    load_model(tiny, dtype=dtype, device="cpu", model_impl=model_impl)
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    loaded = load_model(folder, dtype=dtype, device="cpu", model_impl=model_impl)
    peak = memory_bytes("VmHWM")
    print(
        json.dumps(
            {
                "peak_growth": peak - before,
                "growth": memory_bytes("VmRSS") - before,
                "architecture": loaded.config.architecture,
            }
        )
    )


if __name__ == "__main__":
    main()
