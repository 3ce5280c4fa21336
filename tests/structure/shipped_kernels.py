"""Loads the compiled kernels of an installed wheel, with no compiler; run by the release workflow.

It needs nothing but the wheel's own files, so it works in every environment.
"""

from __future__ import annotations

import os

from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import isas_of_architecture, supported_isas
from batchmill.kernels.cpu.library import load_library


def main() -> None:
    """Find a library for every instruction set, and load those that this CPU can run.

    Raises:
        RuntimeError: the wheel lacks a library.
        CppBuildError: a library is missing or cannot be loaded.
    """
    os.environ["PATH"] = ""  # no compiler, so what is found was shipped
    os.environ["BATCHMILL_CACHE_DIR"] = "/nonexistent"
    for isa in isas_of_architecture():
        path = build_library(isa)
        if isa in supported_isas():
            load_library(path)
        print(isa.name, path)


if __name__ == "__main__":
    main()
