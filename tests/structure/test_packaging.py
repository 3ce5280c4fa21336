"""Every way to install contains the files of the checkout: wheel, sdist, editable install."""

from __future__ import annotations

import os
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

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "kernels", "producer", "worker")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
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
    """Return every file of the four folders that an installed package must contain."""
    return {
        path.relative_to(root).as_posix()
        for folder in FOLDERS
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


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    folders = {
        Path(path).parent.as_posix()
        for path in tracked_files()
        if path.endswith(".py") and path.split("/")[0] in FOLDERS
    }
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    wanted = {f"batchmill.{folder.replace('/', '.')}" for folder in {*folders, *FOLDERS}}
    assert listed == sorted(wanted)
    mapped = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert mapped == {f"batchmill.{folder}": folder for folder in FOLDERS}


def test_no_python_file_lies_outside_the_known_folders() -> None:
    known = {*FOLDERS, "tests", "examples", "compose", "docs"}
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
    assert [folder for folder in FOLDERS if not (ROOT / folder / "py.typed").is_file()] == []


def test_kernels_stays_a_namespace_folder() -> None:
    # With an __init__.py it would shadow Hugging Face's `kernels` in programs run from the root.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_links_for_type_checkers_lead_to_the_folders() -> None:
    links = {link.name: os.readlink(link) for link in (ROOT / ".dev" / "batchmill").iterdir()}
    assert links == {folder: f"../../{folder}" for folder in FOLDERS}


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
    assert members == {f"batchmill/{path}" for path in shipped_files(built.tree)}


def test_the_sdist_contains_every_source_file_the_licence_and_the_readme(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        members = {name.partition("/")[2] for name in sdist.getnames()}
    assert shipped_files(built.tree) | {"LICENSE", "README.md", "pyproject.toml"} <= members


def test_an_installed_wheel_is_imported_from_its_environment(built: Built, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "fresh")
    pip_install(python, built.wheel, cwd=tmp_path)
    show = "import batchmill.producer as p; print(p.__file__, p.Client.__name__)"
    file, name = run(python, "-c", show, cwd=tmp_path).split()
    assert Path(file).is_relative_to(tmp_path / "fresh")
    assert name == "Client"


def test_an_editable_install_works_from_any_folder(tree: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "fresh")
    pip_install(python, "--no-build-isolation", "-e", tree, cwd=tmp_path)
    show = "import batchmill.producer, batchmill.engine as e; print(e.__file__)"
    for cwd in (Path("/"), tmp_path):
        file = Path(run(python, "-c", show, cwd=cwd).strip())
        assert file == tree / "engine" / "__init__.py"
    help_text = run(tmp_path / "fresh" / "bin" / "batchmill", "--help", cwd=Path("/"))
    assert "submit" in help_text
