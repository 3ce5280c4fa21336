"""The order of the packages: each imports only those before it, and there are no import cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: The packages of each folder, from the bottom to the top; a file at the folder's root counts as
#: one. A package imports only those before it. `docs/architecture.md` shows the same order.
ORDER = {
    "kernels": ("errors", "every_size", "reference", "cpu", "gpu", "ops"),
    "engine": (
        *("contract", "errors", "cpu_kernels", "device_type", "gpus", "model_shape", "watermark"),
        *(
            "text",
            "config",
            "drafts",
            "request",
            "scheduling",
            "step",
            "memory",
            "offload",
            "models",
            "models_hf",
        ),
        *("encoders", "media", "loading", "adapters", "steering"),
        *("watermark_detector", "lifecycle", "sampling", "pooling", "execution", "parallel"),
        *("engine_parts", "engine", "plans", "__init__"),
    ),
    "producer": (
        *("install_hint", "plural", "moments", "protocol", "result_sections", "result_parts"),
        *("vector_sections", "results", "progress", "error_codes"),
        *("errors", "tracing", "secrets_from_files", "encryption", "payloads"),
        *("sentinel_url", "shard_list", "broker_url", "webhook"),
        "media_settings",
        "settings",
        *("job", "files", "store", "watch", "client", "bulk", "schemas", "__init__"),
    ),
    "worker": (
        *("error_codes", "errors", "service_errors", "logs", "terminal", "log_settings"),
        *(
            "metrics",
            "watermark_settings",
            "media_settings",
            "settings",
            "health",
            "outbound",
            "media",
            "engine_host",
            "corpora",
            "jobs",
            "tracing",
            "webhooks",
            "local",
        ),
        *(
            "gateway",
            "rewrap",
            "console",
            "unknown_settings",
            "consumer",
            "app",
            "bench",
            "monitor",
        ),
        *("demo", "chaos", "failover", "cli", "__init__"),
    ),
}
#: The packages that a folder may import from another; all others are private to their folder.
IMPORTABLE = {
    ("producer", "engine"): {"contract"},
    ("engine", "kernels"): {"cpu", "errors", "every_size", "ops", "reference"},
    ("worker", "engine"): {
        *(
            "__init__",
            "adapters",
            "contract",
            "cpu_kernels",
            "errors",
            "gpus",
            "lifecycle",
            "parallel",
            "plans",
            "steering",
        ),
    },
    ("worker", "producer"): {
        *("__init__", "broker_url", "bulk", "client", "encryption", "error_codes", "errors"),
        *("files", "install_hint", "job", "payloads", "plural", "progress", "protocol"),
        *("result_parts", "result_sections", "results"),
        *("secrets_from_files", "settings", "shard_list", "store"),
        *("tracing", "webhook"),
    },
}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the four folders, by its dotted name without `batchmill`."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for folder in ORDER
        for path in (ROOT / folder).rglob("*.py")
    }


@cache
def imports(module: str) -> frozenset[str]:
    """Return the modules of ours that a module imports, also lazily or for type checkers only."""
    package = module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        named = node.module.split(".") if node.module else []
        if node.level:
            named = package[: len(package) - node.level + 1] + named
        elif named[:1] == ["batchmill"]:
            named = named[1:]
        else:
            continue
        if (target := ".".join(named)) in modules():
            found.add(target)
            continue
        for alias in node.names:
            inner = f"{target}.{alias.name}"
            found.add(inner if inner in modules() else f"{target}.__init__")
    return frozenset(found & modules().keys())


def package_of(module: str) -> tuple[str, str]:
    """Return the folder of a module, and its package there."""
    folder, name, *_ = module.split(".")
    return folder, name


def all_imports() -> Iterator[tuple[str, str]]:
    """Yield every import of one of our modules by another."""
    yield from ((module, target) for module in modules() for target in imports(module))


def import_cycle() -> list[str]:
    """Return modules that import each other in a cycle; empty if there are none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(imports(module)):
            if found := walk(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(modules()) if (found := walk(module, []))), [])


@pytest.mark.parametrize("folder", sorted(ORDER))
def test_every_package_has_its_place_in_the_order(folder: str) -> None:
    packages = {package_of(module)[1] for module in modules() if module.startswith(f"{folder}.")}
    assert packages - {"__init__"} == set(ORDER[folder]) - {"__init__"}


@pytest.mark.parametrize("folder", sorted(ORDER))
def test_a_package_imports_only_packages_below_it(folder: str) -> None:
    place = {name: at for at, name in enumerate(ORDER[folder])}
    upward = sorted(
        f"{module} imports {target}"
        for module, target in all_imports()
        if package_of(module)[0] == package_of(target)[0] == folder
        and place[package_of(target)[1]] > place[package_of(module)[1]]
    )
    assert upward == []


def test_a_folder_imports_only_the_listed_packages_of_another() -> None:
    forbidden = sorted(
        f"{module} imports {target}"
        for module, target in all_imports()
        if package_of(module)[0] != package_of(target)[0]
        and package_of(target)[1]
        not in IMPORTABLE.get((package_of(module)[0], package_of(target)[0]), set())
    )
    assert forbidden == []


def test_every_listed_package_is_imported() -> None:
    used: dict[tuple[str, str], set[str]] = {}
    for module, target in all_imports():
        used.setdefault((package_of(module)[0], package_of(target)[0]), set()).add(
            package_of(target)[1]
        )
    unused = {way: packages - used.get(way, set()) for way, packages in IMPORTABLE.items()}
    assert {way: packages for way, packages in unused.items() if packages} == {}


def test_no_modules_import_each_other_in_a_cycle() -> None:
    assert import_cycle() == []


@pytest.mark.parametrize("module", sorted(name for name in modules() if name.count(".") > 1))
def test_imports_are_relative_in_a_package_and_absolute_across_packages(module: str) -> None:
    package = module.split(".")[:-1]
    wrong = []
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level > 1:
            wrong.append(f"line {node.lineno}: write the whole name of another package")
        if node.level == 0 and (node.module or "").split(".")[1:-1] == package:
            wrong.append(f"line {node.lineno}: import relatively inside a package")
    assert wrong == []


def test_every_package_says_what_it_owns() -> None:
    silent = [
        module
        for module, path in modules().items()
        if module.endswith(".__init__")
        and "Read `" not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert silent == []
