"""Public names exist, are complete and sorted; folders import one another in one direction."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: The other folders, or packages in them, that each folder may import.
ALLOWED_FOLDERS = {
    "kernels": set(),
    "engine": {"kernels"},
    "producer": {"engine.contract"},
    "worker": {"engine", "producer"},
}
#: Libraries that a folder must not import, because its users need not install them.
FORBIDDEN_LIBRARIES = {
    "kernels": {"celery", "kombu", "pydantic", "pydantic_settings", "redis", "valkey"},
    "engine": {"celery", "kombu", "pydantic", "pydantic_settings", "redis", "valkey"},
    "producer": {"celery", "flower", "kombu", "torch", "transformers", "triton"},
    "worker": set(),
}
#: Host-only packages of the engine: they are testable without a tensor library.
WITHOUT_TORCH = ("lifecycle", "scheduling")


def source_files(folder: str) -> list[Path]:
    """Return every Python file of a folder and its packages."""
    return sorted((ROOT / folder).rglob("*.py"))


def test_the_rules_see_every_source_file() -> None:
    # A rule that saw only the files at the root would pass, because all files lie in packages.
    assert sum(len(source_files(folder)) for folder in ALLOWED_FOLDERS) > 250


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every absolutely imported module of a file, including nested and lazy imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.lineno, node.module
            # `from batchmill import engine` names the folder only in its alias.
            if node.module == "batchmill":
                yield from ((node.lineno, f"batchmill.{alias.name}") for alias in node.names)


def import_problem(folder: str, module: str) -> str | None:
    """Return why a file of `folder` may not import `module`, or None if it may."""
    first, *rest = module.split(".")
    if first in FORBIDDEN_LIBRARIES[folder]:
        return f"{folder}/ may not import {first}"
    if first in ALLOWED_FOLDERS:
        return f"write batchmill.{first}, not {first}"
    if first != "batchmill" or not rest:
        return None
    inside = ".".join(rest) + "."
    if any(inside.startswith(f"{allowed}.") for allowed in (folder, *ALLOWED_FOLDERS[folder])):
        return None
    return f"{folder}/ may not import {rest[0]}/"


@pytest.mark.parametrize("folder", sorted(ALLOWED_FOLDERS))
def test_imports_keep_the_one_way_order(folder: str) -> None:
    broken = [
        f"{path.name}:{line}: {module}: {why}"
        for path in source_files(folder)
        for line, module in imported_modules(ast.parse(path.read_text()))
        if (why := import_problem(folder, module)) is not None
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("folder", "module"),
    [
        ("engine", "redis.asyncio"),
        ("engine", "batchmill.producer.protocol.keys"),
        ("kernels", "batchmill.engine"),
        ("producer", "torch"),
        ("producer", "batchmill.engine"),
        ("producer", "batchmill.engine.request.sampling_params"),
        ("producer", "batchmill.worker.app"),
        ("worker", "engine.scheduler"),
        ("worker", "batchmill.kernels.cpu.build"),
    ],
)
def test_a_forbidden_import_is_found(folder: str, module: str) -> None:
    assert import_problem(folder, module) is not None


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_host_only_packages_do_not_import_torch(package: str) -> None:
    files = sorted((ROOT / "engine" / package).glob("*.py"))
    assert files
    heavy = [
        f"{path.name}: {module}"
        for path in files
        for _, module in imported_modules(ast.parse(path.read_text()))
        if module.split(".")[0] in {"torch", "numpy", "transformers"}
    ]
    assert heavy == []


@pytest.mark.parametrize("name", ["batchmill.engine", "batchmill.producer"])
def test_all_is_complete_sorted_and_resolves(name: str) -> None:
    module = importlib.import_module(name)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.level > 0 or (node.module or "").startswith("batchmill."))
        for alias in node.names
    }
    public = {n for n in imported if not n.startswith("_")}
    assert public - set(module.__all__) == set()
    assert list(module.__all__) == sorted(module.__all__)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("batchmill.engine", {"Engine", "EngineConfig", "RequestOutput", "SamplingParams"}),
        ("batchmill.producer", {"AsyncClient", "Client", "GenerationJob"}),
    ],
)
def test_promised_names_are_exported(name: str, promised: set[str]) -> None:
    assert promised <= set(importlib.import_module(name).__all__)


@pytest.mark.parametrize(
    ("name", "heavy"),
    [
        ("batchmill.producer", ("torch", "celery", "kombu", "transformers", "numpy")),
        ("batchmill.engine", ("celery", "kombu", "redis", "pydantic")),
    ],
)
def test_importing_a_folder_does_not_import_heavy_libraries(
    name: str, heavy: tuple[str, ...]
) -> None:
    script = f"import sys, {name}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_package_itself_has_the_producer_s_names_and_loads_them_when_used() -> None:
    script = (
        "import sys, batchmill, batchmill.engine\n"
        "assert 'batchmill.producer' not in sys.modules\n"
        "assert not hasattr(batchmill, 'nothing') and not hasattr(batchmill, '__wrapped__')\n"
        "from batchmill import Client, kernels, worker\n"
        "from batchmill import *\n"
        "import batchmill.producer as producer\n"
        "assert Client is producer.Client and AsyncClient is producer.AsyncClient\n"
        "assert {'Client', 'engine', '__version__'} <= set(dir(batchmill))\n"
        "assert batchmill.__version__[0].isdigit()\n"
        "print(*(name for name in ('torch', 'celery') if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_importing_producer_loads_only_the_contract_of_the_engine() -> None:
    script = (
        "import sys, batchmill.producer\n"
        "print(*sorted(m for m in sys.modules if m.startswith('batchmill.engine')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    package, *modules = done.stdout.split()
    assert package == "batchmill.engine"
    assert modules
    assert [m for m in modules if not m.startswith("batchmill.engine.contract")] == []
