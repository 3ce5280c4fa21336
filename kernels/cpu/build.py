"""Compile the C++ kernels: at first use, or ahead of time.

Ahead of time: `python -m batchmill.kernels.cpu.build`, with `--isa all` for unknown machines.

The file name of a library in the cache folder contains the hash of its sources and flags and that
of the compiler's version. So a changed kernel or compiler causes a new build, and several versions
can be stored side by side.
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
    # Nothing reads errno or exception flags; without these two, loops are not vectorised.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_COMPILE_TIMEOUT_S = 300


def cache_folder() -> Path:
    """Return the folder of built kernels and converted models.

    It is BATCHMILL_CACHE_DIR, or else `batchmill` in the user's cache folder.
    """
    configured = os.environ.get("BATCHMILL_CACHE_DIR")
    if configured:
        return Path(configured)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "batchmill"


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, or None."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def build_library(isa: Isa, cache: Path | None = None) -> Path:
    """Return the path of the kernels for one instruction set; compile them if they are missing.

    Several processes may call this at once: one builds, the others wait. Without a compiler, a
    library that any compiler built from the same sources is used.

    Args:
        isa: The instruction set; this CPU need not have it.
        cache: Cache folder; None takes `cache_folder()`.

    Raises:
        CppBuildError: there is no compiler, it failed, or the folder is not writable.
    """
    compiler = find_compiler()
    if (built := _find_built(isa, compiler, cache)) is not None:
        return built
    folder = _folder(isa, cache)
    if compiler is None:
        raise CppBuildError(
            f"no C++ compiler on PATH (looked for {', '.join(_COMPILERS)}) and no built kernels in "
            f"{folder}: install g++ or clang++, or build the kernels elsewhere with `python -m "
            "batchmill.kernels.cpu.build` and set BATCHMILL_CACHE_DIR to the result"
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
            "writable folder"
        ) from error
    return target


def find_built(isa: Isa, cache: Path | None = None) -> Path | None:
    """Return the path that `build_library` would return without compiling, or None.

    Raises:
        CppBuildError: the sources are missing, or the compiler does not run.
    """
    return _find_built(isa, find_compiler(), cache)


def _find_built(isa: Isa, compiler: str | None, cache: Path | None) -> Path | None:
    made_by = "*" if compiler is None else _compiler_hash(compiler)
    return next(iter(sorted(_folder(isa, cache).glob(f"{isa.name}-{made_by}.so"))), None)


def _folder(isa: Isa, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "kernels" / _source_hash(isa)


def _compile(compiler: str, isa: Isa, target: Path) -> None:
    """Compile to a temporary file and rename it, so that no process sees half a library."""
    sources = sorted(map(str, _SOURCE_FOLDER.glob("*.cpp")))
    _log.info(
        "compiling the C++ kernels for %s with %s; this happens once and takes some seconds",
        isa.name,
        compiler,
    )
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, *isa.flags, *sources, "-o", partial]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
        if done.returncode:
            last_lines = "\n".join(done.stderr.strip().splitlines()[-20:])
            raise CppBuildError(
                f"{compiler} failed on the {isa.name} kernels (exit {done.returncode}); g++ 11 and "
                f"clang++ 14 or later are known to work:\n{last_lines}"
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
            f"the kernels' sources (*.cpp) are missing in {_SOURCE_FOLDER}: the installation is "
            "incomplete; install the package again"
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
    """Build libraries ahead of time and print their paths."""
    parser = argparse.ArgumentParser(
        prog="python -m batchmill.kernels.cpu.build", description="Compile the C++ kernels."
    )
    parser.add_argument(
        "--isa",
        choices=[*(isa.name for isa in ISAS), "best", "all"],
        default="best",
        help="instruction set to build for; `all` if the target machine is not known",
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
