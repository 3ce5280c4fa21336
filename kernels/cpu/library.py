"""Load the compiled kernels and describe their C functions to ctypes."""

from __future__ import annotations

import ctypes
import logging
from ctypes import c_float, c_int, c_long, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

from batchmill.kernels.errors import CppBuildError

from .build import build_library
from .isa import best_isa

_log = logging.getLogger(__name__)

#: bm_abi_version() of the sources that the signatures below describe.
_ABI_VERSION = 10

_P, _I, _L, _F = c_void_p, c_int, c_long, c_float
#: name: (result, arguments), in the order of the C++ sources.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bm_paged_attention": (_I, [_P] * 7 + [_I] * 8 + [_L] * 5 + [_F, _I, _P, _I, _I]),
    "bm_rms_norm": (None, [_P] * 4 + [_I, _I, _L, _F, _I, _I]),
    "bm_silu_and_mul": (None, [_P, _P, _I, _I, _L, _I, _I]),
    "bm_rope": (None, [_P] * 3 + [_I] * 4 + [_L, _I, _I]),
    "bm_write_kv": (_I, [_P] * 5 + [_I] + [_L] * 4 + [_I]),
    "bm_linear_packed_lanes": (_L, [_I, _I, _I]),
    "bm_linear_pack": (None, [_P, _P, _I, _I, _I, _I]),
    "bm_linear_panel": (_I, []),
    "bm_linear": (None, [_P] * 4 + [_I] * 3 + [_L, _L] + [_I] * 4),
    "bm_int8_packed_lanes": (_L, [_I, _I]),
    "bm_int8_pack": (None, [_P, _P] + [_I] * 4),
    "bm_int8_quantize": (None, [_P] * 3 + [_I, _I, _L, _I, _I]),
    "bm_int8_linear": (None, [_P] * 5 + [_I] * 3 + [_L] + [_I] * 3),
    "bm_add_lora": (None, [_P] * 3 + [_I, _P, _I, _I, _L] + [_I] * 3),
    "bm_int4_packed_lanes": (_L, [_I] * 4),
    "bm_int4_pack": (None, [_P] * 4 + [_I] * 4),
    "bm_int4_quantize": (None, [_P] * 3 + [_I, _I, _L, _I, _I]),
    "bm_int4_linear": (None, [_P] * 5 + [_I] * 5 + [_L] + [_I] * 3),
    "bm_decoder_layers": (_I, [_P, _P, _P]),
    "bm_sample": (None, [_P] * 8 + [_I, _I, _L, _I]),
    "bm_rope_and_cache": (_I, [_P] * 8 + [_F] + [_I] * 5 + [_L, _L, _I, _I]),
}


def load_library(path: Path) -> ctypes.CDLL:
    """Open a built library and set the types of its functions.

    Raises:
        CppBuildError: the library cannot be opened, or was built from other sources.
    """
    try:
        library = ctypes.CDLL(str(path))
        version = library.bm_abi_version()
        if version != _ABI_VERSION:
            raise CppBuildError(
                f"{path} has kernel interface {version}, but this code needs {_ABI_VERSION}: "
                "delete the file"
            )
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise CppBuildError(
            f"cannot load {path}: {error}; delete the file to build it again"
        ) from error
    return library


@lru_cache(maxsize=1)
def default_library() -> ctypes.CDLL:
    """Return the kernels for this CPU's best instruction set, built and loaded once per process.

    Raises:
        CppBuildError: the kernels cannot be built or loaded.
    """
    return load_library(build_library(best_isa()))


@lru_cache(maxsize=1)
def cpp_is_usable() -> bool:
    """Return whether the C++ kernels can be used; if not, log the reason once per process."""
    try:
        default_library()
    except CppBuildError as error:
        _log.warning(
            "the C++ kernels cannot be used; plain torch runs instead, about half as fast: %s",
            error,
        )
        return False
    return True
