"""Load a model and print, as JSON, the memory that loading took.

Arguments: the folder of a tiny model, the folder of the model, the dtype, and `model_impl`; in its
place "fp8" reads the weights as for a GPU, with tensors without data in the place of the GPU's.

It runs in its own process, because earlier work would raise the peak.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from batchmill.engine.loading.computation import read_hf_config
from batchmill.engine.loading.loading import load_model
from batchmill.engine.loading.quantized.formats import quantization_settings, read_scheme
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.families import read_model_config


def memory_bytes(field: str) -> int:
    """Return a figure of this process, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


def read_in_fp8(folder: Path) -> tuple[str, object]:
    """Read a model's weights in fp8 onto a device without memory."""
    values = read_hf_config(folder).to_dict()
    config = read_model_config(values)
    stored_as = quantization_settings(folder, values)
    scheme = None if stored_as is None else read_scheme(stored_as)
    device = torch.device("meta")
    weights = load_weights(
        folder, config, torch.bfloat16, device, layer_device="cpu", scheme=scheme, in_fp8=True
    )
    return config.architecture, weights


def load(folder: Path, dtype: str, model_impl: str) -> tuple[str, object]:
    """Load a model as `model_impl` says; return its architecture and what holds its memory."""
    if model_impl == "fp8":
        return read_in_fp8(folder)
    loaded = load_model(str(folder), dtype=dtype, device="cpu", model_impl=model_impl)
    return loaded.config.architecture, loaded


def main() -> None:
    """Load twice: first a tiny model, so that libraries and kernels are in memory already."""
    tiny, folder, dtype, model_impl = sys.argv[1:]
    load(Path(tiny), dtype, model_impl)
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    architecture, _loaded = load(Path(folder), dtype, model_impl)
    peak = memory_bytes("VmHWM")
    print(
        json.dumps(
            {
                "peak_growth": peak - before,
                "growth": memory_bytes("VmRSS") - before,
                "architecture": architecture,
            }
        )
    )


if __name__ == "__main__":
    main()
