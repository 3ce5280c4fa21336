"""Building the C++ kernels: once, safely, ahead of time, and what happens without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from batchmill.kernels.cpu import build
from batchmill.kernels.cpu.build import build_library, cache_folder, find_built
from batchmill.kernels.cpu.isa import ISAS, best_isa
from batchmill.kernels.cpu.library import load_library
from batchmill.kernels.errors import CppBuildError

#: Prints `rms_norm` of ones, by the backend on the command line.
USE_KERNELS = """
import logging, sys, torch
logging.basicConfig(format="%(levelname)s %(message)s")
from batchmill.kernels.ops.rms_norm import rms_norm
for _ in range(2):
    print(rms_norm(torch.ones(1, 4), torch.ones(4), 0.0, backend=sys.argv[1]).tolist())
"""
ONES = "[[1.0, 1.0, 1.0, 1.0]]\n" * 2


def start_python(code: list[str], **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *code],
        env={**os.environ, **changes},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def use_kernels(backend: str, **changes: str) -> tuple[str, str]:
    return start_python(["-c", USE_KERNELS, backend], **changes).communicate(timeout=120)


def test_without_a_compiler_torch_runs_instead_with_one_warning(tmp_path: Path) -> None:
    out, err = use_kernels("auto", PATH=str(tmp_path), BATCHMILL_CACHE_DIR=str(tmp_path))
    assert out == ONES
    assert err.count("WARNING") == 1
    assert "no C++ compiler on PATH" in err
    assert "install g++ or clang++" in err


def test_without_a_compiler_backend_cpp_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    out, err = use_kernels("cpp", PATH=str(tmp_path), BATCHMILL_CACHE_DIR=str(tmp_path))
    assert out == ""
    assert "CppBuildError: no C++ compiler on PATH" in err


def test_a_failing_compiler_is_named_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such flag >&2\nexit 3\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(
        CppBuildError, match=r"c\+\+ failed on the baseline kernels \(exit 3\)"
    ) as e:
        build_library(ISAS[-1], tmp_path)
    assert "no such flag" in str(e.value)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.fixture(scope="module")
def built_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a cache folder in which two processes built at once, and what they printed."""
    folder = tmp_path_factory.mktemp("built-twice")
    command = ["-m", "batchmill.kernels.cpu.build", "--cache-dir", str(folder)]
    builders = [start_python(command) for _ in range(2)]
    results = [builder.communicate(timeout=280) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], results
    return folder, [out for out, _ in results]


def test_two_processes_that_build_at_once_share_one_library(
    built_twice: tuple[Path, list[str]],
) -> None:
    folder, printed = built_twice
    paths = set(printed)
    assert len(paths) == 1
    built = Path(paths.pop().strip())
    assert list(folder.rglob("*.so")) == [built]
    assert not list(folder.rglob("*.partial"))
    load_library(built)


def test_a_library_built_ahead_of_time_needs_no_compiler(
    built_twice: tuple[Path, list[str]], tmp_path: Path
) -> None:
    out, err = use_kernels("cpp", PATH=str(tmp_path), BATCHMILL_CACHE_DIR=str(built_twice[0]))
    assert (out, err) == (ONES, "")


def test_a_built_library_is_used_again(
    built_twice: tuple[Path, list[str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    folder, printed = built_twice
    built = Path(printed[0].strip())
    assert find_built(best_isa(), folder) == built
    built_at = built.stat().st_mtime_ns
    assert build_library(best_isa(), folder) == built
    assert built.stat().st_mtime_ns == built_at  # not compiled again
    assert caplog.records == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_built(best_isa(), folder) == built


@pytest.mark.nightly
def test_the_baseline_library_is_built_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    assert find_built(ISAS[-1], tmp_path) is None
    first = build_library(ISAS[-1], tmp_path)
    said = [record.getMessage().split(" for baseline")[0] for record in caplog.records]
    assert said == ["compiling the C++ kernels", "built the C++ kernels"]
    assert find_built(ISAS[-1], tmp_path) == first
    built_at = first.stat().st_mtime_ns
    assert build_library(ISAS[-1], tmp_path) == first
    assert first.stat().st_mtime_ns == built_at  # not compiled again
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_built(ISAS[-1], tmp_path) == first


def installed_wheel(folder: Path) -> Path:
    """Return the kernels of an installed wheel that has this CPU's library, under a path entry."""
    kernels = folder / "batchmill" / "kernels"
    ignored = shutil.ignore_patterns("__pycache__", "gpu", "ops", "reference")
    shutil.copytree(Path(build.__file__).parents[1], kernels, ignore=ignored)
    built = build_library(best_isa())
    (kernels / "cpu" / "built").mkdir()
    # The cache has a folder for each hash of the sources.
    shipped = kernels / "cpu" / "built" / f"{best_isa().name}-{built.parent.name}.so"
    shutil.copy(built, shipped)
    return shipped


def load_shipped(folder: Path) -> tuple[str, str]:
    """Load the kernels of an installed wheel without a compiler and without a cache."""
    code = (
        "from batchmill.kernels.cpu.library import default_library; print(default_library()._name)"
    )
    empty = {"PATH": str(folder), "BATCHMILL_CACHE_DIR": str(folder / "cache")}
    return start_python(["-S", "-c", code], PYTHONPATH=str(folder), **empty).communicate(timeout=60)


def test_kernels_of_a_wheel_need_no_compiler_and_no_cache(tmp_path: Path) -> None:
    shipped = installed_wheel(tmp_path)
    assert load_shipped(tmp_path) == (f"{shipped}\n", "")
    assert not (tmp_path / "cache").exists()


def test_kernels_of_a_wheel_are_not_used_for_changed_sources(tmp_path: Path) -> None:
    shipped = installed_wheel(tmp_path)
    with (shipped.parents[1] / "ops.h").open("a") as source:
        source.write("// changed\n")
    out, err = load_shipped(tmp_path)
    assert (out, "no C++ compiler on PATH" in err) == ("", True)


def test_a_cache_folder_that_cannot_be_created_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CppBuildError, match="BATCHMILL_CACHE_DIR"):
        build_library(ISAS[-1], tmp_path / "file")


def test_a_damaged_library_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"\x7fELF")
    with pytest.raises(CppBuildError, match="delete the file"):
        load_library(tmp_path / "broken.so")


def test_the_environment_decides_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_CACHE_DIR", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_folder() == Path("/one")
    monkeypatch.delenv("BATCHMILL_CACHE_DIR")
    assert cache_folder() == Path("/two/batchmill")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_folder() == Path("/home/user/.cache/batchmill")
