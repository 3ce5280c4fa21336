"""Loads the compiled kernels of an installed wheel, with no compiler; run by the release workflow.

Without an option it needs nothing but the wheel's own files, so it works in every environment. With
`--generate`, a model generates with them, which needs `batchmill[worker]` and the demo model.
"""

from __future__ import annotations

import os
import sys
import tempfile

from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import isas_of_architecture, supported_isas
from batchmill.kernels.cpu.library import load_library


def main() -> None:
    """Find a library for every instruction set, and load those that this CPU can run.

    Raises:
        RuntimeError: the wheel lacks a library.
        CppBuildError: a library is missing or cannot be loaded.
    """
    for isa in isas_of_architecture():
        path = build_library(isa)
        if isa in supported_isas():
            load_library(path)
        print(isa.name, path)


def generate() -> None:
    """Generate with the demo model.

    Raises:
        RuntimeError: the engine does not use the shipped kernels, or the text is wrong.
    """
    from batchmill.engine import Engine, EngineConfig, SamplingParams
    from batchmill.engine.cpu_kernels import inspect_cpu_kernels

    kernels = inspect_cpu_kernels()
    if (
        kernels.compiler is not None
        or kernels.library is None
        or "built" not in kernels.library.parts
    ):
        raise RuntimeError(f"the kernels are not those of the wheel: {kernels}")
    engine = Engine(EngineConfig(model="demo", max_model_len=256))
    params = SamplingParams(temperature=0, max_tokens=8)
    (output,) = engine.generate(["The capital of France is"], params)
    print(kernels.library, repr(output.text))
    if "Paris" not in output.text:
        raise RuntimeError(f"the model wrote {output.text!r}")


if __name__ == "__main__":
    os.environ["PATH"] = ""  # no compiler, so what is found was shipped
    os.environ["BATCHMILL_CACHE_DIR"] = "/nonexistent"
    main()
    if sys.argv[1:] == ["--generate"]:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["BATCHMILL_CACHE_DIR"] = cache
            generate()
