"""The public names are real, complete and sorted; imports between the folders go one way only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Which of our other folders, or packages of them, each folder may import from.
ALLOWED_FOLDERS = {
    "kernels": set(),
    "engine": {"kernels"},
    "producer": {"engine.contract"},
    "worker": {"engine", "producer"},
}
#: Libraries that would break what a folder promises to its users.
FORBIDDEN_LIBRARIES = {
    "kernels": {"celery", "kombu", "pydantic", "pydantic_settings", "redis", "valkey"},
    "engine": {"celery", "kombu", "pydantic", "pydantic_settings", "redis", "valkey"},
    "producer": {"celery", "flower", "kombu", "torch", "transformers", "triton"},
    "worker": set(),
}
#: Host-only packages of the engine: scheduling is testable without a tensor library.
WITHOUT_TORCH = ("lifecycle", "scheduling")


def source_files(folder: str) -> list[Path]:
    """Every Python file of a folder, those of its packages included."""
    return sorted((ROOT / folder).rglob("*.py"))


def test_the_rules_see_every_source_file() -> None:
    # A rule that looks at root files only would pass on a tree whose files lie in packages.
    assert sum(len(source_files(folder)) for folder in ALLOWED_FOLDERS) > 250


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every absolutely imported module of a file, nested and lazy imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.lineno, node.module
            # `from batchmill import engine` names the folder only in its alias.
            if node.module == "batchmill":
                yield from ((node.lineno, f"batchmill.{alias.name}") for alias in node.names)


def why_forbidden(folder: str, module: str) -> str | None:
    """Why a file of `folder` may not import `module`, or None."""
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
        if (why := why_forbidden(folder, module)) is not None
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
def test_the_rule_catches_a_forbidden_import(folder: str, module: str) -> None:
    assert why_forbidden(folder, module) is not None


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_scheduling_is_free_of_torch(package: str) -> None:
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
def test_importing_a_folder_pulls_in_nothing_heavy(name: str, heavy: tuple[str, ...]) -> None:
    script = f"import sys, {name}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_importing_producer_loads_nothing_of_the_engine_but_the_contract() -> None:
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
