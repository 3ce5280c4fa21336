"""Compile the C++ kernels: into a wheel, at first use, or ahead of time.

A wheel that was built with compiled kernels has them in `built/`, for each instruction set of its
architecture (`setup.py`). Every other install compiles them at first use, or ahead of time with
`python -m batchmill.kernels.cpu.build`, with `--isa all` for unknown machines.

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from batchmill.kernels.errors import CppBuildError

from .isa import Isa, best_isa, isas_of_architecture

_log = logging.getLogger(__name__)

_SOURCE_FOLDER = Path(__file__).resolve().parent
#: Kernels that were compiled when the wheel was built; missing in other installs.
_SHIPPED_FOLDER = _SOURCE_FOLDER / "built"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"),
    # Nothing reads errno or exception flags; without these two, loops are not vectorised.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_COMPILE_TIMEOUT_S = 300.0
#: Nothing waits for a wheel.
_WHEEL_TIMEOUT_S = 1800.0


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

    Several processes may call this at once: one builds, the others wait. A library of the wheel
    comes first. Without a compiler, one that any compiler built from the same sources is used.

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


def build_for_wheel(folder: Path) -> list[Path]:
    """Compile the kernels for every instruction set of this architecture, to ship them in a wheel.

    Args:
        folder: The folder of the libraries: `built` beside this file, in the files of the wheel.

    Raises:
        CppBuildError: no compiler was found, or it failed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CppBuildError(
            f"no C++ compiler on PATH (looked for {', '.join(_COMPILERS)}): install g++ or "
            "clang++, or unset BATCHMILL_BUILD_KERNELS for a wheel without compiled kernels"
        )
    folder.mkdir(parents=True, exist_ok=True)

    def build(isa: Isa) -> Path:
        target = _shipped(isa, folder)
        _compile(compiler, isa, target, _WHEEL_TIMEOUT_S)
        target.chmod(0o755)
        return target

    return [build(isa) for isa in isas_of_architecture()]


def find_built(isa: Isa, cache: Path | None = None) -> Path | None:
    """Return the path that `build_library` would return without compiling, or None.

    Raises:
        CppBuildError: the sources are missing, or the compiler does not run.
    """
    return _find_built(isa, find_compiler(), cache)


def _find_built(isa: Isa, compiler: str | None, cache: Path | None) -> Path | None:
    shipped = _shipped(isa, _SHIPPED_FOLDER)
    if shipped.exists():
        return shipped
    made_by = "*" if compiler is None else _compiler_hash(compiler)
    return next(iter(sorted(_folder(isa, cache).glob(f"{isa.name}-{made_by}.so"))), None)


def _shipped(isa: Isa, folder: Path) -> Path:
    # With the hash, so that changed sources are compiled again and not ignored.
    return folder / f"{isa.name}-{_source_hash(isa)}.so"


def _folder(isa: Isa, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "kernels" / _source_hash(isa)


def _compile(compiler: str, isa: Isa, target: Path, timeout_s: float = _COMPILE_TIMEOUT_S) -> None:
    """Compile to a temporary file and rename it, so that no process sees half a library."""
    sources = sorted(_SOURCE_FOLDER.glob("*.cpp"))
    _log.info(
        "compiling the C++ kernels for %s with %s; this happens once and takes some seconds",
        isa.name,
        compiler,
        extra={"phase": "compiling the CPU kernels, once"},
    )
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    os.close(handle)
    command = [compiler, *_FLAGS, *isa.flags]
    try:
        with tempfile.TemporaryDirectory(prefix="batchmill-kernels-") as folder:
            objects = [str(Path(folder, f"{source.stem}.o")) for source in sources]

            def compile_one(source: Path, target: str) -> None:
                _run([*command, "-c", str(source), "-o", target], isa, timeout_s)

            _on_all_cores(compile_one, sources, objects)
            _run([*command, *objects, "-o", partial], isa, timeout_s)
        os.replace(partial, target)
        _log.info("built the C++ kernels for %s: %s", isa.name, target)
    except subprocess.TimeoutExpired as error:
        raise CppBuildError(
            f"{compiler} took more than {timeout_s:g} s on the {isa.name} kernels: build "
            "them ahead of time with `python -m batchmill.kernels.cpu.build`"
        ) from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _run(command: Sequence[str], isa: Isa, timeout_s: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise CppBuildError(
            f"{command[0]} failed on the {isa.name} kernels (exit {done.returncode}); g++ 11 and "
            f"clang++ 14 or later are known to work:\n{last_lines}"
        )


def _on_all_cores(function: Callable[[Path, str], None], *arguments: Sequence[Any]) -> None:
    """Call a function for each tuple of arguments, and raise its first error."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(function, *arguments))


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
    isas = isas_of_architecture()
    parser.add_argument(
        "--isa",
        choices=[*(isa.name for isa in isas), "best", "all"],
        default="best",
        help="instruction set to build for; `all` if the target machine is not known",
    )
    parser.add_argument(
        "--cache-dir", type=Path, help="default: BATCHMILL_CACHE_DIR, else the user's cache"
    )
    parser.add_argument("--for-wheel", type=Path, help=argparse.SUPPRESS)  # used by setup.py
    arguments = parser.parse_args()
    chosen = [isa for isa in isas if arguments.isa in (isa.name, "all")] or [best_isa()]
    try:
        if arguments.for_wheel is not None:
            built = build_for_wheel(arguments.for_wheel)
        else:
            built = [build_library(isa, arguments.cache_dir) for isa in chosen]
    except CppBuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(*built, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
