"""Compile the C++ kernels: at first use, or ahead of time.

Ahead of time: `python -m batchmill.kernels.cpu.build`, with `--isa all` for unknown machines.

A library is kept in the cache folder under the hash of its sources and flags and the compiler's
version, so that a changed kernel or compiler builds anew and several versions live side by side.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from batchmill.kernels.errors import CppBuildError

from .isa import ISAS, Isa, best_isa

_log = logging.getLogger(__name__)

_SOURCE_FOLDER = Path(__file__).resolve().parent
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    # Neither errno nor exception flags are read; without these the vector code is not formed.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_COMPILE_TIMEOUT_S = 300


def cache_folder() -> Path:
    """Where built libraries are kept: BATCHMILL_CACHE_DIR, else in the user's cache folder."""
    own = os.environ.get("BATCHMILL_CACHE_DIR")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "batchmill"


def find_compiler() -> str | None:
    """Path of a C++ compiler, or None."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def build_library(isa: Isa, cache: Path | None = None) -> Path:
    """Path of the kernels compiled for one instruction set; compiles them if they are not there.

    Safe for several processes at once: one builds, the others wait for it. Without a compiler, a
    library that any compiler built from these very sources will do.

    Args:
        isa: The instruction set; it need not be one that this CPU has.
        cache: Cache folder; None takes `cache_folder()`.

    Raises:
        CppBuildError: there is no compiler, it failed, or the folder cannot be written.
    """
    compiler = find_compiler()
    if (built := _find_built(isa, compiler, cache)) is not None:
        return built
    folder = _folder(isa, cache)
    if compiler is None:
        raise CppBuildError(
            f"no C++ compiler on PATH (looked for {', '.join(_COMPILERS)}) and no kernels built "
            f"before in {folder}: install g++ or clang++, or build them elsewhere with `python -m "
            "batchmill.kernels.cpu.build` and point BATCHMILL_CACHE_DIR at the result"
        )
    target = folder / f"{isa.name}-{_compiler_hash(compiler)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / f"{isa.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(compiler, isa, target)
    except OSError as error:
        raise CppBuildError(
            f"cannot write the built kernels to {folder}: {error}; set BATCHMILL_CACHE_DIR to a "
            "folder that can be written"
        ) from error
    return target


def find_built(isa: Isa, cache: Path | None = None) -> Path | None:
    """Path of the library that `build_library` would return without compiling, or None.

    Raises:
        CppBuildError: the sources are not there, or the compiler does not run.
    """
    return _find_built(isa, find_compiler(), cache)


def _find_built(isa: Isa, compiler: str | None, cache: Path | None) -> Path | None:
    made_by = "*" if compiler is None else _compiler_hash(compiler)
    return next(iter(sorted(_folder(isa, cache).glob(f"{isa.name}-{made_by}.so"))), None)


def _folder(isa: Isa, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "kernels" / _source_hash(isa)


def _compile(compiler: str, isa: Isa, target: Path) -> None:
    """Compile into a temporary file beside the target, then rename: nobody sees half a library."""
    sources = sorted(map(str, _SOURCE_FOLDER.glob("*.cpp")))
    _log.info("compiling the C++ kernels for %s with %s: once, some seconds", isa.name, compiler)
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, *isa.flags, *sources, "-o", partial]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
        if done.returncode:
            last_lines = "\n".join(done.stderr.strip().splitlines()[-20:])
            raise CppBuildError(
                f"{compiler} failed on the {isa.name} kernels (exit {done.returncode}); g++ 11 or "
                f"clang++ 14 and later are known to do:\n{last_lines}"
            )
        os.replace(partial, target)
        _log.info("built the C++ kernels for %s: %s", isa.name, target)
    except subprocess.TimeoutExpired as error:
        raise CppBuildError(
            f"{compiler} took more than {_COMPILE_TIMEOUT_S} s on the {isa.name} kernels: build "
            "them ahead of time with `python -m batchmill.kernels.cpu.build`"
        ) from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _source_hash(isa: Isa) -> str:
    digest = hashlib.sha256(" ".join((*_FLAGS, *isa.flags)).encode())
    sources = sorted((*_SOURCE_FOLDER.glob("*.cpp"), *_SOURCE_FOLDER.glob("*.h")))
    if not sources:
        raise CppBuildError(
            f"the kernels' sources (*.cpp) are not in {_SOURCE_FOLDER}: the installation is "
            "incomplete, install the package again"
        )
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _compiler_hash(compiler: str) -> str:
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise CppBuildError(
            f"{compiler} does not run ({error}): repair it, or put another compiler on PATH"
        ) from error
    return hashlib.sha256(version).hexdigest()[:12]


def main() -> int:
    """Build ahead of time, and print the path of each library."""
    parser = argparse.ArgumentParser(
        prog="python -m batchmill.kernels.cpu.build", description="Compile the C++ kernels."
    )
    parser.add_argument(
        "--isa",
        choices=[*(isa.name for isa in ISAS), "best", "all"],
        default="best",
        help="instruction set to build for; `all` where the target machine is not known",
    )
    parser.add_argument(
        "--cache-dir", type=Path, help="default: BATCHMILL_CACHE_DIR, else the user's cache"
    )
    arguments = parser.parse_args()
    chosen = [isa for isa in ISAS if arguments.isa in (isa.name, "all")] or [best_isa()]
    try:
        for isa in chosen:
            print(build_library(isa, arguments.cache_dir))
    except CppBuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
