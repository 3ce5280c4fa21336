"""Every way to install contains the files of the checkout: wheel, sdist, editable install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from batchmill.kernels.cpu.isa import isas_of_architecture

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "kernels", "producer", "worker")
#: The folder of the package `batchmill` itself.
PACKAGE = "package"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHOW = (
    "import batchmill.engine, batchmill; from batchmill import Client; "
    "print(batchmill.engine.__file__, Client.__name__, batchmill.__version__)"
)
MAIN_SITE_PACKAGES = sysconfig.get_paths()["purelib"]


@dataclass(frozen=True, slots=True)
class Built:
    """One isolated build of a copy of the working tree."""

    tree: Path
    wheel: Path
    sdist: Path


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command without this process's Python settings; return its output, or fail with it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked_files() -> list[str]:
    """Return every file that git tracks or would add, relative to the root."""
    listed = run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT)
    return sorted(path for path in listed.split("\0") if path and os.path.lexists(ROOT / path))


def shipped_files(root: Path) -> set[str]:
    """Return every file that an installed package must contain, relative to the root."""
    return {
        path.relative_to(root).as_posix()
        for folder in (*FOLDERS, PACKAGE)
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def new_environment(folder: Path) -> Path:
    """Create a bare virtual environment that sees this one's dependencies, but not its batchmill.

    The `.pth` entry adds a folder to the path without running that folder's own `.pth` files, so
    an editable install in this environment is not visible.

    Returns:
        Its Python.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(MAIN_SITE_PACKAGES + "\n")
    return folder / "bin" / "python"


def pip_install(python: Path, *arguments: object, cwd: Path) -> None:
    """Install into another environment with this one's pip, from local files only."""
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree as git sees it: no environment, no caches, links unchanged."""
    copy = tmp_path_factory.mktemp("tree") / "checkout"
    for path in tracked_files():
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, and the wheel built from it, each in an isolated build environment."""
    dist = tmp_path_factory.mktemp("dist")
    constraints = str(tree / "constraints.txt")
    run(sys.executable, "-m", "build", "-o", dist, tree, cwd=dist, PIP_CONSTRAINT=constraints)
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    return Built(tree, wheel, sdist)


def test_every_folder_with_files_is_a_listed_package() -> None:
    # One with data files alone as well: setuptools warns that it would leave it out.
    folders = {
        Path(path).parent.as_posix() for path in tracked_files() if path.split("/")[0] in FOLDERS
    }
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    wanted = {f"batchmill.{folder.replace('/', '.')}" for folder in {*folders, *FOLDERS}}
    assert listed == ["batchmill", *sorted(wanted)]
    mapped = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert mapped == {"batchmill": PACKAGE} | {f"batchmill.{folder}": folder for folder in FOLDERS}


def test_no_python_file_lies_outside_the_known_folders() -> None:
    known = {*FOLDERS, PACKAGE, ".dev", "tests", "examples", "compose", "docs"}
    strays = [p for p in tracked_files() if p.endswith(".py") and p.split("/")[0] not in known]
    assert set(strays) <= {"setup.py"}


def test_every_data_file_matches_a_package_data_pattern() -> None:
    globs_of = PYPROJECT["tool"]["setuptools"]["package-data"]
    patterns = [
        # A pattern of one package is relative to its folder; "*" stands for every package.
        f"{package.removeprefix('batchmill.').replace('.', '/')}/{pattern}"
        for package, globs in globs_of.items()
        for pattern in globs
    ]
    data = [p for p in tracked_files() if p.split("/")[0] in FOLDERS and not p.endswith(".py")]
    uncovered = [p for p in data if not any(fnmatch(p, pattern) for pattern in patterns)]
    assert uncovered == []


def test_every_folder_has_a_marker_for_type_checkers() -> None:
    assert [
        folder for folder in (*FOLDERS, PACKAGE) if not (ROOT / folder / "py.typed").is_file()
    ] == []


def test_kernels_stays_a_namespace_folder() -> None:
    # With an __init__.py it would shadow Hugging Face's `kernels` in programs run from the root.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_links_for_type_checkers_lead_to_the_folders() -> None:
    links = {link.name: os.readlink(link) for link in (ROOT / ".dev" / "batchmill").iterdir()}
    files = ("__init__.py", "py.typed")
    assert links == {folder: f"../../{folder}" for folder in FOLDERS} | {
        name: f"../../{PACKAGE}/{name}" for name in files
    }


def test_every_direct_dependency_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *PYPROJECT["dependency-groups"]["dev"]]
    for extra in ("worker", "embedded", "monitor"):
        wanted += project["optional-dependencies"][extra]
    names = {requirement.split(">")[0].split("[")[0].lower() for requirement in wanted}
    assert names - pinned == set()


def test_the_wheel_contains_every_source_file_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        members = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert members == {
        f"batchmill/{path.removeprefix(f'{PACKAGE}/')}" for path in shipped_files(built.tree)
    }


def test_the_sdist_contains_every_source_file_the_licence_and_the_readme(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        members = {name.partition("/")[2] for name in sdist.getnames()}
    assert shipped_files(built.tree) | {"LICENSE", "README.md", "pyproject.toml"} <= members


def test_a_release_wheel_has_compiled_kernels_and_absolute_links(
    tree: Path, tmp_path: Path
) -> None:
    # Compiling takes minutes: this compiler only makes the files.
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\n')
    compiler.chmod(0o755)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    environment = {
        "PATH": f"{compiler.parent}:{os.environ['PATH']}",
        "BATCHMILL_BUILD_KERNELS": "1",
        "BATCHMILL_REPOSITORY_URL": "https://example.org/batchmill",
    }
    run(*pip, "--wheel-dir", tmp_path, tree, cwd=tmp_path, **environment)
    (path,) = tmp_path.glob("*.whl")
    # One wheel for every Python of this architecture.
    assert re.fullmatch(r"batchmill-[\d.]+-py3-none-linux_\w+\.whl", path.name)
    with zipfile.ZipFile(path) as wheel:
        libraries = {
            Path(name).name.partition("-")[0]: wheel.read(name).decode()
            for name in wheel.namelist()
            if name.startswith("batchmill/kernels/cpu/built/")
        }
        (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        described = wheel.read(metadata).decode()
    assert set(libraries) == {isa.name for isa in isas_of_architecture()}
    for isa in isas_of_architecture():
        assert all(flag in libraries[isa.name] for flag in isa.flags)
    assert "\nProject-URL: Source, https://example.org/batchmill\n" in described
    links = re.findall(r"\]\(([^)#]\S*?)\)", described)
    assert [link for link in links if not link.startswith("https://")] == []


def test_an_installed_wheel_is_imported_from_its_environment(built: Built, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "fresh")
    pip_install(python, built.wheel, cwd=tmp_path)
    # Also in the root of the checkout, whose folders must not be taken for the package.
    for cwd in (tmp_path, built.tree):
        file, name, version = run(python, "-c", SHOW, cwd=cwd).split()
        assert Path(file).is_relative_to(tmp_path / "fresh")
        assert (name, version) == ("Client", PYPROJECT["project"]["version"])


def test_an_editable_install_works_from_any_folder(tree: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "fresh")
    pip_install(python, "--no-build-isolation", "-e", tree, cwd=tmp_path)
    for cwd in (Path("/"), tmp_path, tree):
        file, name, version = run(python, "-c", SHOW, cwd=cwd).split()
        assert Path(file) == tree / "engine" / "__init__.py"
        assert (name, version) == ("Client", PYPROJECT["project"]["version"])
    help_text = run(tmp_path / "fresh" / "bin" / "batchmill", "--help", cwd=Path("/"))
    assert "submit" in help_text
